"""Where the calls of a program are logged: the files of its runs first, then trackers, callbacks, the terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jqmix.analysis.results import MemberResults, read_run
from jqmix.config import Config, ConfigError
from jqmix.inputs import quoted
from jqmix.learning.count import Count, numbers
from jqmix.learning.health import FAULTS
from jqmix.runs.groups import Group, Part, Run, Source
from jqmix.runs.hosts import Hosts
from jqmix.runs.metrics_file import Line, MetricsFile, join_parts, to_line
from jqmix.runs.run_dir import RunError
from jqmix.runs.terminal import Terminal, mean_curve, metric_of
from jqmix.runs.text_plots import Point
from jqmix.trackers.feed import Feed

Callback = Callable[[list[Line]], Any]


class StopTraining(Exception):
    """For a callback to raise: the run saves, as at Ctrl-C, and returns its result. `jqmix resume` goes on with it."""


def check_callbacks(callbacks: Any) -> None:
    """Raises ``ConfigError`` for what is no list of functions: only once there are lines would it be called."""
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ConfigError(f"callbacks: {quoted(callbacks)} is not allowed; it takes a list of functions")


class Log:
    """Where calls are logged: the runs' files, then their trackers (``feeds``), callbacks, the terminal.

    ``raised``: the first that a callback raised, an error before a ``StopTraining``, for whoever trains to raise once
    everything is saved.
    """

    def __init__(
        self,
        runs: list[Run],
        groups: list[Group],
        terminal: Terminal,
        hosts: Hosts,
        callbacks: Sequence[Callback] = (),
    ):
        self.terminal = terminal
        self.hosts = hosts
        self.callbacks = callbacks
        self.raised: BaseException | None = None
        self.feeds: dict[Path, list[Feed]] = {}
        self.runs = runs
        self.places = [(run, member) for run in runs for member in range(run.cfg.seeds)]
        self.env_steps = [0] * len(self.places)
        self.faults: dict[int, str] = {}  # of members that stay as they are
        self.must_stop = False
        self.steps_made = 0
        self._strange: set[int] = set()
        keep = {run.path: dict.fromkeys(range(run.cfg.seeds), (sys.maxsize, sys.maxsize)) for run in runs}
        for group in groups:
            for part in () if group.sources else group.parts:
                keep[part.run.path] |= dict.fromkeys(part.members, (0, 0))
            for source in group.sources:
                keep[source.part.run.path] |= _lines_to_keep(source)
        try:
            self.files = {run.path: self._open(run, keep[run.path]) for run in runs}
        except OSError as error:
            raise RunError(f"{error.filename} could not be written ({error.strerror})") from None
        before = max((source.about.elapsed_s for group in groups for source in group.sources), default=0.0)
        self._start = time.perf_counter()
        self._before = before

    def _open(self, run: Run, keep: dict[int, tuple[int, int]]) -> MetricsFile:
        """The run's file. Processes but the first have one of their own until the run ends; what was logged before is
        in the first one's, which knows from all what of it to keep."""
        own = self.hosts.place.share(run.cfg.seeds)
        told = self.hosts.exchange({member: keep[member] for member in own})
        if self.hosts.is_first:
            join_parts(run.path)
            agreed = {int(member): tuple(ends) for some in told for member, ends in some.items()}
            file = MetricsFile(run.path / "metrics.jsonl", agreed)
            self.hosts.exchange(dict(file.counts))
            return file
        counts = self.hosts.exchange()[0]
        file = MetricsFile(run.path / f"metrics.{self.hosts.index}.jsonl")
        file.counts.update({int(member): count for member, count in counts.items()})
        return file

    def sort(self, groups: list[Group]) -> None:
        """Puts lines of members that trained after one another in this order."""
        for run in self.runs:
            self.files[run.path].sort([group.members_of(run) for group in groups])

    def join(self) -> None:
        """Puts what other processes logged into the runs' files, once all have come here; told what they came to."""
        if self.hosts.count == 1:
            return
        for run in self.runs:
            self.files[run.path].close()
        ended = self.hosts.exchange({"steps": self.steps_made, "faults": self.faults})
        self._feed_others()
        self.steps_made = sum(end["steps"] for end in ended)
        self.faults = {int(member): text for end in ended for member, text in end["faults"].items()}
        for run in self.runs if self.hosts.is_first else ():
            try:
                join_parts(run.path)
            except OSError as error:
                raise RunError(f"{error.filename} could not be written ({error.strerror})") from None

    def _feed_others(self) -> None:
        """Gives trackers what other processes logged."""
        for lines in self.hosts.told():
            for feeds in self.feeds.values():
                for feed in feeds:
                    feed.put(lines)

    def begin(self, group: Group, env_steps: Count, codes: Any) -> int:
        """A group's members as they go on; the slowest one's steps."""
        steps = numbers(env_steps)
        self.env_steps[group.first : group.last] = steps
        for m, code in zip(range(group.first, group.last), codes, strict=True):
            if code:
                self.faults[m] = f"seed {self._seed(m)}: {FAULTS[code]}"
                self.must_stop |= self.places[m][0].cfg.on_nan == "stop"
        slowest = self._slowest(group)
        return max(steps) if slowest is None else slowest

    def call(
        self, group: Group, metrics: dict[str, Any], updates: int, complete: bool, best: list[int] | None = None
    ) -> int | None:
        """Logs what a call made of a group's members; the steps of the slowest, None where all are frozen. ``best``:
        what played was the best, of so many environment steps, on its own.

        Raises ``RunError`` where the disk takes no more.
        """
        steps, faults = numbers(metrics.pop("env_steps")), metrics.pop("fault")
        found_at = numbers(faults.env_steps)
        new: list[Line] = []
        shown: dict[str, list[Line]] = {}
        for row, m in enumerate(range(group.first, group.last)):
            if m in self.faults:
                continue
            self.steps_made += steps[row] - self.env_steps[m]
            self.env_steps[m] = steps[row]
            run, member = self.places[m]
            head: Line = {"env_steps": steps[row], "updates": updates, "member": member, "seed": run.cfg.seed + member}
            head["wall_s"] = round(self.wall_s(), 3)
            code = int(faults.code[row])
            values = {name: float(x[row]) for name, x in metrics.items()}
            if code:
                new.append(head | {"fault": FAULTS[code], "fault_env_steps": found_at[row]})
                self._freeze(m, FAULTS[code], found_at[row], run.cfg)
            elif best is not None and complete:
                new.append(to_line(_absolute(values), head) | {"absolute/env_steps": best[row]})
            elif complete:
                self._note_strange(m, values["train/strange_rewards"])
                new.append(to_line(values, head))
                shown.setdefault(run.path.name, []).append(new[-1])
            self._write(run, new[-1:] if code or complete else [])
        self._feed_others()
        self._call_back(new)
        slowest = self._slowest(group)
        if shown:
            self.terminal.evaluation(shown, self.members(group))
        elif slowest is not None:
            self.terminal.progress(slowest, self.members(group))
        return slowest

    def _write(self, run: Run, lines: list[Line]) -> None:
        if not lines:
            return
        self._reach(run, lambda file: file.write(lines))
        for feed in self.feeds.get(run.path, ()):
            feed.put(lines)
        self.hosts.tell(lines)

    def _call_back(self, lines: list[Line]) -> None:
        if not lines or not self.callbacks:
            return
        with self.terminal.aside():
            for callback in self.callbacks:
                try:
                    callback([dict(line) for line in lines])
                except BaseException as error:  # whatever it is, what was trained is saved first
                    if self.raised is None or isinstance(self.raised, StopTraining):
                        self.raised = error

    def raise_if_raised(self) -> None:
        if self.raised is not None:
            raise self.raised

    def _reach(self, run: Run, act: Callable[[MetricsFile], None]) -> None:
        """Raises ``RunError`` where a run's directory or log is gone, or the disk takes no more."""
        run.dir.check_there()
        file = self.files[run.path]
        try:
            file.check_there()
            act(file)
        except OSError as error:
            raise RunError(f"{file.path} could not be written ({error.strerror})") from None

    def _freeze(self, m: int, what: str, env_steps: int, cfg: Config) -> None:
        self.faults[m] = f"seed {self._seed(m)}: {what}, after {env_steps:,} steps"
        self.must_stop |= cfg.on_nan == "stop"
        others = ", the others go on" if len(self.faults) < len(self.places) and not self.must_stop else ""
        self.terminal.warn(f"{self.faults[m]}; it stays as it was before{others}")

    def _note_strange(self, m: int, rewards: float) -> None:
        if rewards > 0 and m not in self._strange:
            self._strange.add(m)
            self.terminal.warn(
                f"seed {self._seed(m)}: {rewards:.0f} rewards were outside the reward_range of the environment"
            )

    def _seed(self, m: int) -> int:
        run, member = self.places[m]
        return run.cfg.seed + member

    def _slowest(self, group: Group) -> int | None:
        return min((self.env_steps[m] for m in range(group.first, group.last) if m not in self.faults), default=None)

    def all_frozen(self, group: Group) -> bool:
        return self._slowest(group) is None

    def members(self, group: Group) -> str:
        """How many a group trains, for what tells of each of them; nothing of one alone."""
        if group.size == 1:
            return ""
        frozen = sum(m in self.faults for m in range(group.first, group.last))
        kind = "seeds" if len(self.runs) == 1 else "members"
        return f" × {group.size - frozen} {kind}" + (f" ({frozen} frozen)" if frozen else "")

    def history(self, group: Group) -> list[Point]:
        """What the members that go on showed in evaluations before: steps and the mean of their metric."""
        found = [member.evaluations for part in group.parts if group.sources for member in _results_of(part)]
        return mean_curve(found, metric_of(found[0])) if found and found[0] else []

    def elapsed(self) -> float:
        """Seconds of this process."""
        return time.perf_counter() - self._start

    def wall_s(self) -> float:
        """Seconds of the run, over all processes that went on with it."""
        return self._before + self.elapsed()

    def sync(self) -> None:
        """Until all lines are on the disk. Raises ``RunError``."""
        for run in self.runs:
            self._reach(run, MetricsFile.sync)

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _results_of(part: Part) -> list[MemberResults]:
    with contextlib.suppress(ConfigError):  # no evaluation yet
        first = part.run.cfg.seed
        return [member for member in read_run(part.run.path).members if member.seed - first in part.members]
    return []


def _absolute(values: dict[str, float]) -> dict[str, float]:
    """An evaluation's numbers under the name of the absolute metric."""
    return {name.replace("eval/", "absolute/"): x for name, x in values.items() if name.startswith("eval/")}


def _lines_to_keep(source: Source) -> dict[int, tuple[int, int]]:
    """How many lines of each member, and up to how many steps, a run that goes on keeps."""
    part, saved, about = source
    return {m: (about.lines[m - saved.first], about.env_steps[m - saved.first]) for m in part.members}
