"""QMIX: a network that is monotonic in every agent's value, its weights made from the state (1803.11485)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.networks.layers import linear
from jqmix.networks.mixers.base import Mixer, MixerSizes, functions, q_and_state
from jqmix.networks.mixers.settings import QMixSettings

POSITIVITY: dict[str, Callable[[Array], Array]] = {
    "abs": jnp.abs,
    "softplus": nn.softplus,
    "square": lambda w: 0.5 * w * w,
    "none": lambda w: w,  # breaks IGM: a control, not a method
}


class _QMixNetwork(nn.Module):
    """Q_tot = ELU(qᵀ W1 + b1) · W2 + V, all four made from the state by hypernetworks, W1 and W2 positive.

    QMIX (1803.11485, §4, fig. 2) with the two-layer hypernetworks of 2102.03479.
    """

    sizes: MixerSizes
    settings: QMixSettings

    @nn.compact
    def __call__(self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        n, s, e, hh = self.sizes.n_agents, self.sizes.state_size, self.settings.embed, self.settings.hypernet_hidden
        positive = POSITIVITY[self.settings.positivity]
        # W1's and W2's hidden layers, side by side. Split, not cut: the gradient of a split is a concatenation, that of
        # slices a sum of as many arrays as there are, padded with zeros. And at once, not after what is elementwise.
        for_w1, for_w2 = jnp.split(linear(s, 2 * hh, "hyper")(state), 2, axis=-1)
        w1 = linear(hh, n * e, "w1")(nn.relu(for_w1)).reshape(*q.shape, e)
        w2 = positive(linear(hh, e, "w2")(nn.relu(for_w2)))
        b1 = linear(s, e, "b1")(state)
        v = linear(e, 1, "v")(nn.relu(linear(s, e, "v_hidden")(state)))[..., 0]
        mixed = jnp.einsum("...n,...ne->...e", q, positive(w1), precision="highest")
        return jnp.sum(nn.elu(mixed + b1) * w2, axis=-1) + v


def qmix(sizes: MixerSizes, settings: QMixSettings) -> Mixer:
    init, mix = functions(_QMixNetwork(sizes, settings), *q_and_state(sizes))
    return Mixer(init, lambda params, q, state, joint=None: mix(params, q, state), igm=settings.positivity != "none")
