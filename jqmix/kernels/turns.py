"""Members that learn one after another within a program that is vmapped over them; the plain form is the ``vmap``."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.custom_batching import sequential_vmap

from jqmix.kernels.platform import plain, platform

ROWS = 256  # of a member in a step of the recurrence


def take_turns(rows: int) -> bool:
    """Whether members learn in turns: on a TPU, where each has so many ``rows`` (batch × agents) in every step.

    There the products of several members follow one another in any case, as each has weights of its own. All at once
    save steps of the recurrence, which take some time however few their rows are; in turns, they need one member's
    memory, and much of that fits into a TPU's own. ``ROWS`` is about where XLA's model of the time changes sides.
    """
    return platform() == "tpu" and rows >= ROWS and not plain("turns")


def in_turns(f: Callable[..., Any], rows: int) -> Callable[..., Any]:
    """``f`` of one member, which a ``vmap`` computes for member after member where they :func:`take_turns`.

    ``f`` may close over arrays of its member. It cannot be differentiated from outside.
    """
    if not take_turns(rows):
        return f

    def call(*args: Any) -> Any:
        # What ``f`` closes over differs between members, too, and so has to be an argument.
        traced, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        run = sequential_vmap(lambda consts, *leaves: eval_jaxpr(traced.jaxpr, consts, *leaves))
        return jax.tree.unflatten(jax.tree.structure(shapes), run(traced.consts, *jax.tree.leaves(args)))

    return call
