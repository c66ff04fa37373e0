"""jqmix: multi-agent Q-learning on JAX, compiled end to end. The public API; everything is imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jqmix import learning, networks
    from jqmix.config import Config, ConfigError, load_config
    from jqmix.envs.check import check_env
    from jqmix.envs.registry import EnvError, make_env, register
    from jqmix.learning.train import make_train
    from jqmix.networks.cores import register_core
    from jqmix.networks.mixers import register_mixer
    from jqmix.runs.experiment import Result, resume, train
    from jqmix.runs.policy import Policy, load_policy
    from jqmix.settings import setting
    from jqmix.types import EnvSpec, TimeStep, Window

_HOME = {
    "Config": "jqmix.config",
    "ConfigError": "jqmix.config",
    "load_config": "jqmix.config",
    "check_env": "jqmix.envs.check",
    "EnvError": "jqmix.envs.registry",
    "make_env": "jqmix.envs.registry",
    "register": "jqmix.envs.registry",
    "make_train": "jqmix.learning.train",
    "register_core": "jqmix.networks.cores",
    "register_mixer": "jqmix.networks.mixers",
    "Result": "jqmix.runs.experiment",
    "resume": "jqmix.runs.experiment",
    "train": "jqmix.runs.experiment",
    "Policy": "jqmix.runs.policy",
    "load_policy": "jqmix.runs.policy",
    "setting": "jqmix.settings",
    "EnvSpec": "jqmix.types",
    "TimeStep": "jqmix.types",
    "Window": "jqmix.types",
}

__all__ = [
    "Config",
    "ConfigError",
    "EnvError",
    "EnvSpec",
    "Policy",
    "Result",
    "TimeStep",
    "Window",
    "check_env",
    "learning",
    "load_config",
    "load_policy",
    "make_env",
    "make_train",
    "networks",
    "register",
    "register_core",
    "register_mixer",
    "resume",
    "setting",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("learning", "networks"):
        for module in {"learning": ("returns",), "networks": ("mixers", "agent")}[name]:
            importlib.import_module(f"jqmix.{name}.{module}")
        return importlib.import_module(f"jqmix.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jqmix")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jqmix' has no attribute {name!r}")
