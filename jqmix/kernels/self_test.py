"""Whether kernels of our own come out right on the GPU that is there. Asked before they are relied on.

What compiles for a GPU was written by several compilers, which differ with JAX, driver and chip. So a kernel proves
itself where it is to run, once a process, in about a second. Below is the proof of the GRU's recurrence.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jqmix.kernels import gru
from jqmix.kernels.gru_kernel import lowering
from jqmix.kernels.gru_step import Gates, GRUParams

MEMBERS, STEPS, ROWS = 2, 4, 19  # several programs, the last of them not full
# Of a result's largest value. TF32, which XLA multiplies in, is off by a thousandth or so; what is wrong, by tenths.
TOLERANCE = 0.02

_found: dict[str, str | None] = {}
_asking = threading.Lock()

# (the arguments) -> (what the kernel makes of them, what the plain form does)
Compare = Callable[..., tuple[Any, Any]]


def trouble(hidden: int) -> str | None:
    """Why the recurrence of this width can't be one kernel here, in a few words; None where it can.

    Also None where JAX has no GPU: then a program is compiled for one that is elsewhere. May be asked while a program
    is traced.
    """
    return trouble_with(f"the GRU of width {hidden}", lambda: disagreement(hidden))


def trouble_with(kernel: str, proof: Callable[[], str | None]) -> str | None:
    """The same of any kernel. ``proof`` runs it and says what is wrong (:func:`mismatch`), once a process."""
    gpu = _gpu()
    if gpu is None:
        return None
    if _before_ampere(gpu):  # not to be tried: what LLVM has no instructions for ends the process
        return f"{gpu.device_kind} is of a generation before Ampere"
    with _asking:
        if kernel not in _found:
            with ThreadPoolExecutor(1) as untraced:  # a thread of its own: what it calls is no part of the program
                _found[kernel] = untraced.submit(proof).result()
        return _found[kernel]


def _gpu() -> Any:
    device = jax.local_devices()[0]
    return device if device.platform == "gpu" else None


def _before_ampere(gpu: Any) -> bool:
    generation = gpu.compute_capability.partition(".")[0]
    return generation.isdigit() and int(generation) < 8  # else it is not NVIDIA's


def disagreement(hidden: int) -> str | None:
    """How the GRU's kernel fails on JAX's first device, or how far it is from the scan; None if near enough."""
    return mismatch(_by_kernel_and_by_scan, lambda: _window(lowering().width(hidden)))


def mismatch(compare: Compare, arguments: Callable[[], tuple[Any, ...]]) -> str | None:
    """How a kernel fails on JAX's first device, or how far its results are from the plain form's; None if near enough.

    ``compare`` is compiled, and run on the ``arguments``.
    """
    # In a thread of its own JAX has the user's settings, whatever they are.
    plain_jax = jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.transfer_guard("allow")
    try:
        with contextlib.ExitStack() as stack:
            for setting in (*plain_jax, jax.default_device(jax.local_devices()[0])):
                stack.enter_context(setting)
            given = arguments()
            program = jax.jit(lambda *given: compare(*given)).lower(*given)  # traced anew every time
            by_kernel, plain = jax.device_get(program.compile({"xla_gpu_autotune_level": "0"})(*given))
    except Exception as error:  # of any kind: Pallas, XLA, the driver
        text = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {text}"
    error = max(map(_difference, jax.tree.leaves(by_kernel), jax.tree.leaves(plain)), key=lambda e: (e != e, e))
    return None if error <= TOLERANCE else f"the kernel's results are off by {error:.2g} of their size"


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative to the largest value."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def _window(hidden: int) -> tuple[Any, ...]:
    """Every member's parameters, first hidden states, inputs, starts, and ∂ of the hidden states."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return jnp.asarray(scale * rng.normal(size=(MEMBERS, *shape)), jnp.float32)

    sides = ((hidden, hidden), (hidden,), (hidden, hidden), (hidden,))
    params = GRUParams(*(Gates(*(draw(*shape, scale=hidden**-0.5) for _ in range(3))) for shape in sides))
    first = jnp.asarray(rng.random((MEMBERS, STEPS, ROWS)) < 0.2)
    return params, draw(ROWS, hidden), draw(STEPS, ROWS, hidden), first, draw(STEPS, ROWS, hidden)


def _by_kernel_and_by_scan(*window: Any) -> tuple[Any, Any]:
    """All that either computes, forward and backward, for every member."""
    by_kernel = jax.vmap(partial(_both_passes, True))(*window)
    with jax.default_matmul_precision("highest"):
        by_scan = jax.vmap(partial(_both_passes, False))(*window)
    return by_kernel, by_scan


def _both_passes(by_kernel: bool, params: Any, h: Array, x: Array, first: Array, d_hs: Array) -> Any:
    hs, backward = jax.vjp(lambda *given: gru.unroll(*given, first, by_kernel), params, h, x)
    return hs, backward(d_hs)
