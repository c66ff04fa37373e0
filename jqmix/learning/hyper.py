"""The hyperparameters that are traced: arguments of the compiled program, so a grid of them is more members."""

import copy
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.config import Config, flatten, to_dict, traced_paths

Hyper = dict[str, Float[Array, ""]]  # by dotted path


def hyper_of(cfg: Config) -> Hyper:
    """The traced numbers of a configuration."""
    values = flatten(to_dict(cfg))
    return {path: jnp.float32(values[path]) for path in traced_paths(cfg)}


def bind(cfg: Config, hyper: Hyper) -> Config:
    """The configuration with its traced fields replaced by ``hyper``'s arrays: what the program reads."""
    groups: dict[str, dict[str, Any]] = {}
    for path, value in hyper.items():
        group, _, name = path.rpartition(".")
        groups.setdefault(group, {})[name] = value
    return _replaced(cfg, {group: _replaced(getattr(cfg, group), some) for group, some in groups.items()})


def _replaced(settings: Any, values: dict[str, Any]) -> Any:
    """A copy with other values. Not ``dataclasses.replace``: an array is not of the declared type, which whoever
    checks types at run time would not let pass."""
    changed = copy.copy(settings)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
