"""Which platform programs are compiled for, and whether fast paths are taken. Everything in the package asks here.

Both are asked while a program is traced, and both are part of the key under which ``jax.jit`` keeps what it has traced.
They hold for the thread that sets them.
"""

import contextlib
import os
from collections.abc import Iterator

import jax

_told = jax.make_user_context(default_value=None)
# Names of fast paths that take their plain form; ``1`` is all of them.
_plain = jax.make_user_context(default_value=tuple(filter(None, os.environ.get("JQMIX_PLAIN", "").split("+"))))


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: the one that was told, else the one that JAX computes on."""
    return _told.value or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Within, programs are written for the platform ``name``, whether or not it is there."""
    with _told(name):
        yield


def quick_to_compile() -> dict[str, str | bool]:
    """Compiler options for what runs once: on a CPU, LLVM does not polish it."""
    return {"xla_backend_optimization_level": "0"} if platform() == "cpu" else {}


def plain(path: str) -> bool:
    """Whether the fast path of this name takes its plain form instead: for debugging, as the oracle, and to measure
    what it is worth (``JQMIX_PLAIN=1``: all do; ``JQMIX_PLAIN=gru+product``: these)."""
    return "1" in _plain.value or path in _plain.value


@contextlib.contextmanager
def plain_forms(*paths: str) -> Iterator[None]:
    """Within, these fast paths take their plain forms, all of them unless named, and no others."""
    with _plain(paths or ("1",)):
        yield
