"""What a change is worth: whole training with the sources of several checkouts, one process each, taking turns.

git worktree add /tmp/before HEAD~1
python benchmarks/turns.py /tmp/before . --preset smax_3m [--set field=value …] [--json OUT]
python benchmarks/turns.py /tmp/before . --case smax_3m --hidden 64 --iterations 4      # JaxMARL's amount of work

Machines drift by more than most changes are worth, so that only times of one call can be compared. The first checkout
is what the others are compared with. A turn is one chunk: its iterations with learning and an evaluation.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from measure import Contender, answer_turns, take_turns, write


def serve(text: str) -> None:
    """A checkout's own process: whole training as the settings say, in milliseconds per iteration."""
    import jax

    from jqmix.config import load_config
    from jqmix.learning.train import iterations_per_chunk
    from jqmix.runs.devices import use_cpu_cores
    from jqmix.runs.population import compile_population

    use_cpu_cores()
    settings = json.loads(text)
    if settings["case"]:
        from vs_peers import case_of, our_config

        case = case_of(settings["case"], settings["hidden"])
        cfg = our_config(settings["case"], case, settings["iterations"], settings["seeds"])
    else:
        cfg = load_config(settings["preset"], **settings["changes"])
    population = compile_population(cfg)
    state = [population.members, population.shared]
    while int(state[1].updates) == 0:
        state[:] = jax.block_until_ready(population.step(*state))[:2]
    iterations = iterations_per_chunk(cfg, population.spec)

    def turn() -> float:
        begin = time.perf_counter()
        state[:] = jax.block_until_ready(population.step(*state))[:2]
        return 1e3 * (time.perf_counter() - begin) / iterations

    answer_turns({"trace_s": population.trace_s, "compile_s": population.compile_s}, turn)


def compare(trees: list[Path], settings: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Per checkout its times per iteration, their median, and that over the first one's."""
    contenders = [Contender([__file__, "--serve", json.dumps(settings)], tree) for tree in trees]
    medians = take_turns(contenders, repeats)
    return [
        {"commit": _commit(tree), **c.costs, "ms_per_iteration": m, "ratio": m / medians[0], "all": c.results}
        for tree, c, m in zip(trees, contenders, medians, strict=True)
    ]


def _commit(tree: Path) -> str:
    git = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, help="checkouts")
    parser.add_argument("--preset", default="smax_3m")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--case", help="JaxMARL's amount of work in one of vs_peers.py's cases, in place of a preset")
    parser.add_argument("--hidden", type=int, default=64, help="width of the agents in a case")
    parser.add_argument("--seeds", type=int, default=1, help="members in a case")
    parser.add_argument("--iterations", type=int, default=4, help="iterations of a turn in a case")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if not args.trees:
        parser.error("trees: which checkouts?")
    settings = {name: getattr(args, name) for name in ("preset", "case", "hidden", "seeds", "iterations")}
    settings["changes"] = dict(text.split("=", 1) for text in args.set)
    rows = compare(args.trees, settings, args.repeats)
    for tree, row in zip(args.trees, rows, strict=True):
        print(
            f"{tree!s:30} {row['commit']:20} {row['ms_per_iteration']:10.2f} ms per iteration  ×{row['ratio']:.3f}   "
            f"trace {row['trace_s']:.1f} s  compile {row['compile_s']:.1f} s"
        )
    write(args.json, {"settings": settings, "checkouts": rows})


if __name__ == "__main__":
    main()
