"""Mixers without parameters: IQL, which mixes nothing, and VDN."""

import jax.numpy as jnp

from jqmix.networks.mixers.base import Mixer, MixerSizes


def iql(sizes: MixerSizes) -> Mixer:
    """Independent Q-learning: every agent learns from the team's reward on its own."""
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: q, per_agent=True)


def vdn(sizes: MixerSizes) -> Mixer:
    """Q_tot = Σ_i Q_i (1706.05296)."""
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: jnp.sum(q, axis=-1))
