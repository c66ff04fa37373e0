"""Brings a run's lines to a tracker, so that it can neither end nor delay the run, and gets each line once.

A thread for each tracker takes the lines from a queue. RUN_DIR/trackers/NAME.json holds what the tracker noted and how
far each member was logged. So a resumed run goes on in the same place: the tracker gets what it does not have yet of
metrics.jsonl, whether it was written since, or when the tracker had failed, or before there was a tracker.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from jqmix.files import read_json, write_text
from jqmix.inputs import ConfigError, one_line, shown
from jqmix.plugins import raised
from jqmix.trackers.base import TrackedLine, TrackedRun, Tracker

CLOSE_S = 30.0  # that a run waits at its end for all its trackers
FOLDER = "trackers"  # in a run directory


class Feed:
    """The thread of one tracker, and what it has logged of one run. ``warn`` is told what went wrong, from any thread;
    notes are the tracker's own, whatever else the run is logged to."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, warn: Callable[[str], None]):
        self._name = name
        self._tracker = tracker
        self._run = replace(run, notes={})
        self._warn = warn
        self._file = run.path / FOLDER / f"{name}.json"
        self._logged: dict[int, tuple[int, int]] = {}
        self._queue: SimpleQueue[list[TrackedLine] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, lines: list[TrackedLine]) -> None:
        """Hands over lines; returns at once."""
        if lines and self._thread.is_alive():
            self._queue.put(lines)

    def _work(self) -> None:
        try:
            self._begin()
            while (lines := self._queue.get()) is not None:
                self._log(lines)
            self._tracker.end()
        except (Exception, SystemExit) as error:
            self._warn(
                f"{self._name}: {one_line(raised(error))}; the run goes on without it, and metrics.jsonl has all"
            )
            with contextlib.suppress(Exception, SystemExit):
                self._tracker.end()

    def _begin(self) -> None:
        if self._file.exists():
            notes, self._logged = _read(self._file)
            self._run = replace(self._run, notes=notes)
        try:
            self._tracker.begin(self._run)
        finally:
            self._keep()

    def _log(self, lines: list[TrackedLine]) -> None:
        new = [line for line in lines if _position(line) > self._logged.get(line["member"], (-1, 0))]
        if not new:
            return
        self._tracker.log(new)
        self._logged |= {line["member"]: _position(line) for line in new}
        self._keep()

    def _keep(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        write_text(self._file, json.dumps({"notes": self._run.notes, "logged": self._logged}) + "\n")

    def ask_to_end(self) -> None:
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """For what was put to be logged; no longer than so many seconds."""
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            self._warn(
                f"{self._name}: not done {CLOSE_S:.0f} s after the run; what is missing there, metrics.jsonl has"
            )


def close_feeds(feeds: Iterable[Feed]) -> None:
    """Lets all trackers log what they were given, and ends them; those that take too long are left."""
    feeds, until = list(feeds), time.monotonic() + CLOSE_S
    for feed in feeds:
        feed.ask_to_end()
    for feed in feeds:
        feed.wait(until - time.monotonic())


def _position(line: TrackedLine) -> tuple[int, int]:
    """Rises over a member's lines: what it ends with, or diverged by, may be at the step of its last evaluation."""
    return line["env_steps"], 0 if any(name.startswith("eval/") for name in line) else 1


def _read(path: Path) -> tuple[dict[str, str], dict[int, tuple[int, int]]]:
    tree = read_json(path)
    try:
        notes = {str(name): str(text) for name, text in tree["notes"].items()}
        return notes, {int(member): (int(steps), int(rank)) for member, (steps, rank) in tree["logged"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"{shown(path)} is damaged; without it, all is logged anew") from None
