"""Runs in the file format of marl-eval, the tool of Gorsane et al. (2022, arXiv 2209.10485). Imports no JAX.

Environment → task → algorithm → seed → step → metrics, each a list; and ``absolute_metrics`` beside the steps
(https://github.com/instadeepai/marl-eval, "Data Structure for Raw Experiment data").
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jqmix.analysis.results import MemberResults, MetricsLine, ResultGroup

# Environments that have tasks; any other is its own only task.
FAMILIES = re.compile(r"((?:jaxmarl/)?(?:smax|mpe|overcooked_v2|overcooked))_(.+)")


def marl_eval_tree(groups: Sequence[ResultGroup]) -> tuple[dict[str, Any], list[str]]:
    """The seeds of all groups as marl-eval reads them, and what will keep it from comparing them.

    Metrics are those of evaluations, under their own names (``win_rate``, ``return``, ``length``), the mean over
    episodes as the only element of each list. An algorithm's name is its group's label, with semicolons for commas,
    which marl-eval refuses. Seeds that diverged are left out.
    """
    tree: dict[str, Any] = {}
    for group in groups:
        family = FAMILIES.fullmatch(group.task)
        environment, task = family.groups() if family else (group.task, group.task)
        seeds = {f"seed_{m.seed}": _seed(m) for m in group.members if m.fault is None}
        if seeds:
            tree.setdefault(environment, {}).setdefault(task, {})[group.label.replace(",", ";")] = seeds
    return tree, [note for name, tasks in tree.items() for note in _uneven(name, tasks)]


def _seed(member: MemberResults) -> dict[str, Any]:
    steps: dict[str, Any] = {
        f"step_{k}": {"step_count": line["env_steps"], **_elapsed(line), **_metrics(line, "eval/")}
        for k, line in enumerate(member.evaluations)
    }
    if member.absolute is not None:
        steps["absolute_metrics"] = _metrics(member.absolute, "absolute/")
    return steps


def _elapsed(line: MetricsLine) -> dict[str, float]:
    return {"elapsed_time": line["wall_s"]} if "wall_s" in line else {}


def _metrics(line: MetricsLine, kind: str) -> dict[str, list[float]]:
    return {
        key.removeprefix(kind).removesuffix("_mean"): [value]
        for key, value in line.items()
        if key.startswith(kind) and key.removeprefix(kind) not in ("episodes", "env_steps")
    }


def _uneven(environment: str, tasks: dict[str, Any]) -> Iterator[str]:
    """What marl-eval asks of an environment's data, and this has not."""
    algorithms = [tuple(sorted(named)) for named in tasks.values()]
    groups = [seeds for named in tasks.values() for seeds in named.values()]
    members = [seed for seeds in groups for seed in seeds.values()]
    missing = [
        *["the same algorithms in every task"] * (len(set(algorithms)) > 1),
        *["as many seeds of every algorithm"] * (len(set(map(len, groups))) > 1),
        *["absolute metrics of every seed (of a run that ended, with eval.absolute)"]
        * (not all("absolute_metrics" in seed for seed in members)),
        *["as many evaluations of every seed"]
        * (len({len(seed.keys() - {"absolute_metrics"}) for seed in members}) > 1),
    ]
    if missing:
        yield f"marl_eval: {environment}: marl-eval needs {', '.join(missing)}"
