#!/usr/bin/env bash
# A new user's first hour: install, train, watch, change λ, Ctrl-C and resume, an environment of one's own, export and run
# without JAX, one tracker. In a new folder, each step as one would type it.
#
#   docs/first_hour.sh                      in a fresh virtual environment; the first run trains in about a minute
#   SMALL=1 INSTALL=no docs/first_hour.sh   CI: with the jqmix that is installed, everything as small as can be
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
[[ -n ${SMALL:-} ]] && small=(--total-steps 2000 --eval.every 1000 --eval.episodes 8 --eval.absolute 1 --updates 1) || small=()
step() { printf '\n=== %s\n' "$*"; }

step "Install"
if [[ ${INSTALL:-yes} != no ]]; then
  python3 -m venv venv
  # shellcheck disable=SC1091
  source venv/bin/activate
  python -m pip install --quiet "$repository[tensorboard]"
fi
jqmix --version

step "Train: QMIX on SMAX 3m"
jqmix train --run-dir first "${small[@]}"
jqmix evaluate first --episodes 32

step "Watch"
jqmix render first --out game.gif --episodes 1
test -s game.gif

step "Change λ, and compare"
jqmix train --algo.td-lambda 0.6 --run-dir second "${small[@]}"
jqmix report first second --out comparison
test -s comparison/report.png

step "Ctrl-C, and go on"
set -m # so that Ctrl-C reaches what runs in the background
jqmix train two_step_game --total-steps 100000000 --run-dir third --quiet &
until [[ -s third/metrics.jsonl ]] && grep -q train/ third/metrics.jsonl; do sleep 0.5; done
kill -INT $!
code=0
wait $! || code=$?
[[ $code == 130 ]] # what shells expect of a program that Ctrl-C ended
steps=$(python -c 'import json; print(json.loads(open("third/metrics.jsonl").readlines()[-1])["env_steps"])')
jqmix resume third --total-steps $((steps + 20000))

step "An environment of one's own: the one in docs/extending/environment.md"
sed -n '/^```python title="meet.py"$/,/^```$/p' "$repository/docs/extending/environment.md" | sed '1d;$d' >meet.py
jqmix envs --check meet:Meet
jqmix train --env.factory meet:Meet --env.kwargs '{length: 5}' --total-steps 4000 --eval.every 2000 --run-dir fourth
jqmix evaluate fourth --trust --episodes 32

step "Export, and act without JAX"
jqmix export first --out policy
cd policy
python - <<'PYTHON'
import sys

sys.modules["jax"] = sys.modules["jqmix"] = None  # neither can be imported
import numpy as np
from numpy_policy import load

policy = load(".")
state = policy.initial_state(batch=1)
obs = np.zeros((1, policy.n_agents, policy.obs_size), np.float32)
avail = np.ones((1, policy.n_agents, policy.n_actions), bool)
action, state = policy.act(state, obs, avail)
print("without JAX, the team plays", action[0])
PYTHON
cd ..

step "A tracker"
jqmix train --log tensorboard --run-dir fifth "${small[@]}"
find fifth -name '*tfevents*' | grep -q .

step "Done"
