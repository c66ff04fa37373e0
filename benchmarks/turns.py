"""What a change, a setting or a size is worth: whole training in processes of their own, taking turns.

git worktree add /tmp/before HEAD~1
python benchmarks/turns.py /tmp/before . --preset smax_3m                      # two checkouts
python benchmarks/turns.py . .,JQMIX_PLAIN=1 .,agent.hidden=32                 # an environment variable, a field
python benchmarks/turns.py . --preset smax_3m --grid seeds=1,4,16 rollouts=4,16 # sizes: each combination is a case
python benchmarks/turns.py /tmp/before . --case smax_3m --hidden 64            # JaxMARL's amount of work for QMIX

A preset is each checkout's own: `smax_3m` means another setting before 2713228. A YAML file is the same for all.

Machines drift by more than most changes are worth, so that only times of the same call can be compared; sizes follow
one another, and of them only large differences count. The first checkout is what the others are compared with. A turn
is a call of the compiled program: iterations with learning, and an evaluation. Steps are summed over members. Each
checkout is served by its own benchmarks, where it has them.
"""

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from measure import Contender, Ended, answer_turns, cases, fields, take_turns, write


def serve(text: str) -> None:
    """A checkout's own process."""
    from measure import Training, peak_bytes, use_cpu_cores

    from jqmix.config import load_config

    use_cpu_cores()
    settings = json.loads(text)
    if settings["case"]:
        from jaxmarl_work import qmix_work, sized_case

        case = sized_case(settings["case"], settings["hidden"])
        cfg = qmix_work(settings["case"], case, settings["iterations"], settings["seeds"])
    else:
        cfg = load_config(settings["preset"], **settings["changes"])
    training = Training(cfg)
    training.until_learning()

    def turn() -> dict[str, float]:
        before, seconds = training.env_steps(), training.call()
        steps_per_s = (training.env_steps() - before) / seconds
        ms = 1e3 * seconds / training.iterations
        return {"ms_per_iteration": ms, "steps_per_s": steps_per_s, "peak_bytes": peak_bytes()}

    answer_turns(training.costs, turn)


def contender(text: str, settings: dict[str, Any]) -> Contender:
    """``CHECKOUT[,NAME=VALUE…]``; a name in capitals is an environment variable, another one a field."""
    tree, *words = text.split(",")
    named = fields(words)
    environment = {name: value for name, value in named.items() if name.isupper()}
    changes = {name: value for name, value in named.items() if not name.isupper()}
    settings = settings | {"changes": settings["changes"] | changes}
    own = Path(tree, "benchmarks", "turns.py").resolve()
    script = own if own.is_file() else Path(__file__).resolve()
    return Contender([str(script), "--serve", json.dumps(settings)], Path(tree), environment)


def compare(checkouts: list[str], settings: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Every contender's medians, and its time over the first one's."""
    contenders: list[Contender] = []
    try:
        contenders += (contender(text, settings) for text in checkouts)
        take_turns(contenders, repeats)
    finally:
        for each in contenders:
            each.end()
    rows = []
    for text, each in zip(checkouts, contenders, strict=True):
        # Older checkouts answer milliseconds alone.
        turns = [a if isinstance(a, dict) else {"ms_per_iteration": a} for a in each.answers]
        medians = {name: median(turn[name] for turn in turns) for name in turns[0]}
        # Where a checkout lies is of this machine alone: what it holds is its commit.
        what = {"commit": _commit(text), "variant": text.split(",")[1:]}
        rows.append({**what, **each.costs, **medians, "all": each.answers})
    return [row | {"ratio": row["ms_per_iteration"] / rows[0]["ms_per_iteration"]} for row in rows]


def _commit(text: str) -> str:
    git = ["git", "-C", text.split(",")[0], "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def show(checkout: str, row: dict[str, Any]) -> None:
    print(
        f"  {checkout:30} {row['commit']:20} {row['ms_per_iteration']:10.2f} ms per iteration  "
        f"×{row['ratio']:.3f}   {row.get('steps_per_s', 0):>11,.0f} steps/s   trace {row['trace_s']:.1f} s  "
        f"compile {row['compile_s']:.1f} s   peak {row.get('peak_bytes', 0) / 1e6:,.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", metavar="CHECKOUT[,NAME=VALUE…]")
    parser.add_argument("--preset", nargs="+", default=["smax_3m"])
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--grid", nargs="*", default=[], metavar="FIELD=V1,V2…", help="every combination is a case")
    parser.add_argument("--case", help="JaxMARL's amount of work for QMIX in an environment, in place of presets")
    parser.add_argument("--hidden", type=int, default=64, help="width of the agents in a --case")
    parser.add_argument("--seeds", type=int, default=1, help="members in a --case")
    parser.add_argument("--iterations", type=int, default=4, help="iterations of a turn in a --case")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if not args.checkouts:
        parser.error("CHECKOUT: which?")
    rows = []
    for preset in args.preset:
        for changes in cases(args.grid):
            settings = {name: getattr(args, name) for name in ("case", "hidden", "seeds", "iterations")}
            settings |= {"preset": preset, "changes": fields(args.set) | changes}
            print(args.case or preset, " ".join(f"{k}={v}" for k, v in settings["changes"].items()), flush=True)
            try:
                compared = compare(args.checkouts, settings, args.repeats)
            except Ended as ended:
                print(f"  ended: {ended}", flush=True)
                rows.append({"settings": settings, "error": str(ended)})
                continue
            for checkout, row in zip(args.checkouts, compared, strict=True):
                show(checkout, row)
            rows.append({"settings": settings, "checkouts": compared})
    write(args.json, {"cases": rows})


if __name__ == "__main__":
    main()
