"""The recurrent Q-network, shared by all agents unless told: fc – ReLU – GRU – fc, over [o_t, last action, agent id].

Four pure functions, so that acting and learning are one definition: ``init``, ``initial_state``, ``step`` (one slot)
and ``unroll`` (a window). Source: QMIX (1803.11485) and 2102.03479; parameter counts in PyTorch's conventions.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.networks import gru
from jqmix.networks.init import Init, orthogonal, torch_default, uniform_fan
from jqmix.networks.linear import linear, product

Params = Any


class _Encoder(nn.Module):
    """fc1 over the concatenation [obs, one-hot last action, one-hot agent id] (or less), without building it.

    The id's rows are added as a bias per agent, and the last action's product is skipped at an episode's start.
    """

    sizes: "Agent"

    @nn.compact
    def __call__(self, obs: Array, last_action: Array, first: Array) -> Array:
        sizes = self.sizes
        n_agents, o = obs.shape[-2:]
        a = sizes.n_actions * sizes.last_action
        fan_in = o + a + n_agents * sizes.agent_id
        init = sizes.dense_init(fan_in)
        kernel = self.param("kernel", init.kernel, (fan_in, sizes.hidden))
        bias = self.param("bias", init.bias, (sizes.hidden,))
        x = product(obs, kernel[:o])
        if sizes.last_action:
            taken = jax.nn.one_hot(last_action, a) * ~first[..., None, None]
            x = x + product(taken, kernel[o : o + a])
        if sizes.agent_id:
            bias = kernel[o + a :] + bias
        x = x + jnp.broadcast_to(bias, x.shape)
        x = nn.LayerNorm(name="norm")(x) if sizes.layer_norm else x
        # As rows, as the GRU takes them, or a CPU computes this for each form that is asked for.
        return nn.relu(x.reshape(math.prod(x.shape[:-1]), sizes.hidden)).reshape(x.shape)


class _QNetwork(nn.Module):
    sizes: "Agent"

    def setup(self) -> None:
        sizes, h = self.sizes, self.sizes.hidden
        self.encoder = _Encoder(sizes)
        self.norm = nn.LayerNorm() if sizes.layer_norm else lambda x: x
        self.head = linear(h, sizes.n_actions, init=sizes.dense_init(h, sizes.head_gain))
        if sizes.recurrent:

            def gates(name: str, *shape: int) -> gru.Gates:
                drawn = lambda key: gru.Gates(*uniform_fan(h)(key, (3, *shape)))._asdict()  # noqa: E731
                return gru.Gates(**self.param(name, drawn))

            self.core = gru.GRUParams(
                gates("gru_w_i", h, h), gates("gru_b_i", h), gates("gru_w_h", h, h), gates("gru_b_h", h)
            )
        else:
            self.core = linear(h, h, init=sizes.dense_init(h))

    def unroll(self, h: Array, obs: Array, last_action: Array, first: Array) -> tuple[Array, Array]:
        x = self.encoder(obs, last_action, first)
        if not isinstance(self.core, gru.GRUParams):
            hs = nn.relu(self.core(x))
        else:
            starts = jnp.broadcast_to(first[..., None], x.shape[:-1])
            hs = gru.unroll(self.core, h, x, starts, self.sizes.one_kernel and gru.fits_one_kernel(self.sizes.hidden))
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
    """The network's sizes and options; every method is a pure function of its arguments.

    ``share_parameters`` false gives every agent a network of its own, all parameters leading with N; none of them
    reads an id. ``orthogonal`` initialises the dense layers as pymarl2 does: with gain 1, the Q head with
    ``head_gain``, the GRU as ever. It brings QR factorisations: then ``init`` must not run under ``vmap``.
    """

    n_agents: int
    n_actions: int
    obs_size: int
    hidden: int = 64
    recurrent: bool = True
    layer_norm: bool = False
    share_parameters: bool = True
    agent_id: bool = True
    last_action: bool = True
    one_kernel: bool = False
    orthogonal: bool = False
    head_gain: float = 0.01

    def dense_init(self, n_in: int, gain: float = 1.0) -> Init:
        """How a dense layer with ``n_in`` inputs begins; ``gain`` is for an orthogonal one."""
        return orthogonal(gain) if self.orthogonal else torch_default(n_in)

    @property
    def _net(self) -> _QNetwork:
        """The network that all agents share, or that of a team of one."""
        return _QNetwork(self if self.share_parameters else self._replace(n_agents=1, agent_id=False))

    def _init_net(self, key: Array) -> Params:
        net = self._net
        n, o = net.sizes.n_agents, self.obs_size
        h, obs, action = jnp.zeros((n, self.hidden)), jnp.zeros((n, o)), jnp.zeros((n,), jnp.int32)
        return net.init(key, h, obs, action, jnp.bool_(True), method="step")["params"]

    def init(self, key: Array) -> Params:
        if self.share_parameters:
            return self._init_net(key)
        return jax.lax.map(self._init_net, jax.random.split(key, self.n_agents))

    def _apply(
        self, method: str, params: Params, h: Array, obs: Array, last_action: Array, first: Array
    ) -> tuple[Array, Array]:
        if self.share_parameters:
            return self._net.apply({"params": params}, h, obs, last_action, first, method=method)  # type: ignore[return-value]

        def alone(params: Params, h: Array, obs: Array, last_action: Array) -> Any:
            team = h[..., None, :], obs[..., None, :], last_action[..., None]
            out = self._net.apply({"params": params}, *team, first, method=method)
            return jax.tree.map(lambda x: x[..., 0, :], out)

        return jax.vmap(alone, in_axes=(0, -2, -2, -1), out_axes=-2)(params, h, obs, last_action)

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
        return self._apply("step", params, h, obs, last_action, first)

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
        return self._apply("unroll", params, h, obs, last_action, first)
