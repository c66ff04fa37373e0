"""The memory plan against what compiled training programs reserve: of this machine's CPU, or of a chip that need not be
here.

    python benchmarks/memory.py --target v5e --json benchmarks/results/memory/v5e.json

For a dozen configurations of one device, prints plan and reservation (state, temporaries, and results that take no
state's place). Compiling is what takes the time; ``--again`` reads the reservations from a file of before, and makes
the plans anew: to fit the factors of ``jqmix/runs/memory.py``. ``tests/test_memory.py`` holds the plans to these files.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from measure import compile_training, plan_memory, write

from jqmix.chips.catalogue import CHIPS

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two_step_game": ("two_step_game", {}),
    "two_step_game_64_seeds": ("two_step_game", {"seeds": 64}),
    "predator_prey_qplex": ("predator_prey", {"algo.mixer": "qplex", "mixer.hypernet_hidden": 128, "seeds": 4}),
    "mpe_8_seeds": ("mpe_simple_spread", {"seeds": 8}),
    "overcooked": (
        "overcooked_cramped_room",
        {
            "rollouts": 8,
            "updates": 4,
            "window": None,
            "window_start": "reset",
            "replay.capacity": 512,
            "replay.burn_in": 0,
            "agent.layer_norm": False,
            "agent.obs_norm": "none",
        },
    ),
    "smax_3m": ("smax_3m_dense", {}),
    "smax_3m_ow_qmix": ("smax_3m_dense", {"algo.mixer": "ow_qmix", "seeds": 2}),
    "smax_3m_pqn": ("smax_pqn", {"env.name": "smax_3m", "rollouts": 64, "agent.hidden": 128, "seeds": 4}),
    "smax_2s3z_16_seeds": ("smax_published", {"seeds": 16}),
    "smax_2s3z_prioritised": (
        "smax_published",
        {"replay.prioritised": True, "agent.hidden": 128, "rollouts": 32, "replay.capacity": 5024},
    ),
    "smax_8m_wide_mixer": (
        "smax_published",
        {"env.name": "smax_8m", "mixer.embed": 128, "mixer.hypernet_hidden": 512, "updates": 4},
    ),
    "smax_2s3z_pqn": ("smax_pqn_published", {}),
    "smax_27m_vs_30m": ("smax_published", {"env.name": "smax_27m_vs_30m"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["cpu", "h100", "a100", "v5e", "v6e"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--again", action="store_true", help="plans alone, against the reservations in --json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there; cases that are in it stay")
    args = parser.parse_args()
    before = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {"cases": {}}
    for name in args.only:
        preset, changes = CASES[name]
        case = before["cases"].get(name, {"preset": preset, "changes": changes})
        if args.again and "reserved" not in case:
            continue
        if not args.again:
            told = compile_training(args.target, preset, changes)
            case |= {part: told[part] for part in ("state", "temporary", "reserved")} | {"jax": jax.__version__}
            if args.target in CHIPS and CHIPS[args.target].platform == "tpu":
                case["libtpu"] = version("libtpu")
        case["planned"] = plan_memory(args.target, preset, changes)
        case["planned_over_reserved"] = round(case["planned"] / case["reserved"], 3)
        before["cases"][name] = case
        mega = f"{case['planned'] / 1e6:10,.1f} MB planned, {case['reserved'] / 1e6:10,.1f} MB reserved"
        print(f"{name:24} {mega}, {case['planned_over_reserved']:.2f}", flush=True)
        write(args.json, {"target": args.target, "cases": before["cases"]})


if __name__ == "__main__":
    main()
