#!/usr/bin/env bash
# What needs an accelerator, as JSON in a folder, the most important first.
#
#   benchmarks/accelerator.sh OUT [JAXMARL_CLONE]
#   QUICK=1 benchmarks/accelerator.sh OUT [JAXMARL_CLONE]    # the same steps, each as small as it can be: to see that all run
#   ONLY="kernels model" benchmarks/accelerator.sh OUT       # these steps alone
#
# Whether our kernels come out right, and how far the model of the time is off; with a clone, whole training against
# JaxMARL's QMIX, 1 and 8 seeds; SMAX learned by the general setting; the GRU as a scan and as one kernel; whole training
# over seeds and rollouts; SMAX against JaxMARL's with 4 096 environments; the parts of an iteration. A step that fails,
# or takes more than LIMIT seconds (600), is named at the end, and the others are made all the same. CHIP names whose
# constants the model takes (h100), PYTHON the interpreter (python).
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
clone=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1  # what was found before a limit is seen

# Beside JaxMARL 8 seeds: for 16 of 2s3z XLA says that its program takes 67 to 100 GB, and an H100 has 85.
preset=smax_published seeds=(1 16) beside=(1 8) grid=1,16,64 rollouts=8,32,128 batches=(1024 4096) rows=(640)
maps=(3m 2s3z) cases=(smax_2s3z smax_3m) setting=() turns=() repeats=3 chip=${CHIP:-h100}
suite=(--algorithms smax --maps 2s3z 5m_vs_6m --seeds 0 1 2 3 --together)
if [[ -n ${QUICK:-} ]]; then
  seeds=(1) beside=(1) grid=1,2 rollouts=4,8 batches=(8) rows=(8) maps=(3m) cases=(mpe_simple_spread_v3) repeats=1
  setting=(window=101 rollouts=4 replay.capacity=16 replay.batch=4 eval.every=400 eval.episodes=4)
  turns=(--repeats 1 --iterations 2 --speed-alone)
  suite=(--algorithms smax --maps 3m --seeds 0 1 --together --total-steps 4000)
fi

failed=()
step() { # NAME SCRIPT ARGUMENTS…
  local name=$1 script=$2
  shift 2
  [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
  echo "== $name"
  limited "$name" "benchmarks/$script" "$@" --json "$out/$name.json"
}

limited() { # NAME ARGUMENTS…
  local name=$1 begin=$SECONDS
  shift
  timeout --kill-after 20 "${LIMIT:-600}" "${PYTHON:-python}" "$@" || failed+=("$name")
  echo "($((SECONDS - begin)) s)"
}

learning() { # as the suite runs it; a file for every seed is the result
  [[ -z ${ONLY:-} || " $ONLY " == *" learning "* ]] || return 0
  echo "== learning"
  limited learning benchmarks/smax_suite.py run --out "$out/suite" "${suite[@]}"
  limited learning benchmarks/smax_suite.py collect --out "$out/suite" --json-dir "$out/smax_suite"
}

step kernels on_chip.py kernels
step model on_chip.py model --chip "$chip" --preset $preset --seeds "${seeds[@]}" --repeats $repeats --set "${setting[@]}"
if [[ -n $clone ]]; then
  for case in "${cases[@]}"; do
    for n in "${beside[@]}"; do
      step "speed_${case}_h64_$n" peers.py speed --jaxmarl "$clone" --case "$case" --hidden 64 --seeds "$n" "${turns[@]}"
    done
  done
fi
learning
step one_kernel turns.py .,core.one_kernel=false . --preset $preset --set "${setting[@]}" --repeats $repeats
step sizes_seeds turns.py . --preset $preset --set "${setting[@]}" --grid seeds=$grid --repeats $repeats
step sizes_rollouts turns.py . --preset $preset --set "${setting[@]}" --grid rollouts=$rollouts --repeats $repeats
step smax peers.py smax --maps "${maps[@]}" --batches "${batches[@]}"
step parts_2s3z parts.py time $preset --set "${setting[@]}"
step gru parts.py gru --rows "${rows[@]}" --hidden 64 128
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" && exit 1; }
