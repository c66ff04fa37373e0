"""Cores: what an agent remembers. Each has a file of its own; this one knows them by name. Imports no JAX.

One from outside is ``factory(sizes)`` or ``factory(sizes, settings)``; the annotation of ``settings`` is its class of
settings.
"""

from jqmix.networks.cores.settings import GRUSettings
from jqmix.plugins import Entry, Factory, Registry
from jqmix.settings import NoSettings

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
