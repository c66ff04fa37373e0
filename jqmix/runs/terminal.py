"""What a run shows while it trains: what is being prepared, how far it is, its evaluations, and what it came to."""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jqmix.analysis.results import RETURN, WIN_RATE, MemberResults
from jqmix.files import warn
from jqmix.inputs import one_line
from jqmix.runs.display import make_display
from jqmix.runs.metrics_file import Line
from jqmix.runs.text_plots import Point, short_number, sparkline, text_bar, text_curve

LINES = 20  # evaluations of a run that get a line of their own, about
SILENCE_S = 60.0  # where nothing is live, a line at least so often while a run trains
RECENT_S = 60.0  # the time over which speed is measured
SPARKS = 12  # evaluations in the sparkline
MOST_ROWS = 20  # of a summary: of more members the mean and the ends alone
CURVE = (72, 8)  # letters: width, height
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
NAMES = {WIN_RATE: "win", RETURN: "return", "train/loss": "loss", "train/epsilon": "ε"}


class Terminal:
    """The display: what is under way at the foot of a terminal or in a notebook's cell, plain lines elsewhere.

    It never matters to the run: what cannot be shown is noted once, on stderr, and nothing more is shown. A thread
    keeps what is under way alive; it draws as everyone else here does, so what it cannot draw is noted, too.
    """

    def __init__(self, quiet: bool = False, label: str = ""):
        """``label``: what trains, among other things that do."""
        self.label = label
        self._display = make_display(quiet)
        self._quiet = quiet
        self._lock = threading.RLock()
        self._broken = False
        self._spoken = False
        self._status: Callable[[], list[Text]] = list
        self._stages: list[tuple[str, float]] = []
        self._progress: _Progress | None = None
        self._next_line, self._last_said = 0.0, time.perf_counter()
        self._ended = threading.Event()
        self._ticking: threading.Thread | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def live(self) -> bool:
        return self._display.tick_s > 0

    @property
    def _ascii(self) -> bool:
        return self._display.console.options.ascii_only

    # Drawing

    def _draw(self, said: RenderableType | None = None) -> None:
        with self._lock:
            if self._broken:
                return
            try:
                self._display.draw(said, self._status() if self.live else [])
                self._display.console.file.flush()
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self._broken = True
                self._ended.set()
                warn(f"the display is broken ({error}); the run goes on without")
                if isinstance(error, OSError):
                    _discard(self._display.console.file)

    def _tick(self) -> None:
        while not self._ended.wait(self._display.tick_s if self._stages else max(self._display.tick_s, 1.0)):
            self._draw()

    def _show(self, status: Callable[[], list[Text]]) -> None:
        """From now on this is under way."""
        self._status = status
        if self.live and self._ticking is None:
            self._ticking = threading.Thread(target=self._tick, name="display", daemon=True)
            self._ticking.start()
        self._draw()

    def stop(self) -> None:
        """The bar stays as it is, and nothing is under way any more."""
        self._ended.set()
        if self._ticking is not None:
            self._ticking.join()
        if self._stages:
            self._stages, self._status = [], list
        self._draw()
        with self._lock:
            if not self._broken:
                with contextlib.suppress(OSError, ValueError):
                    self._display.close()
            self._status = list

    # Lines that stay

    def say(self, text: str, style: str = "", to_copy: bool = False) -> None:
        """A line; wrapped between words where it is too long for a terminal, but for one that is ``to_copy``."""
        self._spoken, self._last_said = True, time.perf_counter()
        self._draw(Text(text, style, no_wrap=to_copy or None, overflow="ignore" if to_copy else None))

    def warn(self, text: str) -> None:
        """On stderr, also where nothing else is to be shown."""
        if self.live and not self._broken and _is_terminal(sys.stderr):
            self.say(f"jqmix: {one_line(text)}", "yellow", to_copy=True)
        else:
            warn(text)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Within, others may print: nothing is under way below it, that would be drawn over what they print."""
        status, self._status = self._status, list
        self._draw()
        try:
            yield
        finally:
            self._show(status)

    # Before training

    def stage(self, what: str) -> None:
        """What is being done before training, with its time. Where nothing is live, a line, but not as the first."""
        self._stages.append((what, time.perf_counter()))
        if self._spoken and not self.live:
            self.say(f"{what} …")
        self._show(self._stage_lines)

    def _stage_lines(self) -> list[Text]:
        what, begin = self._stages[-1]
        now = time.perf_counter()
        turn = ("|/-\\" if self._ascii else SPINNER)[int(4 * now) % (4 if self._ascii else len(SPINNER))]
        return [Text.assemble((turn, "green"), f" {what} … ", (f"{now - begin:.0f} s", "dim"))]

    def ready(self) -> float:
        """Says how long all stages took, and each; seconds."""
        ends = [begin for _, begin in self._stages[1:]] + [time.perf_counter()]
        parts: dict[str, float] = {}
        for (what, begin), end in zip(self._stages, ends, strict=True):
            parts[what] = parts.get(what, 0.0) + end - begin
        with self._lock:  # the thread may be drawing them
            self._stages, self._status = [], list
        told = ", ".join(f"{what.split()[0]} {seconds:.1f}" for what, seconds in parts.items())
        self.say(f"ready after {sum(parts.values()):.1f} s: {told}")
        return sum(parts.values())

    # Training

    def start(self, what: str, total: int, steps: int, members: str, history: Sequence[Point]) -> None:
        """Begins the bar anew for members that made so many steps each. ``what`` names them among others; ``members``
        is what they are, as "4 seeds"; ``history``: evaluations made before."""
        what = ", ".join(filter(None, (self.label, what)))
        self._progress = _Progress(what, total, steps, members, list(history), self._ascii)
        self._next_line = 0.0
        self._show(lambda: self._progress.lines(self._display.width) if self._progress else [])

    def progress(self, steps: int, members: str, note: str = "") -> None:
        """Moves the bar to the slowest member's steps. ``note``: what else is under way."""
        if self._progress is None:
            return
        with self._lock:
            self._progress.move(steps, members, note)
        if self.live:
            self._draw()
        elif time.perf_counter() - self._last_said > SILENCE_S:
            self.say("  ".join(str(field) for field in self._progress.fields()))

    def note(self, text: str) -> None:
        """What is under way beside or after training."""
        if self._progress is not None:
            self._progress.note = text
            self._draw()

    def evaluation(self, lines: Mapping[str, Sequence[Line]], members: str) -> None:
        """A line on the members' mean, unless there are many, by the name of their run."""
        progress, every = self._progress, [line for some in lines.values() for line in some]
        if progress is None or not every:
            return
        steps = min(line["env_steps"] for line in every)
        with self._lock:
            progress.move(steps, members)
            is_best = progress.evaluated(steps, every)
        if steps < min(self._next_line, progress.total):
            return self._draw()
        self._next_line = steps + progress.total / LINES
        fields = [Text(f"{steps:>{len(f'{progress.total:,}')},} steps"), *progress.results()]
        if is_best:
            fields[1].stylize("bold green")
        if len(lines) > 1:
            fields.append(_range(lines, progress.metric))
        if not self.live:
            fields += progress.pace()
        self._spoken, self._last_said = True, time.perf_counter()
        self._draw(Text("\n").join(packed(fields, self._display.width if self.live else 10**6, indent=4)))

    # The end

    def summary(self, members: Sequence[MemberResults]) -> None:
        """The mean's curve, and every member's last evaluation."""
        evaluated = [member for member in members if member.evaluations]
        if not evaluated:
            return
        metric = metric_of(evaluated[0].evaluations)
        points = mean_curve([member.evaluations for member in evaluated], metric)
        if len(points) > 2:
            title = "win rate" if metric == WIN_RATE else "return"
            mean = f", mean of {len(evaluated)} seeds" if len(evaluated) > 1 else ""
            width = min(self._display.width, CURVE[0])
            drawn = text_curve(points, limits_of(points, metric), width, CURVE[1], self._ascii)
            plot = Text("\n".join(drawn), no_wrap=True)
            plot.highlight_regex(r"[▁-█]+", "green")
            self._draw(Group(Text(f"\n{title} of greedy play{mean}", "bold"), plot))
        self._draw(_table(members, metric))

    def summary_by_run(self, members: Mapping[str, Sequence[MemberResults]]) -> None:
        """The mean over seeds of every run's last evaluations."""
        evaluated = [member for some in members.values() for member in some if member.evaluations]
        if not evaluated:
            return
        metric = metric_of(evaluated[0].evaluations)
        table = Table("run", box=SIMPLE_HEAD)
        for name in ("seeds", NAMES[metric], "lowest", "highest"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, some in members.items():
            last = [m.evaluations[-1][metric] for m in some if m.evaluations and m.fault is None]
            told = [short_number(x) for x in (sum(last) / len(last), min(last), max(last))] if last else ["–"] * 3
            table.add_row(name, str(len(last)), *told)
        self._draw(table)


class _Progress:
    """How far the members that train together are, as lines of fields. Steps and speed are each member's."""

    def __init__(self, what: str, total: int, steps: int, members: str, history: list[Point], ascii_only: bool):
        self.what, self.total, self.steps, self.members = what, total, steps, members
        self.history, self.note, self.metric = history, "", RETURN
        self._ascii = ascii_only
        self._line: Line = {}  # the means of the newest evaluation
        self._begin = time.perf_counter()
        self._recent = deque([(self._begin, steps)])

    def move(self, steps: int, members: str, note: str = "") -> None:
        now = time.perf_counter()
        self.steps, self.members, self.note = steps, members, note
        self._recent.append((now, steps))
        while len(self._recent) > 2 and self._recent[1][0] < now - RECENT_S:
            self._recent.popleft()

    def evaluated(self, steps: int, lines: Sequence[Line]) -> bool:
        """Whether the members' mean is the best so far."""
        self.metric = metric_of(lines)
        self._line = {name: mean for name in NAMES if (mean := mean_of(lines, name)) is not None}
        value = self._line.get(self.metric)
        if value is None:
            return False
        is_best = all(value > known for _, known in self.history)
        self.history.append((float(steps), value))
        return is_best

    def fields(self) -> list[Text]:
        """How far."""
        share = min(self.steps / self.total, 1.0)
        fields = [Text(f"{share:.0%}"), Text(f"{min(self.steps, self.total):,}/{self.total:,} steps"), *self.pace()]
        if self.what:
            fields.insert(0, Text(self.what, "bold"))
        return [*fields, Text(self.note, "dim")] if self.note else fields

    def pace(self) -> list[Text]:
        (then, before), (last, steps) = self._recent[0], self._recent[-1]
        if steps <= before or last <= then:
            return [Text(f"– steps/s{self.members}")]
        speed, now = (steps - before) / (last - then), time.perf_counter()
        left = (self.total - steps) / speed - (now - last)
        ends = f"{clock(left)} left" if steps < self.total else f"took {clock(last - self._begin)}"
        return [Text(f"{speed:,.0f} steps/s{self.members}"), Text(ends, "cyan")]

    def results(self) -> list[Text]:
        """The newest evaluation, and what learning says; the metric that counts comes first."""
        names = [self.metric, *(name for name in NAMES if name != self.metric)]
        label = {**NAMES, "train/epsilon": "eps" if self._ascii else NAMES["train/epsilon"]}
        return [Text(f"{label[name]} {short_number(self._line[name])}") for name in names if name in self._line]

    def _standing(self) -> list[Text]:
        """The newest evaluation with a sparkline and the best so far."""
        results = self.results()
        if not self.history or not results:
            return results
        low, high = limits_of(self.history, self.metric)
        sparks = sparkline([value for _, value in self.history[-SPARKS:]], low, high, self._ascii)
        at, best = max(self.history, key=lambda point: point[1])
        newest = Text.assemble((results[0].plain, "bold"), " ", (sparks, "green"))
        return [newest, Text(f"best {short_number(best)} at {short_count(at)}"), *results[1:]]

    def lines(self, width: int) -> list[Text]:
        """For a display so wide."""
        fields = self.fields()
        first = packed(fields, width - 12)
        room = min(width - first[0].cell_len - 2, 40)
        done, rest = text_bar(self.steps / self.total, room, self._ascii)
        first[0] = Text.assemble((done, "green"), (rest, "bright_black"), "  ", first[0])
        return [*first, *packed(self._standing(), width)]


# Words and numbers


def packed(fields: Sequence[Text], width: int, indent: int = 0) -> list[Text]:
    """Fields one after another, in as few lines as hold them whole; ``indent`` is that of all lines but the first."""
    lines: list[Text] = []
    for field in fields:
        if lines and lines[-1].cell_len + 2 + field.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "  ", field)
        else:
            lines.append(Text.assemble(" " * indent, field) if lines else field.copy())
    return lines


def clock(seconds: float) -> str:
    """As a clock has it: ``0:07``, ``1:02:33``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_count(steps: float) -> str:
    """A count in four letters or so: ``640``, ``16k``, ``9.4M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if steps >= size:
            return f"{steps / size:.3g}{unit}"
    return f"{steps:.0f}"


def mean_of(lines: Sequence[Line], name: str) -> float | None:
    """The members' mean, or None where nobody has it."""
    values = [line[name] for line in lines if name in line]
    return sum(values) / len(values) if values else None


def metric_of(lines: Sequence[Line]) -> str:
    return WIN_RATE if any(WIN_RATE in line for line in lines) else RETURN


def mean_curve(members: Sequence[Sequence[Line]], metric: str) -> list[Point]:
    """The members' mean, evaluation by evaluation, over their mean steps; of those that made so many."""
    columns = itertools.zip_longest(*members, fillvalue={})
    made = [[(line["env_steps"], line[metric]) for line in lines if metric in line] for lines in columns]
    return [(_mean([steps for steps, _ in some]), _mean([value for _, value in some])) for some in made if some]


def limits_of(points: Sequence[Point], metric: str) -> tuple[float, float]:
    """What a plot of the metric covers: all that a win rate can be, of returns those that there are."""
    if metric == WIN_RATE:
        return 0.0, 1.0
    low, high = min(value for _, value in points), max(value for _, value in points)
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def _range(lines: Mapping[str, Sequence[Line]], metric: str) -> Text:
    """From the run with the lowest mean to the one with the highest."""
    means = [mean for some in lines.values() if (mean := mean_of(some, metric)) is not None]
    return Text(f"runs {short_number(min(means))} to {short_number(max(means))}" if means else "–")


def _table(members: Sequence[MemberResults], metric: str) -> Table:
    """A row for each member, or of many for the least and the most, and their mean."""
    names = [name for name in (WIN_RATE, RETURN, "eval/length_mean") if name == metric or _has(members, name)]
    absolute = metric.replace("eval/", "absolute/")
    with_best = any(member.absolute and absolute in member.absolute for member in members)
    table = Table(box=SIMPLE_HEAD)
    heads = [name.removeprefix("eval/").removesuffix("_mean").replace("_", " ") for name in names]
    for head in ("seed", "env steps", *heads, *["best, replayed"] * with_best):
        table.add_column(head, justify="right")
    rows = [_cells(member, names, [absolute] * with_best) for member in members]
    shown = rows if len(rows) <= MOST_ROWS else []
    for row in shown:
        table.add_row(*row, style="red" if "frozen" in row[1] else "")
    last = [member.evaluations[-1] for member in members if member.evaluations and member.fault is None]
    best = [member.absolute for member in members if member.absolute and member.fault is None]
    if len(members) > 1 and last:
        table.add_section()
        columns = [(name, last) for name in names] + [(absolute, best)] * with_best
        for what, fold in (("mean", _mean), ("lowest", min), ("highest", max))[: 1 if shown else 3]:
            folded = ([line[name] for line in some if name in line] for name, some in columns)
            table.add_row(
                what, f"{len(last)} seeds", *(short_number(fold(x)) if x else "–" for x in folded), style="bold"
            )
    return table


def _has(members: Sequence[MemberResults], name: str) -> bool:
    return any(name in member.evaluations[-1] for member in members if member.evaluations)


def _cells(member: MemberResults, names: Sequence[str], absolute: Sequence[str]) -> list[str]:
    last = member.evaluations[-1] if member.evaluations else {}
    steps = f"{last['env_steps']:,}" if last else "–"
    if member.fault is not None:
        steps = f"frozen at {member.fault['fault_env_steps']:,}"
    sources = [(name, last) for name in names] + [(name, member.absolute or {}) for name in absolute]
    return [str(member.seed), steps, *(short_number(line[name]) if name in line else "–" for name, line in sources)]


def _mean(values: Sequence[int | float]) -> float:
    return sum(values) / len(values)


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _discard(stream: Any) -> None:
    """Sends what is still in a broken stream's buffer nowhere: Python would fail over it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
