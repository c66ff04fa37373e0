"""What several mixers' networks are made of."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.kernels.products import bilinear
from jqmix.networks.layers import linear, uniform_fan


class Heads(nn.Module):
    """K two-layer perceptrons side by side, in → width → out with a ReLU between: [..., in] → [..., K, out]."""

    heads: int
    n_in: int
    width: int
    n_out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch K O"]:
        k, w = self.heads, self.width
        hidden = nn.relu(linear(self.n_in, k * w, "hidden")(x))
        kernel = self.param("kernel", uniform_fan(w), (k, w, self.n_out))
        bias = self.param("bias", uniform_fan(w), (k, self.n_out))
        outputs = partial(jnp.einsum, "...kw,kwo->...ko")
        return bilinear(outputs, hidden.reshape(*x.shape[:-1], k, w), kernel) + bias
