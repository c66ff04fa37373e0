"""JAX as jqmix takes it, whatever the user's environment says: checked before it starts, and settled while it runs."""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jqmix.config import Config, ConfigError
from jqmix.networks.cores.settings import GRUSettings

# What XLA does with flags that it does not know is to end the process, so that another one tries them.
_TRIES_FLAGS = "from jaxlib import xla_client; xla_client.make_cpu_client()"


@functools.cache
def check_environment() -> None:
    """Imports JAX. Raises ``ConfigError`` for a variable that it or XLA would refuse with a traceback or a crash."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError(f"environment variables: {_first_line(error)}") from None
    if os.environ.get("XLA_FLAGS"):
        done = subprocess.run(
            [sys.executable, "-c", _TRIES_FLAGS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0 and "parse_flags" in done.stderr:
            raise ConfigError(f"XLA_FLAGS: {done.stderr.splitlines()[0].partition('] ')[2]}")


def prepare(cache: bool = True) -> None:
    """What has to be settled before JAX starts, for the command line and for Python alike: every CPU core is a device,
    and compiled programs are kept (``cache``).

    What the user chose stays, and in a program in which JAX has started its devices do. Raises ``ConfigError`` as
    :func:`check_environment` does.
    """
    check_environment()
    from jqmix.runs.devices import use_compilation_cache, use_cpu_cores

    use_cpu_cores()
    if cache:
        use_compilation_cache()


@contextlib.contextmanager
def settled(cache: bool = True) -> Iterator[None]:
    """Within, what jqmix's programs assume holds: 32 bits, NumPy's promotion of types and ranks, compilation, copies.

    For every function that computes (``@settled()``); it begins with :func:`prepare`. Raises ``ConfigError`` where JAX
    has no devices to compute on.
    """
    prepare(cache)
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where there is no plugin for cuda
        asked = jax.config.values["jax_platforms"]
        raise ConfigError(
            f"JAX_PLATFORMS: JAX cannot start{f' on {asked!r}' if asked else ''}: {_first_line(error)}"
        ) from None
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
    ):
        yield


def check_kernels(cfg: Config, env: Any, warn: Callable[[str], None]) -> None:
    """Has a GPU prove that it gets the kernels right that the configuration and its environment ask for.

    Where it does not, ``warn`` is told that a plain form takes its place; raises ``ConfigError`` where nothing but the
    kernel will do.
    """
    _check_recurrence(cfg, warn)
    _check_acting(cfg, env, warn)
    _check_vectors(warn)
    found = getattr(env, "kernel_trouble", lambda: None)()
    if found is not None:
        warn(f"{env.spec.name}: a plain form takes its kernel's place on this GPU ({found})")


def _check_recurrence(cfg: Config, warn: Callable[[str], None]) -> None:
    from jqmix.kernels.self_test import trouble
    from jqmix.networks.cores.gru import asks_for_kernel

    if not isinstance(cfg.core, GRUSettings) or not asks_for_kernel(cfg.core, cfg.agent.hidden):
        return
    found = trouble(cfg.agent.hidden)
    if found is None:
        return
    if cfg.core.one_kernel == "true":
        raise ConfigError(f"core.one_kernel: true can't be had on this GPU ({found}); auto takes a scan instead")
    warn(f"core.one_kernel: a scan takes the kernel's place on this GPU ({found})")


def _check_acting(cfg: Config, env: Any, warn: Callable[[str], None]) -> None:
    from jqmix.learning.acting import acting_trouble, asks_to_act_in_one_kernel
    from jqmix.learning.learner import make_agent

    agent = make_agent(cfg, env.spec)
    found = acting_trouble(agent) if asks_to_act_in_one_kernel(agent) else None
    if found is not None:
        warn(f"acting: its operations one by one take the kernel's place on this GPU ({found})")


def _check_vectors(warn: Callable[[str], None]) -> None:
    from jqmix.kernels import vectors

    found = vectors.kernel_trouble() if vectors.asks_to_take_apart([]) else None
    if found is not None:
        warn(f"parameters: operations one by one take them apart in the kernel's place on this GPU ({found})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["there is no such device"])[0]
