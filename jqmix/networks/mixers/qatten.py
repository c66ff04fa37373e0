"""Qatten: the team's value as attention over the agents' (2002.03939)."""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.kernels.products import bilinear
from jqmix.networks.layers import MLP, linear
from jqmix.networks.mixers.base import Joint, Mixer, MixerSizes, Params, functions, q_and_state
from jqmix.networks.mixers.blocks import Heads
from jqmix.networks.mixers.settings import QattenSettings


class _QattenNetwork(nn.Module):
    """Q_tot = Σ_h |head_h(s)| Σ_i λ_{h,i} Q_i + c(s), λ_h a softmax over agents of query_h(s) · key_h(o_i) / √E.

    Qatten (2002.03939, §4). Its keys are made of each unit's own features, which the public code cuts out of
    StarCraft's global state; here they are the agent's observation, which every environment has.
    """

    sizes: MixerSizes
    settings: QattenSettings

    @nn.compact
    def __call__(
        self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"], obs: Float[Array, "*batch N O"]
    ) -> Float[Array, "*batch"]:
        s, e, k, hh = self.sizes.state_size, self.settings.embed, self.settings.heads, self.settings.hypernet_hidden
        query = Heads(k, s, hh, e, name="query")(state)
        key = linear(self.sizes.obs_size, k * e, "key")(obs).reshape(*obs.shape[:-1], k, e)
        attention = nn.softmax(bilinear(partial(jnp.einsum, "...ke,...nke->...kn"), query, key) / math.sqrt(e))
        head = jnp.abs(MLP(s, (hh, k), name="head")(state))
        c = MLP(s, (e, 1), name="c")(state)[..., 0]
        mixed = bilinear(partial(jnp.einsum, "...kn,...n->...k"), attention, q)
        return jnp.sum(head * mixed, axis=-1) + c


def qatten(sizes: MixerSizes, settings: QattenSettings) -> Mixer:
    """Without a Joint nobody shows any features, and all agents get the same attention."""
    init, mix = functions(_QattenNetwork(sizes, settings), *q_and_state(sizes), sizes.joint().obs)

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        return mix(params, q, state, (joint or sizes.joint(*q.shape[:-1])).obs)

    return Mixer(init, apply)
