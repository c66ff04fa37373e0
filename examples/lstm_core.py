"""A core from outside the package: a layer-normalised LSTM (Ba et al. 2016, 1607.06450).

jqmix train two_step_game --agent.core lstm_core:make

i, f, g, o = norm_x(W_x x) + norm_h(W_h h) + b
c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
h' = σ(o) ⊙ tanh(norm_c(c'))
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jqmix import setting
from jqmix.networks.cores.base import Core, CoreSizes, reset_where


@dataclass(frozen=True)
class LSTMSettings:
    """Each is a flag (``--core.forget-bias``), a line in a YAML file, and what a grid may vary."""

    forget_bias: float = setting(1.0, "the forget gate's bias at the beginning")


class Memory(NamedTuple):
    """An agent's memory: any pytree will do, if every leaf leads with the batch's axes."""

    h: Array  # [*batch, H]
    c: Array  # [*batch, H]


def normalise(scale: Array, x: Array) -> Array:
    """Layer normalisation over the last axis; what is shifted is the gates' bias alone."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return scale * centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


def make(sizes: CoreSizes, settings: LSTMSettings) -> Core:
    """What ``agent.core`` names. The annotation of ``settings`` tells jqmix what can be set."""
    n_in, hidden = sizes.n_in, sizes.hidden

    def init(key: Array) -> dict[str, Array]:
        key_x, key_h = jax.random.split(key)
        draw, bound = jax.random.uniform, hidden**-0.5
        return {
            "w_x": draw(key_x, (n_in, 4 * hidden), minval=-bound, maxval=bound),
            "w_h": draw(key_h, (hidden, 4 * hidden), minval=-bound, maxval=bound),
            "bias": jnp.zeros((4 * hidden,)).at[hidden : 2 * hidden].set(settings.forget_bias),
            "scale_x": jnp.ones((4 * hidden,)),
            "scale_h": jnp.ones((4 * hidden,)),
            "scale_c": jnp.ones((hidden,)),
        }

    def initial_state(*batch: int) -> Memory:
        return Memory(jnp.zeros((*batch, hidden)), jnp.zeros((*batch, hidden)))

    def step(params: dict[str, Array], memory: Memory, x: Array, first: Array) -> tuple[Array, Memory]:
        """One slot; where an episode begins (``first``), the memory is the initial one. Windows are scans over this."""
        h, c = reset_where(first, memory)
        from_x = normalise(params["scale_x"], x @ params["w_x"])
        from_h = normalise(params["scale_h"], h @ params["w_h"])
        i, f, g, o = jnp.split(from_x + from_h + params["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(normalise(params["scale_c"], c))
        return h, Memory(h, c)

    return Core(init, initial_state, step)
