"""The recurrent Q-network that all agents share: fc – ReLU – GRU – fc, over [o_t, last action, agent id].

Four pure functions, so that acting and learning are one definition: ``init``, ``initial_state``, ``step`` (one slot)
and ``unroll`` (a window). Source: QMIX (1803.11485) and 2102.03479; parameter counts in PyTorch's conventions.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.networks import gru
from jqmix.networks.init import linear, uniform_fan

Params = Any


class _Encoder(nn.Module):
    """fc1 over the concatenation [obs, one-hot last action, one-hot agent id], without building it.

    The id's rows are added as a bias per agent, and the last action's product is skipped at an episode's start.
    """

    hidden: int
    n_actions: int
    layer_norm: bool

    @nn.compact
    def __call__(self, obs: Array, last_action: Array, first: Array) -> Array:
        n_agents, o = obs.shape[-2:]
        a = self.n_actions
        fan_in = o + a + n_agents
        kernel = self.param("kernel", uniform_fan(fan_in), (fan_in, self.hidden))
        bias = self.param("bias", uniform_fan(fan_in), (self.hidden,))
        taken = jax.nn.one_hot(last_action, a) * ~first[..., None, None]
        per_agent = kernel[o + a :] + bias
        x = obs @ kernel[:o] + taken @ kernel[o : o + a]
        x = x + jnp.broadcast_to(per_agent, x.shape)
        return nn.relu(nn.LayerNorm(name="norm")(x) if self.layer_norm else x)


class _QNetwork(nn.Module):
    hidden: int
    n_actions: int
    recurrent: bool
    layer_norm: bool

    def setup(self) -> None:
        h = self.hidden
        self.encoder = _Encoder(h, self.n_actions, self.layer_norm)
        self.norm = nn.LayerNorm() if self.layer_norm else lambda x: x
        self.head = linear(h, self.n_actions)
        if self.recurrent:
            init = uniform_fan(h)
            self.core = gru.GRUParams(
                self.param("gru_w_i", init, (3, h, h)),
                self.param("gru_b_i", init, (3, h)),
                self.param("gru_w_h", init, (3, h, h)),
                self.param("gru_b_h", init, (3, h)),
            )
        else:
            self.core = linear(h, h)

    def unroll(self, h: Array, obs: Array, last_action: Array, first: Array) -> tuple[Array, Array]:
        x = self.encoder(obs, last_action, first)
        if not isinstance(self.core, gru.GRUParams):
            hs = nn.relu(self.core(x))
        else:
            starts = jnp.broadcast_to(first[..., None], x.shape[:-1])
            hs = gru.unroll(self.core, h, gru.project(self.core, x), starts)
        return self.head(self.norm(hs)), hs

    def step(self, h: Array, obs: Array, last_action: Array, first: Array) -> tuple[Array, Array]:
        x = self.encoder(obs, last_action, first)
        if not isinstance(self.core, gru.GRUParams):
            h = nn.relu(self.core(x))
        else:
            starts = jnp.broadcast_to(first[..., None], x.shape[:-1])
            h = gru.cell(self.core, gru.reset_where(starts, h), gru.project(self.core, x))
        return self.head(self.norm(h)), h


class Agent(NamedTuple):
    """The network's sizes; every method is a pure function of its arguments."""

    n_agents: int
    n_actions: int
    obs_size: int
    hidden: int = 64
    recurrent: bool = True
    layer_norm: bool = False

    @property
    def _net(self) -> _QNetwork:
        return _QNetwork(self.hidden, self.n_actions, self.recurrent, self.layer_norm)

    def init(self, key: Array) -> Params:
        obs = jnp.zeros((self.n_agents, self.obs_size))
        action = jnp.zeros((self.n_agents,), jnp.int32)
        return self._net.init(key, self.initial_state(), obs, action, jnp.bool_(True), method="step")["params"]

    def initial_state(self, *batch: int) -> Float[Array, "*batch N H"]:
        return jnp.zeros((*batch, self.n_agents, self.hidden))

    def step(
        self,
        params: Params,
        h: Float[Array, "*batch N H"],
        obs: Float[Array, "*batch N O"],
        last_action: Int[Array, "*batch N"],
        first: Bool[Array, "*batch"],
    ) -> tuple[Float[Array, "*batch N A"], Float[Array, "*batch N H"]]:
        """Q-values of one slot, and the next hidden state. ``first``: ignore ``h`` and ``last_action``."""
        return self._net.apply({"params": params}, h, obs, last_action, first, method="step")  # type: ignore[return-value]

    def unroll(
        self,
        params: Params,
        obs: Float[Array, "T B N O"],
        action: Int[Array, "T B N"],
        first: Bool[Array, "T B"],
    ) -> Float[Array, "T B N A"]:
        """Q-values of a window that begins with the hidden state at zero; the same as T calls of ``step``."""
        return self.unroll_hidden(params, obs, action, first)[0]

    def unroll_hidden(
        self,
        params: Params,
        obs: Float[Array, "T B N O"],
        action: Int[Array, "T B N"],
        first: Bool[Array, "T B"],
    ) -> tuple[Float[Array, "T B N A"], Float[Array, "T B N H"]]:
        """:meth:`unroll`, and the hidden states that the Q-values were read from."""
        last_action = jnp.concatenate([jnp.zeros_like(action[:1]), action[:-1]])
        h = self.initial_state(obs.shape[1])
        return self._net.apply({"params": params}, h, obs, last_action, first, method="unroll")  # type: ignore[return-value]
