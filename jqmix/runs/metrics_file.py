"""metrics.jsonl: where a run's numbers go, one line per member and evaluation."""

import contextlib
import errno
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jqmix.files import metrics_parts, sync, write_atomically

Line = dict[str, Any]

# Of means over nothing there is nothing to tell: what says over how many each kind is.
COUNTED_BY = {"train/": "train/updates", "eval/": "eval/episodes", "absolute/": "absolute/episodes"} | {
    f"train/{name}": "train/episodes" for name in ("return_mean", "length_mean", "win_rate")
}
ALWAYS = {"train/epsilon", "train/lr", *COUNTED_BY.values()}


def to_line(metrics: Mapping[str, float], head: Line) -> Line:
    """A member's JSON object: ``head``, and of the metrics all that there is something to tell of."""
    line = dict(head)
    for name, value in sorted(metrics.items()):
        counted = COUNTED_BY.get(name) or COUNTED_BY[name.split("/")[0] + "/"]
        if name in ALWAYS or metrics.get(counted, 0) > 0:
            line[name] = value
    return {name: value for name, value in line.items() if not isinstance(value, float) or math.isfinite(value)}


class MetricsFile:
    """metrics.jsonl: appended and flushed after every evaluation; ``counts`` is how many lines each member has."""

    def __init__(self, path: Path, keep: Mapping[int, tuple[int, int]] | None = None):
        """A new file; or one that a run goes on with, of which each member keeps its first so many lines, up to so
        many environment steps (``keep``)."""
        self.path = path
        self.counts: Counter[int] = Counter()
        if keep is not None and path.exists():
            self._keep(keep)
        self._file = path.open("a", encoding="utf-8")

    def _keep(self, keep: Mapping[int, tuple[int, int]]) -> None:
        """Drops what came after the checkpoint that the run goes on from, and torn lines; other lines stay as they
        are, byte for byte."""
        if sum(map(len, self._kept(keep))) < self.path.stat().st_size:
            write_atomically(self.path, lambda temporary: _write_all(temporary, self._kept(keep)))

    def _kept(self, keep: Mapping[int, tuple[int, int]]) -> Iterator[bytes]:
        self.counts.clear()
        with self.path.open("rb") as file:
            for raw in file:
                member, env_steps = _whose(raw)
                count, until = keep.get(member, (0, 0))
                if self.counts[member] < count and env_steps <= until:
                    self.counts[member] += 1
                    yield raw

    def write(self, lines: list[Line]) -> None:
        """Raises ``OSError``, as where the disk is full."""
        self._file.writelines(json.dumps(line) + "\n" for line in lines)
        self._file.flush()
        self.counts.update(line["member"] for line in lines)

    def check_there(self) -> None:
        """Raises ``FileNotFoundError`` where it was deleted, as what is written then is lost."""
        here, there = os.fstat(self._file.fileno()), os.stat(self.path)
        if (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
            raise FileNotFoundError(errno.ENOENT, "deleted while the run went on")

    def sync(self) -> None:
        sync(self.path)

    def sort(self, groups: list[range]) -> None:
        """Puts the lines of members that trained after one another in this order, as those of a run that was never
        stopped are; within a group they stay in theirs."""
        own = [group for group in groups if group]
        if len(own) < 2:
            return
        with self.path.open("rb") as file:
            lines = file.readlines()
        order = {member: k for k, group in enumerate(own) for member in group}
        ordered = sorted(lines, key=lambda raw: order.get(_whose(raw)[0], -1))
        if ordered != lines:
            self._file.close()
            write_atomically(self.path, lambda temporary: _write_all(temporary, ordered))
            self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """May be called twice."""
        with contextlib.suppress(OSError):  # what could not be written was said when it was written
            self._file.close()


def join_parts(run_dir: Path) -> None:
    """Puts what several processes logged into metrics.jsonl, every member's first line before any one's second. A line
    that a process which was killed here left in both places comes once. Raises ``OSError``."""
    path, parts = run_dir / "metrics.jsonl", metrics_parts(run_dir)
    if not parts:
        return
    lines: dict[bytes, tuple[int, int]] = {}
    counts: Counter[int] = Counter()
    for part in (path, *parts):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            for raw in file:
                member, _ = _whose(raw)
                if raw not in lines and raw.endswith(b"\n"):
                    lines[raw] = counts[member], member
                    counts[member] += 1
    write_atomically(path, lambda temporary: _write_all(temporary, sorted(lines, key=lambda raw: lines[raw])))
    for part in parts:
        part.unlink()


def _write_all(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def _whose(raw: bytes) -> tuple[int, int]:
    """A line's member and environment steps; of one that is torn or damaged, no member's."""
    try:
        line = json.loads(raw)
        found = line["member"], line["env_steps"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1, 0
    return found if raw.endswith(b"\n") and all(type(x) is int for x in found) else (-1, 0)
