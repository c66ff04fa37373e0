"""Whether parameters are of the shapes that they must have: by their dotted names."""

from collections.abc import Mapping
from typing import Any

import jax

Shape = tuple[int, ...]


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def difference(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> tuple[str, str, str] | None:
    """The first name whose shapes differ, and both as words; None where all are equal."""
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            return name, _spelled(found.get(name)), _spelled(wanted.get(name))
    return None


def _spelled(shape: Shape | None) -> str:
    return "absent" if shape is None else " × ".join(map(str, shape)) or "a number"
