"""Tables of a report, as Markdown, LaTeX and CSV: results, how soon they were there, who is better. Imports no JAX."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jqmix.analysis.comparison import NEVER, SHARES
from jqmix.analysis.results import RETURN, WIN_RATE, ResultGroup, Summary, group_by
from jqmix.analysis.statistics import LEVEL, Estimate, first_reach
from jqmix.inputs import one_line

METRICS = {WIN_RATE: "greedy win rate", RETURN: "greedy return"}
KINDS = {"eval": "greedy", "train": "training"}
CI = f"{100 * LEVEL:g} % CI"
# Columns that a table of results has only where there is something to show.
OPTIONAL = ("diverged", "absolute", "absolute_low", "absolute_high")
CURVES = ["group", "env_steps", *Estimate._fields, "n_seeds"]


class Table(NamedTuple):
    """A caption, a header and rows of text; the first column is of text, the others of numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def metric_name(metric: str) -> str:
    """As figures and tables call it: ``train/q_taken`` is "training q taken"."""
    kind, _, name = metric.partition("/")
    plain = f"{KINDS.get(kind, kind)} {name.removesuffix('_mean').replace('_', ' ')}"
    return METRICS.get(metric, plain)


# Results


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
        **{name: finite(value) for name, value in summary.final._asdict().items()},
        "min": float(scores.min()) if len(scores) else None,
        "max": float(scores.max()) if len(scores) else None,
        "diverged": [member.seed for member in summary.diverged],
        **{name: finite(x) for name, x in zip(OPTIONAL[1:], absolute, strict=True)},
    }
    if threshold is not None:
        row |= {"threshold": threshold, "reached_at": first_reach(summary.steps, summary.curve.iqm, threshold)}
    return row


def finite(value: Any) -> float | None:
    """A number as it is, None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None


def filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`result_row` for a table, without optional columns that hold nothing."""
    empty = {name for name in OPTIONAL if not any(row[name] not in (None, []) for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def results_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of :func:`result_row`."""
    rows = filled(rows)
    header = ["group", "metric", "seeds", "env steps", "final IQM", CI, "min – max"]
    header += ["diverged"] * ("diverged" in rows[0]) + [f"absolute ({CI})"] * ("absolute" in rows[0])
    header += [f"env steps to {rows[0]['threshold']:g}"] if "threshold" in rows[0] else []
    return Table("Final results", header, [_result_cells(row) for row in rows])


def _result_cells(row: dict[str, Any]) -> list[str]:
    cells = [row["group"], metric_name(row["metric"]), str(row["seeds"])]
    if row["iqm"] is None:
        cells += ["–"] * 4
    else:
        interval = "none (one seed)" if row["low"] is None else f"{row['low']:.3f} – {row['high']:.3f}"
        cells += [f"{row['env_steps']:,}", f"{row['iqm']:.3f}", interval, f"{row['min']:.3f} – {row['max']:.3f}"]
    if "diverged" in row:
        cells.append(", ".join(f"seed {seed}" for seed in row["diverged"]) or "–")
    if "absolute" in row:
        cells.append(bracketed(row["absolute"], row.get("absolute_low"), row.get("absolute_high")))
    if "threshold" in row:
        cells.append("not reached" if row["reached_at"] is None else f"{row['reached_at']:,}")
    return cells


def bracketed(value: float | None, low: float | None, high: float | None) -> str:
    """An estimate with its interval, as far as there are any."""
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


# Comparisons


def efficiency_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of :func:`jqmix.analysis.comparison.efficiency_rows`, those of a group in one line."""
    shares = [f"{100 * share:g} %" for share in SHARES]
    header = ["group", f"{' / '.join(shares)} of the best", *[f"steps to {share}" for share in shares]]
    header += [f"seconds to {share}" for share in shares]
    lines = []
    for group, found in group_by(rows, lambda row: row["group"]).items():
        levels = " / ".join(f"{row['level']:.3g}" for row in found)
        lines.append([group, levels, *[_when(row, name) for name in ("env_steps", "seconds") for row in found]])
    return Table("Environment steps and seconds to shares of the best final result", header, lines)


def _when(row: dict[str, Any], name: str) -> str:
    first, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if low is None or low == high == first:
        return _spell_time(first)
    return f"{_spell_time(first)} [{_spell_time(low)}, {_spell_time(high)}]"


def _spell_time(value: float | None) -> str:
    if value is None:
        return "–"
    return "not reached" if value == NEVER else f"{value:,.0f}"


def improvement_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of :func:`jqmix.analysis.comparison.improvement_rows`."""
    lines = [
        [
            row["group"],
            row["other"],
            bracketed(row["probability"], row["low"], row["high"]),
            f"{row['seeds']} / {row['other_seeds']}",
        ]
        for row in rows
    ]
    return Table("Probability of improvement", ["A, the best", "B", f"P(A > B) ({CI})", "seeds"], lines)


# As text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)


def _markdown_cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def latex_table(table: Table) -> str:
    """A floating table in LaTeX, with the rules of its package booktabs."""
    lines = [" & ".join(map(_latex_cell, line)) + r" \\" for line in [table.header, *table.rows]]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex_cell(table.caption)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            f"    {lines[0]}",
            r"    \midrule",
            *[f"    {line}" for line in lines[1:]],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


LATEX = {
    "\\": r"\textbackslash{}",
    **{c: rf"\{c}" for c in "{}$&#%_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "…": r"\ldots{}",
    # What starts a cell with [ would be read as the length that \\ takes.
    "[": "{[}",
}


def _latex_cell(text: str) -> str:
    return re.sub(".", lambda found: LATEX.get(found[0], found[0]), one_line(text))


# As files


def write_csv(path: Path, header: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """None is an empty cell."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def curve_rows(summaries: Sequence[Summary]) -> Iterator[dict[str, Any]]:
    """Every point of every group's curve, in columns ``CURVES``."""
    for s in summaries:
        for steps, iqm, low, high in zip(s.steps, *s.curve, strict=True):
            values = {"iqm": finite(iqm), "low": finite(low), "high": finite(high)}
            yield {"group": s.group.name, "env_steps": int(steps), **values, "n_seeds": len(s.scores)}


def raw_rows(groups: Sequence[ResultGroup]) -> tuple[list[str], list[dict[str, Any]]]:
    """Every evaluation as it was logged, with the training's own number if that is what is shown, as columns and rows.
    ``fault`` marks those of a seed that diverged later."""
    lines = [(group, member, line) for group in groups for member in group.members for line in member.evaluations]
    shown = {group.metric for group in groups}
    metrics = sorted({key for _, _, line in lines for key in line if key.startswith("eval/") or key in shown})
    logged = ["env_steps", "updates", "wall_s", *metrics]
    rows = [
        {"group": group.name, "run_dir": str(member.run_dir), "seed": member.seed}
        | {key: line.get(key) for key in logged}
        | {"fault": member.fault and one_line(member.fault["fault"])}
        for group, member, line in lines
    ]
    return ["group", "run_dir", "seed", *logged, "fault"], rows
