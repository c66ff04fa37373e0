"""Mixers: how the agents' values become the team's. The one place to add one: write it, put it in ``MIXERS``.

A mixer is two pure functions, ``init(key) -> params`` and ``apply(params, q[..., N], state[..., S]) -> Q_tot[...]``.
One whose ``per_agent`` is true (IQL) mixes nothing: it returns [..., N], and every agent has a TD error of its own.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.networks.init import linear

Params = Any
Positivity = Literal["abs", "softplus", "square", "none"]

POSITIVITY: dict[str, Callable[[Array], Array]] = {
    "abs": jnp.abs,
    "softplus": nn.softplus,
    "square": lambda w: 0.5 * w * w,
    "none": lambda w: w,  # breaks IGM: a control, not a method
}


class Mixer(NamedTuple):
    init: Callable[[Array], Params]
    apply: Callable[[Params, Float[Array, "*batch N"], Float[Array, "*batch S"]], Array]
    per_agent: bool = False


class MixerSizes(NamedTuple):
    """n agents, state size S, embedding E and hypernetwork width Hh."""

    n_agents: int
    state_size: int
    embed: int = 32
    hypernet_hidden: int = 64
    positivity: Positivity = "abs"


class _QMixNetwork(nn.Module):
    """Q_tot = ELU(qᵀ W1 + b1) · W2 + V, all four made from the state by hypernetworks, W1 and W2 positive.

    QMIX (1803.11485, §4, fig. 2) with the two-layer hypernetworks of 2102.03479.
    """

    sizes: MixerSizes

    @nn.compact
    def __call__(self, q: Float[Array, "*batch N"], state: Float[Array, "*batch S"]) -> Float[Array, "*batch"]:
        n, s, e, hh, positivity = self.sizes
        positive = POSITIVITY[positivity]
        hyper = nn.relu(linear(s, 2 * hh, "hyper")(state))  # W1's and W2's hidden layers, side by side
        w1 = positive(linear(hh, n * e, "w1")(hyper[..., :hh]))
        w2 = positive(linear(hh, e, "w2")(hyper[..., hh:]))
        b1 = linear(s, e, "b1")(state)
        v = linear(e, 1, "v")(nn.relu(linear(s, e, "v_hidden")(state)))[..., 0]
        # qᵀ W1, agent by agent: as a sum over an axis, XLA's CPU compiler makes one slow kernel of it and of b1.
        mixed = sum((q[..., i, None] * w1[..., i * e : (i + 1) * e] for i in range(n)), start=b1)
        hidden = nn.elu(mixed)
        return jnp.sum(hidden * w2, axis=-1) + v


def _iql(sizes: MixerSizes) -> Mixer:
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state: q, per_agent=True)


def _vdn(sizes: MixerSizes) -> Mixer:
    """Q_tot = Σ_i Q_i (1706.05296)."""
    del sizes
    return Mixer(lambda key: {}, lambda params, q, state: jnp.sum(q, axis=-1))


def _qmix(sizes: MixerSizes) -> Mixer:
    net = _QMixNetwork(sizes)

    def init(key: Array) -> Params:
        return net.init(key, jnp.zeros((sizes.n_agents,)), jnp.zeros((sizes.state_size,)))["params"]

    return Mixer(init, lambda params, q, state: net.apply({"params": params}, q, state))  # type: ignore[arg-type]


MIXERS: dict[str, Callable[[MixerSizes], Mixer]] = {"iql": _iql, "vdn": _vdn, "qmix": _qmix}


def make_mixer(name: str, n_agents: int, state_size: int, **sizes: Any) -> Mixer:
    """The mixer called ``name``; further ``sizes`` as in :class:`MixerSizes`. Raises ``ValueError`` if unknown."""
    if name not in MIXERS:
        raise ValueError(f"algo.mixer: {name!r} is not one of {', '.join(MIXERS)}")
    return MIXERS[name](MixerSizes(n_agents, state_size, **sizes))
