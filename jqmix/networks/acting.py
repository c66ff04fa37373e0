"""An agent's step up to its action as one kernel (:mod:`jqmix.kernels.acting`): which agents have one, and whether the
GPU that is there gets it right."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jqmix.kernels.platform import plain
from jqmix.kernels.self_test import mismatch, trouble_with
from jqmix.networks import normalise
from jqmix.networks.agent import Agent
from jqmix.networks.cores.gru import asks_for_kernel, gru_params
from jqmix.networks.cores.settings import GRUSettings

LEAST_WIDTH = 16


def acts_in_one_kernel(agent: Agent) -> bool:
    """Whether this agent's action is one kernel: on a GPU that gets it right."""
    return asks_to_act_in_one_kernel(agent) and acting_trouble(agent) is None


def asks_to_act_in_one_kernel(agent: Agent) -> bool:
    """Whether it is to be one, if that proves right: of teams that share a GRU, of widths that a kernel takes."""
    settings, hidden = agent.core_settings or GRUSettings(), agent.hidden
    if agent.core != "gru" or not agent.share_parameters or plain("acting"):
        return False
    return asks_for_kernel(settings, hidden) and hidden >= LEAST_WIDTH and hidden & (hidden - 1) == 0


def acting_trouble(agent: Agent) -> str | None:
    """What is wrong with the kernel on the GPU that is there, in a few words."""
    return trouble_with(f"acting of {agent._replace(core_settings=None)}", lambda: mismatch(partial(_both_forms, agent), partial(_slot, agent)))


def act_in_one_kernel(
    agent: Agent,
    params: Any,
    h: Float[Array, "E N H"],
    obs: Float[Array, "E N O"],
    last_action: Int[Array, "E N"],
    first: Bool[Array, " E"],
    avail: Bool[Array, "E N A"],
    explores: Bool[Array, "E N"],
    explored: Int[Array, "E N"],
) -> tuple[Int[Array, "E N"], Float[Array, "E N H"]]:
    """The actions ``explored`` where an agent ``explores``, else the best that are available; and the next state."""
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

    explored = jnp.where(explores, explored, GREEDY)[..., None]
    sight = Sight(*map(as_rows, (jnp.concatenate(parts, axis=-1), avail, explored, ~begins)))
    action, after = act(_acting_params(agent, params), sight, as_rows(h))
    return action.reshape(last_action.shape), after.reshape(h.shape)


def _acting_params(agent: Agent, params: Any) -> Any:
    from jqmix.kernels.acting import ActingParams, Layer, Norm

    def norm(of: Any, name: str) -> Norm | None:
        return Norm(**of[name]) if agent.layer_norm else None

    encoder = params["encoder"]
    layers = [Layer(encoder["kernel"], encoder["bias"], norm(encoder, "norm"))]
    for i in range(2, agent.layers + 1):
        layers.append(Layer(**encoder[f"layer{i}"], norm=norm(encoder, f"norm{i}")))
    return ActingParams(layers, gru_params(params["core"]), norm(params, "norm"), Layer(**params["head"], norm=None))


# The proof.

MEMBERS, ROLLOUTS = 2, 19


def _both_forms(agent: Agent, *members: Any) -> tuple[Any, Any]:
    """The next states, and the values of the actions that the kernel takes and of those to be taken: of actions that
    are as good as one another, either may be taken."""

    def both(params: Any, h: Array, obs: Array, last: Array, first: Array, avail: Array, *exploring: Array) -> Any:
        action, after = act_in_one_kernel(agent, params, h, obs, last, first, avail, *exploring)
        with jax.default_matmul_precision("highest"):
            q, state = agent.step(params, h, obs, last, first)
        explores, explored = exploring
        chosen = jnp.where(explores, explored, jnp.argmax(jnp.where(avail, q, -jnp.inf), axis=-1))
        values = (jnp.take_along_axis(q, a[..., None], axis=-1) for a in (action, chosen))
        return tuple(zip((after, state), values, strict=True))

    return jax.vmap(both)(*members)


def _slot(agent: Agent) -> tuple[Any, ...]:
    """Several members', each with parameters away from where they begin."""
    rng, shape = np.random.default_rng(0), (MEMBERS, ROLLOUTS, agent.n_agents)

    def draw(*shape: int) -> Float[Array, "*shape"]:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    params = jax.tree.map(lambda x: draw(MEMBERS, *x.shape) * agent.hidden**-0.5, shapes)
    actions = (jnp.asarray(rng.integers(0, agent.n_actions, shape), jnp.int32) for _ in range(2))
    first, explores = jnp.asarray(rng.random(shape[:2]) < 0.2), jnp.asarray(rng.random(shape) < 0.2)
    avail = jnp.asarray(rng.random((*shape, agent.n_actions)) < 0.7).at[..., 0].set(True)
    last, explored = actions
    return params, draw(*shape, agent.hidden), draw(*shape, agent.obs_size), last, first, avail, explores, explored
