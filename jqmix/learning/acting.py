"""Acting: from what is seen to an ε-greedy action, operation by operation, or as one kernel (`kernels/acting.py`)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jqmix.kernels.platform import plain, platform
from jqmix.kernels.self_test import mismatch, trouble_with
from jqmix.learning.exploration import epsilon_greedy
from jqmix.networks import normalise
from jqmix.networks.agent import Agent
from jqmix.networks.cores.gru import gru_params
from jqmix.networks.cores.settings import WIDEST_KERNEL, GRUSettings

LEAST_WIDTH = 16  # that a kernel's products take


def choose_actions(
    agent: Agent,
    params: Any,
    memory: Any,
    obs: Float[Array, "E N O"],
    last_action: Int[Array, "E N"],
    first: Bool[Array, " E"],
    avail: Bool[Array, "E N A"],
    u: Float[Array, "2 E N"],
    epsilon: Float[Array, ""],
) -> tuple[Int[Array, "E N"], Any]:
    """ε-greedy actions, and what the agents remember after them. ``first``: ignore ``memory`` and ``last_action``."""
    if acts_in_one_kernel(agent):
        return act_in_one_kernel(agent, params, memory, obs, last_action, first, avail, u, epsilon)
    q, memory = agent.step(params, memory, obs, last_action, first)
    return epsilon_greedy(u, q, avail, epsilon), memory


def asks_to_act_in_one_kernel(agent: Agent) -> bool:
    """Whether acting is to be one kernel, if that proves right: of teams that share a GRU, of widths that it takes."""
    settings, widths = agent.core_settings or GRUSettings(), [agent.hidden]
    if platform() != "gpu" or plain("acting"):
        return False
    if agent.core != "gru" or not agent.share_parameters:
        return False
    if agent.entities:
        widths.append(agent.entity_embed)
    takes_it = all(LEAST_WIDTH <= width <= WIDEST_KERNEL and width & (width - 1) == 0 for width in widths)
    return takes_it and settings.one_kernel != "false"


def acting_trouble(agent: Agent) -> str | None:
    """Why it can't be one kernel on the GPU that is there, in a few words."""
    return trouble_with(
        f"acting of {agent._replace(core_settings=None)}", lambda: mismatch(_both_forms(agent), partial(_slot, agent))
    )


def acts_in_one_kernel(agent: Agent) -> bool:
    """Whether it is one: on a GPU that gets it right."""
    return asks_to_act_in_one_kernel(agent) and acting_trouble(agent) is None


def act_in_one_kernel(
    agent: Agent,
    params: Any,
    h: Float[Array, "E N H"],
    obs: Float[Array, "E N O"],
    last_action: Int[Array, "E N"],
    first: Bool[Array, " E"],
    avail: Bool[Array, "E N A"],
    u: Float[Array, "2 E N"],
    epsilon: Float[Array, ""],
) -> tuple[Int[Array, "E N"], Float[Array, "E N H"]]:
    """ε-greedy actions, as :func:`jqmix.learning.exploration.epsilon_greedy` chooses them; and the next state."""
    from jqmix.kernels.acting import GREEDY, Sight, act  # where it is asked for: Pallas takes a while

    if agent.obs_norm:
        obs = normalise.apply(normalise.Moments(**params["obs_norm"]), obs)
    begins = jnp.broadcast_to(first[:, None, None], (*last_action.shape, 1))
    parts = [obs]
    if agent.last_action:
        parts.append(jax.nn.one_hot(last_action, agent.n_actions) * ~begins)
    if agent.agent_id:
        parts.append(jnp.broadcast_to(jnp.eye(agent.n_agents), (*last_action.shape, agent.n_agents)))

    def as_rows(x: Array) -> Float[Array, "R _"]:
        return x.astype(jnp.float32).reshape(-1, x.shape[-1])

    chance = jnp.where(u[0] < epsilon, u[1], GREEDY)[..., None]
    sight = Sight(*map(as_rows, (jnp.concatenate(parts, axis=-1), avail, chance, ~begins)))
    action, after = act(_acting_params(agent, params), sight, as_rows(h), agent.entities)
    return action.reshape(last_action.shape), after.reshape(h.shape)


def _acting_params(agent: Agent, params: Any) -> Any:
    from jqmix.kernels.acting import ActingParams, EntityGroup, EntityParams, Layer, Norm

    def norm(of: Any, name: str) -> Norm | None:
        return Norm(**of[name]) if agent.layer_norm else None

    encoder = params["encoder"]
    layers = [Layer(encoder["kernel"], encoder["bias"], norm(encoder, "norm"))]
    for i in range(2, agent.layers + 1):
        layers.append(Layer(**encoder[f"layer{i}"], norm=norm(encoder, f"norm{i}")))
    entities = None
    if agent.entities:
        of = params["entities"]
        groups = range(len(agent.entities.groups))
        entities = EntityParams(
            [EntityGroup(**of[f"embeddings_{g}"], sum=Layer(**of[f"sums_{g}"], norm=None)) for g in groups],
            query=Layer(**of["query"], norm=None),
        )
    head = Layer(**params["head"], norm=None)
    return ActingParams(layers, gru_params(params["core"]), norm(params, "norm"), head, entities)


# The proof.

MEMBERS, ROLLOUTS, EPSILON = 2, 19, 0.3


def _both_forms(agent: Agent) -> Any:
    """Of several members: the next states, and the values of the actions that are chosen, as of actions that are about
    as good as one another either may be."""

    def both(params: Any, h: Array, obs: Array, last: Array, first: Array, avail: Array, u: Array) -> Any:
        action, after = act_in_one_kernel(agent, params, h, obs, last, first, avail, u, jnp.float32(EPSILON))
        with jax.default_matmul_precision("highest"):
            q, state = agent.step(params, h, obs, last, first)
        plain_action = epsilon_greedy(u, q, avail, jnp.float32(EPSILON))
        values, plain_values = (jnp.take_along_axis(q, a[..., None], axis=-1) for a in (action, plain_action))
        return (after, values), (state, plain_values)

    return jax.vmap(both)


def _slot(agent: Agent) -> tuple[Any, ...]:
    """What it is proved with. Parameters are away from where they begin."""
    rng, shape = np.random.default_rng(0), (MEMBERS, ROLLOUTS, agent.n_agents)

    def draw(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shapes = jax.eval_shape(agent._replace(obs_norm=False).init, jax.random.key(0))
    params = jax.tree.map(lambda x: draw(MEMBERS, *x.shape) * agent.hidden**-0.5, shapes)
    if agent.obs_norm:
        moments = normalise.init(agent.obs_size)._asdict()
        params["obs_norm"] = jax.tree.map(lambda x: jnp.broadcast_to(x, (MEMBERS, *x.shape)), moments)
    last = jnp.asarray(rng.integers(0, agent.n_actions, shape), jnp.int32)
    first = jnp.asarray(rng.random(shape[:2]) < 0.2)
    avail = jnp.asarray(rng.random((*shape, agent.n_actions)) < 0.7).at[..., 0].set(True)
    u = jnp.asarray(rng.random((MEMBERS, 2, *shape[1:])), jnp.float32)
    return params, draw(*shape, agent.hidden), draw(*shape, agent.obs_size), last, first, avail, u
