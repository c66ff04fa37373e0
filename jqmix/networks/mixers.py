"""Mixers: how the agents' values become the team's. The one place to add one: write it, put it in ``MIXERS``.

A mixer is two pure functions, ``init(key) -> params`` and ``apply(params, q[..., N], state[..., S]) -> Q_tot[...]``.
Some read more of the joint action than its values: they take it as a fourth argument, :class:`Joint`, and each says
what it does without one.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.networks.layers import linear, uniform_fan

Params = Any
Positivity = Literal["abs", "softplus", "square", "none"]

POSITIVITY: dict[str, Callable[[Array], Array]] = {
    "abs": jnp.abs,
    "softplus": nn.softplus,
    "square": lambda w: 0.5 * w * w,
    "none": lambda w: w,  # breaks IGM: a control, not a method
}


class Joint(NamedTuple):
    """A joint action u, beside its values Q_i(u_i): what a mixer may read of it and of who took it."""

    action: Int[Array, "*batch N"]
    greedy: Int[Array, "*batch N"]  # û_i: each agent's own best available action
    best: Float[Array, "*batch N"]  # Q_i(û_i)
    obs: Float[Array, "*batch N O"]
    hidden: Float[Array, "*batch N H"]  # of the agents that gave the values


class Critic(NamedTuple):
    """Q̂*, a joint value free of IGM, learned beside Q_tot with agents of its own; the targets of both come from it.

    ``weight(joint, q_tot, target, value, α)`` is the factor on a slot's squared error of Q_tot, given the target y and
    ``value`` = Q̂*(s, û) of the target network.
    """

    mixer: "Mixer"
    weight: Callable[[Joint, Array, Array, Array, Array], Array]


class Mixer(NamedTuple):
    """``apply(params, q, state, joint=None)``: [..., N], [..., S] → [...].

    One whose ``per_agent`` is true (IQL) mixes nothing: it returns [..., N], and every agent has a TD error of its own.
    ``igm``: for any parameters, the joint argmax is the tuple of the agents' own.
    ``constraint(params, q, state, joint)``: a loss per slot, added to the TD error's.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Array]
    per_agent: bool = False
    igm: bool = True
    critic: Critic | None = None
    constraint: Callable[[Params, Array, Array, Joint], Array] | None = None


class MixerSizes(NamedTuple):
    """n agents, state size S, embedding E and hypernetwork width Hh; the rest is for those that read a Joint."""

    n_agents: int
    state_size: int
    n_actions: int = 0
    obs_size: int = 0
    hidden: int = 0
    embed: int = 32
    hypernet_hidden: int = 64
    positivity: Positivity = "abs"
    heads: int = 4
    critic_hidden: int = 256

    def joint(self, *batch: int) -> Joint:
        """Zeros in the shape of a Joint."""
        team = (*batch, self.n_agents)
        none = jnp.zeros(team, jnp.int32)
        return Joint(none, none, jnp.zeros(team), jnp.zeros((*team, self.obs_size)), jnp.zeros((*team, self.hidden)))


class _QMixNetwork(nn.Module):
    """Q_tot = ELU(qᵀ W1 + b1) · W2 + V, all four made from the state by hypernetworks, W1 and W2 positive.

    QMIX (1803.11485, §4, fig. 2) with the two-layer hypernetworks of 2102.03479.
    """

    sizes: MixerSizes

    @nn.compact
    def __call__(self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        n, s, e, hh = self.sizes.n_agents, self.sizes.state_size, self.sizes.embed, self.sizes.hypernet_hidden
        positive = POSITIVITY[self.sizes.positivity]
        # W1's and W2's hidden layers, side by side. Split, not cut: the gradient of a split is a concatenation, that of
        # slices a sum of as many arrays as there are, padded with zeros. And at once, not after what is elementwise.
        of_w1, of_w2 = jnp.split(linear(s, 2 * hh, "hyper")(state), 2, axis=-1)
        w1 = jnp.split(linear(hh, n * e, "w1")(nn.relu(of_w1)), n, axis=-1)
        w2 = positive(linear(hh, e, "w2")(nn.relu(of_w2)))
        b1 = linear(s, e, "b1")(state)
        v = linear(e, 1, "v")(nn.relu(linear(s, e, "v_hidden")(state)))[..., 0]
        # qᵀ W1, agent by agent: as a sum over an axis, XLA's CPU compiler makes one slow kernel of it and of b1.
        of_agents = zip(jnp.split(q, n, axis=-1), w1, strict=True)
        mixed = sum((q_i * positive(w1_i) for q_i, w1_i in of_agents), start=b1)
        hidden = nn.elu(mixed)
        # Summed by a product, as XLA's CPU compiler would put a reduction into the one that makes W2, and slow it down.
        return jnp.matmul(hidden * w2, jnp.ones((e,)), precision="highest") + v


class _Heads(nn.Module):
    """K two-layer perceptrons side by side, in → width → out with a ReLU between: [..., in] → [..., K, out]."""

    heads: int
    n_in: int
    width: int
    n_out: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch K O"]:
        k, w = self.heads, self.width
        hidden = nn.relu(linear(self.n_in, k * w, "hidden")(x))
        kernel = self.param("kernel", uniform_fan(w), (k, w, self.n_out))
        bias = self.param("bias", uniform_fan(w), (k, self.n_out))
        return jnp.einsum("...kw,kwo->...ko", hidden.reshape(*x.shape[:-1], k, w), kernel) + bias


class _MLP(nn.Module):
    """Linear layers of these widths, ReLU between them."""

    n_in: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        fans = (self.n_in, *self.widths[:-1])
        for i, (n_in, n_out) in enumerate(zip(fans, self.widths, strict=True)):
            x = linear(n_in, n_out, f"layer{i}")(x if i == 0 else nn.relu(x))
        return x


class _QattenNetwork(nn.Module):
    """Q_tot = Σ_h |head_h(s)| Σ_i λ_{h,i} Q_i + c(s), λ_h a softmax over agents of query_h(s) · key_h(o_i) / √E.

    Qatten (2002.03939, §4). Its keys are made of each unit's own features, which the public code cuts out of
    StarCraft's global state; here they are the agent's observation, which every environment has.
    """

    sizes: MixerSizes

    @nn.compact
    def __call__(
        self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"], obs: Float[Array, "*batch N O"]
    ) -> Float[Array, "*batch"]:
        s, e, k, hh = self.sizes.state_size, self.sizes.embed, self.sizes.heads, self.sizes.hypernet_hidden
        query = _Heads(k, s, hh, e, name="query")(state)
        key = linear(self.sizes.obs_size, k * e, "key")(obs).reshape(*obs.shape[:-1], k, e)
        attention = nn.softmax(jnp.einsum("...ke,...nke->...kn", query, key) / math.sqrt(e))
        head = jnp.abs(_MLP(s, (hh, k), name="head")(state))
        c = _MLP(s, (e, 1), name="c")(state)[..., 0]
        return jnp.sum(head * jnp.einsum("...kn,...n->...k", attention, q), axis=-1) + c


class _QPlexNetwork(nn.Module):
    """Q_tot = Σ_i Q'_i + Σ_i (λ_i − 1) sg(Q'_i − M'_i), with Q'_i = w_i Q_i + v_i and M'_i the same of max_a Q_i.

    QPLEX (2008.01062, §3); λ_i(s, u) > 0 is a sum of ``heads`` attention kernels, all layers as in its public code.
    """

    sizes: MixerSizes

    @nn.compact
    def __call__(
        self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"], joint: Joint
    ) -> Float[Array, "*batch"]:
        n, s, a = self.sizes.n_agents, self.sizes.state_size, self.sizes.n_actions
        k, hh = self.sizes.heads, self.sizes.hypernet_hidden
        taken = jax.nn.one_hot(joint.action, a).reshape(*joint.action.shape[:-1], n * a)
        w = jnp.abs(_MLP(s, (hh, n), name="w")(state)) + 1e-10
        v = _MLP(s, (hh, n), name="v")(state)
        key = jnp.abs(_Heads(k, s, hh, 1, name="key")(state)) + 1e-10
        agents = nn.sigmoid(_Heads(k, s, hh, n, name="agents")(state))
        actions = nn.sigmoid(_Heads(k, s + n * a, hh, n, name="actions")(jnp.concatenate([state, taken], axis=-1)))
        importance = jnp.sum(key * agents * actions, axis=-2)
        advantage = jax.lax.stop_gradient(w * (q - joint.best))
        return jnp.sum(w * q + v, axis=-1) + jnp.sum((importance - 1.0) * advantage, axis=-1)


class JointValues(NamedTuple):
    """What QTRAN's network gives: the joint value of the action taken, that of the greedy one, and V(s)."""

    taken: Float[Array, "*batch"]
    greedy: Float[Array, "*batch"]
    v: Float[Array, "*batch"]


class _QTranNetwork(nn.Module):
    """Q_jt(s, u) = MLP[s, Σ_i enc(h_i, u_i)] and V(s): QTRAN (1905.05408, §4), layers as in PyMARL."""

    sizes: MixerSizes

    @nn.compact
    def __call__(self, state: Float[Array, "*batch S"], joint: Joint) -> JointValues:
        s, a, hh = self.sizes.state_size, self.sizes.n_actions, self.sizes.hypernet_hidden
        e = self.sizes.hidden + a
        encode = _MLP(e, (e, e), name="encode")
        value = _MLP(s + e, (hh, hh, 1), name="q")

        def q_jt(action: Int[Array, "*batch N"]) -> Float[Array, "*batch"]:
            each = encode(jnp.concatenate([joint.hidden, jax.nn.one_hot(action, a)], axis=-1))
            return value(jnp.concatenate([state, jnp.sum(each, axis=-2)], axis=-1))[..., 0]

        v = _MLP(s, (hh, hh, 1), name="v")(state)[..., 0]
        return JointValues(q_jt(joint.action), q_jt(joint.greedy), v)


class _CentralNetwork(nn.Module):
    """Q̂* = MLP[s, q] + V(s), unconstrained (Weighted QMIX, 2006.10800, §5), layers as in its public code."""

    sizes: MixerSizes

    @nn.compact
    def __call__(self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        n, s, w = self.sizes.n_agents, self.sizes.state_size, self.sizes.critic_hidden
        mixed = _MLP(s + n, (w, w, w, 1), name="q")(jnp.concatenate([state, q], axis=-1))
        return (mixed + _MLP(s, (w, 1), name="v")(state))[..., 0]


def _of(net: nn.Module, *example: Any) -> tuple[Callable[[Array], Params], Callable[..., Any]]:
    """A network's ``init(key)`` and ``apply(params, …)``; ``example``: arguments of the right shapes, without a batch.

    It sees its batch as rows: with the same work on [T, B, ..] a gradient took a tenth longer on a CPU.
    """

    def apply(params: Params, *args: Any) -> Any:
        batch = args[0].shape[: args[0].ndim - example[0].ndim]
        rows = jax.tree.map(lambda x, one: x.reshape(math.prod(batch), *one.shape), args, example)
        out = net.apply({"params": params}, *rows)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)

    return lambda key: net.init(key, *example)["params"], apply


def _iql(sizes: MixerSizes) -> Mixer:
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: q, per_agent=True)


def _vdn(sizes: MixerSizes) -> Mixer:
    """Q_tot = Σ_i Q_i (1706.05296)."""
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: jnp.sum(q, axis=-1))


def _qmix(sizes: MixerSizes) -> Mixer:
    init, mix = _of(_QMixNetwork(sizes), *_example(sizes))
    return Mixer(init, lambda params, q, state, joint=None: mix(params, q, state), igm=sizes.positivity != "none")


def _qatten(sizes: MixerSizes) -> Mixer:
    """Without a Joint nobody shows any features, and all agents get the same attention."""
    init, mix = _of(_QattenNetwork(sizes), *_example(sizes), sizes.joint().obs)

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        return mix(params, q, state, (joint or sizes.joint(*q.shape[:-1])).obs)

    return Mixer(init, apply)


def _qplex(sizes: MixerSizes) -> Mixer:
    """Without a Joint, ``q`` are taken for the agents' best values: no advantages, and λ does not matter."""
    init, mix = _of(_QPlexNetwork(sizes), *_example(sizes), sizes.joint())

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        return mix(params, q, state, joint or sizes.joint(*q.shape[:-1])._replace(best=q))

    return Mixer(init, apply)


# Weights of QTRAN's two constraints, as in PyMARL.
QTRAN_OPT, QTRAN_NOPT = 1.0, 0.1


def _qtran(sizes: MixerSizes) -> Mixer:
    """QTRAN-base: Q_jt learns from the TD error; Σ_i Q_i + V(s) is made to equal it at û and not to be below elsewhere.

    So IGM is what its constraints aim at, not what its form ensures. Without a Joint: that sum.
    """
    init, values = _of(_QTranNetwork(sizes), _example(sizes)[1], sizes.joint())

    def apply(params: Params, q: Array, state: Array, joint: Joint | None = None) -> Array:
        if joint is None:
            return jnp.sum(q, axis=-1) + values(params, state, sizes.joint(*q.shape[:-1])).v
        return values(params, state, joint).taken

    def constraint(params: Params, q: Array, state: Array, joint: Joint) -> Array:
        """½ (λ_opt L_opt + λ_nopt L_nopt) of every slot: halved, as the TD error is."""
        taken, greedy, v = values(params, state, joint)
        opt = jnp.sum(joint.best, axis=-1) - jax.lax.stop_gradient(greedy) + v
        nopt = jnp.minimum(jnp.sum(q, axis=-1) - jax.lax.stop_gradient(taken) + v, 0.0)
        return 0.5 * (QTRAN_OPT * jnp.square(opt) + QTRAN_NOPT * jnp.square(nopt))

    return Mixer(init, apply, igm=False, constraint=constraint)


def _central_weight(joint: Joint, q_tot: Array, target: Array, value: Array, alpha: Array) -> Array:
    """1 where û was played or something better than it was found, else α (2006.10800, §5: CW)."""
    is_greedy = jnp.all(joint.action == joint.greedy, axis=-1)
    return jnp.where(is_greedy | (target > value), 1.0, alpha)


def _optimistic_weight(joint: Joint, q_tot: Array, target: Array, value: Array, alpha: Array) -> Array:
    """1 where Q_tot underestimates, else α (2006.10800, §5: OW)."""
    return jnp.where(q_tot < target, 1.0, alpha)


def _weighted(weight: Callable[..., Array]) -> Callable[[MixerSizes], Mixer]:
    """QMIX, its errors weighted by what an unconstrained critic knows (2006.10800)."""

    def make(sizes: MixerSizes) -> Mixer:
        init, mix = _of(_CentralNetwork(sizes), *_example(sizes))
        central = Mixer(init, lambda params, q, state, joint=None: mix(params, q, state), igm=False)
        return _qmix(sizes)._replace(critic=Critic(central, weight))

    return make


def _example(sizes: MixerSizes) -> tuple[Array, Array]:
    return jnp.zeros((sizes.n_agents,)), jnp.zeros((sizes.state_size,))


MIXERS: dict[str, Callable[[MixerSizes], Mixer]] = {
    "iql": _iql,
    "vdn": _vdn,
    "qmix": _qmix,
    "qatten": _qatten,
    "qplex": _qplex,
    "qtran": _qtran,
    "cw_qmix": _weighted(_central_weight),
    "ow_qmix": _weighted(_optimistic_weight),
}


def make_mixer(name: str, n_agents: int, state_size: int, **sizes: Any) -> Mixer:
    """The mixer called ``name``; further ``sizes`` as in :class:`MixerSizes`. Raises ``ValueError`` if unknown."""
    if name not in MIXERS:
        raise ValueError(f"algo.mixer: {name!r} is not one of {', '.join(MIXERS)}")
    return MIXERS[name](MixerSizes(n_agents, state_size, **sizes))
