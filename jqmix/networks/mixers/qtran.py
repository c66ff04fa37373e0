"""QTRAN-base: a free joint value, and a sum of the agents' that is made to fit it (1905.05408)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.networks.layers import MLP
from jqmix.networks.mixers.base import Joint, Mixer, MixerBatch, MixerSizes, Params, functions, q_and_state
from jqmix.networks.mixers.settings import QTranSettings


class _QTranValues(NamedTuple):
    """What QTRAN's network gives: the joint value of the action taken, that of the greedy one, and V(s)."""

    taken: Float[Array, "*batch"]
    greedy: Float[Array, "*batch"]
    v: Float[Array, "*batch"]


class _QTranNetwork(nn.Module):
    """Q_jt(s, u) = MLP[s, Σ_i enc(h_i, u_i)] and V(s): QTRAN (1905.05408, §4), layers as in PyMARL."""

    sizes: MixerSizes
    settings: QTranSettings

    @nn.compact
    def __call__(self, state: Float[Array, "*batch S"], joint: Joint) -> _QTranValues:
        s, a, hh = self.sizes.state_size, self.sizes.n_actions, self.settings.hypernet_hidden
        e = self.sizes.hidden + a
        encode = MLP(e, (e, e), name="encode")
        value = MLP(s + e, (hh, hh, 1), name="q")

        def q_jt(action: Int[Array, "*batch N"]) -> Float[Array, "*batch"]:
            each = encode(jnp.concatenate([joint.hidden, jax.nn.one_hot(action, a)], axis=-1))
            return value(jnp.concatenate([state, jnp.sum(each, axis=-2)], axis=-1))[..., 0]

        v = MLP(s, (hh, hh, 1), name="v")(state)[..., 0]
        return _QTranValues(q_jt(joint.action), q_jt(joint.greedy), v)


def qtran(sizes: MixerSizes, settings: QTranSettings) -> Mixer:
    """QTRAN-base: Q_jt learns from the TD error; Σ_i Q_i + V(s) is made to equal it at û and not to be below elsewhere.

    So IGM is what its constraints aim at, not what its form ensures. Without a Joint: that sum.
    """
    init, values = functions(_QTranNetwork(sizes, settings), q_and_state(sizes)[1], sizes.joint())

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        if joint is None:
            return jnp.sum(q, axis=-1) + values(params, state, sizes.joint(*q.shape[:-1])).v
        return values(params, state, joint).taken

    def auxiliary(
        params: Params, batch: MixerBatch, settings: QTranSettings, key: Array
    ) -> tuple[Float[Array, "T1 B"], dict[str, Float[Array, "T1 B"]]]:
        """½ (λ_opt L_opt + λ_nopt L_nopt) of every slot: halved, as the TD error is."""
        del key
        joint = batch.joint
        taken, greedy, v = values(params["mixer"], batch.state, joint)
        opt = jnp.sum(joint.best, axis=-1) - jax.lax.stop_gradient(greedy) + v
        nopt = jnp.minimum(jnp.sum(batch.q, axis=-1) - jax.lax.stop_gradient(taken) + v, 0.0)
        parts = {"qtran_opt": jnp.square(opt), "qtran_nopt": jnp.square(nopt)}
        return 0.5 * (settings.opt * parts["qtran_opt"] + settings.nopt * parts["qtran_nopt"]), parts

    return Mixer(init, apply, igm=False, auxiliary=auxiliary)
