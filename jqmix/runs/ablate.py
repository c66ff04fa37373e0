"""Running a study: its configurations shape by shape, as many of them in one program as have the same shape."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jqmix.analysis.results import group_by
from jqmix.analysis.study import Study, load_study, sweep
from jqmix.config import Config, foreign_code
from jqmix.interrupts import say as say_to_stderr
from jqmix.interrupts import watched
from jqmix.runs.experiment import shape_of, train_together
from jqmix.runs.run_dir import RunDir
from jqmix.runs.terminal import Terminal
from jqmix.trackers.base import make_trackers

MOST_NAMES = 6  # configurations of a program that are told by name


def run_study(study: Study, out: str | None, kind: str) -> Path:
    """Trains all configurations of a study; returns its folder (``out``, or a new one in runs/).

    Raises ``ConfigError`` if the folder holds anything.
    """
    first = next(iter(study.configs.values()))
    make_trackers(first.log)  # refuses what is not installed before anything is written
    folder = RunDir.create(out, f"{kind}_{first.env.name.replace(':', '_')}", "out")
    try:
        study.save(folder.path)
        _train(study, folder.path)
    finally:
        folder.close()
    return folder.path


def run_sweep(cfg: Config, grid: Mapping[str, Sequence[Any]], out: str | None = None) -> Path:
    """Trains every combination of the grid's values: ``{"algo.td_lambda": [0, 0.6]}``. Those that differ in traced
    numbers alone are one program. Returns the folder, for ``jqmix.report([folder])``.

    Raises ``ConfigError`` for an unknown field or value, and if the folder holds anything.
    """
    return run_study(sweep(cfg, grid), out, "sweep")


def resume_study(path: Path, trust: bool = False) -> None:
    """Goes on with a study where it stopped. Raises ``ConfigError`` if it is none, if it is in use, and, unless told to
    ``trust`` it, where it names code of its own."""
    study, folder = load_study(path, trust), RunDir(path, made=False)
    try:
        _train(study, path)
    finally:
        folder.close()


def _train(study: Study, folder: Path) -> None:
    say = Terminal().say
    say(f"study: {folder}", to_copy=True)
    trusted = any(map(foreign_code, study.configs.values()))

    def tell() -> None:
        say_to_stderr(f"go on with: jqmix resume {shlex.quote(str(folder))}{' --trust' if trusted else ''}")

    programs = list(group_by(study.configs.items(), lambda item: shape_of(item[1])).values())
    with watched() as stop, stop.undoing(tell):
        for number, items in enumerate(programs, 1):
            label = f"program {number} of {len(programs)}" if len(programs) > 1 else ""
            say(": ".join(filter(None, (label, _told([name for name, _ in items])))))
            placed = [dataclasses.replace(cfg, run_dir=str(folder / name)) for name, cfg in items]
            train_together(placed, resuming=True, label=label)


def _told(names: list[str]) -> str:
    rest = len(names) - MOST_NAMES
    return "; ".join(names[:MOST_NAMES] + ([f"and {rest} more"] if rest > 0 else []))
