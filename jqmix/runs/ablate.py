"""Running a study: its configurations shape by shape, as many of them in one program as have the same shape."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path

from jqmix.config import ConfigError
from jqmix.runs.experiment import Result, shape_of, train_together
from jqmix.runs.results import collect
from jqmix.runs.study import Study


def run_study(study: Study, out: str | None, kind: str, say: Callable[[str], None] = print) -> Path:
    """Trains all configurations of a study; returns its folder (``out``, or a new one in runs/).

    Raises ``ConfigError`` if the folder holds anything.
    """
    first = next(iter(study.configs.values()))
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(out) if out is not None else Path("runs") / f"{kind}_{first.env.name.replace('/', '_')}_{stamp}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out: {folder} already exists and is not empty; nothing was overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    study.save(folder)
    say(f"study: {folder}")
    programs = list(collect(study.configs.items(), lambda item: shape_of(item[1])).values())
    for number, items in enumerate(programs, 1):
        say(f"program {number} of {len(programs)}: {'; '.join(name for name, _ in items)}")
        placed = [dataclasses.replace(cfg, run_dir=str(folder / name)) for name, cfg in items]
        say(_done(train_together(placed, quiet=True)))
    return folder


def _done(results: list[Result]) -> str:
    last = [r.metrics[-1] for r in results]
    metric = "eval/win_rate" if "eval/win_rate" in last[0] else "eval/return_mean"
    found = ", ".join(f"{line[metric]:.3g}" for line in last if metric in line)
    first = results[0]
    return (
        f"  compiled in {first.trace_s + first.compile_s:.0f} s, trained in {first.train_s:.0f} s; "
        f"last {metric} of each one's last seed: {found}"
    )
