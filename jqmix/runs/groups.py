"""What trains together: runs, the parts of them in a group, and the checkpoints that a group goes on from."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jqmix.config import Config, flatten, to_dict
from jqmix.runs import checkpoint
from jqmix.runs.checkpoint import Manifest, Saved
from jqmix.runs.metrics_file import MetricsFile
from jqmix.runs.run_dir import RunDir

# Fields that may change when a run is resumed.
LATER = {"total_steps", "group", "run_dir", "on_nan", "eval.absolute", "log"}


def settings_of(cfg: Config) -> dict[str, Any]:
    """What must not change when a run is resumed, as JSON has it; of one's own environment, the factory."""
    later = LATER if cfg.env.factory is None else LATER | {"env.name"}
    values = flatten(to_dict(cfg)).items()
    return json.loads(json.dumps({k: v for k, v in values if k not in later and not k.startswith("checkpoint.")}))


@dataclass
class Run:
    """A run among those that are trained together: its members are ``first`` to ``last`` of the program's."""

    cfg: Config
    dir: RunDir
    first: int
    metrics: MetricsFile | None = None

    @property
    def last(self) -> int:
        return self.first + self.cfg.seeds

    @property
    def path(self) -> Path:
        return self.dir.path


class Part(NamedTuple):
    """What one run has of the members that train together: these, by their numbers in the run."""

    run: Run
    members: range

    def newest(self, say: Callable[[str], None], to_resume: bool = False, at: int | None = None) -> Any:
        """The newest sound checkpoint that holds all of them, with its manifest."""
        return checkpoint.newest(self.run.path, self.run.cfg.seeds, self.members, say, to_resume, at)

    def saved(self) -> list[Saved]:
        """Checkpoints that hold some of them, by their names."""
        found = checkpoint.find(self.run.path, self.run.cfg.seeds)
        return [s for s in found if s.first < self.members.stop and self.members.start < s.last]

    def whole(self) -> bool:
        """Whether the newest that there is to go on from, of any of them, holds all."""
        found = [s for s in self.saved() if not s.final]
        return bool(found) and found[0].first <= self.members.start and self.members.stop <= found[0].last

    def split(self) -> "list[Part]":
        """Where they were saved in other groups: those that have their newest checkpoint in common."""
        newest = {m: [s.path for s in Part(self.run, range(m, m + 1)).saved() if not s.final][:1] for m in self.members}
        cuts = [m for m in self.members if m == self.members.start or newest[m] != newest[m - 1]]
        return [Part(self.run, range(*ends)) for ends in itertools.pairwise([*cuts, self.members.stop])]


class Source(NamedTuple):
    """A checkpoint, and the members that go on from it."""

    part: Part
    saved: Saved
    about: Manifest

    def shared(self) -> list[np.ndarray]:
        """What its members have in common with all that stand where they do."""
        return jax.tree.leaves(checkpoint.load_state(self.saved.path, with_replay=False)["shared"])


@dataclass(frozen=True)
class Group:
    """Members of the program that train together, a part of each run, and the checkpoints that they go on from: all of
    the same iteration, or none."""

    first: int
    last: int
    parts: list[Part]
    sources: list[Source]

    @property
    def size(self) -> int:
        return self.last - self.first

    def continues(self, other: "Group") -> bool:
        """Whether both are of one run, these members right after the other's, and stand at the same point of it."""
        return (
            self.parts[0].run is other.parts[-1].run
            and self.first == other.last
            and bool(self.sources and other.sources)
            and self.sources[0].about.iteration == other.sources[0].about.iteration
            and all(map(np.array_equal, self.sources[0].shared(), other.sources[0].shared()))
        )

    def with_next(self, other: "Group") -> "Group":
        """One of both, where the other one continues this."""
        members = range(self.parts[-1].members.start, other.parts[0].members.stop)
        return Group(self.first, other.last, [Part(self.parts[0].run, members)], [*self.sources, *other.sources])

    def members_of(self, run: Run) -> range:
        return next((part.members for part in self.parts if part.run is run), range(0))
