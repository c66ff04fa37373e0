#!/usr/bin/env bash
# Every figure that needs an accelerator, as JSON in a folder: about half an hour on a GPU.
#
#   benchmarks/accelerator.sh OUT [JAXMARL_CLONE]
#   QUICK=1 benchmarks/accelerator.sh OUT [JAXMARL_CLONE]    # the same steps, each as small as it can be: to see that all run
#
# Whole training over seeds and rollouts, and with the GRU as a scan; SMAX against JaxMARL's with 4 096 environments;
# the parts of an iteration and their floors; every product; the GRU's forms; and, with a clone, whole training against
# JaxMARL's QMIX, 1 and 16 seeds. A step that fails is named at the end, and the others are made all the same.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
clone=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/.."

preset=smax_2s3z seeds=1,4,16,64 rollouts=8,32,128 batches=(256 1024 4096) peers=(1 16) rows=(96 640 5120)
maps=(3m 2s3z 5m_vs_6m 27m_vs_30m) cases=(smax_3m smax_2s3z mpe_simple_spread_v3) setting=() turns=() width=512
if [[ -n ${QUICK:-} ]]; then
  seeds=1,2 rollouts=4,8 batches=(8) peers=(1) rows=(8) maps=(3m) cases=(mpe_simple_spread_v3) width=8
  setting=(window=101 rollouts=4 replay.capacity=16 replay.batch=4 eval.every=400 eval.episodes=4)
  turns=(--repeats 1 --iterations 2)
fi

failed=()
step() { # NAME SCRIPT ARGUMENTS…
  local name=$1 script=$2
  shift 2
  echo "== $name"
  python "benchmarks/$script" "$@" --json "$out/$name.json" || failed+=("$name")
}

step sizes_seeds turns.py . --preset $preset --set "${setting[@]}" --grid seeds=$seeds --repeats 3
step sizes_rollouts turns.py . --preset $preset --set "${setting[@]}" --grid rollouts=$rollouts --repeats 3
step one_kernel turns.py . .,core.one_kernel=false --preset $preset --set "${setting[@]}" --repeats 3
step smax peers.py smax --maps "${maps[@]}" --batches "${batches[@]}"
step parts_2s3z parts.py time $preset --set "${setting[@]}"
step products_2s3z parts.py products $preset --set "${setting[@]}"
step gru parts.py gru --rows "${rows[@]}" --hidden 64 128
if [[ -n $clone ]]; then
  for case in "${cases[@]}"; do
    for n in "${peers[@]}"; do
      step "speed_${case}_h64_$n" peers.py speed --jaxmarl "$clone" --case "$case" --hidden 64 --seeds "$n" "${turns[@]}"
    done
  done
  step "speed_${cases[0]}_default" peers.py speed --jaxmarl "$clone" --case "${cases[0]}" --hidden $width "${turns[@]}"
fi
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" && exit 1; }
