"""Targets: arrays in, arrays out, natively batched and time-major. A window may hold several episodes.

``TARGETS`` is the table of what ``algo.target`` may name; to add one is to write its function and put it in there.

``reward[t]`` and ``discount[t]`` (γ folded in, 0 after a true termination) belong to the transition that leaves
slot t; ``value[t]`` is what bootstraps at slot t; ``last[t]`` is true where no transition leaves: an episode's final
observation, or the end of the window. The final slot counts as last whatever ``last[T]`` says. In every target
G = value where ``last``, so nothing reaches from one episode into another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.config import AlgoConfig
from jqmix.kernels.platform import platform


def _backward(
    value: Float[Array, "T1 *batch"],
    last: Bool[Array, "T1 *batch"],
    constant: Float[Array, "T *batch"],
    factor: Float[Array, "T *batch"],
) -> Float[Array, "T1 *batch"]:
    """x_t = value_t where last_t, and at t = T; elsewhere constant_t + factor_t x_{t+1}."""
    if platform() != "cpu":
        return _by_doubling(value, last, constant, factor)

    def step(after: Array, slot: tuple[Array, ...]) -> tuple[Array, Array]:
        v, ends, c, f = slot
        x = jnp.where(ends, v, c + f * after)
        return x, x

    slots = value[:-1], last[:-1], constant, factor
    x = jax.lax.scan(step, value[-1], slots, reverse=True, unroll=8)[1]
    return jnp.concatenate([x, value[-1:]])


def _by_doubling(value: Array, last: Array, constant: Array, factor: Array) -> Array:
    """The same in log₂ T operations on the whole window, where each slot is a launch: every x_t as a_t + b_t x_{t+k},
    for k = 1, 2, 4, … (Hillis and Steele, 1986). Where b is 0 nothing reaches t, whatever it is."""
    a = jnp.concatenate([jnp.where(last[:-1], value[:-1], constant), value[-1:]])
    b = jnp.concatenate([jnp.where(last[:-1], 0.0, factor), jnp.zeros_like(value[-1:])])
    k = 1
    while k < len(value):
        later_a, later_b = (jnp.concatenate([x[k:], jnp.zeros_like(x[:k])]) for x in (a, b))
        a, b = jnp.where(b == 0, a, a + b * later_a), b * later_b
        k *= 2
    return a


def lambda_returns(
    reward: Float[Array, "T1 *batch"],
    discount: Float[Array, "T1 *batch"],
    value: Float[Array, "T1 *batch"],
    last: Bool[Array, "T1 *batch"],
    td_lambda: float | Float[Array, ""],
) -> Float[Array, "T1 *batch"]:
    """Peng's Q(λ) targets; what published QMIX code calls "td_lambda".

        G_t = value_t                                                       where last_t
        G_t = reward_t + discount_t ((1 − λ) value_{t+1} + λ G_{t+1})        elsewhere

    λ = 0 is the one-step target, λ = 1 the Monte Carlo return, bootstrapped at a cut.
    """
    one_step = reward[:-1] + discount[:-1] * (1.0 - td_lambda) * value[1:]
    return _backward(value, last, one_step, td_lambda * discount[:-1])


def corrected_returns(
    reward: Float[Array, "T1 *batch"],
    discount: Float[Array, "T1 *batch"],
    value: Float[Array, "T1 *batch"],
    last: Bool[Array, "T1 *batch"],
    baseline: Float[Array, "T1 *batch"],
    trace: Float[Array, "T1 *batch"],
) -> Float[Array, "T1 *batch"]:
    """Returns whose tail is corrected at every action taken on the way: Q*(λ), Watkins' Q(λ).

        G_t = value_t                                                                    where last_t
        G_t = reward_t + discount_t (value_{t+1} + trace_{t+1} (G_{t+1} − baseline_{t+1}))    elsewhere

    Q*(λ) (Harutyunyan et al., 1602.04951): ``baseline`` is the target network's value of the action taken, and
    ``trace`` = λ. Watkins' Q(λ) (Sutton and Barto, 2nd edition, §12.10): ``baseline`` = ``value``, and ``trace`` = λ
    where the action taken is greedy, else 0. No action is taken where ``last``: neither is read there.
    """

    # What a slot passes back, value + trace (G − baseline), by the same recursion.
    r, d, v, b, c = (x[:-1] for x in (reward, discount, value, baseline, trace))
    passed = _backward(value, last, v + c * (r - b), c * d)
    return jnp.concatenate([jnp.where(last[:-1], v, r + d * passed[1:]), value[-1:]])


def n_step_returns(
    reward: Float[Array, "T1 *batch"],
    discount: Float[Array, "T1 *batch"],
    value: Float[Array, "T1 *batch"],
    last: Bool[Array, "T1 *batch"],
    n: int | Float[Array, ""],
) -> Float[Array, "T1 *batch"]:
    """The rewards of the next ``n`` transitions, then the value; of fewer where an episode or the window ends sooner.

    n = 1 is the one-step target; n = T, or more, the Monte Carlo return, bootstrapped at a cut.
    """
    ends = last.at[-1].set(True)

    def one_more(_: Array, returns: Array) -> Array:
        return jnp.where(ends, value, reward + discount * jnp.roll(returns, -1, axis=0))

    steps = jnp.minimum(n, value.shape[0] - 1).astype(jnp.int32)
    return jax.lax.fori_loop(0, steps, one_more, value)


def sarsa_returns(
    reward: Float[Array, "T1 *batch"],
    discount: Float[Array, "T1 *batch"],
    value: Float[Array, "T1 *batch"],
    last: Bool[Array, "T1 *batch"],
    taken: Float[Array, "T1 *batch"],
    td_lambda: float | Float[Array, ""],
) -> Float[Array, "T1 *batch"]:
    """λ-returns over ``taken``, the values of the actions taken: SARSA(λ) (Sutton and Barto, 2nd edition, §12.7).

    No action is taken where ``last``: there ``value`` bootstraps. What is learned is the value of the policy that acts,
    exploration included; so the data should be that policy's own.
    """
    ends = last.at[-1].set(True)
    return lambda_returns(reward, discount, jnp.where(ends, value, taken), last, td_lambda)


class Transitions(NamedTuple):
    """What every target is made of; ``discount`` with γ folded in."""

    reward: Float[Array, "T1 *batch"]
    discount: Float[Array, "T1 *batch"]
    value: Float[Array, "T1 *batch"]
    last: Bool[Array, "T1 *batch"]


class Actions(NamedTuple):
    """What a target may ask about the actions taken; computed only where it does."""

    value: Callable[[], Float[Array, "T1 *batch"]]  # by the network that bootstraps
    greedy: Callable[[], Bool[Array, "T1 *batch"]]  # whether each is a best one


def _peng(transitions: Transitions, actions: Actions, algo: AlgoConfig) -> Array:
    return lambda_returns(*transitions, algo.td_lambda)


def _n_step(transitions: Transitions, actions: Actions, algo: AlgoConfig) -> Array:
    return n_step_returns(*transitions, algo.n_step)


def _q_star(transitions: Transitions, actions: Actions, algo: AlgoConfig) -> Array:
    trace = jnp.broadcast_to(jnp.asarray(algo.td_lambda), transitions.value.shape)
    return corrected_returns(*transitions, actions.value(), trace)


def _watkins(transitions: Transitions, actions: Actions, algo: AlgoConfig) -> Array:
    return corrected_returns(*transitions, transitions.value, algo.td_lambda * actions.greedy())


def _sarsa(transitions: Transitions, actions: Actions, algo: AlgoConfig) -> Array:
    return sarsa_returns(*transitions, actions.value(), algo.td_lambda)


TARGETS: dict[str, Callable[[Transitions, Actions, AlgoConfig], Array]] = {
    "peng": _peng,
    "qstar": _q_star,
    "watkins": _watkins,
    "nstep": _n_step,
    "sarsa": _sarsa,
}
