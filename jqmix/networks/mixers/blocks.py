"""What several mixers' networks are made of."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.networks.init import uniform_fan
from jqmix.networks.linear import linear


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
        return jnp.einsum("...kw,kwo->...ko", hidden.reshape(*x.shape[:-1], k, w), kernel) + bias


class MLP(nn.Module):
    """Linear layers of these widths, ReLU between them."""

    n_in: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        fans = (self.n_in, *self.widths[:-1])
        for i, (n_in, n_out) in enumerate(zip(fans, self.widths, strict=True)):
            x = linear(n_in, n_out, f"layer{i}")(x if i == 0 else nn.relu(x))
        return x
