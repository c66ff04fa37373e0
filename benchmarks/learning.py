"""What runs learn.

python benchmarks/learning.py runs RUN_DIR… [--json OUT]             # what finished runs learned, seed by seed
python benchmarks/learning.py unpack JSON… --out DIR                 # such a result as run directories, to report on
python benchmarks/learning.py games [--mixers qmix …] [--json OUT]   # matrix games and the two-step game, by mixer
python benchmarks/learning.py random ENV [--json OUT]                # what random available actions earn
python benchmarks/learning.py in_jaxmarl RUN_DIR… [--json OUT]       # what SMAX runs win in JaxMARL's own environment
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import random_episodes, use_cpu_cores, write

import jqmix
from jqmix.inputs import dump_yaml, read_yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = dict[str, Any]

# Finished runs


def read(run_dir: Path) -> Run:
    """A run's configuration, metadata and, by seed, its curve of greedy results over environment steps and what its
    best parameters reached in the end."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curves: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        point = {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
        if not point:
            continue
        point |= {"env_steps": line["env_steps"], "updates": line["updates"], "wall_s": line["wall_s"]}
        curves.setdefault(str(line["seed"]), []).append(point)
    config = read_yaml(run_dir / "config.yaml")
    metadata = json.loads((run_dir / "metadata.json").read_text())
    return {
        "config": {k: v for k, v in config.items() if k != "run_dir"},
        "metadata": {k: metadata.get(k) for k in ("versions", "device", "commit", "replay_ratio", "parameter_count")},
        "curves": curves,
        "absolute": {str(line["seed"]): line for line in lines if "absolute/episodes" in line},
    }


def table(runs: list[Run]) -> str:
    """A Markdown row for each run: the last greedy evaluation of every seed, and their mean."""
    rows = ["| environment | mixer | env steps | metric | seeds | mean | wall s |", "|---|---|---|---|---|---|---|"]
    for run in runs:
        last = {seed: curve[-1] for seed, curve in run["curves"].items()}
        metric = "win_rate" if all("win_rate" in p for p in last.values()) else "return_mean"
        values = [p[metric] for p in last.values()]
        config = run["config"]
        rows.append(
            f"| {config['env']['name']} | {config['algo']['mixer']} | {min(p['env_steps'] for p in last.values()):,} | "
            f"{metric} | {', '.join(f'{v:.3f}' for v in values)} | {sum(values) / len(values):.3f} | "
            f"{max(p['wall_s'] for p in last.values()):.0f} |"
        )
    return "\n".join(rows)


def runs(args: argparse.Namespace) -> None:
    found = [read(path) for path in args.run_dirs]
    print(table(found))
    write(args.json, {"runs": found})


def unpack(args: argparse.Namespace) -> None:
    """A run directory for each run of results: what ``jqmix report`` reads."""
    for path in args.results:
        result = json.loads(path.read_text())
        for i, run in enumerate(result["runs"] if isinstance(result, dict) else result):
            folder = args.out / f"{path.stem}_{i}_{run['config']['algo']['mixer']}"
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(dump_yaml(run["config"] | {"run_dir": str(folder)}))
            (folder / "metadata.json").write_text(json.dumps(run["metadata"]))
            with (folder / "metrics.jsonl").open("w") as file:
                file.writelines(json.dumps(line) + "\n" for line in logged(run))
            print(folder)


def logged(run: Run) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl that :func:`read` made curves of."""
    for seed, curve in run["curves"].items():
        for point in curve:
            named = {k if k in ("env_steps", "updates", "wall_s") else f"eval/{k}": v for k, v in point.items()}
            yield {"seed": int(seed), **named}
    yield from run.get("absolute", {}).values()


# Games

GAMES = {"matrix_game_a": 8, "matrix_game_b": 12, "matrix_game_c": 10.4, "matrix_game_d": 8, "two_step_game": 8}
# From large steps on, QMIX's error on payoff A has a second minimum, in which some seeds end: see its preset.
OVERRIDES = {("matrix_game_a", "qmix"): {"optim.lr": 2e-4, "mixer.embed": 32}}
MIXERS = ("vdn", "qmix", "qatten", "qplex", "qtran", "cw_qmix", "ow_qmix")


def play(game: str, mixer: str, seeds: int) -> dict[str, Any]:
    """Trains a game; every seed's greedy return, and its tables as ``jqmix igm`` gives them."""
    from jqmix.runs.igm import joint_values

    changes = {"algo.mixer": mixer, **OVERRIDES.get((game, mixer), {})}
    with tempfile.TemporaryDirectory() as folder:
        cfg = jqmix.load_config(game, seeds=seeds, run_dir=f"{folder}/run", **changes)
        result = jqmix.train(cfg, quiet=True)
        tables = [row for values in joint_values(result.run_dir) for row in values.rows()]
        returns = [line["eval/return_mean"] for line in result.metrics if "eval/return_mean" in line][-seeds:]
    return {"game": game, "changes": changes, "seeds": list(range(seeds)), "returns": returns, "tables": tables}


def told(returns: list[float]) -> str:
    """Once, where all seeds earn the same."""
    same = max(returns) - min(returns) < 1e-3
    return f"{returns[0]:g}" if same else ", ".join(f"{x:g}" for x in returns)


def games(args: argparse.Namespace) -> None:
    use_cpu_cores()
    print("| | most | " + " | ".join(args.mixers) + " |\n|---|---|" + "---|" * len(args.mixers))
    played = []
    for game in args.games:
        row = [play(game, mixer, args.seeds) for mixer in args.mixers]
        print(f"| {game} | {GAMES[game]:g} | " + " | ".join(told(x["returns"]) for x in row) + " |", flush=True)
        played += row
    write(args.json, {"played": played})


# Random play


def random(args: argparse.Namespace) -> None:
    result = {"environment": args.env, **random_episodes(jqmix.make_env(args.env, batch=args.episodes))}
    print("  ".join(f"{k} {v}" for k, v in result.items()))
    write(args.json, result)


# SMAX as JaxMARL has it


def in_jaxmarl(args: argparse.Namespace) -> None:
    """Exported policies, which act with NumPy, play whole episodes in JaxMARL's environment. Of jqmix nothing takes
    part but the weights: neither its SMAX, nor its agents, nor its evaluation."""
    sys.path.insert(0, str(EXAMPLES))
    play = importlib.import_module("act_in_jaxmarl")
    rows = []
    for run_dir in args.run_dirs:
        env = read_yaml(run_dir / "config.yaml")["env"]["name"]
        with tempfile.TemporaryDirectory() as folder:
            training = jqmix.export(run_dir, folder, overwrite=True)["training"]
            won = play.win_rate(play.load_policy(Path(folder)), env.removeprefix("smax_"), args.episodes, args.seed)
        rows.append({"env": env, "episodes": args.episodes, "key": args.seed, "win_rate": won, "training": training})
        print(f"{env}: {won:.3f} of {args.episodes} episodes in JaxMARL's own environment", flush=True)
    write(args.json, {"runs": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="runs | unpack | games | random | in_jaxmarl")
    finished = commands.add_parser("runs", help="what finished runs learned")
    finished.add_argument("run_dirs", nargs="+", type=Path)
    finished.set_defaults(run=runs)
    packed = commands.add_parser("unpack", help="results of runs as run directories")
    packed.add_argument("results", nargs="+", type=Path)
    packed.add_argument("--out", type=Path, required=True)
    packed.set_defaults(run=unpack)
    played = commands.add_parser("games", help="matrix games and the two-step game")
    played.add_argument("--games", nargs="+", choices=list(GAMES), default=list(GAMES))
    played.add_argument("--mixers", nargs="+", default=list(MIXERS))
    played.add_argument("--seeds", type=int, default=4)
    played.set_defaults(run=games)
    chance = commands.add_parser("random", help="what random available actions earn")
    chance.add_argument("env")
    chance.add_argument("--episodes", type=int, default=4096, help="a window of each of so many environments")
    chance.set_defaults(run=random)
    theirs = commands.add_parser("in_jaxmarl", help="what SMAX runs win in JaxMARL's own environment")
    theirs.add_argument("run_dirs", nargs="+", type=Path)
    theirs.add_argument("--episodes", type=int, default=512)
    theirs.add_argument("--seed", type=int, default=0, help="of the episodes")
    theirs.set_defaults(run=in_jaxmarl)
    for command in (finished, played, chance, theirs):
        command.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
