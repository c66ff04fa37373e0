"""The Q-network of an agent, one for all agents unless told: encoder – core – head, over [o_t, last action, agent id].

The encoder is dense layers with ReLUs, of which the first may read a list of entities (``entities.py``). The core is a
GRU unless told (``cores/``), the head is a dense layer. Acting and learning are one definition: ``init``,
``initial_state``, ``step`` (one slot) and ``unroll`` (a window) are pure functions. Source: QMIX (1803.11485) and
2102.03479; parameter counts in PyTorch's conventions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.kernels.products import product_of_parts
from jqmix.networks import normalise
from jqmix.networks.cores import base, build_core
from jqmix.networks.entities import EntityLayers
from jqmix.networks.layers import dense_init, linear
from jqmix.types import Entities

Params = Any
State = Any  # of the core, a pytree: leaves [*batch, N, …]


class AgentStart(NamedTuple):
    """What agents remember at the start of a window that goes on where another one ended."""

    state: State
    last_action: Int[Array, "B N"]


class Unrolled(NamedTuple):
    """What agents say of a window."""

    q: Float[Array, "T B N A"]
    hidden: Float[Array, "T B N H"]  # the core's outputs, from which the head reads the Q-values
    state: State  # after the last slot


class _Encoder(nn.Module):
    """Dense layers over the concatenation [obs, one-hot last action, one-hot agent id], of which the id is never built.

    The id's rows of the first layer are added as a bias per agent. The last action is left out where an episode starts.
    """

    agent: "Agent"

    @nn.compact
    def __call__(self, obs: Array, last_action: Array, first: Array, more: Array | None = None) -> Array:
        """``more``: what else the first layer adds up."""
        agent, h = self.agent, self.agent.hidden
        n_agents, o = obs.shape[-2:]
        a = agent.n_actions * agent.last_action
        fan_in = o + a + n_agents * agent.agent_id
        init = dense_init(fan_in, agent.orthogonal)
        kernel = self.param("kernel", init.kernel, (fan_in, h))
        bias = self.param("bias", init.bias, (h,))
        parts = [obs]
        if agent.last_action:
            parts.append(jax.nn.one_hot(last_action, a) * ~first[..., None, None])
        x = product_of_parts(parts, kernel[: o + a])
        if agent.agent_id:
            bias = kernel[o + a :] + bias
        x = x + jnp.broadcast_to(bias, x.shape)
        x = self._activated(x if more is None else x + more, "norm")
        for i in range(2, agent.layers + 1):
            x = self._activated(linear(h, h, f"layer{i}", dense_init(h, agent.orthogonal))(x), f"norm{i}")
        return x

    def _activated(self, x: Array, norm: str) -> Array:
        x = nn.LayerNorm(name=norm)(x) if self.agent.layer_norm else x
        return nn.relu(x)


class _Layers(nn.Module):
    """What is before the core, and what is after it."""

    agent: "Agent"

    def setup(self) -> None:
        agent = self.agent
        self.encoder = _Encoder(agent)
        self.norm = nn.LayerNorm() if agent.layer_norm else lambda x: x
        unaimed = agent.n_actions - (agent.entities.aimed if agent.entities else 0)
        self.head = linear(agent.hidden, unaimed, init=dense_init(agent.hidden, agent.orthogonal, agent.head_gain))
        if agent.entities:
            sizes = agent.entity_embed, agent.hidden
            self.entities = EntityLayers(agent.entities, *sizes, agent.orthogonal, agent.head_gain)

    def encode(self, obs: Array, last_action: Array, first: Array) -> tuple[Array, Any]:
        """(what the core reads, whom the last actions are aimed at or ())."""
        if not self.agent.entities:
            return self.encoder(obs, last_action, first), ()
        heard = self.entities.read(obs)
        return self.encoder(heard.own, last_action, first, heard.sum), heard.targets

    def values(self, hidden: Array, targets: Any) -> Array:
        hidden = self.norm(hidden)
        q = self.head(hidden)
        return jnp.concatenate([q, self.entities.aim(hidden, targets)], axis=-1) if self.agent.entities else q

    def __call__(self, obs: Array, last_action: Array, first: Array) -> Array:
        """Both, with nothing between: what ``init`` needs."""
        return self.values(*self.encode(obs, last_action, first))


class Agent(NamedTuple):
    """The network's sizes and options; every method is a pure function of its arguments.

    ``layers``: dense layers before the core. ``core`` names it and ``core_settings`` are its settings (its defaults if
    None). ``entities``: how an observation lists entities, where they are read as such, with embeddings of width
    ``entity_embed``. ``share_parameters`` false gives every agent a network of its own, all parameters leading with N;
    none of them reads an id. ``obs_norm``: observations are standardised by running statistics, the parameters
    ``obs_norm``, which no gradient changes but whoever trains. ``orthogonal`` initialises the dense layers as pymarl2
    does: with gain 1, the Q head with ``head_gain``, gated cores as ever. It brings QR factorisations: then ``init``
    must not run under ``vmap``.
    """

    n_agents: int
    n_actions: int
    obs_size: int
    hidden: int = 64
    layers: int = 1
    core: str = "gru"
    core_settings: Any = None
    layer_norm: bool = False
    share_parameters: bool = True
    agent_id: bool = True
    last_action: bool = True
    obs_norm: bool = False
    orthogonal: bool = False
    head_gain: float = 0.01
    entities: Entities | None = None
    entity_embed: int = 32

    def init(self, key: Array) -> Params:
        """{"encoder", "core", "head"}, and where they are on "norm", "obs_norm", "entities"."""
        if self.obs_norm:
            layers = self._replace(obs_norm=False).init(key)
            return {**layers, "obs_norm": normalise.init(self.obs_size)._asdict()}
        if not self.share_parameters:
            return jax.lax.map(self._alone.init, jax.random.split(key, self.n_agents))
        n = self.n_agents
        obs, action = jnp.zeros((n, self.obs_size)), jnp.zeros((n,), jnp.int32)
        params = _Layers(self).init(key, obs, action, jnp.bool_(True))["params"]
        return {**params, "core": self.core_functions.init(jax.random.fold_in(key, 1))}

    def initial_state(self, *batch: int) -> State:
        """What the agents remember at an episode's start; leaves [*batch, N, …]."""
        return self.core_functions.initial_state(*batch, self.n_agents)

    def step(
        self,
        params: Params,
        state: State,
        obs: Float[Array, "*batch N O"],
        last_action: Int[Array, "*batch N"],
        first: Bool[Array, "*batch"],
    ) -> tuple[Float[Array, "*batch N A"], State]:
        """Q-values of one slot, and the next state. ``first``: ignore ``state`` and ``last_action``."""
        q, _, state = self._apply(_step, params, state, obs, last_action, first)
        return q, state

    def unroll(
        self,
        params: Params,
        obs: Float[Array, "T B N O"],
        action: Int[Array, "T B N"],
        first: Bool[Array, "T B"],
        start: AgentStart | None = None,
    ) -> Unrolled:
        """What T calls of ``step`` give. Without ``start`` it begins with the initial state and no last action."""
        if start is None:
            start = AgentStart(self.initial_state(obs.shape[1]), jnp.zeros_like(action[0]))
        last_action = jnp.concatenate([start.last_action[None], action[:-1]])
        return Unrolled(*self._apply(base.unroll_core, params, start.state, obs, last_action, first))

    @property
    def core_sizes(self) -> base.CoreSizes:
        return base.CoreSizes(self.hidden, self.hidden, self.orthogonal)

    @property
    def core_functions(self) -> base.Core:
        return build_core(self.core, self.core_sizes, self.core_settings)

    @property
    def _alone(self) -> "Agent":
        """A team of one, where every agent has a network of its own."""
        return self._replace(n_agents=1, agent_id=False, share_parameters=True)

    def _apply(
        self,
        form: Callable[..., tuple[Array, State]],
        params: Params,
        state: State,
        obs: Array,
        last_action: Array,
        first: Array,
    ) -> tuple[Array, Array, State]:
        """(Q-values, the core's outputs, its last state), the core used in the ``form`` of one slot or of a window."""
        if self.obs_norm:
            layers = {name: x for name, x in params.items() if name != "obs_norm"}
            obs = normalise.apply(normalise.Moments(**jax.lax.stop_gradient(params["obs_norm"])), obs)
            return self._replace(obs_norm=False)._apply(form, layers, state, obs, last_action, first)
        if not self.share_parameters:
            return self._apply_each(form, params, state, obs, last_action, first)
        layers, weights = _Layers(self), {"params": params}
        encoded: Any = layers.apply(weights, obs, last_action, first, method="encode")
        x, targets = encoded
        starts = jnp.broadcast_to(first[..., None], x.shape[:-1])
        hidden, state = form(self.core_functions, params["core"], state, x, starts)
        q: Any = layers.apply(weights, hidden, targets, method="values")
        return q, hidden, state

    def _apply_each(
        self, form: Any, params: Params, state: State, obs: Array, last_action: Array, first: Array
    ) -> tuple[Array, Array, State]:
        """The same where every agent has a network of its own."""
        axis = first.ndim - (form is base.unroll_core)  # of the agents in a state

        def apply(params: Params, state: State, obs: Array, last_action: Array) -> Any:
            state = jax.tree.map(lambda x: jnp.expand_dims(x, axis), state)
            team = obs[..., None, :], last_action[..., None]
            q, hidden, state = self._alone._apply(form, params, state, *team, first)
            return q[..., 0, :], hidden[..., 0, :], jax.tree.map(lambda x: jnp.squeeze(x, axis), state)

        each = jax.vmap(apply, in_axes=(0, axis, -2, -1), out_axes=(-2, -2, axis))
        return each(params, state, obs, last_action)


def _step(core: base.Core, params: Params, state: State, x: Array, first: Array) -> tuple[Array, State]:
    return core.step(params, state, x, first)
