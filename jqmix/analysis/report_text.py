"""The text of a report, in Markdown and LaTeX: tables, and what a reader has to know of them. Imports no JAX."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jqmix.analysis.published import read_published
from jqmix.analysis.results import MemberResults, ResultGroup, RunResults, Summary, group_by
from jqmix.analysis.statistics import LEVEL, RESAMPLES
from jqmix.analysis.study import Trick
from jqmix.analysis.tables import (
    METRICS,
    Table,
    efficiency_table,
    improvement_table,
    latex_table,
    markdown_table,
    metric_name,
    results_table,
)
from jqmix.analysis.tricks import Compared, trick_rows
from jqmix.inputs import one_line, shorten

# With fewer seeds, the report says by how much intervals are too narrow.
FEW = 10


@dataclass(frozen=True)
class Findings:
    """All that there is to say: runs, their groups and what these learned; rows of tables; tricks of an ablation; what
    was left out."""

    runs: dict[Path, RunResults]
    groups: list[ResultGroup]
    summaries: list[Summary]
    results: list[dict[str, Any]]
    efficiency: list[dict[str, Any]]
    improvement: list[dict[str, Any]]
    compared: dict[Trick, Compared]
    notes: list[str]

    def comparisons(self) -> list[tuple[Table, str]]:
        """The tables that compare groups, as far as there is something to compare, and what their numbers mean."""
        found = []
        if self.efficiency:
            found.append((efficiency_table(self.efficiency), EFFICIENCY))
        if self.improvement:
            found.append((improvement_table(self.improvement), IMPROVEMENT))
        return found


EFFICIENCY = (
    "The levels are shares of the environment's greatest final IQM, or, where that is not positive, shares of the way "
    "to it from the lowest IQM of a first evaluation. A level is reached at the first point of a group's curve whose "
    f"IQM is at or above it. In brackets: {100 * LEVEL:g} % of bootstrap resamples of the group's seeds reach the "
    "level in between; the level is held, and ends lie at points of the curve. Seconds are the run's clock there "
    "(`wall_s`), the mean over seeds; seeds that were trained together share it."
)
IMPROVEMENT = (
    "How likely the final result of a seed of A, the group with the greatest final IQM of its environment, is above "
    "that of a seed of B: the share of all pairs of seeds, ties counted half, and its percentile bootstrap interval; "
    "over several environments the mean of their shares (Agarwal et al. 2021, arXiv 2108.13264). Above 0.5, A is "
    "better; an interval that holds 0.5 leaves open which is."
)


def markdown_text(found: Findings, kind: str) -> str:
    """report.md; its pictures are of that kind."""
    members = [member for group in found.groups for member in group.members]
    table = results_table(found.results)
    notes = [
        *map(one_line, [*_faults(found.summaries), *found.notes]),
        f"IQM: interquartile mean over seeds. CI: its {100 * LEVEL:g} % confidence interval, a percentile bootstrap of "
        f"{RESAMPLES:,} resamples of whole seeds, each within its environment.",
        "A seed's final result is its own evaluation nearest to the env steps shown, the last that all seeds of the "
        "group reached. Curves are interpolated linearly to common steps.",
        *_warnings(found.summaries, members),
    ]
    return "\n".join(
        [
            *_head(found, kind),
            markdown_table(table.header, table.rows),
            "",
            *[f"- {note}" for note in notes],
            *[
                f"\n## {table.caption}\n\n{markdown_table(table.header, table.rows)}\n\n{meaning}"
                for table, meaning in found.comparisons()
            ],
            "\n## Provenance\n",
            _provenance(found.groups, found.runs),
            "\nCurves and intervals: [curves.csv](curves.csv). Every evaluation of every seed: [raw.csv](raw.csv). "
            "The tables in LaTeX: [tables.tex](tables.tex).\n",
        ]
    )


def latex_text(found: Findings) -> str:
    """tables.tex: the tables of report.md, to be put into a paper."""
    tables = [results_table(found.results), *(table for table, _ in found.comparisons())]
    return "\n\n".join(["% Needs \\usepackage{booktabs}.", *map(latex_table, tables)]) + "\n"


def _faults(summaries: Sequence[Summary]) -> Iterator[str]:
    """What comes first in the notes: seeds without a final result."""
    diverged = [(s, member) for s in summaries if len(s.group.strata) == 1 for member in s.diverged]
    for s, member in diverged:
        assert member.fault is not None
        step = member.fault.get("fault_env_steps", member.fault["env_steps"])
        yield f"**Diverged**: {s.group.name}, seed {member.seed}: {member.fault['fault']} at {step:,} env steps."
    if diverged:
        yield (
            "A seed that diverged has no final result, and no earlier evaluation stands in for it: curves, results and "
            "intervals are of the other seeds, and so better than the setting is. A group of which an environment has "
            "no other seeds has no result."
        )


def _head(found: Findings, kind: str) -> list[str]:
    """What comes first: the curves, or of an ablation the tricks."""
    picture = "" if kind == "pdf" else "!"  # Markdown shows no PDF
    if not found.compared:
        metrics = dict.fromkeys(metric_name(group.metric) for group in found.groups)
        title = "Greedy results" if metrics.keys() <= set(METRICS.values()) else f"Results: {', '.join(metrics)}"
        return [f"# {title}\n", f"{picture}[Learning curves](report.{kind})\n"]
    published = read_published()
    header = [
        "trick",
        "better, as published",
        f"published ({published.source}, {published.measure})",
        "here, best first",
        "intervals",
        "at env steps",
    ]
    return [
        "# Implementation tricks, one varied at a time\n",
        f"{picture}[Final results](report.{kind})\n",
        markdown_table(header, list(trick_rows(found.compared))),
        f"\n{picture}[Learning curves](curves.{kind})\n",
        "## Every configuration\n",
    ]


def _warnings(summaries: Sequence[Summary], members: Sequence[MemberResults]) -> Iterator[str]:
    """What a reader has to know before trusting the numbers."""
    sizes = [sum(m.fault is None for m in stratum) for s in summaries for stratum in s.group.strata]
    if 1 in sizes:
        yield "One seed says nothing of how seeds differ: where an environment has no other, there is no interval."
    if any(1 < size < FEW for size in sizes):
        yield (
            "Intervals of few seeds are too narrow: with Gaussian scores, a nominal 95 % covers 50 % for 2 seeds, "
            "75 % for 3, 90 % for 5, 94 % for 10."
        )
    if any(len(s.group.strata) > 1 for s in summaries):
        yield (
            "Over several environments, every seed in each is one score. Groups of the same name are taken together; "
            "the name says in what groups of one environment differ, and no more."
        )
    if any(np.isfinite(s.absolute.iqm) for s in summaries):
        yield (
            "Absolute: the absolute metric of Gorsane et al. (2022, arXiv 2209.10485), the IQM over seeds of what each "
            "seed's best parameters by greedy evaluation while training reach at the end of it, on eval.absolute × "
            "eval.episodes fresh episodes. A group has it once all its seeds have."
        )
    for s in summaries:
        if s.cut:
            yield f"{s.group.name}: {s.cut} of {len(s.scores)} seeds went further than {s.steps[-1]:,} env steps."
    for run_dir, found in group_by(members, lambda m: m.run_dir).items():
        trained = found[0].settings["seeds"]
        if len(found) < trained:
            yield f"{run_dir}: {len(found)} of {trained} seeds were evaluated."


def _provenance(groups: Sequence[ResultGroup], runs: dict[Path, RunResults]) -> str:
    rows = []
    for group in groups:
        for run_dir, members in group_by(group.members, lambda m: m.run_dir).items():
            info = runs[run_dir].metadata
            rows.append(
                [
                    str(run_dir),
                    group.name,
                    ", ".join(str(m.seed) for m in members),
                    f"{_known(info, 'device', 'count')} × {_known(info, 'device', 'kind')}",
                    *(_known(info, "versions", package) for package in ("python", "jax", "jqmix")),
                    _known(info, "commit")[:10],
                ]
            )
    return markdown_table(["run", "group", "seeds", "device", "python", "jax", "jqmix", "commit"], rows)


def _known(info: Any, *keys: str) -> str:
    """Text or a number of a run's metadata, "?" for anything else."""
    for key in keys:
        info = info.get(key) if isinstance(info, dict) else None
    return shorten(one_line(str(info)), 60) if type(info) in (str, int, float) else "?"
