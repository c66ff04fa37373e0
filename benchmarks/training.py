"""Whole training over environments × members × rollouts × widths: every case in a process of its own.

python benchmarks/training.py [--preset smax_3m …] [--seeds 1 2 4 …] [--rollouts …] [--hidden …] [--json OUT]

Each is `jqmix bench`, so compile times are without a cache. What is left out stays as the preset has it. The peak of
memory is the process's on a CPU, the device's elsewhere.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import write


def measure(
    preset: str, seeds: int, rollouts: int | None, hidden: int | None, changes: dict[str, str]
) -> dict[str, Any]:
    """One case; where it fails, the last line of what it said."""
    command = [sys.executable, "-m", "jqmix.cli", "bench", preset, "--json", "--seeds", str(seeds)]
    command += [word for field, value in changes.items() for word in (f"--{field}", value)]
    if rollouts is not None:
        command += ["--rollouts", str(rollouts)]
    if hidden is not None:
        command += ["--agent.hidden", str(hidden)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = {"preset": preset, "changes": changes, "seeds": seeds, "rollouts": rollouts, "hidden": hidden}
    if done.returncode:
        return result | {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return result | json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["smax_3m"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[None])
    parser.add_argument("--hidden", nargs="+", type=int, default=[None])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other fields to change, everywhere"
    )
    parser.add_argument("--json", type=Path, help="write the results here, too")
    args = parser.parse_args()
    changes, rows = dict(text.split("=", 1) for text in args.set), []
    for preset, seeds, rollouts, hidden in itertools.product(args.preset, args.seeds, args.rollouts, args.hidden):
        row = measure(preset, seeds, rollouts, hidden, changes)
        rows.append(row)
        case = f"{preset:24} {seeds:4} seeds  rollouts {rollouts or '–':>5}  hidden {hidden or '–':>4}"
        if "error" in row:
            print(f"{case}  {row['error']}", flush=True)
            continue
        t = row["training"]
        print(
            f"{case}  {t['steps_per_s']:>11,.0f} steps/s  environment alone {row['env_only']['steps_per_s']:>11,.0f}  "
            f"trace {t['trace_s']:5.1f} s  compile {t['compile_s']:5.1f} s  peak {t['peak_bytes'] / 1e6:>8,.0f} MB",
            flush=True,
        )
    write(args.json, {"cases": rows})


if __name__ == "__main__":
    main()
