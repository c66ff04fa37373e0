"""What is asked of a core from outside, by tracing it once: nothing is compiled."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jqmix.inputs import ConfigError
from jqmix.networks.cores.base import Core, CoreSizes, unroll_core

BATCH, STEPS = (2, 3), 4


def check_core(name: str, core: Any, sizes: CoreSizes) -> None:
    """Raises ``ConfigError``, one line that begins with ``agent.core``, unless ``core`` keeps to its protocol."""
    whose = f"agent.core: {name}"
    if not isinstance(core, Core):
        raise ConfigError(f"{whose} returned a {type(core).__name__}; it must return a Core")
    params = _trace(f"{whose}: init", core.init, jax.random.key(0))
    state = _trace(f"{whose}: initial_state", lambda: core.initial_state(*BATCH))
    for leaf in jax.tree.leaves(state):
        if leaf.shape[: len(BATCH)] != BATCH:
            raise ConfigError(f"{whose}: initial_state{BATCH} has a leaf of shape {leaf.shape}, which must begin so")
    inputs = jax.ShapeDtypeStruct((*BATCH, sizes.n_in), jnp.float32), jax.ShapeDtypeStruct(BATCH, jnp.bool_)
    window = tuple(jax.ShapeDtypeStruct((STEPS, *x.shape), x.dtype) for x in inputs)
    outputs = {"step": (*BATCH, sizes.hidden), "unroll": (STEPS, *BATCH, sizes.hidden)}
    forms = {"step": (core.step, inputs), "unroll": (core.unroll or partial(unroll_core, core), window)}
    for form, (f, given) in forms.items():
        result = _trace(f"{whose}: {form}", f, params, state, *given)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ConfigError(f"{whose}: {form} must return (output, state)")
        output, after = result
        if getattr(output, "shape", None) != outputs[form]:
            raise ConfigError(f"{whose}: {form} gives an output of shape {_shapes(output)}; it must be {outputs[form]}")
        if _shapes(after) != _shapes(state):
            raise ConfigError(f"{whose}: {form} gives the state {_shapes(after)}; it must be like {_shapes(state)}")


def _trace(what: str, f: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(f, *args)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{what} raised {type(error).__name__}: {text}") from None


def _shapes(tree: Any) -> str:
    """One line that two trees share if they have the same structure, shapes and types."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "")
