"""What a tracker is, and the trackers that there are. To add one: a class with three methods, and a line here.

A tracker is fed by the host alone, with the very lines that go to metrics.jsonl. Libraries of trackers are optional:
they are imported inside of the methods.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jqmix.inputs import ConfigError, quoted

TrackedLine = dict[str, Any]  # a line of metrics.jsonl

# What a line holds besides what is measured.
HEAD = ("env_steps", "member", "seed")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before its first line.

    ``config``: as in config.yaml. ``metadata``: as in metadata.json. ``seeds``: of the members, in order; each member
    should be a run of its own in the tracker, and the run directory a group. ``notes``: what the tracker puts in while
    it begins is there again when the run is resumed, as the identifiers that it gave.
    """

    path: Path
    config: dict[str, Any]
    metadata: dict[str, Any]
    seeds: list[int]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The run directory's name; inside of a study's folder with the study's name before it."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if (path.parent / "study.json").is_file() else path.name

    def name(self, member: int) -> str:
        return f"{self.group}, seed {self.seeds[member]}"


@runtime_checkable
class Tracker(Protocol):
    """Three methods, called one after another in a thread of the tracker's own.

    What a method raises is told once, and the run goes on without the tracker. A run never waits for a tracker, but at
    its end, and then not for long.
    """

    def begin(self, run: TrackedRun) -> None:
        """Before the first line, and again when a run is resumed: then ``run.notes`` holds what was noted before."""
        ...

    def log(self, lines: list[TrackedLine]) -> None:
        """New lines of one or more members, each once, whether or not the run was stopped in between.

        A line's ``env_steps`` are its step, ``member`` and ``seed`` say whose it is.
        """
        ...

    def end(self) -> None:
        """After the last line: at the end, or where a run was stopped."""
        ...


class TrackerEntry(NamedTuple):
    """Where a tracker's class is, and what has to be installed for it."""

    home: str
    package: str


# The names that ``--log`` takes. A tracker's name is that of the extra that installs what it needs.
TRACKERS = {
    "tensorboard": TrackerEntry("jqmix.trackers.tensorboard:TensorBoard", "tensorboardX"),
    "wandb": TrackerEntry("jqmix.trackers.wandb:WandB", "wandb"),
    "mlflow": TrackerEntry("jqmix.trackers.mlflow:MLflow", "mlflow"),
}


def tracker_names(log: str | None) -> list[str]:
    """The trackers that ``--log`` names, with commas between. Raises ``ConfigError``; imports nothing."""
    names = [] if log is None else [name.strip() for name in log.split(",")]
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"log: {quoted(name)} is not allowed; it takes {', '.join(TRACKERS)}, or several with commas between"
            )
        if names.count(name) > 1:
            raise ConfigError(f"log: {name} is given twice")
    return names


def make_trackers(log: str | None) -> dict[str, Tracker]:
    """The trackers that ``--log`` names, none of them begun.

    Raises ``ConfigError`` for the first one whose library is not installed, or that is not ready to be used.
    """
    made: dict[str, Tracker] = {}
    for name in tracker_names(log):
        module, _, attribute = TRACKERS[name].home.partition(":")
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"log: {name} needs the package {TRACKERS[name].package}, which is not installed; "
                f'pip install "jqmix[{name}]"'
            )
        made[name] = getattr(importlib.import_module(module), attribute)()
    return made


def name_loggers(loggers: Any) -> dict[str, Tracker]:
    """A user's own loggers by the names of their classes; several of one class are numbered.

    Raises ``ConfigError`` for an object that has not the three methods.
    """
    if not isinstance(loggers, Iterable):
        raise ConfigError(f"loggers: {quoted(loggers)} is not allowed; it takes a list of loggers")
    named: dict[str, Tracker] = {}
    for logger in loggers:
        kind = type(logger).__name__
        if isinstance(logger, type) or not isinstance(logger, Tracker):
            raise ConfigError(f"loggers: {quoted(logger)} is none; a logger is an object with begin, log and end")
        count = sum(name.partition("-")[0] == kind for name in named)
        named[f"{kind}-{count + 1}" if count else kind] = logger
    return named


def measured(line: TrackedLine) -> dict[str, int | float]:
    """The numbers of a line by their names, without its step and whose it is."""
    return {name: value for name, value in line.items() if name not in HEAD and isinstance(value, int | float)}
