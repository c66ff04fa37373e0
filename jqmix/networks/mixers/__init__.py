"""Mixers: how the agents' values become the team's. Each has a file of its own; this one knows them by name.

Imports no JAX until a mixer is built. One from outside is ``factory(sizes)`` or ``factory(sizes, settings)``, which
returns a :class:`~jqmix.networks.mixers.base.Mixer`; the annotation of ``settings`` is its class of settings.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jqmix.networks.mixers.settings import (
    QattenSettings,
    QMixSettings,
    QPlexSettings,
    QTranSettings,
    WeightedQMixSettings,
)
from jqmix.plugins import Entry, Factory, Registry
from jqmix.settings import NoSettings

if TYPE_CHECKING:
    from jqmix.networks.mixers.base import Critic, Joint, Mixer, MixerBatch, MixerSizes

_HERE = "jqmix.networks.mixers"

MIXERS = Registry(
    "algo.mixer",
    "mixer",
    {
        "iql": Entry(f"{_HERE}.vdn:iql", NoSettings),
        "vdn": Entry(f"{_HERE}.vdn:vdn", NoSettings),
        "qmix": Entry(f"{_HERE}.qmix:qmix", QMixSettings),
        "qatten": Entry(f"{_HERE}.qatten:qatten", QattenSettings),
        "qplex": Entry(f"{_HERE}.qplex:qplex", QPlexSettings),
        "qtran": Entry(f"{_HERE}.qtran:qtran", QTranSettings),
        "cw_qmix": Entry(f"{_HERE}.wqmix:cw_qmix", WeightedQMixSettings),
        "ow_qmix": Entry(f"{_HERE}.wqmix:ow_qmix", WeightedQMixSettings),
    },
)


__all__ = [
    "MIXERS",
    "Critic",
    "Joint",
    "Mixer",
    "MixerBatch",
    "MixerSizes",
    "build_mixer",
    "make_mixer",
    "mixer_names",
    "register_mixer",
]


def __getattr__(name: str) -> Any:
    """What mixers are made of, which needs JAX: loaded when first used."""
    if name in ("Critic", "Joint", "Mixer", "MixerBatch", "MixerSizes"):
        return getattr(importlib.import_module("jqmix.networks.mixers.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mixer_names() -> list[str]:
    return MIXERS.names()


def register_mixer(name: str, factory: Factory) -> None:
    """Adds a mixer under ``name``: a factory, or ``"package.module:function"``.

    Raises ``ConfigError`` for a name that is taken.
    """
    MIXERS.register(name, factory)


def build_mixer(name: str, sizes: "MixerSizes", settings: Any = None) -> "Mixer":
    """The mixer called ``name`` (or at ``package.module:function``), with its defaults unless settings are given.

    One from outside is traced once. Raises ``ConfigError``, one line, for whatever is wrong with it.
    """
    from jqmix.networks.mixers.check import check_mixer

    settings = MIXERS.read_settings(name, {}) if settings is None else settings
    mixer = MIXERS.build(name, sizes, settings)
    if name not in MIXERS.builtin:
        check_mixer(mixer, sizes, settings, MIXERS.factory(name))
    return mixer if mixer.settings is not None else mixer._replace(settings=settings)


def make_mixer(name: str, n_agents: int, state_size: int, **rest: Any) -> "Mixer":
    """The mixer called ``name``; ``rest``: further sizes as in ``MixerSizes``, and settings by name.

    Settings that only other mixers have are ignored. Raises ``ConfigError`` for what is unknown.
    """
    from jqmix.networks.mixers.base import MixerSizes

    settings = MIXERS.read_settings(name, {k: v for k, v in rest.items() if k not in MixerSizes._fields})
    sizes = {k: v for k, v in rest.items() if k in MixerSizes._fields}
    return build_mixer(name, MixerSizes(n_agents, state_size, **sizes), settings)
