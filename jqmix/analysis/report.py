"""The report on finished runs: curves and final results as figures, Markdown, LaTeX and CSV. Imports no JAX."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jqmix.analysis.comparison import EFFICIENCY_COLUMNS, IMPROVEMENT_COLUMNS, efficiency_rows, improvement_rows
from jqmix.analysis.figures import (
    FORMATS,
    Drawing,
    LearningCurve,
    Mark,
    Panel,
    Point,
    draw_curves,
    draw_points,
)
from jqmix.analysis.labels import rename
from jqmix.analysis.marl_eval import marl_eval_tree
from jqmix.analysis.report_text import Findings, latex_text, markdown_text
from jqmix.analysis.results import (
    ResultGroup,
    RunResults,
    Summary,
    find_runs,
    group_by,
    is_rate,
    make_groups,
    over_tasks,
    read_run,
    summarise,
)
from jqmix.analysis.tables import CURVES, curve_rows, metric_name, raw_rows, result_row, write_csv
from jqmix.analysis.tricks import compare_tricks
from jqmix.config import ConfigError
from jqmix.files import replacing, warn, write_text
from jqmix.inputs import check_new_file, shown

# What not every report has: left from an earlier one, they would be taken for this one's.
OPTIONAL_FILES = (
    "efficiency.csv",
    "improvement.csv",
    *(f"{name}.{kind}" for name in ("report", "curves") for kind in FORMATS),
)


def report(
    run_dirs: Sequence[str | Path],
    out: str | Path | None = None,
    overwrite: bool = False,
    threshold: float | None = None,
    *,
    metric: str | None = None,
    labels: Mapping[str, str] | None = None,
    drawing: Drawing | None = None,
    marl_eval: str | Path | None = None,
) -> tuple[list[dict[str, Any]], Path]:
    """Writes figures, tables and text on all these runs; returns the rows of the table of results, and the folder.

    The folder is ``RUN_DIR/report`` for one path and ``report`` for several, unless ``out`` names it. It gets
    ``report.md``, ``report.png``, ``tables.tex``, ``curves.csv`` and ``raw.csv``; where there is something to compare,
    also ``efficiency.csv`` (when a group was how close to the best) and ``improvement.csv`` (how likely the best is
    better).

    Args:
        run_dirs: Run directories, and folders of them.
        out: The folder.
        overwrite: Replace an earlier report in the folder, or the file for marl-eval. Other files in the folder stay.
        threshold: Rows also say at how many environment steps the interquartile mean first was there.
        metric: What is shown, such as ``eval/return_mean`` or ``train/loss``; otherwise the greedy win rate, or the
            greedy return where there is none.
        labels: Names for groups, each with a run directory or a group that it stands for (:func:`rename`).
        drawing: How figures are drawn (:func:`jqmix.analysis.figures.parse_drawing`).
        marl_eval: A file for the runs' evaluations as marl-eval reads them.

    What is damaged in a run is left out, and a damaged run among the runs of a folder, too: a line on stderr and a note
    in the report say so. Raises ``ConfigError`` where nothing is left or a named run cannot be read, and for a folder
    that holds anything unless told to ``overwrite``; nothing is written then, and what was there stays.
    """
    paths = [Path(path) for path in run_dirs]
    drawing = drawing or Drawing()
    folder = Path(out) if out is not None else (paths[0] if len(paths) == 1 else Path()) / "report"
    if marl_eval is not None:
        _check_free(Path(marl_eval), overwrite)
    found = _find(paths, threshold, metric, labels or {})
    with replacing(folder, overwrite) as new:
        _draw(found, new, drawing)
        _write_tables(found, new)
        # Names of folders need not be UTF-8.
        for name, text in (("report.md", markdown_text(found, drawing.formats[0])), ("tables.tex", latex_text(found))):
            (new / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        if marl_eval is not None:
            _write_marl_eval(found.groups, Path(marl_eval))
        outdated = _outdated(folder, new)
    for path in outdated:
        path.unlink(missing_ok=True)
    for note in found.notes:
        warn(note)
    return found.results, folder


def _outdated(folder: Path, new: Path) -> list[Path]:
    """What an earlier report in the folder has and the new one has not; nothing where there is no earlier report."""
    if not (folder / "report.md").is_file():
        return []
    return [folder / name for name in OPTIONAL_FILES if (folder / name).is_file() and not (new / name).exists()]


def _find(paths: Sequence[Path], threshold: float | None, metric: str | None, labels: Mapping[str, str]) -> Findings:
    runs, notes = _read_runs(paths)
    groups = rename(make_groups([member for run in runs.values() for member in run.members], metric), labels)
    summaries = [summarise(group) for group in [*groups, *over_tasks(groups)]]
    compared, missing = compare_tricks(paths[0], summaries) if len(paths) == 1 else ({}, [])
    return Findings(
        runs,
        groups,
        summaries,
        results=[result_row(summary, threshold) for summary in summaries],
        efficiency=efficiency_rows(summaries),
        improvement=improvement_rows(summaries),
        compared=compared,
        notes=notes + missing,
    )


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


def _check_free(path: Path, overwrite: bool) -> None:
    """A file can be written there, and nothing is lost by it."""
    check_new_file("marl_eval", path)
    if path.exists() and not overwrite:
        raise ConfigError(f"marl_eval: {shown(path)} already exists; nothing was overwritten (see --overwrite)")


def _write_marl_eval(groups: Sequence[ResultGroup], path: Path) -> None:
    tree, missing = marl_eval_tree(groups)
    try:
        write_text(path, json.dumps(tree, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"marl_eval: {shown(path)} cannot be written: {error.strerror or error}") from None
    for note in missing:
        warn(note)


def _write_tables(found: Findings, folder: Path) -> None:
    write_csv(folder / "curves.csv", CURVES, curve_rows(found.summaries))
    write_csv(folder / "raw.csv", *raw_rows(found.groups))
    if found.efficiency:
        write_csv(folder / "efficiency.csv", EFFICIENCY_COLUMNS, found.efficiency)
    if found.improvement:
        write_csv(folder / "improvement.csv", IMPROVEMENT_COLUMNS, found.improvement)


# Figures


def _draw(found: Findings, folder: Path, drawing: Drawing) -> None:
    """The curves, with a panel per environment; of an ablation final results and curves, with a panel per trick."""
    by_task = group_by(found.summaries, lambda s: s.group.task)
    tasks = [(task, {s.group.label: s for s in shown}) for task, shown in by_task.items()]
    tricks = [(trick.title, variants) for trick, variants in found.compared.items()]
    curve = _curve_over(drawing.over)
    for kind in drawing.formats:
        if tricks:
            draw_points(_panels(tricks, _point), folder / f"report.{kind}", drawing=drawing)
            draw_curves(_panels(tricks, curve), folder / f"curves.{kind}", drawing=drawing, shared_labels=False)
        else:
            draw_curves(_panels(tasks, curve), folder / f"report.{kind}", drawing=drawing)


def _panels(
    shown: Sequence[tuple[str, Mapping[str, Summary]]], mark: Callable[[str, Summary], Mark]
) -> list[Panel[Mark]]:
    """A panel for each title, with a mark for each label."""
    panels = []
    for title, summaries in shown:
        metric = next(iter(summaries.values())).group.metric
        marks = [mark(label, summary) for label, summary in summaries.items()]
        limits = (0.0, 1.0) if is_rate(metric) else None
        panels.append(Panel(title, metric_name(metric), marks, limits, _count_seeds(summaries.values())))
    return panels


def _point(label: str, summary: Summary) -> Point:
    return Point(label, summary.final, summary.scores)


def _curve_over(over: str) -> Callable[[str, Summary], LearningCurve]:
    """Makes a summary's curve. What it makes raises ``ConfigError`` where a clock is asked for and was not logged."""

    def curve(label: str, summary: Summary) -> LearningCurve:
        if over == "seconds" and np.isnan(summary.seconds).any():
            raise ConfigError(f"over: {shown(summary.group.name)} has no wall_s in its metrics")
        x = summary.seconds if over == "seconds" else summary.steps
        return LearningCurve(label, x, summary.curve, summary.values)

    return curve


def _count_seeds(summaries: Iterable[Summary]) -> str:
    """Of a group: "1 seed", "4 seeds", "2–4 seeds"."""
    counts = [len(s.scores) for s in summaries]
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' * (low != 1)}" if low == high else f"{low}–{high} seeds"
