"""The report on finished runs: learning curves and final results as PNG, Markdown and CSV. Imports no JAX."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jqmix.analysis.figures import LearningCurve, Panel, Point, draw_curves, draw_points
from jqmix.analysis.published import read_published
from jqmix.analysis.results import (
    RETURN,
    WIN_RATE,
    MemberResults,
    ResultGroup,
    RunResults,
    Summary,
    find_runs,
    group_by,
    make_groups,
    over_tasks,
    read_run,
    summarise,
)
from jqmix.analysis.statistics import LEVEL, RESAMPLES, Estimate, first_reach
from jqmix.analysis.study import Trick, load_tricks
from jqmix.config import ConfigError
from jqmix.files import replacing, warn
from jqmix.inputs import one_line, shorten

METRICS = {WIN_RATE: "greedy win rate", RETURN: "greedy return"}
CI = f"{100 * LEVEL:g} % CI"
# With fewer seeds, the report says by how much intervals are too narrow.
FEW = 10


def report(
    run_dirs: Sequence[str | Path],
    out: str | Path | None = None,
    overwrite: bool = False,
    threshold: float | None = None,
) -> tuple[list[dict[str, Any]], Path]:
    """Writes report.md, report.png, curves.csv and raw.csv on all these runs; returns the table's rows and the folder.

    The folder is ``RUN_DIR/report`` for one path and ``report`` for several, unless ``out`` names it. With a
    ``threshold``, rows say at how many environment steps the interquartile mean first was there.

    What is damaged in a run is left out, and a damaged run among the runs of a folder, too: a line on stderr and a note
    in the report say so. Raises ``ConfigError`` where nothing is left or a named run cannot be read, and for a folder
    that holds anything unless told to ``overwrite``; nothing is written then, and what was there stays.
    """
    paths = [Path(path) for path in run_dirs]
    folder = Path(out) if out is not None else (paths[0] if len(paths) == 1 else Path()) / "report"
    runs, notes = _read_runs(paths)
    groups = make_groups([member for run in runs.values() for member in run.members])
    summaries = [summarise(group) for group in [*groups, *over_tasks(groups)]]
    compared, missing = _compare(paths[0], summaries) if len(paths) == 1 else ({}, [])
    notes += missing
    rows = [result_row(summary, threshold) for summary in summaries]
    text = _markdown(groups, summaries, results_table(rows), compared, _provenance(groups, runs), notes)
    with replacing(folder, overwrite) as new:
        if compared:
            draw_points(point_panels(compared), new / "report.png")
            draw_curves(trick_panels(compared), new / "curves.png", shared_labels=False)
        else:
            draw_curves(curve_panels(summaries), new / "report.png")
        _write_csv(new / "curves.csv", ["group", "env_steps", *Estimate._fields, "n_seeds"], _curve_rows(summaries))
        _write_csv(new / "raw.csv", *_raw(groups))
        # Names of folders need not be UTF-8.
        (new / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    for note in notes:
        warn(note)
    return rows, folder


def _read_runs(paths: Sequence[Path]) -> tuple[dict[Path, RunResults], list[str]]:
    """The runs among ``paths`` by their directories, and what was damaged."""
    runs: dict[Path, RunResults] = {}
    damaged: list[ConfigError] = []
    for run_dir in find_runs(paths):
        try:
            runs[run_dir] = read_run(run_dir)
        except ConfigError as error:
            if run_dir in paths:
                raise
            damaged.append(error)
    if not runs:
        raise damaged[0]
    return runs, [f"left out: {error}" for error in damaged] + [note for run in runs.values() for note in run.notes]


# Tables


# Columns that a table has only where there is something to show.
OPTIONAL = ("diverged", "absolute", "absolute_low", "absolute_high")


def result_row(summary: Summary, threshold: float | None = None) -> dict[str, Any]:
    """A group's final result, as ``--json`` prints it; None for an interval or anything else that there is not.

    ``seeds`` counts those that the result is of; ``diverged`` are others.
    """
    group, scores, absolute = summary.group, summary.scores, summary.absolute
    row: dict[str, Any] = {
        "group": group.name,
        "metric": group.metric,
        "seeds": len(scores),
        "env_steps": int(summary.steps[-1]) if len(summary.steps) else None,
        **{name: _number(value) for name, value in summary.final._asdict().items()},
        "min": float(scores.min()) if len(scores) else None,
        "max": float(scores.max()) if len(scores) else None,
        "diverged": [member.seed for member in summary.diverged],
        **{name: _number(x) for name, x in zip(OPTIONAL[1:], absolute, strict=True)},
    }
    if threshold is not None:
        row |= {"threshold": threshold, "reached_at": first_reach(summary.steps, summary.curve.iqm, threshold)}
    return row


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`result_row` for a table, without optional columns that hold nothing."""
    empty = {name for name in OPTIONAL if not any(row[name] not in (None, []) for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of :func:`result_row` in Markdown."""
    rows = filled(rows)
    header = ["group", "metric", "seeds", "env steps", "final IQM", CI, "min – max"]
    header += ["diverged"] * ("diverged" in rows[0]) + [f"absolute ({CI})"] * ("absolute" in rows[0])
    header += [f"env steps to {rows[0]['threshold']:g}"] if "threshold" in rows[0] else []
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["group"], METRICS[row["metric"]], str(row["seeds"])]
    if row["iqm"] is None:
        cells += ["–"] * 4
    else:
        interval = "none (one seed)" if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}"
        cells += [f"{row['env_steps']:,}", f"{row['iqm']:.3f}", interval, f"{row['min']:.3f} – {row['max']:.3f}"]
    if "diverged" in row:
        cells.append(", ".join(f"seed {seed}" for seed in row["diverged"]) or "–")
    if "absolute" in row:
        cells.append(_bracketed(row["absolute"], row.get("absolute_low"), row.get("absolute_high")))
    if "threshold" in row:
        cells.append("not reached" if row["reached_at"] is None else f"{row['reached_at']:,}")
    return cells


def _bracketed(iqm: float | None, low: float | None, high: float | None) -> str:
    """An estimate with its interval, as far as there are any."""
    if iqm is None:
        return "–"
    return f"{iqm:.3f}" if low is None else f"{iqm:.3f} [{low:.3f}, {high:.3f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """None is an empty cell."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def _curve_rows(summaries: Sequence[Summary]) -> Iterator[dict[str, Any]]:
    for s in summaries:
        for steps, iqm, low, high in zip(s.steps, *s.curve, strict=True):
            values = {"iqm": _number(iqm), "low": _number(low), "high": _number(high)}
            yield {"group": s.group.name, "env_steps": int(steps), **values, "n_seeds": len(s.scores)}


def _raw(groups: Sequence[ResultGroup]) -> tuple[list[str], list[dict[str, Any]]]:
    """Every evaluation as it was logged, without the training's own numbers, as columns and rows. ``fault`` marks those
    of a seed that diverged later."""
    lines = [(group, member, line) for group in groups for member in group.members for line in member.evaluations]
    metrics = sorted({key for _, _, line in lines for key in line if key.startswith("eval/")})
    logged = ["env_steps", "updates", "wall_s", *metrics]
    rows = [
        {"group": group.name, "run_dir": str(member.run_dir), "seed": member.seed}
        | {key: line.get(key) for key in logged}
        | {"fault": member.fault and one_line(member.fault["fault"])}
        for group, member, line in lines
    ]
    return ["group", "run_dir", "seed", *logged, "fault"], rows


# Tricks

Compared = dict[str, Summary]  # by a variant's label


def _compare(folder: Path, summaries: Sequence[Summary]) -> tuple[dict[Trick, Compared], list[str]]:
    """The tricks of a study's folder with results of two variants or more, and what else it names."""
    tricks = load_tricks(folder)
    found = {m.run_dir: s for s in summaries if len(s.group.strata) == 1 for m in s.group.members}
    missing = dict.fromkeys(v.run for trick in tricks for v in trick.variants if folder / v.run not in found)
    compared = {trick: _compared(trick, folder, found) for trick in tricks}
    return (
        {trick: variants for trick, variants in compared.items() if len(variants) > 1},
        [f"left out: {folder / run} is named in study.json but holds no results" for run in missing],
    )


def _compared(trick: Trick, folder: Path, found: dict[Path, Summary]) -> Compared:
    """A trick's variants, all up to the last step that each of them reached; equal settings share a summary."""
    variants = {v.label: found[folder / v.run] for v in trick.variants if folder / v.run in found}
    common = _last_step(variants.values())
    return {label: summarise(summary.group, until=common) for label, summary in variants.items()}


def _last_step(summaries: Iterable[Summary]) -> int:
    """The last step that all reached which have a result."""
    return min((int(s.steps[-1]) for s in summaries if len(s.steps)), default=0)


def trick_rows(compared: dict[Trick, Compared]) -> Iterator[list[str]]:
    """Of every trick: what was published, and what was found here, best first."""
    for trick, summaries in compared.items():
        # What has no result comes last.
        ranked = sorted(summaries.items(), key=lambda item: -np.nan_to_num(float(item[1].final.iqm), nan=-np.inf))
        found = ", ".join(f"{label}: {_estimate(s)}" for label, s in ranked)
        reached = f"{_last_step(summaries.values()):,}"
        yield [trick.title, trick.direction, trick.published, found, _verdict([s for _, s in ranked]), reached]


def _estimate(summary: Summary) -> str:
    return _bracketed(*map(_number, summary.final)) if len(summary.scores) else "diverged"


def _verdict(ranked: Sequence[Summary]) -> str:
    """Whether the best and the worst are told apart by their intervals."""
    if not all(len(s.scores) for s in ranked):
        return "diverged: unknown"
    best, worst = ranked[0].final, ranked[-1].final
    if np.isnan(best.low) or np.isnan(worst.high):
        return "one seed: unknown"
    return "best and worst differ" if best.low > worst.high else "intervals overlap"


def point_panels(compared: dict[Trick, Compared]) -> list[Panel[Point]]:
    """A panel per trick, with final results."""
    return [
        Panel(
            title=trick.title,
            metric=f"{METRICS[_first_summary(summaries).group.metric]} (IQM, {CI})",
            marks=[Point(label, s.final, s.scores) for label, s in summaries.items()],
            limits=(0.0, 1.0) if _first_summary(summaries).group.metric == WIN_RATE else None,
        )
        for trick, summaries in compared.items()
    ]


def trick_panels(compared: dict[Trick, Compared]) -> list[Panel[LearningCurve]]:
    """A panel per trick, with learning curves."""
    return [
        Panel(
            title=trick.title,
            metric=f"{METRICS[_first_summary(summaries).group.metric]} (IQM, {CI})",
            marks=[LearningCurve(label, s.steps, s.curve) for label, s in summaries.items()],
            limits=(0.0, 1.0) if _first_summary(summaries).group.metric == WIN_RATE else None,
        )
        for trick, summaries in compared.items()
    ]


def _first_summary(summaries: Compared) -> Summary:
    return next(iter(summaries.values()))


# Figure


def curve_panels(summaries: Sequence[Summary]) -> list[Panel[LearningCurve]]:
    """A panel per environment."""
    return [
        Panel(
            title=f"{task} ({_count_seeds(shown)})",
            metric=f"{METRICS[shown[0].group.metric]} (IQM, {CI})",
            marks=[LearningCurve(s.group.label, s.steps, s.curve) for s in shown],
            limits=(0.0, 1.0) if shown[0].group.metric == WIN_RATE else None,
        )
        for task, shown in group_by(summaries, lambda s: s.group.task).items()
    ]


def _count_seeds(summaries: Sequence[Summary]) -> str:
    """Of a group: "1 seed", "4 seeds", "2–4 seeds"."""
    counts = [len(s.scores) for s in summaries]
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' * (low != 1)}" if low == high else f"{low}–{high} seeds"


# Text


def _markdown(
    groups: Sequence[ResultGroup],
    summaries: Sequence[Summary],
    table: str,
    compared: dict[Trick, Compared],
    provenance: str,
    damages: Sequence[str],
) -> str:
    members = [member for group in groups for member in group.members]
    notes = [
        *map(one_line, [*_faults(summaries), *damages]),
        f"IQM: interquartile mean over seeds. CI: its {100 * LEVEL:g} % confidence interval, a percentile bootstrap of "
        f"{RESAMPLES:,} resamples of whole seeds, each within its environment.",
        "A seed's final result is its own evaluation nearest to the env steps shown, the last that all seeds of the "
        "group reached. Curves are interpolated linearly to common steps.",
        *_warnings(summaries, members),
    ]
    return "\n".join(
        [
            *_head(compared),
            table,
            "",
            *[f"- {note}" for note in notes],
            "\n## Provenance\n",
            provenance,
            "\nCurves and intervals: [curves.csv](curves.csv). Every evaluation of every seed: [raw.csv](raw.csv).\n",
        ]
    )


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


def _head(compared: dict[Trick, Compared]) -> list[str]:
    """What comes first: the curves, or of an ablation the tricks."""
    if not compared:
        return ["# Greedy results\n", "![Learning curves](report.png)\n"]
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
        "![Final results](report.png)\n",
        markdown_table(header, list(trick_rows(compared))),
        "\n![Learning curves](curves.png)\n",
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
            "seed's best parameters by greedy evaluation while training reach at the end of it, on 10 × eval.episodes "
            "fresh episodes. A group has it once all its seeds have."
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
