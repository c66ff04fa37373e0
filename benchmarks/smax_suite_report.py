"""The report of the SMAX learning suite, from collected files alone: tables and curves. A part of ``smax_suite.py``."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from jqmix.analysis.figures import Drawing, LearningCurve, Panel, draw_curves
from jqmix.analysis.published import read_smax_curves
from jqmix.analysis.results import WHO, WIN_RATE, MemberResults, ResultGroup, Summary, group_by, spell, summarise
from jqmix.analysis.statistics import LEVEL, RESAMPLES, stratified_bootstrap
from jqmix.analysis.tables import markdown_table, metric_name
from jqmix.config import ConfigError, flatten
from jqmix.envs.registry import SMAX_MAPS
from jqmix.files import read_json, replacing
from jqmix.inputs import quoted, shown

REPORT = "report.md"
BASE = "base"  # the candidate that others change: it comes first
MARKS = (500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)  # steps after which results are told
NEAR = 0.1  # of a mark: an evaluation stands for it that is no further away
NONE = "–"
MADE = ("commit", "device", "jqmix", "jax", "jaxmarl")
NAMED = {"env.name", "total_steps"} | WHO  # settings that a run's place tells


class Seed(NamedTuple):
    """A collected run: what it was ``made`` with (``MADE``), its settings by dotted path, and its evaluations, to which
    one that diverged has zeros added."""

    file: Path
    algorithm: str
    map: str
    seed: int
    budget: int
    finished: bool
    fault: str | None
    made: tuple[str, ...]
    settings: dict[str, Any]
    evaluations: list[dict[str, float]]

    @property
    def last(self) -> dict[str, float]:
        return self.evaluations[-1]

    def at(self, steps: int) -> float | None:
        """The win rate of the evaluation nearest to so many steps; None where it did not come as far, or none is near.

        A finished run's last evaluation stands for its budget.
        """
        if self.finished and steps == self.budget:
            return self.last[WIN_RATE]
        nearest = min(self.evaluations, key=lambda at: abs(at["env_steps"] - steps))
        reached = self.last["env_steps"] >= steps
        return nearest[WIN_RATE] if reached and abs(nearest["env_steps"] - steps) <= NEAR * steps else None


@dataclass(frozen=True)
class Group:
    """The seeds of an algorithm with one budget, by map."""

    label: str
    budget: int
    maps: dict[str, list[Seed]]

    @property
    def seeds(self) -> list[Seed]:
        return [seed for seeds in self.maps.values() for seed in seeds]

    def scores_at(self, steps: int) -> dict[str, list[float]]:
        """Win rates of the seeds that came as far, by map."""
        found = {name: [at for s in seeds if (at := s.at(steps)) is not None] for name, seeds in self.maps.items()}
        return {name: scores for name, scores in found.items() if scores}

    def shown(self, name: str) -> list[Seed]:
        """A map's finished seeds; where there is none, those that are on their way."""
        seeds = self.maps.get(name, [])
        return [seed for seed in seeds if seed.finished] or seeds


# Reading


def read_seeds(folders: Iterable[Path]) -> list[Seed]:
    files = [file for folder in folders for file in sorted(folder.glob("*/*.json"))]
    seeds = [seed for file in files if (seed := read_seed(file)).evaluations]
    if not seeds:
        raise ConfigError("json_dir: no results of evaluated runs in ALGORITHM/MAP-SEED.json")
    for same in group_by(seeds, lambda s: (s.algorithm, s.budget, s.map, s.seed)).values():
        if len(same) > 1:
            raise ConfigError(f"json_dir: {shown(same[0].file)} and {shown(same[1].file)} are the same run")
    return seeds


def read_seed(file: Path) -> Seed:
    tree = read_json(file)
    try:
        if tree["map"] not in SMAX_MAPS:
            raise ValueError(f"no map {quoted(tree['map'])}")
        who = (tree["algorithm"], tree["map"], tree["seed"], tree["total_steps"], tree["finished"])
        points = list(zip(*(tree["curve"][name] for name in ("env_steps", "wall_s", "win_rate")), strict=True))
        if tree["fault"] and points:
            # A setting that diverges has lost: nothing is won from then on.
            steps, wall_s, _ = points[-1]
            points += [(steps + 1, wall_s, 0.0), (max(steps + 2, tree["total_steps"]), wall_s, 0.0)]
        evaluations = [{"env_steps": steps, "wall_s": wall_s, WIN_RATE: rate} for steps, wall_s, rate in points]
        return Seed(file, *who, tree["fault"], made_with(tree), flatten(tree["config"]), evaluations)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{shown(file)}: not a result of the suite ({what})") from None


def made_with(tree: dict[str, Any]) -> tuple[str, ...]:
    """In the order of ``MADE``; what is not known is "?"."""
    versions, device = tree["versions"] or {}, tree["device"] or {}
    found = [(tree["commit"] or "?")[:10], f"{device.get('count', '?')} × {device.get('kind', '?')}"]
    return *found, *(versions.get(name, "?") for name in MADE[2:])


def make_groups(seeds: Sequence[Seed]) -> list[Group]:
    """By algorithm and budget; a name has its budget beside it where that alone tells two apart."""
    order = list(SMAX_MAPS)
    first = sorted(seeds, key=lambda s: s.algorithm != BASE)
    found = group_by(first, lambda s: (s.algorithm, s.budget))
    groups = []
    for (algorithm, budget), same in found.items():
        several = sum(name == algorithm for name, _ in found) > 1
        by_map = group_by(sorted(same, key=lambda s: (order.index(s.map), s.seed)), lambda s: s.map)
        groups.append(Group(f"{algorithm}, {millions(budget)}" if several else algorithm, budget, by_map))
    return groups


def millions(steps: int) -> str:
    return f"{steps / 1e6:g} M"


# Tables


def estimate(strata: Sequence[Sequence[float]]) -> str:
    """The interquartile mean over maps × seeds, with its interval where every map has several seeds."""
    iqm, low, high = (float(x) for x in stratified_bootstrap([np.array(scores) for scores in strata]))
    return f"{iqm:.3f}" if np.isnan(low) else f"{iqm:.3f} [{low:.3f}, {high:.3f}]"


def summary(scores: dict[str, list[float]], maps: int) -> tuple[str, str]:
    """The IQM, of how many runs, and of how many maps where some are missing; and the worst map."""
    if not scores:
        return NONE, NONE
    worst = min(scores, key=lambda name: mean(scores[name]))
    runs = sum(map(len, scores.values()))
    told = f"{runs} run{'s' * (runs != 1)}" + (f", {len(scores)} of {maps} maps" if len(scores) < maps else "")
    return f"{estimate(list(scores.values()))} ({told})", f"{mean(scores[worst]):.3f} ({worst})"


def budget_table(groups: Sequence[Group], maps: Sequence[str]) -> str:
    """Algorithm × map at the budget. What is on its way there stands in italics, with its steps."""
    rows = []
    for group in groups:
        cells = [budget_cell(group.shown(name)) for name in maps]
        rows.append([group.label, millions(group.budget), *summary(group.scores_at(group.budget), len(maps)), *cells])
    return markdown_table(["algorithm", "steps", f"IQM [{100 * LEVEL:g} % CI]", "worst map", *maps], rows)


def budget_cell(seeds: Sequence[Seed]) -> str:
    if not seeds:
        return NONE
    score = f"{mean(seed.last[WIN_RATE] for seed in seeds):.3f}"
    if seeds[0].finished:
        return f"{score} ({len(seeds)})"
    steps = min(seed.last["env_steps"] for seed in seeds)
    return f"*{score} ({len(seeds)}) at {steps / 1e6:.2f} M*"


def marks_table(groups: Sequence[Group], maps: Sequence[str]) -> str:
    """The IQM and the worst map after so many steps, with what was published below."""
    rows = []
    for group in groups:
        cells = [summary(group.scores_at(mark), len(maps)) for mark in MARKS]
        rows.append([group.label, *(NONE if iqm == NONE else f"{iqm}; {worst}" for iqm, worst in cells)])
    published = read_smax_curves()
    for name, values in published.results.items():
        at = dict(zip(published.env_steps, values, strict=True))
        cells = [f"{at[mark]:.2f}" if mark in at else NONE for mark in MARKS]
        rows.append([f"{name} (published, {published.setting})", *cells])
    return markdown_table(["IQM; worst map", *map(millions, MARKS)], rows)


def maps_table(groups: Sequence[Group], maps: Sequence[str]) -> str:
    """The mean over seeds after so many steps, map by map."""
    rows = []
    for name in maps:
        for group in groups:
            scores = [group.scores_at(mark).get(name) for mark in MARKS]
            cells = [f"{mean(found):.3f} ({len(found)})" if found else NONE for found in scores]
            if name in group.maps:
                rows.append([name, group.label, *cells])
    return markdown_table(["map", "algorithm", *map(millions, MARKS)], rows)


def settings_table(groups: Sequence[Group]) -> str:
    """In what algorithms differ from the first."""
    first = groups[0].seeds[0].settings
    rows = []
    for group in groups:
        now = group.seeds[0].settings
        differ = [name for name in now if name not in NAMED and now[name] != first.get(name)]
        rows.append([group.label, ", ".join(f"{name}={spell(now[name])}" for name in differ) or NONE])
    return markdown_table(["algorithm", f"differs from {groups[0].label} in"], rows)


def provenance_table(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        seeds = sorted({seed.seed for seed in group.seeds})
        told = [", ".join(sorted(set(found))) for found in zip(*(seed.made for seed in group.seeds), strict=True)]
        hours = sum(seed.last["wall_s"] for seed in group.seeds) / 3600
        rows.append([group.label, ", ".join(map(str, seeds)), *told, f"{hours:.1f}"])
    return markdown_table(["algorithm", "seeds", *MADE, "hours"], rows)


def notes(groups: Sequence[Group]) -> Iterator[str]:
    published = read_smax_curves()
    yield (
        "Greedy win rates of whole episodes; in brackets behind a map's mean, the number of seeds. IQM: interquartile "
        "mean over maps × seeds, which forgives the worst quarter, so the worst map's mean stands beside it."
    )
    yield (
        f"Intervals: percentile bootstrap, {RESAMPLES:,} resamples of seeds within their maps; none where a map has "
        "one seed, and too narrow for few."
    )
    yield "After so many steps: a run's evaluation nearest to them. Only runs that came as far are counted."
    yield (
        f"Published: {published.measure}, arXiv {published.source}, read off a figure. Those dynamics were others, so "
        "their numbers and these are no equals."
    )
    for group in groups:
        for seed in group.seeds:
            if seed.fault:
                yield f"**Diverged**: {group.label} on {seed.map}, seed {seed.seed}: counted as 0 from there on."
            elif not seed.finished:
                yield f"Not finished: {group.label} on {seed.map}, seed {seed.seed}: {seed.last['env_steps']:,} steps."
        if len({settings_key(seed) for seed in group.seeds}) > 1:
            yield f"**Settings of {group.label} differ** from map to map or seed to seed; see the collected files."


def settings_key(seed: Seed) -> str:
    return repr(sorted((name, repr(value)) for name, value in seed.settings.items() if name not in NAMED))


# Curves


def draw(groups: Sequence[Group], maps: Sequence[str], path: Path, over: str) -> None:
    """A panel for each map, and of several one of all together, for algorithms that have them all."""
    panels = [panel(name, [(g, [g.shown(name)]) for g in groups if g.shown(name)], over) for name in maps]
    whole = [group for group in groups if set(group.maps) == set(maps)]
    if len(maps) > 1 and whole:
        together = [(group, [group.shown(name) for name in maps]) for group in whole]
        panels.append(panel(f"IQM over {len(maps)} maps", together, over))
    draw_curves(panels, path, Drawing(over="seconds" if over == "seconds" else "steps"))


def panel(title: str, shown_seeds: Sequence[tuple[Group, list[list[Seed]]]], over: str) -> Panel[LearningCurve]:
    marks = []
    for group, strata in shown_seeds:
        found = curve_of(group.label, strata)
        if found is not None:
            x = found.seconds if over == "seconds" else found.steps
            # Of several maps, single seeds would fill the panel.
            marks.append(LearningCurve(group.label, x, found.curve, found.values if len(strata) == 1 else None))
    return Panel(title, metric_name(WIN_RATE), marks, (0.0, 1.0))


def curve_of(label: str, strata: Sequence[Sequence[Seed]]) -> Summary | None:
    """As far as all of its seeds came; None where they have no steps in common yet."""
    members = [[MemberResults(s.file, s.seed, s.settings, s.evaluations) for s in seeds] for seeds in strata]
    try:
        return summarise(ResultGroup("SMAX", label, WIN_RATE, members))
    except ConfigError:
        return None


# The report


def write_report(folders: Sequence[Path], to: Path, overwrite: bool) -> None:
    """REPORT and the figures ``steps.png`` and ``seconds.png`` in a folder. Raises ``ConfigError``."""
    groups = make_groups(read_seeds(folders))
    maps = [name for name in SMAX_MAPS if any(name in group.maps for group in groups)]
    sections = {
        "At the budget": budget_table(groups, maps) + "\n\n" + "\n".join(f"- {note}" for note in notes(groups)),
        "On the way": marks_table(groups, maps),
        "On the way, map by map": maps_table(groups, maps),
        "Settings": settings_table(groups),
        "Provenance": provenance_table(groups),
    }
    head = "# SMAX learning suite\n\n![Win rates over steps](steps.png)\n\n![Win rates over seconds](seconds.png)"
    text = "\n\n".join([head, CURVES, *(f"## {title}\n\n{body}" for title, body in sections.items())])
    with replacing(to, overwrite) as new:
        for over in ("steps", "seconds"):
            draw(groups, maps, new / f"{over}.png", over)
        (new / REPORT).write_text(text + "\n", encoding="utf-8")


CURVES = (
    "Curves are of finished seeds, or where a map has none yet of those on their way, as far as all of them came. "
    "The panel of all maps shows algorithms that have every map. Seconds are of training and its evaluations, without "
    "compiling, the mean over seeds."
)
