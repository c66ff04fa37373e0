"""Where a run's numbers go: metrics.jsonl, one line per member, and the terminal."""

import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Line = dict[str, Any]


def to_lines(metrics: dict[str, np.ndarray], members: list[tuple[int, int]], updates: int, wall_s: float) -> list[Line]:
    """One JSON object for each of ``members`` (number and seed); what is NaN (nothing to tell) is left out."""
    lines = []
    for row, (member, seed) in enumerate(members):
        line: Line = {
            "env_steps": int(metrics["env_steps"][row]),
            "updates": updates,
            "member": member,
            "seed": seed,
            "wall_s": round(wall_s, 3),
        }
        for name, values in sorted(metrics.items()):
            value = float(values[row])
            if name != "env_steps" and math.isfinite(value):
                line[name] = value
        lines.append(line)
    return lines


class MetricsFile:
    """metrics.jsonl: appended and flushed after every chunk."""

    def __init__(self, path: Path):
        self._file = path.open("x", encoding="utf-8")

    def write(self, lines: list[Line]) -> None:
        self._file.writelines(json.dumps(line) + "\n" for line in lines)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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


class Terminal:
    """The live display: a bar with the newest greedy result on a terminal, one plain line per chunk elsewhere."""

    def __init__(self, total_steps: int, quiet: bool = False):
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal and not quiet
        self._begin = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=total_steps, speed="–", note="first chunk …")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A sign of life, on a terminal, while something long says nothing."""
        return self.console.status(what) if self._live else nullcontext()

    def start(self, what: str) -> None:
        """Begins the bar anew for the members that ``what`` names."""
        self._begin = time.perf_counter()
        self._progress.reset(self._task, description=what, speed="–", note="first chunk …")
        self._progress.start()

    def chunk(self, lines: list[Line]) -> None:
        steps = min(line["env_steps"] for line in lines)
        speed = sum(line["env_steps"] for line in lines) / (time.perf_counter() - self._begin)
        note = describe(lines)
        if self._live:
            self._progress.update(self._task, completed=steps, speed=f"{speed:,.0f}", note=note)
        else:
            self.say(f"{steps:>12,} steps  {speed:,.0f} steps/s  {note}")

    def stop(self) -> None:
        self._progress.stop()

    def summary(self, lines: list[Line]) -> None:
        """Each member's newest greedy result, and their mean."""
        names = [n for n in ("eval/win_rate", "eval/return_mean", "eval/length_mean") if mean_of(lines, n) is not None]
        table = Table("seed", "env steps", *(n.removeprefix("eval/").replace("_", " ") for n in names))
        for line in lines:
            table.add_row(str(line["seed"]), f"{line['env_steps']:,}", *(f"{line[n]:.3f}" for n in names))
        if len(lines) > 1:
            table.add_section()
            table.add_row("mean", "", *(f"{mean_of(lines, n):.3f}" for n in names))
        self.console.print(table)
