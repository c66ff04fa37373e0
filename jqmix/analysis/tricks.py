"""What an ablation's report has besides: its tricks, with variants side by side and what was published. No JAX."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jqmix.analysis.results import Summary, summarise
from jqmix.analysis.study import Trick, load_tricks
from jqmix.analysis.tables import bracketed, finite

Compared = dict[str, Summary]  # by a variant's label


def compare_tricks(folder: Path, summaries: Sequence[Summary]) -> tuple[dict[Trick, Compared], list[str]]:
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
    return bracketed(*map(finite, summary.final)) if len(summary.scores) else "diverged"


def _verdict(ranked: Sequence[Summary]) -> str:
    """Whether the best and the worst are told apart by their intervals."""
    if not all(len(s.scores) for s in ranked):
        return "diverged: unknown"
    best, worst = ranked[0].final, ranked[-1].final
    if np.isnan(best.low) or np.isnan(worst.high):
        return "one seed: unknown"
    return "best and worst differ" if best.low > worst.high else "intervals overlap"
