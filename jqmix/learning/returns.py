"""Targets: arrays in, arrays out, natively batched and time-major. A window may hold several episodes.

``reward[t]`` and ``discount[t]`` (γ folded in, 0 after a true termination) belong to the transition that leaves
slot t; ``value[t]`` is what bootstraps at slot t; ``last[t]`` is true where no transition leaves: an episode's final
observation, or the end of the window. The final slot counts as last whatever ``last[T]`` says. In every target
G = value where ``last``, so nothing reaches from one episode into another.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AT_ONCE = 8  # how far the recursion is unrolled: its steps are too small to be worth a turn of a loop each


def _backward(
    constant: Float[Array, "T *batch"], factor: Float[Array, "T *batch"], end: Float[Array, "*batch"]
) -> Float[Array, "T *batch"]:
    """x_t = constant_t + factor_t x_{t+1}, with x_T = ``end``."""

    def step(ahead: Array, slot: tuple[Array, Array]) -> tuple[Array, Array]:
        x = slot[0] + slot[1] * ahead
        return x, x

    return jax.lax.scan(step, end, (constant, factor), reverse=True, unroll=AT_ONCE)[1]


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

    end = value[-1]
    ahead = reward[:-1] + discount[:-1] * (1.0 - td_lambda) * value[1:]
    returns = _backward(
        jnp.where(last[:-1], value[:-1], ahead), jnp.where(last[:-1], 0.0, td_lambda * discount[:-1]), end
    )
    return jnp.concatenate([returns, end[None]])


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

    value, last, end = value[:-1], last[:-1], value[-1]
    # What a slot passes back, value + trace (G − baseline), by the same recursion.
    constant = jnp.where(last, value, value + trace[:-1] * (reward[:-1] - baseline[:-1]))
    passed = _backward(constant, jnp.where(last, 0.0, trace[:-1] * discount[:-1]), end)
    ahead = jnp.concatenate([passed[1:], end[None]])
    return jnp.concatenate([jnp.where(last, value, reward[:-1] + discount[:-1] * ahead), end[None]])


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
