"""Cores by name. Imports no JAX until one is built."""

import importlib
from collections.abc import Callable
from typing import Any

from jqmix.networks.cores.settings import GRUSettings

_HERE = "jqmix.networks.cores"
_FACTORIES: dict[str, str | Callable[..., Any]] = {
    "gru": f"{_HERE}.gru:make",
    "lstm": f"{_HERE}.lstm:make",
    "none": f"{_HERE}.feedforward:make",
}
_SETTINGS: dict[str, type] = {"gru": GRUSettings}


def core_names() -> tuple[str, ...]:
    return tuple(_FACTORIES)


def register_core(name: str, factory: str | Callable[..., Any]) -> None:
    """Names a ``factory(sizes)`` or ``factory(sizes, settings)``, or what is one at ``package.module:function``."""
    _FACTORIES[name] = factory


def build_core(name: str, sizes: Any, settings: Any = None) -> Any:
    """The core ``name``. Its settings are the defaults unless given."""
    factory = _FACTORIES.get(name, name)
    if isinstance(factory, str):
        module, _, function = factory.partition(":")
        factory = getattr(importlib.import_module(module), function)
    if name in _SETTINGS:
        settings = _SETTINGS[name]() if settings is None else settings
    return factory(sizes) if settings is None else factory(sizes, settings)
