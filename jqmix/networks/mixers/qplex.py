"""QPLEX: a duplex dueling network, which can represent whatever IGM allows (2008.01062)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.networks.layers import MLP
from jqmix.networks.mixers.base import Joint, Mixer, MixerSizes, Params, functions, q_and_state
from jqmix.networks.mixers.blocks import Heads
from jqmix.networks.mixers.settings import QPlexSettings


class _QPlexNetwork(nn.Module):
    """Q_tot = Σ_i Q'_i + Σ_i (λ_i − 1) sg(Q'_i − M'_i), with Q'_i = w_i Q_i + v_i and M'_i the same of max_a Q_i.

    QPLEX (2008.01062, §3); λ_i(s, u) > 0 is a sum of ``heads`` attention kernels, all layers as in its public code.
    """

    sizes: MixerSizes
    settings: QPlexSettings

    @nn.compact
    def __call__(
        self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"], joint: Joint
    ) -> Float[Array, "*batch"]:
        n, s, a = self.sizes.n_agents, self.sizes.state_size, self.sizes.n_actions
        k, hh = self.settings.heads, self.settings.hypernet_hidden
        taken = jax.nn.one_hot(joint.action, a).reshape(*joint.action.shape[:-1], n * a)
        w = jnp.abs(MLP(s, (hh, n), name="w")(state)) + 1e-10
        v = MLP(s, (hh, n), name="v")(state)
        key = jnp.abs(Heads(k, s, hh, 1, name="key")(state)) + 1e-10
        agents = nn.sigmoid(Heads(k, s, hh, n, name="agents")(state))
        actions = nn.sigmoid(Heads(k, s + n * a, hh, n, name="actions")(jnp.concatenate([state, taken], axis=-1)))
        importance = jnp.sum(key * agents * actions, axis=-2)
        advantage = jax.lax.stop_gradient(w * (q - joint.best))
        return jnp.sum(w * q + v, axis=-1) + jnp.sum((importance - 1.0) * advantage, axis=-1)


def qplex(sizes: MixerSizes, settings: QPlexSettings) -> Mixer:
    """Without a Joint, ``q`` are taken for the agents' best values: no advantages, and λ does not matter."""
    init, mix = functions(_QPlexNetwork(sizes, settings), *q_and_state(sizes), sizes.joint())

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        return mix(params, q, state, joint or sizes.joint(*q.shape[:-1])._replace(best=q))

    return Mixer(init, apply)
