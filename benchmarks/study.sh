#!/usr/bin/env bash
# The study of the tricks on three maps, as 2102.03479 made it on SMAC: for an accelerator, as it takes long.
#
#   benchmarks/study.sh OUT [MAPS] [jqmix ablate's flags]
#
#   benchmarks/study.sh study                                            # 2s3z, 3s5z, 5m_vs_6m; 8 seeds, 10 M steps each
#   benchmarks/study.sh try 3m --seeds 2 --total-steps 8000 --eval.every 4000 --only lambda    # to see that it runs
#
# Writes OUT/<map>, the study's runs, and OUT/<map>/report: tables, a panel for each trick, and the raw data.
set -euo pipefail
out=$1
maps=${2:-2s3z 3s5z 5m_vs_6m}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
for map in $maps; do
  if [[ -e $out/$map/report/report.md ]]; then
    echo "$out/$map has its report already"
    continue
  fi
  jqmix ablate "smax_$map" --seeds 8 --out "$out/$map" "$@"
done
