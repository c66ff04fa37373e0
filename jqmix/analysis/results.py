"""What finished runs learned: members read from run directories, grouped by their settings, summarised over seeds.

Imports no JAX.
"""

import contextlib
import itertools
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from jqmix.analysis.statistics import Curve, Estimate, align, stratified_bootstrap
from jqmix.config import ConfigError, read_fields
from jqmix.files import metrics_parts, read_json
from jqmix.inputs import quoted, shown

WIN_RATE, RETURN = "eval/win_rate", "eval/return_mean"
# What may differ within a group: who was trained, where, and how that was saved.
SAVING = {f"checkpoint.{name}" for name in ("every", "keep", "replay", "share")}
WHO = {"seed", "seeds", "group", "run_dir", "on_nan", "log"} | SAVING
# What makes an environment a task of its own: results of different ones never share an axis.
TASK = {"env.name", "env.factory", "env.kwargs"}
# How many folders deep runs are looked for.
DEPTH = 4
# What a line of metrics may hold: in bytes (it takes about a thousand), in whole numbers, and in others, which all
# were 32-bit floats.
LINE_LIMIT = 1_000_000
WHOLE = {"env_steps": 2**53, "updates": 2**53, "fault_env_steps": 2**53, "seed": 2**31, "member": 2**31}
FLOAT_LIMIT = float(np.finfo(np.float32).max)

MetricsLine = dict[str, Any]
T = TypeVar("T")


class MemberResults(NamedTuple):
    """One seed of a run: its settings by dotted path, and its evaluations (lines of metrics.jsonl) in order.

    ``absolute``: the line on its best parameters, which the end of training writes. ``fault``: the line on what was
    not finite, where it diverged; such a member has no final result.
    """

    run_dir: Path
    seed: int
    settings: dict[str, Any]
    evaluations: list[MetricsLine]
    absolute: MetricsLine | None = None
    fault: MetricsLine | None = None


class RunResults(NamedTuple):
    """What a run directory tells: its members, its metadata as far as it can be read, and what was damaged."""

    members: list[MemberResults]
    metadata: dict[str, Any]
    notes: list[str]


class ResultGroup(NamedTuple):
    """Members to aggregate over, by environment (mostly one). ``label`` tells it from others of the same task."""

    task: str
    label: str
    metric: str
    strata: list[list[MemberResults]]

    @property
    def name(self) -> str:
        return f"{self.task}, {self.label}"

    @property
    def members(self) -> list[MemberResults]:
        return [member for stratum in self.strata for member in stratum]


NOTHING = Estimate(*[np.array(np.nan)] * 3)


class Summary(NamedTuple):
    """What a group learned: its members' curves [n, K] over environment steps and their estimate [K]; its members'
    final scores [n] and their estimate []. ``seconds``: the run's clock at these steps, the mean over members, NaN
    where that was not logged.

    Members that diverged have no part in it. ``cut`` members went on for an evaluation or more after the last step
    that all reached, where scores are taken. ``absolute``: the estimate [] of the absolute metric, NaN unless every
    member has it. Where an environment has no member left, there are no steps and no scores, and estimates are NaN.
    """

    group: ResultGroup
    steps: Int[np.ndarray, " K"]
    seconds: Float[np.ndarray, " K"]
    values: Float[np.ndarray, "n K"]
    curve: Estimate
    scores: Float[np.ndarray, " n"]
    final: Estimate
    cut: int
    absolute: Estimate

    @property
    def diverged(self) -> list[MemberResults]:
        return [member for member in self.group.members if member.fault is not None]

    def by_stratum(self, array: Float[np.ndarray, "n *K"]) -> list[Float[np.ndarray, "_ *K"]]:
        """The members' ``values`` or ``scores``, environment by environment."""
        sizes = [sum(member.fault is None for member in stratum) for stratum in self.group.strata]
        return np.split(array, np.cumsum(sizes)[:-1])


# Reading


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories among ``paths``, and those that lie up to ``DEPTH`` folders deep in others, each once.

    Nothing inside of a run directory is one. Raises ``ConfigError`` for a path that holds none.
    """
    found: dict[str, Path] = {}
    for path in paths:
        inside = list(_runs_in(path, DEPTH, set()))
        if not inside:
            raise ConfigError(f"run_dir: {shown(path)} is not a run directory (no config.yaml), and holds none")
        for run_dir in inside:
            found.setdefault(os.path.realpath(run_dir), run_dir)
    return list(found.values())


def _runs_in(folder: Path, depth: int, seen: set[str]) -> Iterator[Path]:
    """A folder that cannot be listed holds nothing; ``seen`` ones, as links may lead in circles, nothing more."""
    try:
        if (folder / "config.yaml").is_file():
            yield folder
            return
        inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        place = os.path.realpath(folder)
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return
    if depth and place not in seen:
        seen.add(place)
        for path in inside:
            yield from _runs_in(path, depth - 1, seen)


def read_run(run_dir: Path) -> RunResults:
    """A run's members that were evaluated, or that diverged before. Damaged lines of metrics are skipped, metadata that
    cannot be read is left out, and both is noted.

    Raises ``ConfigError`` for a damaged config.yaml, and where metrics.jsonl has nothing to show.
    """
    settings = read_fields(run_dir / "config.yaml")
    metadata, damage = _metadata_or_none(run_dir)
    if settings["env.factory"]:  # of which earlier versions noted the name in the metadata alone
        environment = metadata.get("environment")
        named = environment.get("name") if isinstance(environment, dict) else None
        settings["env.name"] = named if isinstance(named, str) else settings["env.factory"]
    path = run_dir / "metrics.jsonl"
    lines, skipped = read_metrics(path, range(settings["seed"], settings["seed"] + settings["seeds"]))
    evaluations, without = _comparable([line for line in lines if any(key.startswith("eval/") for key in line)])
    found = []
    if skipped:
        found.append(f"{_count(len(skipped), 'damaged line')} skipped, the first is line {skipped[0]}")
    if without:
        found.append(f"{_count(without, 'evaluation')} left out for lack of the metric that most have")
    by_seed = group_by(evaluations, lambda line: line["seed"])
    absolute = {line["seed"]: line for line in lines if _kind(line) == "absolute"}
    fault = {line["seed"]: line for line in lines if _kind(line) == "fault"}
    seeds = sorted(by_seed.keys() | fault.keys())
    if not seeds:
        raise ConfigError("; ".join([f"run_dir: {shown(run_dir)} has no evaluations in metrics.jsonl", *found]))
    members = [MemberResults(run_dir, s, settings, by_seed.get(s, []), absolute.get(s), fault.get(s)) for s in seeds]
    notes = [f"{shown(path)}: {'; '.join(found)}"] if found else []
    return RunResults(members, metadata, notes + damage)


def _metadata_or_none(run_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """What metadata.json holds; or nothing, and a note on what is wrong with it."""
    try:
        return read_metadata(run_dir), []
    except ConfigError as error:
        return {}, [f"{error}; versions, device and commit are unknown"]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _comparable(evaluations: Sequence[MetricsLine]) -> tuple[list[MetricsLine], int]:
    """Evaluations that have the metric that most have (the win rate, or else the return), and how many have not."""
    won = sum(WIN_RATE in line for line in evaluations)
    metric = WIN_RATE if 2 * won >= len(evaluations) else RETURN
    kept = [line for line in evaluations if metric in line]
    return kept, len(evaluations) - len(kept)


def read_metadata(run_dir: Path) -> dict[str, Any]:
    """What metadata.json holds; nothing where there is none. Raises ``ConfigError`` if it is no JSON object."""
    path = run_dir / "metadata.json"
    return read_json(path) if path.exists() else {}


# Metrics


def read_metrics(path: Path, seeds: range | None = None) -> tuple[list[MetricsLine], list[int]]:
    """The lines of a metrics.jsonl in order, and the numbers (from 1) of the damaged lines, which are skipped.

    A line is sound if it is a JSON object of finite numbers for a member that the run has (``seeds``, where told), and
    goes on from the same member's lines before it: environment steps rise. Where they do not, the fewest lines are
    given up for it, of two at the same step the earlier. Lines are read one by one, and never more of one than
    ``LINE_LIMIT`` bytes. What other processes of the run have not put there yet is read, too. Raises ``ConfigError`` if
    a file cannot be read.
    """
    sound: dict[int, MetricsLine] = {}
    skipped: list[int] = []
    try:
        if not path.is_file():  # a pipe would never end
            raise ConfigError(f"{shown(path)}: cannot be read: not a file")
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in (path, *metrics_parts(path.parent))]
            for number, text in enumerate(itertools.chain.from_iterable(map(_texts, files)), 1):
                if text.isspace():
                    continue
                line = _parse(text, seeds)
                if line is None:
                    skipped.append(number)
                else:
                    sound[number] = line
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    for numbers in group_by(sound, lambda n: (sound[n]["seed"], _kind(sound[n]))).values():
        rising = _rising([sound[n]["env_steps"] for n in numbers])
        skipped += [n for i, n in enumerate(numbers) if i not in rising]
    left_out = set(skipped)
    return [line for number, line in sound.items() if number not in left_out], sorted(skipped)


def _texts(file: IO[bytes]) -> Iterator[bytes]:
    """MetricsLine after line. One that is over the limit is cut there, and so is no JSON."""
    while text := file.readline(LINE_LIMIT):
        yield text
        while len(text) == LINE_LIMIT and not text.endswith(b"\n"):
            text = file.readline(LINE_LIMIT)


def _parse(text: bytes, seeds: range | None) -> MetricsLine | None:
    """A line of metrics, or None for a damaged one."""
    try:
        line = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number without end, nested without end
        return None
    if not isinstance(line, dict) or not {"env_steps", "seed"} <= line.keys():
        return None
    if not all(_is_sound(key, value) for key, value in line.items()):
        return None
    if seeds is not None:
        first = line["seed"] - line.get("member", line["seed"] - seeds.start)
        if line["seed"] not in seeds or first != seeds.start:
            return None
    return line


def _is_sound(key: str, value: Any) -> bool:
    """Whether a line of metrics may have such a value: names with a slash are of measured numbers."""
    if key in WHOLE:
        return type(value) is int and 0 <= value <= WHOLE[key]
    if key == "fault":
        return isinstance(value, str)
    if key == "wall_s" or "/" in key:
        return type(value) in (int, float) and -FLOAT_LIMIT <= value <= FLOAT_LIMIT  # NaN is not
    return True


def _kind(line: MetricsLine) -> str:
    """A member's last words are at the step of its last evaluation: each kind rises on its own."""
    if "fault" in line:
        return "fault"
    return "absolute" if any(key.startswith("absolute/") for key in line) else "log"


def _rising(steps: Sequence[int]) -> set[int]:
    """The indices of a longest strictly rising subsequence; among equal numbers, of the last."""
    ends: list[int] = []  # for every length, the index at which the lowest subsequence ends
    before: list[int | None] = []
    for i, step in enumerate(steps):
        length = bisect_left(ends, step, key=lambda j: steps[j])
        before.append(ends[length - 1] if length else None)
        ends[length : length + 1] = [i]
    found: set[int] = set()
    last = ends[-1] if ends else None
    while last is not None:
        found.add(last)
        last = before[last]
    return found


def group_by(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Items of equal keys together, in the order in which they came."""
    found: dict[Any, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


# Grouping


def make_groups(members: Sequence[MemberResults], metric: str | None = None) -> list[ResultGroup]:
    """Members of equal settings together, environment after environment; of each the win rate if it has one, else the
    return, unless a ``metric`` is named.

    Raises ``ConfigError`` where a seed would count twice, or an environment's evaluations have no metric in common.
    """
    groups = []
    if metric is not None:
        _check_metric(metric, members)
    for task, same_task in group_by(members, lambda m: task_name(m.settings)).items():
        shown_metric = metric or _metric(task, same_task)
        alike = list(group_by(same_task, lambda m: _essence(m.settings)).values())
        labels = _labels([same[0].settings for same in alike])
        for label, same in zip(labels, alike, strict=True):
            _check_seeds(same)
            groups.append(ResultGroup(task, label, shown_metric, [same]))
    return groups


def over_tasks(groups: Sequence[ResultGroup]) -> list[ResultGroup]:
    """Groups that have the same label in every environment, as one group with a stratum for each.

    Of win rates only: returns of different environments are on different scales.
    """
    comparable = [group for group in groups if is_rate(group.metric)]
    tasks = len({group.task for group in comparable})
    return [
        ResultGroup(
            f"{tasks} environments together",
            label,
            same[0].metric,
            [stratum for group in same for stratum in group.strata],
        )
        for label, same in group_by(comparable, lambda g: g.label).items()
        if len(same) == tasks > 1
    ]


def task_name(settings: dict[str, Any]) -> str:
    """The environment, the factory of one from outside, and its arguments."""
    factory = settings["env.factory"]
    about = [] if factory in (None, settings["env.name"]) else [str(factory)]
    about += [f"{key}={value}" for key, value in (settings["env.kwargs"] or {}).items()]
    return f"{settings['env.name']} ({', '.join(about)})" if about else settings["env.name"]


def _essence(settings: dict[str, Any]) -> str:
    return repr(sorted((k, repr(v)) for k, v in settings.items() if k not in WHO | TASK))


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    """For each, the fields in which they differ; the mixer's name where nothing does."""
    paths = dict.fromkeys(path for s in settings for path in s if path not in WHO | TASK)
    differing = [path for path in paths if _differ(path, settings)]
    if not differing:
        return [str(s["algo.mixer"]) for s in settings]
    return [", ".join(f"{path}={spell(s.get(path))}" for path in differing if path in s) for s in settings]


def _differ(path: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Whether groups differ in a field. A mixer's or a core's setting counts among those that have it: that the others
    have not, the mixer's own name says."""
    depends = path.partition(".")[0] in ("mixer", "core")
    values = [s.get(path) for s in settings if path in s or not depends]
    return any(value != values[0] for value in values)


def spell(value: Any) -> str:
    """A setting's value as YAML and the command line have it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _metric(task: str, members: Sequence[MemberResults]) -> str:
    """The win rate where evaluations have it, else the return."""
    has_win_rate = {all(WIN_RATE in line for line in m.evaluations) for m in members if m.evaluations}
    if len(has_win_rate) > 1:
        raise ConfigError(f"{task}: only some of the evaluations have {WIN_RATE}; they cannot be compared")
    return WIN_RATE if has_win_rate == {True} else RETURN


def is_rate(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, whatever the environment."""
    return metric.endswith("/win_rate")


def _check_metric(metric: str, members: Sequence[MemberResults]) -> None:
    """Every member that was evaluated has logged it, along with one evaluation at least."""
    logged = [{key for line in m.evaluations for key in line} for m in members if m.evaluations]
    common = sorted(key for key in set.intersection(*logged) if "/" in key) if logged else []
    if metric not in common:
        raise ConfigError(f"metric: {quoted(metric)} is not allowed; all of these runs have {', '.join(common)}")


def _check_seeds(members: Sequence[MemberResults]) -> None:
    """The same seed with the same settings is the same run: counted twice, it would only narrow the interval."""
    for seed, same in group_by(members, lambda m: m.seed).items():
        if len(same) > 1:
            raise ConfigError(
                f"run_dir: {shown(same[0].run_dir)} and {shown(same[1].run_dir)} both hold seed {seed} with the same "
                "settings; it may count only once"
            )


# Summaries


def summarise(group: ResultGroup, until: int | None = None) -> Summary:
    """A group's curve and final result; ``until``: as if each member's evaluation nearest to that step were its last.

    A member's final score is its own evaluation nearest to the last step that all members reached, the curve's end.
    Raises ``ConfigError`` for evaluations that have no steps in common.
    """
    strata = [[member for member in stratum if member.fault is None] for stratum in group.strata]
    members = [member for stratum in strata for member in stratum]
    if not all(strata):
        none = np.zeros(0)
        nobody = Estimate(none, none, none)
        return Summary(group, none.astype(int), none, np.zeros((0, 0)), nobody, none, NOTHING, 0, NOTHING)
    curves = [_curve(member, group.metric) for member in members]
    if until is not None:
        curves = [Curve(c.steps[: k + 1], c.values[: k + 1]) for c in curves for k in [_nearest(c, until)]]
    try:
        steps, values = align(curves)
    except ValueError as error:
        raise ConfigError(f"{group.name}: {error}") from None
    last = [_nearest(c, int(steps[-1])) for c in curves]
    scores = np.array([c.values[i] for c, i in zip(curves, last, strict=True)])
    bounds = np.cumsum([len(stratum) for stratum in strata])[:-1]
    return Summary(
        group,
        steps,
        seconds=_seconds(members, steps),
        values=values,
        curve=stratified_bootstrap(np.split(values, bounds)),
        scores=scores,
        final=stratified_bootstrap(np.split(scores, bounds)),
        cut=sum(i < len(c.steps) - 1 for c, i in zip(curves, last, strict=True)),
        absolute=_absolute(strata, group.metric),
    )


def _seconds(members: Sequence[MemberResults], steps: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The run's clock at these steps, the mean over members; NaN where somebody has not logged it."""
    clocks = [_curve(member, "wall_s") for member in members]
    if not all(len(clock.steps) for clock in clocks):
        return np.full(len(steps), np.nan)
    return np.mean([np.interp(steps, *clock) for clock in clocks], axis=0)


def _absolute(strata: Sequence[Sequence[MemberResults]], metric: str) -> Estimate:
    """The estimate of the absolute metric, where every member has it."""
    name = metric.replace("eval/", "absolute/")
    found = [[(member.absolute or {}).get(name) for member in stratum] for stratum in strata]
    if any(value is None for stratum in found for value in stratum):
        return NOTHING
    return stratified_bootstrap([np.array(stratum, float) for stratum in found])


def _nearest(curve: Curve, step: int) -> int:
    return int(np.argmin(np.abs(curve.steps - step)))


def _curve(member: MemberResults, key: str) -> Curve:
    """What a member logged under ``key``; training's own numbers are not there in every line."""
    lines = [line for line in member.evaluations if key in line]
    return Curve(
        np.array([line["env_steps"] for line in lines], dtype=np.int64),
        np.array([line[key] for line in lines], dtype=np.float64),
    )
