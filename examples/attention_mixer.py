"""A mixer from outside the package: agents attend to each other, and what they learn of it weighs their values.

    jqmix train two_step_game --algo.mixer attention_mixer:make --mixer.coefficient 0.1

Q_tot = Σ_i |w_i| Q_i + V(s). The weights w come from multi-head attention over the agents. Each is a token made of what
it observes, which agent it is, and the state; of values and actions tokens know nothing, so Q_tot is monotonic in every
agent's value.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jqmix import setting
from jqmix.networks.mixers import Joint, Mixer, MixerBatch, MixerSizes
from jqmix.networks.mixers.base import functions


@dataclass(frozen=True)
class AttentionSettings:
    """Each is a flag (``--mixer.heads``), a line in a YAML file, and what a grid may vary."""

    embed: int = setting(32, "width of the agents' tokens", low=1, high=1024)
    heads: int = setting(4, "attention heads; each looks at a token of width embed", low=1, high=64)
    coefficient: float = setting(0.01, "weight of the loss that keeps attention spread out", low=0, traced=True)


class AttentionNetwork(nn.Module):
    """Q_tot, and how evenly the agents attend: 0 if each looks at one agent alone, 1 if at all alike."""

    settings: AttentionSettings

    @nn.compact
    def __call__(self, q: Array, state: Array, obs: Array) -> tuple[Array, Array]:
        """q [..., N], state [..., S], obs [..., N, O] → two arrays [...]."""
        heads, embed, n = self.settings.heads, self.settings.embed, q.shape[-1]
        who = jnp.broadcast_to(jnp.eye(n), (*q.shape, n))
        where = jnp.broadcast_to(state[..., None, :], (*q.shape, state.shape[-1]))
        token = nn.relu(nn.Dense(embed, name="token")(jnp.concatenate([obs, who, where], axis=-1)))

        def project(name: str) -> Array:
            """[..., N, heads, embed]."""
            return nn.DenseGeneral((heads, embed), name=name)(token)

        score = jnp.einsum("...ihe,...jhe->...hij", project("query"), project("key")) / embed**0.5
        share = nn.softmax(score)  # [..., heads, N, N]: of agent i's attention, what agent j gets
        seen = jnp.einsum("...hij,...jhe->...ihe", share, project("value"))
        token = token + nn.DenseGeneral(embed, axis=(-2, -1), name="out")(seen)

        weight = jnp.abs(nn.Dense(1, name="weight", bias_init=nn.initializers.ones)(token)[..., 0])
        value = nn.Dense(1, name="v")(nn.relu(nn.Dense(embed, name="v_hidden")(state)))[..., 0]
        entropy = -jnp.sum(share * nn.log_softmax(score), axis=-1)
        spread = jnp.mean(entropy, axis=(-2, -1)) / jnp.log(max(n, 2))
        return jnp.sum(weight * q, axis=-1) + value, spread


def make(sizes: MixerSizes, settings: AttentionSettings) -> Mixer:
    """What ``algo.mixer`` names. The annotation of ``settings`` tells jqmix what can be set."""
    example = jnp.zeros((sizes.n_agents,)), jnp.zeros((sizes.state_size,)), sizes.joint().obs
    init, network = functions(AttentionNetwork(settings), *example)

    def apply(params: dict, q: Array, state: Array, joint: Joint | None = None) -> Array:
        """Where nobody tells what the agents observe, they observe nothing."""
        obs = sizes.joint(*q.shape[:-1]).obs if joint is None else joint.obs
        return network(params, q, state, obs)[0]

    def auxiliary(
        params: dict, batch: MixerBatch, settings: AttentionSettings, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Per slot [T1, B]: what is added to the TD error's loss, and what the log tells as ``train/attention_spread``.

        ``settings.coefficient`` is an array of the compiled program here: a sweep of it is compiled once.
        """
        del key
        spread = network(params["mixer"], batch.q, batch.state, batch.joint.obs)[1]
        return settings.coefficient * (1.0 - spread), {"attention_spread": spread}

    return Mixer(init, apply, igm=True, auxiliary=auxiliary)
