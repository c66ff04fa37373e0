"""Cores: what an agent remembers. Each has a file of its own; this one knows them by name. Imports no JAX.

One from outside is ``factory(sizes)`` or ``factory(sizes, settings)``; the annotation of ``settings`` is its class of
settings.
"""

from typing import TYPE_CHECKING, Any

from jqmix.networks.cores.settings import GRUSettings
from jqmix.plugins import Entry, Factory, Registry
from jqmix.settings import NoSettings

if TYPE_CHECKING:
    from jqmix.networks.cores.base import Core, CoreSizes

_HERE = "jqmix.networks.cores"

CORES = Registry(
    "agent.core",
    "core",
    {
        "gru": Entry(f"{_HERE}.gru:make", GRUSettings),
        "lstm": Entry(f"{_HERE}.lstm:make", NoSettings),
        "none": Entry(f"{_HERE}.feedforward:make", NoSettings),
    },
)


def core_names() -> list[str]:
    return CORES.names()


def register_core(name: str, factory: Factory) -> None:
    """Adds a core under ``name``: a factory, or ``"package.module:function"``.

    Raises ``ConfigError`` for a name that is taken.
    """
    CORES.register(name, factory)


def build_core(name: str, sizes: "CoreSizes", settings: Any = None) -> "Core":
    """The core called ``name`` (or at ``package.module:function``), with its defaults unless settings are given.

    Raises ``ConfigError``, one line, for whatever is wrong with one from outside.
    """
    return CORES.build(name, sizes, settings)
