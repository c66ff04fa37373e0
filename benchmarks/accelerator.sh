#!/usr/bin/env bash
# Every figure that needs an accelerator, as JSON in a folder: about half an hour on one GPU.
#
#   benchmarks/accelerator.sh OUT [JAXMARL_CLONE]
#   QUICK=1 benchmarks/accelerator.sh OUT [JAXMARL_CLONE]    # the same steps, each as small as it can be: to see that all run
#
# Whole training against environments alone, over seeds and rollouts; SMAX against JaxMARL's with 4 096 environments;
# the parts of an iteration and their floors; the GRU as a scan and as one kernel; and, with a clone, whole training against
# JaxMARL's QMIX, 1 and 16 seeds. A step that fails is named at the end, and the others are made all the same.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
clone=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")"

seeds=(1 4 16 64) ends=(1 16) rollouts=(8 32 128) batches=(256 1024 4096) peers=(1 16) rows=(96 640 5120)
maps=(3m 2s3z 5m_vs_6m 27m_vs_30m) cases=(smax_3m smax_2s3z mpe_simple_spread_v3) setting=() turns=() work=(--hidden 512)
if [[ -n ${QUICK:-} ]]; then
  seeds=(1 2) ends=(1) rollouts=(4) batches=(8) peers=(1) rows=(8) maps=(3m) cases=(mpe_simple_spread_v3)
  setting=(window=101 rollouts=4 replay.capacity=16 replay.batch=4 eval.every=400 eval.episodes=4)
  turns=(--repeats 1 --iterations 2) work=(--hidden 8)
fi

failed=()
step() { # NAME COMMAND…
  local name=$1
  shift
  echo "== $name"
  python "$@" --json "$out/$name.json" || failed+=("$name")
}

step training_seeds training.py --preset smax_2s3z --seeds "${seeds[@]}" --set "${setting[@]}"
step training_one_kernel training.py --preset smax_2s3z --seeds "${ends[@]}" --set "${setting[@]}" agent.one_kernel=true
step training_rollouts training.py --preset smax_2s3z --seeds 1 --rollouts "${rollouts[@]}" --set "${setting[@]}"
step smax_speed smax_speed.py --maps "${maps[@]}" --batches "${batches[@]}"
step roofline_2s3z roofline.py smax_2s3z --set "${setting[@]}"
step parts_2s3z parts.py smax_2s3z --set "${setting[@]}"
step products_2s3z products.py smax_2s3z --set "${setting[@]}"
step gru gru.py --rows "${rows[@]}" --hidden 64 128
if [[ -n $clone ]]; then
  peer="$clone/baselines/QLearning/qmix_rnn.py"
  for case in "${cases[@]}"; do
    for n in "${peers[@]}"; do
      step "vs_jaxmarl_${case}_h64_$n" vs_peers.py --jaxmarl "$peer" --case "$case" --hidden 64 --seeds "$n" "${turns[@]}"
    done
  done
  step "vs_jaxmarl_${cases[0]}_default" vs_peers.py --jaxmarl "$peer" --case "${cases[0]}" "${work[@]}" "${turns[@]}"
fi
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" && exit 1; }
