"""Names of a user's own for groups of runs, in figures and tables. Imports no JAX."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jqmix.analysis.results import ResultGroup, spell
from jqmix.config import ConfigError
from jqmix.inputs import check_path_text, one_line, quoted, shorten, shown


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=WHAT`` texts as a mapping of names to what they name. Raises ``ConfigError``."""
    labels: dict[str, str] = {}
    for text in texts:
        name, _, what = (part.strip() for part in text.partition("="))
        name = shorten(one_line(name), 120)
        if not name or not what:
            raise ConfigError(f"labels: {quoted(text)} must look like NAME=RUN_DIR or NAME=GROUP")
        if name in labels:
            raise ConfigError(f"labels: {quoted(name)} is given twice")
        labels[name] = what
    return labels


def rename(groups: Sequence[ResultGroup], labels: Mapping[str, str]) -> list[ResultGroup]:
    """Groups with the names that ``labels`` gives them, in that order in every environment; the others keep theirs.

    What is named is a run directory, a folder of runs, a group as tables call it, or what has these settings
    (``algo.mixer=vdn, optim.lr=0.001``); of several environments, the group in each. Raises ``ConfigError`` where it is
    no group, where two names are for the same group, and where two groups of one environment would have the same name.
    """
    names: dict[int, str] = {}
    for name, what in labels.items():
        check_path_text("labels", what)
        found = [i for i, group in enumerate(groups) if _is_meant(what, group)]
        if not found:
            known = ", ".join(dict.fromkeys(quoted(group.label) for group in groups))
            raise ConfigError(f"labels: {quoted(what)} is none of the runs and groups; groups are {known}")
        for i in found:
            if i in names:
                raise ConfigError(f"labels: {quoted(names[i])} and {quoted(name)} both name {shown(groups[i].name)}")
            names[i] = name
    renamed = [group._replace(label=names.get(i, group.label)) for i, group in enumerate(groups)]
    for group, count in Counter((group.task, group.label) for group in renamed).items():
        if count > 1:
            raise ConfigError(f"labels: {quoted(group[1])} would be {count} groups of {shown(group[0])}; say which")
    tasks, order = list(dict.fromkeys(group.task for group in groups)), list(labels)
    return sorted(
        renamed,
        key=lambda g: (tasks.index(g.task), order.index(g.label) if g.label in order else len(order)),
    )


def _is_meant(what: str, group: ResultGroup) -> bool:
    if what in (group.name, group.label) or _has(group.members[0].settings, what):
        return True
    place = os.path.realpath(what)
    return any(os.path.commonpath([place, os.path.realpath(m.run_dir)]) == place for m in group.members)


def _has(settings: Mapping[str, Any], what: str) -> bool:
    """Whether all the settings are so: ``algo.mixer=vdn, optim.lr=0.001``."""
    parts = [part.partition("=") for part in what.split(", ")]
    return all(path in settings and spell(settings[path]) == value for path, _, value in parts)
