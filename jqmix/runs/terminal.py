"""What a run shows on the terminal while it trains."""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jqmix.files import warn
from jqmix.runs.metrics_file import Line


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
