"""What finished runs learned: the greedy metrics of every seed, with what made them, as a table and as JSON.

jqmix train mpe_simple_spread --seeds 4 --run-dir runs/mpe
python benchmarks/summarise.py runs/mpe [--json benchmarks/results/mpe_simple_spread.json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jqmix.inputs import read_yaml

Run = dict[str, Any]


def read(run_dir: Path) -> Run:
    """A run's configuration, metadata and, per seed, its curve of greedy results over environment steps."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curves: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        point = {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
        point |= {"env_steps": line["env_steps"], "updates": line["updates"], "wall_s": line["wall_s"]}
        curves.setdefault(str(line["seed"]), []).append(point)
    config = read_yaml(run_dir / "config.yaml")
    metadata = json.loads((run_dir / "metadata.json").read_text())
    return {
        "config": {k: v for k, v in config.items() if k != "run_dir"},
        "metadata": {k: metadata[k] for k in ("versions", "device", "commit", "replay_ratio", "parameter_count")},
        "curves": curves,
    }


def table(runs: list[Run]) -> str:
    """One Markdown row per run: the last greedy evaluation of every seed, and their mean."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write everything here, too")
    args = parser.parse_args()
    runs = [read(path) for path in args.run_dirs]
    print(table(runs))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
