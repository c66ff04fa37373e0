"""Which platform programs are compiled for, and whether fast paths are taken. Everything in the package asks here.

Both are asked while a program is traced, and both are part of the key under which ``jax.jit`` keeps what it has traced.
They hold for the thread that sets them.
"""

import contextlib
import os
from collections.abc import Iterator

import jax

_told = jax.make_user_context(default_value=None)
_plain = jax.make_user_context(default_value=os.environ.get("JQMIX_PLAIN") == "1")


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: the one that was told, else the one that JAX computes on."""
    return _told.value or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Within, programs are written for the platform ``name``, whether or not it is there."""
    with _told(name):
        yield


def plain() -> bool:
    """Whether every fast path takes its plain form instead: for debugging (``JQMIX_PLAIN=1``), and as the oracle."""
    return _plain.value


@contextlib.contextmanager
def plain_forms(wanted: bool = True) -> Iterator[None]:
    """Within, fast paths take their plain forms, or not if not ``wanted``."""
    with _plain(wanted):
        yield
