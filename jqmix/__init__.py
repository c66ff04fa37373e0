"""jqmix: multi-agent Q-learning on JAX, compiled end to end. The public API; everything is imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jqmix import learning, networks
    from jqmix.analysis.report import report
    from jqmix.config import Config, ConfigError, load_config
    from jqmix.envs.check import check_env
    from jqmix.envs.registry import EnvError, make_env, register
    from jqmix.learning.train import make_train
    from jqmix.networks.cores import register_core
    from jqmix.networks.mixers import register_mixer
    from jqmix.runs.ablate import run_sweep as sweep
    from jqmix.runs.experiment import Result, resume, train
    from jqmix.runs.export import export
    from jqmix.runs.log import StopTraining
    from jqmix.runs.policy import Policy, load_policy
    from jqmix.runs.policy import evaluate_run as evaluate
    from jqmix.runs.render import render
    from jqmix.settings import setting
    from jqmix.types import Entities, EnvSpec, TimeStep, Window

_HOME = {
    "report": "jqmix.analysis.report",
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
    "export": "jqmix.runs.export",
    "Result": "jqmix.runs.experiment",
    "resume": "jqmix.runs.experiment",
    "train": "jqmix.runs.experiment",
    "StopTraining": "jqmix.runs.log",
    "sweep": "jqmix.runs.ablate:run_sweep",
    "evaluate": "jqmix.runs.policy:evaluate_run",
    "Policy": "jqmix.runs.policy",
    "load_policy": "jqmix.runs.policy",
    "render": "jqmix.runs.render",
    "setting": "jqmix.settings",
    "Entities": "jqmix.types",
    "EnvSpec": "jqmix.types",
    "TimeStep": "jqmix.types",
    "Window": "jqmix.types",
}

__all__ = [
    "Config",
    "ConfigError",
    "Entities",
    "EnvError",
    "EnvSpec",
    "Policy",
    "Result",
    "StopTraining",
    "TimeStep",
    "Window",
    "check_env",
    "evaluate",
    "export",
    "learning",
    "load_config",
    "load_policy",
    "make_env",
    "make_train",
    "networks",
    "register",
    "register_core",
    "register_mixer",
    "render",
    "report",
    "resume",
    "setting",
    "sweep",
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
        module, _, attribute = _HOME[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'jqmix' has no attribute {name!r}")
