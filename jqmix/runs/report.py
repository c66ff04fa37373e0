"""The report on finished runs: learning curves and final results as PNG, Markdown and CSV. Imports no JAX."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jqmix.config import ConfigError
from jqmix.runs.figures import Line, Panel, Point, draw_curves, draw_points
from jqmix.runs.results import (
    RETURN,
    WIN_RATE,
    Group,
    Member,
    Summary,
    collect,
    find_runs,
    make_groups,
    over_tasks,
    read_members,
    read_metadata,
    summarise,
)
from jqmix.runs.statistics import LEVEL, RESAMPLES, first_reach
from jqmix.runs.study import Trick, load_tricks

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

    Raises ``ConfigError`` for what cannot be reported on, and for a folder that holds anything unless told to
    ``overwrite``; nothing is written then.
    """
    paths = [Path(path) for path in run_dirs]
    folder = Path(out) if out is not None else (paths[0] if len(paths) == 1 else Path()) / "report"
    groups = make_groups([member for run_dir in find_runs(paths) for member in read_members(run_dir)])
    summaries = [summarise(group) for group in [*groups, *over_tasks(groups)]]
    tricks = load_tricks(paths[0]) if len(paths) == 1 else []
    compared = {trick: _compared(trick, paths[0], summaries) for trick in tricks}
    rows = [result_row(summary, threshold) for summary in summaries]
    text = _markdown(groups, summaries, results_table(rows), compared)
    _make_folder(folder, overwrite)
    if compared:
        draw_points(point_panels(compared), folder / "report.png")
        draw_curves(trick_panels(compared), folder / "curves.png", shared_labels=False)
    else:
        draw_curves(curve_panels(summaries), folder / "report.png")
    _write_csv(folder / "curves.csv", _curve_rows(summaries))
    _write_csv(folder / "raw.csv", _raw_rows(groups))
    (folder / "report.md").write_text(text, encoding="utf-8")
    return rows, folder


def _make_folder(path: Path, overwrite: bool) -> None:
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ConfigError(f"out: {path} already exists and is not empty; nothing was overwritten (see --overwrite)")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be made: {error.strerror}") from None


# Tables


def result_row(summary: Summary, threshold: float | None = None) -> dict[str, Any]:
    """A group's final result, as ``--json`` prints it; None for an interval or a step that there is not."""
    group, scores = summary.group, summary.scores
    row: dict[str, Any] = {
        "group": group.name,
        "metric": group.metric,
        "seeds": len(scores),
        "env_steps": int(summary.steps[-1]),
        **{name: _number(value) for name, value in summary.final._asdict().items()},
        "min": float(scores.min()),
        "max": float(scores.max()),
    }
    if threshold is not None:
        row |= {"threshold": threshold, "reached_at": first_reach(summary.steps, summary.curve.iqm, threshold)}
    return row


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of :func:`result_row` in Markdown."""
    header = ["group", "metric", "seeds", "env steps", "final IQM", CI, "min – max"]
    header += [f"env steps to {rows[0]['threshold']:g}"] if "threshold" in rows[0] else []
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    interval = "none (one seed)" if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}"
    cells = [row["group"], METRICS[row["metric"]], str(row["seeds"]), f"{row['env_steps']:,}", f"{row['iqm']:.3f}"]
    cells += [interval, f"{row['min']:.3f} – {row['max']:.3f}"]
    if "threshold" in row:
        cells.append("not reached" if row["reached_at"] is None else f"{row['reached_at']:,}")
    return cells


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of equal keys; None is an empty cell."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _curve_rows(summaries: Sequence[Summary]) -> Iterator[dict[str, Any]]:
    for s in summaries:
        for steps, iqm, low, high in zip(s.steps, *s.curve, strict=True):
            values = {"iqm": _number(iqm), "low": _number(low), "high": _number(high)}
            yield {"group": s.group.name, "env_steps": int(steps), **values, "n_seeds": len(s.scores)}


def _raw_rows(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Every evaluation as it was logged, without the training's own numbers."""
    lines = [(group, member, line) for group in groups for member in group.members for line in member.evaluations]
    metrics = sorted({key for _, _, line in lines for key in line if key.startswith("eval/")})
    for group, member, line in lines:
        who = {"group": group.name, "run_dir": str(member.run_dir), "seed": member.seed}
        yield who | {key: line.get(key) for key in ["env_steps", "updates", "wall_s", *metrics]}


# Tricks

Compared = dict[str, Summary]  # by a variant's label


def _compared(trick: Trick, folder: Path, summaries: Sequence[Summary]) -> Compared:
    """A trick's variants, all up to the last step that each of them reached; equal settings share a summary."""
    found = {m.run_dir: s for s in summaries if len(s.group.strata) == 1 for m in s.group.members}
    missing = [v.run for v in trick.variants if folder / v.run not in found]
    if missing:
        raise ConfigError(f"run_dir: {folder / missing[0]} is named in study.json but holds no results")
    common = min(int(found[folder / v.run].steps[-1]) for v in trick.variants)
    return {v.label: summarise(found[folder / v.run].group, until=common) for v in trick.variants}


def trick_rows(compared: dict[Trick, Compared]) -> Iterator[list[str]]:
    """Of every trick: what was published, and what was found here, best first."""
    for trick, summaries in compared.items():
        ranked = sorted(summaries.items(), key=lambda item: -float(item[1].final.iqm))
        found = ", ".join(f"{label}: {_estimate(s)}" for label, s in ranked)
        reached = f"{min(int(s.steps[-1]) for _, s in ranked):,}"
        yield [trick.title, trick.direction, trick.published, found, _verdict([s for _, s in ranked]), reached]


def _estimate(summary: Summary) -> str:
    iqm, low, high = (float(x) for x in summary.final)
    return f"{iqm:.3f}" if np.isnan(low) else f"{iqm:.3f} [{low:.3f}, {high:.3f}]"


def _verdict(ranked: Sequence[Summary]) -> str:
    """Whether the best and the worst are told apart by their intervals."""
    best, worst = ranked[0].final, ranked[-1].final
    if np.isnan(best.low) or np.isnan(worst.high):
        return "one seed: unknown"
    return "best and worst differ" if best.low > worst.high else "intervals overlap"


def point_panels(compared: dict[Trick, Compared]) -> list[Panel[Point]]:
    """A panel per trick, with final results."""
    return [
        Panel(
            title=trick.title,
            metric=f"{METRICS[_any(summaries).group.metric]} (IQM, {CI})",
            marks=[Point(label, s.final, s.scores) for label, s in summaries.items()],
            limits=(0.0, 1.0) if _any(summaries).group.metric == WIN_RATE else None,
        )
        for trick, summaries in compared.items()
    ]


def trick_panels(compared: dict[Trick, Compared]) -> list[Panel[Line]]:
    """A panel per trick, with learning curves."""
    return [
        Panel(
            title=trick.title,
            metric=f"{METRICS[_any(summaries).group.metric]} (IQM, {CI})",
            marks=[Line(label, s.steps, s.curve) for label, s in summaries.items()],
            limits=(0.0, 1.0) if _any(summaries).group.metric == WIN_RATE else None,
        )
        for trick, summaries in compared.items()
    ]


def _any(summaries: Compared) -> Summary:
    return next(iter(summaries.values()))


# Figure


def curve_panels(summaries: Sequence[Summary]) -> list[Panel[Line]]:
    """A panel per environment."""
    return [
        Panel(
            title=f"{task} ({_count_seeds(shown)})",
            metric=f"{METRICS[shown[0].group.metric]} (IQM, {CI})",
            marks=[Line(s.group.label, s.steps, s.curve) for s in shown],
            limits=(0.0, 1.0) if shown[0].group.metric == WIN_RATE else None,
        )
        for task, shown in collect(summaries, lambda s: s.group.task).items()
    ]


def _count_seeds(summaries: Sequence[Summary]) -> str:
    """Of a group: "1 seed", "4 seeds", "2–4 seeds"."""
    counts = [len(s.scores) for s in summaries]
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' * (low > 1)}" if low == high else f"{low}–{high} seeds"


# Text


def _markdown(
    groups: Sequence[Group], summaries: Sequence[Summary], table: str, compared: dict[Trick, Compared]
) -> str:
    members = [member for group in groups for member in group.members]
    notes = [
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
            _provenance(groups),
            "\nCurves and intervals: [curves.csv](curves.csv). Every evaluation of every seed: [raw.csv](raw.csv).\n",
        ]
    )


def _head(compared: dict[Trick, Compared]) -> list[str]:
    """What comes first: the curves, or of an ablation the tricks."""
    if not compared:
        return ["# Greedy results\n", "![Learning curves](report.png)\n"]
    header = [
        "trick",
        "better, as published",
        "published (2102.03479, SMAC win %)",
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


def _warnings(summaries: Sequence[Summary], members: Sequence[Member]) -> Iterator[str]:
    """What a reader has to know before trusting the numbers."""
    sizes = [len(stratum) for s in summaries for stratum in s.group.strata]
    if min(sizes) == 1:
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
    for s in summaries:
        if s.cut:
            yield f"{s.group.name}: {s.cut} of {len(s.scores)} seeds went further than {s.steps[-1]:,} env steps."
    for run_dir, found in collect(members, lambda m: m.run_dir).items():
        trained = found[0].settings["seeds"]
        if len(found) < trained:
            yield f"{run_dir}: {len(found)} of {trained} seeds were evaluated."


def _provenance(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        for run_dir, members in collect(group.members, lambda m: m.run_dir).items():
            info = read_metadata(run_dir)
            versions, device = info.get("versions", {}), info.get("device", {})
            rows.append(
                [
                    str(run_dir),
                    group.name,
                    ", ".join(str(m.seed) for m in members),
                    f"{device.get('count', '?')} × {device.get('kind', '?')}",
                    *(str(versions.get(package, "?")) for package in ("python", "jax", "jqmix")),
                    (info.get("commit") or "?")[:10],
                ]
            )
    return markdown_table(["run", "group", "seeds", "device", "python", "jax", "jqmix", "commit"], rows)
