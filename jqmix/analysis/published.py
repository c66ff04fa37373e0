"""Published results that a study is compared with; the numbers lie in ``published.yaml``. Imports no JAX."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jqmix.inputs import read_yaml


class Finding(NamedTuple):
    """What was published of one trick: which way the results pointed, and the results themselves."""

    direction: str
    results: str


class Published(NamedTuple):
    """The results of a paper: its arXiv number, what its numbers measure, and its findings by a trick's name."""

    source: str
    measure: str
    findings: dict[str, Finding]


class PublishedCurves(NamedTuple):
    """Results of a paper after so many environment steps, by algorithm: its arXiv number, what its numbers measure
    and in which setting."""

    source: str
    measure: str
    setting: str
    env_steps: list[int]
    results: dict[str, list[float]]


@functools.cache
def _tree() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("published.yaml"))


def read_smax_curves() -> PublishedCurves:
    """How published algorithms learn on SMAX, which the suite of ``benchmarks/`` is compared with."""
    return PublishedCurves(**_tree()["smax"])


@functools.cache
def read_published() -> Published:
    """The results that the tricks of :func:`jqmix.analysis.study.ablation` are compared with."""
    tree = _tree()
    findings = {name: Finding(trick["direction"], _results_text(trick)) for name, trick in tree["tricks"].items()}
    return Published(tree["source"], tree["measure"], findings)


def _results_text(trick: dict[str, Any]) -> str:
    """All results in a line: ``64 / 256: corridor 93 / 93, MMM2 96 / 88``. The note where there are no results."""
    if "results" not in trick:
        return trick["note"]
    maps = ", ".join(f"{name} {_with_slashes(results)}" for name, results in trick["results"].items())
    return f"{_with_slashes(trick['values'])}: {maps}" if "values" in trick else maps


def _with_slashes(values: Sequence[Any]) -> str:
    return " / ".join("–" if value is None else str(value) for value in values)
