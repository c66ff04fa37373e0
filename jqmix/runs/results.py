"""What finished runs learned: members read from run directories, grouped by their settings, summarised over seeds.

Imports no JAX.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from jqmix.config import ConfigError, read_fields
from jqmix.runs.statistics import Curve, Estimate, align, stratified_bootstrap

WIN_RATE, RETURN = "eval/win_rate", "eval/return_mean"
# What may differ within a group: who was trained, and where.
WHO = {"seed", "seeds", "group", "run_dir"}
# What makes an environment a task of its own: results of different ones never share an axis.
TASK = {"env.name", "env.factory", "env.kwargs"}

T = TypeVar("T")


class Member(NamedTuple):
    """One seed of a run: its settings by dotted path, and its evaluations (lines of metrics.jsonl) in order."""

    run_dir: Path
    seed: int
    settings: dict[str, Any]
    evaluations: list[dict[str, Any]]


class Group(NamedTuple):
    """Members to aggregate over, by environment (mostly one). ``label`` tells it from others of the same task."""

    task: str
    label: str
    metric: str
    strata: list[list[Member]]

    @property
    def name(self) -> str:
        return f"{self.task}, {self.label}"

    @property
    def members(self) -> list[Member]:
        return [member for stratum in self.strata for member in stratum]


class Summary(NamedTuple):
    """What a group learned: its curve [K] over environment steps; its members' final scores, and their estimate [].

    ``cut`` members went on for an evaluation or more after the last step that all reached, where scores are taken.
    """

    group: Group
    steps: Int[np.ndarray, " K"]
    curve: Estimate
    scores: Float[np.ndarray, " n"]
    final: Estimate
    cut: int


# Reading


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories among ``paths``, and those that lie in the folders among them, each once."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "config.yaml").is_file() else sorted(p.parent for p in path.glob("*/config.yaml"))
        if not inside:
            raise ConfigError(f"run_dir: {path} is not a run directory (no config.yaml)")
        found += inside
    return list(dict.fromkeys(found))


def read_members(run_dir: Path) -> list[Member]:
    """A run's members that were evaluated. Raises ``ConfigError`` where there is nothing to draw a curve from."""
    settings = read_fields(run_dir / "config.yaml")
    lines = collect(_read_evaluations(run_dir / "metrics.jsonl"), lambda line: line["seed"])
    if not lines:
        raise ConfigError(f"run_dir: {run_dir} has no evaluations in metrics.jsonl")
    for seed, evaluations in lines.items():
        if len(evaluations) < 2:
            raise ConfigError(f"run_dir: {run_dir} has one evaluation of seed {seed}; a curve takes two")
    return [Member(run_dir, seed, settings, evaluations) for seed, evaluations in sorted(lines.items())]


def read_metadata(run_dir: Path) -> dict[str, Any]:
    """What metadata.json holds; nothing where there is none."""
    path = run_dir / "metadata.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except json.JSONDecodeError:
        raise ConfigError(f"{path}: not JSON") from None


def _read_evaluations(path: Path) -> Iterator[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict) or not all(isinstance(line.get(key), int) for key in ("env_steps", "seed")):
            raise ConfigError(f"{path}: line {number} is not a line of metrics")
        if any(key.startswith("eval/") for key in line):
            yield line


def collect(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Items of equal keys together, in the order in which they came."""
    found: dict[Any, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


# Grouping


def make_groups(members: Sequence[Member]) -> list[Group]:
    """Members of equal settings together, environment after environment.

    Raises ``ConfigError`` where a seed would count twice, or an environment's evaluations have no metric in common.
    """
    groups = []
    for task, of_task in collect(members, lambda m: task_name(m.settings)).items():
        metric = _metric(task, of_task)
        alike = list(collect(of_task, lambda m: _essence(m.settings)).values())
        labels = _labels([same[0].settings for same in alike])
        for label, same in zip(labels, alike, strict=True):
            _check_seeds(same)
            groups.append(Group(task, label, metric, [same]))
    return groups


def over_tasks(groups: Sequence[Group]) -> list[Group]:
    """Groups that have the same label in every environment, as one group with a stratum for each.

    Of win rates only: returns of different environments are on different scales.
    """
    comparable = [group for group in groups if group.metric == WIN_RATE]
    tasks = len({group.task for group in comparable})
    return [
        Group(
            f"{tasks} environments together", label, WIN_RATE, [stratum for group in same for stratum in group.strata]
        )
        for label, same in collect(comparable, lambda g: g.label).items()
        if len(same) == tasks > 1
    ]


def task_name(settings: dict[str, Any]) -> str:
    """The environment, and the arguments of its factory."""
    name = settings["env.factory"] or settings["env.name"]
    kwargs = ", ".join(f"{key}={value}" for key, value in (settings["env.kwargs"] or {}).items())
    return f"{name} ({kwargs})" if kwargs else name


def _essence(settings: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in settings.items() if k not in WHO | TASK}, sort_keys=True, default=str)


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    """For each, the fields in which they differ; the mixer's name where nothing does."""
    paths = dict.fromkeys(path for s in settings for path in s if path not in WHO | TASK)
    differing = [path for path in paths if any(s.get(path) != settings[0].get(path) for s in settings)]
    if not differing:
        return [str(s["algo.mixer"]) for s in settings]
    return [", ".join(f"{path}={_plain(s.get(path))}" for path in differing) for s in settings]


def _plain(value: Any) -> str:
    """As YAML and the command line spell it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _metric(task: str, members: Sequence[Member]) -> str:
    """The win rate where evaluations have it, else the return."""
    has_win_rate = {WIN_RATE in line for member in members for line in member.evaluations}
    if len(has_win_rate) > 1:
        raise ConfigError(f"{task}: only some of the evaluations have {WIN_RATE}; they cannot be compared")
    return WIN_RATE if has_win_rate == {True} else RETURN


def _check_seeds(members: Sequence[Member]) -> None:
    """The same seed with the same settings is the same run: counted twice, it would only narrow the interval."""
    for seed, same in collect(members, lambda m: m.seed).items():
        if len(same) > 1:
            raise ConfigError(
                f"run_dir: {same[0].run_dir} and {same[1].run_dir} both hold seed {seed} with the same settings; "
                "it may count only once"
            )


# Summaries


def summarise(group: Group, until: int | None = None) -> Summary:
    """A group's curve and final result; ``until``: as if each member's evaluation nearest to that step were its last.

    A member's final score is its own evaluation nearest to the last step that all members reached, the curve's end.
    Raises ``ConfigError`` for evaluations that are not finite, or out of order, or have no steps in common.
    """
    curves = [_curve(member, group.metric) for member in group.members]
    if until is not None:
        curves = [Curve(c.steps[: k + 1], c.values[: k + 1]) for c in curves for k in [_nearest(c, until)]]
    try:
        steps, values = align(curves)
    except ValueError as error:
        raise ConfigError(f"{group.name}: {error}") from None
    last = [_nearest(c, int(steps[-1])) for c in curves]
    scores = np.array([c.values[i] for c, i in zip(curves, last, strict=True)])
    bounds = np.cumsum([len(stratum) for stratum in group.strata])[:-1]
    return Summary(
        group,
        steps,
        curve=stratified_bootstrap(np.split(values, bounds)),
        scores=scores,
        final=stratified_bootstrap(np.split(scores, bounds)),
        cut=sum(i < len(c.steps) - 1 for c, i in zip(curves, last, strict=True)),
    )


def _nearest(curve: Curve, step: int) -> int:
    return int(np.argmin(np.abs(curve.steps - step)))


def _curve(member: Member, metric: str) -> Curve:
    steps = np.array([line["env_steps"] for line in member.evaluations], dtype=np.int64)
    found = [line.get(metric) for line in member.evaluations]
    values = np.array([v if isinstance(v, int | float) else math.nan for v in found], dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        step = steps[np.argmin(finite)]
        raise ConfigError(f"run_dir: {member.run_dir} has no finite {metric} of seed {member.seed} at {step:,} steps")
    if (np.diff(steps) <= 0).any():
        raise ConfigError(f"run_dir: {member.run_dir} has evaluations of seed {member.seed} with falling env_steps")
    return Curve(steps, values)
