"""Hyperparameters that are numbers: traced, so that a grid of them is more members and not more compilations.

A field of the configuration that is declared as traced is one; nothing else needs to know of it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.config import Config, flatten, to_dict, traced_paths

Hyper = dict[str, Float[Array, "*P"]]  # by dotted path, as ``algo.gamma``


def hyper_of(cfg: Config) -> Hyper:
    """The traced fields of a configuration as arrays."""
    values = flatten(to_dict(cfg))
    return {path: jnp.float32(values[path]) for path in traced_paths(cfg)}


def bind(cfg: Config, hyper: Mapping[str, Any]) -> Config:
    """``cfg`` with these fields replaced, whatever they are: arrays, inside the compiled program."""
    groups: dict[str, dict[str, Any]] = {}
    for path, value in hyper.items():
        group, _, name = path.partition(".")
        groups.setdefault(group, {})[name] = value
    return _replaced(cfg, {group: _replaced(getattr(cfg, group), fields) for group, fields in groups.items()})


def _replaced(settings: Any, values: dict[str, Any]) -> Any:
    """A copy with other values. Not ``dataclasses.replace``: an array is not of the declared type, which whoever
    checks types at run time would not let pass."""
    changed = copy.copy(settings)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
