"""Weighted QMIX: QMIX whose errors are weighted by what an unconstrained critic knows (2006.10800)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.networks.layers import MLP
from jqmix.networks.mixers.base import Critic, Joint, Mixer, MixerSizes, functions, q_and_state
from jqmix.networks.mixers.qmix import qmix
from jqmix.networks.mixers.settings import WeightedQMixSettings


class _CentralNetwork(nn.Module):
    """Q̂* = MLP[s, q] + V(s), unconstrained (Weighted QMIX, 2006.10800, §5), layers as in its public code."""

    sizes: MixerSizes
    width: int

    @nn.compact
    def __call__(self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        n, s, w = self.sizes.n_agents, self.sizes.state_size, self.width
        mixed = MLP(s + n, (w, w, w, 1), name="q")(jnp.concatenate([state, q], axis=-1))
        return (mixed + MLP(s, (w, 1), name="v")(state))[..., 0]


def _central_mixer(sizes: MixerSizes, width: int) -> Mixer:
    init, mix = functions(_CentralNetwork(sizes, width), *q_and_state(sizes))
    return Mixer(init, lambda params, q, state, joint=None: mix(params, q, state), igm=False)


def central_weight(
    joint: Joint, q_tot: Array, target: Array, value: Array, settings: WeightedQMixSettings
) -> Float[Array, "*batch"]:
    """1 where û was played or something better than it was found, else α (2006.10800, §5: CW)."""
    is_greedy = jnp.all(joint.action == joint.greedy, axis=-1)
    return jnp.where(is_greedy | (target > value), 1.0, settings.alpha)


def optimistic_weight(
    joint: Joint, q_tot: Array, target: Array, value: Array, settings: WeightedQMixSettings
) -> Float[Array, "*batch"]:
    """1 where Q_tot underestimates, else α (2006.10800, §5: OW)."""
    return jnp.where(q_tot < target, 1.0, settings.alpha)


def cw_qmix(sizes: MixerSizes, settings: WeightedQMixSettings) -> Mixer:
    critic = Critic(_central_mixer(sizes, settings.critic_hidden), central_weight)
    return qmix(sizes, settings)._replace(critic=critic)


def ow_qmix(sizes: MixerSizes, settings: WeightedQMixSettings) -> Mixer:
    critic = Critic(_central_mixer(sizes, settings.critic_hidden), optimistic_weight)
    return qmix(sizes, settings)._replace(critic=critic)
