"""No memory: a dense layer with a ReLU in the place of one. Its state has no leaves."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from jqmix.networks.cores.base import Core, CoreSizes, Params, State
from jqmix.networks.layers import dense_init, linear


def make(sizes: CoreSizes) -> Core:
    layer = linear(sizes.n_in, sizes.hidden, init=dense_init(sizes.n_in, sizes.orthogonal))

    def step(params: Params, state: State, x: Array, first: Array) -> tuple[Array, State]:
        del first
        return nn.relu(layer.apply({"params": params}, x)), state  # type: ignore[arg-type]

    return Core(
        init=lambda key: layer.init(key, jnp.zeros((sizes.n_in,)))["params"],
        initial_state=lambda *batch: (),
        step=step,
        unroll=step,  # all steps at once: none needs the one before
    )
