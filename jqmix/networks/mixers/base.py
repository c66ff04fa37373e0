"""What a mixer is: two pure functions, and what it may add to the loss.

``init(key) -> params`` and ``apply(params, q[..., N], state[..., S], joint=None) -> Q_tot[...]``. A mixer may read more
of the joint action than its values; that is in :class:`Joint`, and each mixer says what it does without one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.types import Window

Params = Any


class Joint(NamedTuple):
    """A joint action u, beside its values Q_i(u_i): what a mixer may read of it and of who took it."""

    action: Int[Array, "*batch N"]
    greedy: Int[Array, "*batch N"]  # û_i: each agent's own best available action
    best: Float[Array, "*batch N"]  # Q_i(û_i)
    obs: Float[Array, "*batch N O"]
    hidden: Float[Array, "*batch N H"]  # of the agents that gave the values


class MixerSizes(NamedTuple):
    """n agents and state size S; the rest is for mixers that read a :class:`Joint`."""

    n_agents: int
    state_size: int
    n_actions: int = 0
    obs_size: int = 0
    hidden: int = 0

    def joint(self, *batch: int) -> Joint:
        """Zeros in the shape of a Joint."""
        team = (*batch, self.n_agents)
        none = jnp.zeros(team, jnp.int32)
        return Joint(none, none, jnp.zeros(team), jnp.zeros((*team, self.obs_size)), jnp.zeros((*team, self.hidden)))


class MixerBatch(NamedTuple):
    """What an auxiliary loss may read: B windows of T1 slots."""

    window: Window
    state: Float[Array, "T1 B S"]  # as the mixer reads it
    q: Float[Array, "T1 B N"]  # Q_i of the actions taken
    joint: Joint
    q_tot: Float[Array, "T1 B *agents"]  # the mixer's
    target: Float[Array, "T1 B *agents"]  # what it is learned towards; no gradient flows through it


class Critic(NamedTuple):
    """Q̂*, a joint value free of IGM, learned beside Q_tot with agents of its own; the targets of both come from it.

    ``weight(joint, q_tot, target, value, settings)`` is the factor on a slot's squared error of Q_tot, given the target
    y and ``value`` = Q̂*(s, û) of the target network.
    """

    mixer: "Mixer"
    weight: Callable[[Joint, Array, Array, Array, Any], Array]


class Mixer(NamedTuple):
    """``apply(params, q, state, joint=None)``: [..., N], [..., S] → [...].

    One whose ``per_agent`` is true (IQL) mixes nothing: it returns [..., N], and every agent has a TD error of its own.
    ``igm``: for any parameters, the joint argmax is the tuple of the agents' own.

    ``auxiliary(params, batch, settings, key)`` is one more loss: (loss per slot [T1, B], metrics by name, per slot
    [T1, B]). It is added to the TD error's, over the slots that a transition leaves. ``params`` are the team's,
    {"agent": …, "mixer": …}. ``settings`` are the mixer's own; in the program, those that are traced are arrays.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Array]
    per_agent: bool = False
    igm: bool = True
    critic: Critic | None = None
    auxiliary: Callable[[Params, MixerBatch, Any, Array], tuple[Array, dict[str, Array]]] | None = None
    settings: Any = None  # those that it was built with


def functions(net: nn.Module, *example: Any) -> tuple[Callable[[Array], Params], Callable[..., Any]]:
    """A network's ``init(key)`` and ``apply(params, …)``; ``example``: arguments of the right shapes, without a batch.

    It sees its batch as rows: with the same work on [T, B, ..] a gradient took a tenth longer on a CPU.
    """

    def apply(params: Params, *args: Any) -> Any:
        batch = args[0].shape[: args[0].ndim - example[0].ndim]
        rows = jax.tree.map(lambda x, single: x.reshape(math.prod(batch), *single.shape), args, example)
        out = net.apply({"params": params}, *rows)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)

    return lambda key: net.init(key, *example)["params"], apply


def q_and_state(sizes: MixerSizes) -> tuple[Array, Array]:
    """Zeros in the shapes of a team's values and of a state."""
    return jnp.zeros((sizes.n_agents,)), jnp.zeros((sizes.state_size,))


def zero_batch(sizes: MixerSizes, slots: int, windows: int, per_agent: bool = False) -> MixerBatch:
    """Zeros in the shape of a batch for an auxiliary loss, [slots, windows, …]."""
    batch = (slots, windows)
    joint, flag = sizes.joint(*batch), jnp.zeros(batch, bool)
    state, value = jnp.zeros((*batch, sizes.state_size)), jnp.zeros(batch)
    avail = jnp.ones((*batch, sizes.n_agents, sizes.n_actions), bool)
    window = Window(joint.obs, state, avail, joint.action, value, value, flag, flag)
    total = joint.best if per_agent else value
    return MixerBatch(window, state, joint.best, joint, total, total)
