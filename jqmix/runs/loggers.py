"""Where a run's numbers go: metrics.jsonl, one line per member, and the terminal."""

import contextlib
import errno
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jqmix.files import sync, warn, write_atomically

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
        with contextlib.suppress(OSError):  # what could not be written was said when it was written
            self._file.close()


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


def mean_of(lines: list[Line], name: str) -> float | None:
    """The members' mean, or None where nobody has it."""
    values = [line[name] for line in lines if name in line]
    return sum(values) / len(values) if values else None


def describe(lines: list[Line]) -> str:
    """The members' mean of what matters, in a few words."""
    parts = []
    for name, label in (
        ("eval/win_rate", "win"),
        ("eval/return_mean", "return"),
        ("train/loss", "loss"),
        ("train/epsilon", "ε"),
    ):
        value = mean_of(lines, name)
        if value is not None:
            parts.append(f"{label} {value:.3g}")
    return "  ".join(parts)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Terminal:
    """The live display: a bar with the newest greedy result on a terminal, one plain line per evaluation elsewhere.

    It never matters to the run: what cannot be shown is noted once, on stderr, and nothing more is shown.
    """

    def __init__(self, total_steps: int, quiet: bool = False):
        self.console = _Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal and not quiet
        self._broken = False
        self._begin, self._first = time.perf_counter(), 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self._live,
            auto_refresh=False,  # a thread that shows would fail where nobody looks
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=total_steps, speed="–", note="")
        self._note = ""

    def _show(self, show: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            show()
            self.console.file.flush()
        except (OSError, ValueError) as error:  # ValueError: closed, or letters that it does not have
            self._broken = True
            self.warn(f"the display is broken ({error}); the run goes on without")
            if isinstance(error, OSError):
                _discard(self.console.file)

    def say(self, text: str) -> None:
        self._show(lambda: self.console.print(text, markup=False))

    def warn(self, text: str) -> None:
        """On stderr, also where nothing else is to be shown."""
        warn(text)

    def hint(self, text: str) -> None:
        """A sign of life, on a terminal, before something long says nothing."""
        if self._live:
            self.say(text)

    def start(self, what: str, steps: int) -> None:
        """Begins the bar anew for the members that ``what`` names, which made so many steps each."""
        self._begin, self._first, self._note = time.perf_counter(), steps, ""
        self._show(
            lambda: (
                self._progress.reset(self._task, description=what, completed=steps, speed="–", note=""),
                self._progress.start(),
            )
        )

    def progress(self, steps: int, members: int) -> None:
        """Moves the bar to the slowest member's steps."""
        if self._live:
            speed = self._speed(steps, members)
            self._show(
                lambda: (
                    self._progress.update(self._task, completed=steps, speed=speed, note=self._note),
                    self._progress.refresh(),
                )
            )

    def _speed(self, steps: int, members: int) -> str:
        return f"{(steps - self._first) * members / (time.perf_counter() - self._begin):,.0f}"

    def chunk(self, lines: list[Line]) -> None:
        steps = min(line["env_steps"] for line in lines)
        self._note = describe(lines)
        if self._live:
            self.progress(steps, len(lines))
        else:
            self.say(f"{steps:>12,} steps  {self._speed(steps, len(lines))} steps/s  {self._note}")

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._progress.stop()

    def summary(self, lines: list[Line]) -> None:
        """Each member's newest greedy result, and their mean."""
        names = [n for n in ("eval/win_rate", "eval/return_mean", "eval/length_mean") if mean_of(lines, n) is not None]
        table = Table("seed", "env steps", *(n.removeprefix("eval/").replace("_", " ") for n in names))
        for line in lines:
            shown = (f"{line[n]:.3f}" if n in line else "–" for n in names)
            table.add_row(str(line["seed"]), f"{line['env_steps']:,}", *shown)
        if len(lines) > 1:
            table.add_section()
            table.add_row("mean", "", *(f"{mean_of(lines, n):.3f}" for n in names))
        self._show(lambda: self.console.print(table))


def _discard(stream: Any) -> None:
    """Sends what is still in a broken stream's buffer nowhere: Python would fail over it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
