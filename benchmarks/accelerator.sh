#!/usr/bin/env bash
# Every figure that needs an accelerator, as JSON in a folder: about half an hour on one GPU.
#
#   benchmarks/accelerator.sh OUT [JAXMARL_CLONE]
#
# Whole training against environments alone, over seeds and rollouts; SMAX against JaxMARL's with 4 096 environments;
# the parts of an iteration and their floors; and, with a clone, whole training against JaxMARL's QMIX, 1 and 16 seeds.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
clone=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")"
python training.py --preset smax_2s3z --seeds 1 4 16 64 --json "$out/training_seeds.json"
python training.py --preset smax_2s3z --seeds 1 --rollouts 8 32 128 --json "$out/training_rollouts.json"
python smax_speed.py --batches 256 1024 4096 --json "$out/smax_speed.json"
python roofline.py smax_2s3z --json "$out/roofline_2s3z.json"
python parts.py smax_2s3z --json "$out/parts_2s3z.json"
if [[ -n $clone ]]; then
  for seeds in 1 16; do
    for case in smax_3m smax_2s3z mpe_simple_spread_v3; do
      python vs_peers.py --jaxmarl "$clone/baselines/QLearning/qmix_rnn.py" --case $case --seeds $seeds \
        --json "$out/vs_jaxmarl_${case}_$seeds.json"
    done
  done
fi
