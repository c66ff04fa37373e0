"""How well `jqmix plan` says what a second device brings: its model against two of this machine's cores.

    python benchmarks/scaling.py --json FILE

Two members on one device (one core) and on two, in turns. The model of devices that share nothing says 2; the error is
what the cores have in common: caches, memory, and whatever else runs. The spread of the single turns says how noisy it
was.
"""

import argparse
import os
import statistics
from pathlib import Path

from measure import Contender, Training, answer, fields, write

PREDICTED = 2.0  # members that share nothing, as ``jqmix/runs/plan.py`` has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="two_step_game")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _child(args)
    command = [__file__, "--child", "--preset", args.preset, "--set", *args.set] if args.set else [__file__, "--child"]
    one, two = (Contender(command, environment={"JAX_NUM_CPU_DEVICES": str(n)}) for n in (1, 2))
    for _ in range(args.turns):
        one.turn()
        two.turn()
    ratios = [a / b for a, b in zip(one.answers, two.answers, strict=True)]
    measured = statistics.median(ratios)
    one.end()
    two.end()
    result = {"preset": args.preset, "set": args.set, "predicted": PREDICTED, "measured": measured}
    result |= {"error": PREDICTED / measured - 1, "ratios": ratios}
    print(result)
    write(args.json, result)


def _child(args: argparse.Namespace) -> None:
    from jqmix.config import load_config

    os.sched_setaffinity(0, range(int(os.environ["JAX_NUM_CPU_DEVICES"])))  # or one device would use both cores, too
    training = Training(load_config(args.preset, **(fields(args.set) | {"seeds": 2})))
    training.until_learning()
    answer(None)
    while True:
        try:
            input()
        except EOFError:
            return
        answer(training.call())


if __name__ == "__main__":
    main()
