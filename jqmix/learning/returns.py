"""Targets: arrays in, arrays out, natively batched and time-major. A window may hold several episodes.

``reward[t]`` and ``discount[t]`` (γ folded in, 0 after a true termination) belong to the transition that leaves
slot t; ``value[t]`` is what bootstraps at slot t; ``last[t]`` is true where no transition leaves: an episode's final
observation, or the end of the window. The final slot counts as last whatever ``last[T]`` says. In every target
G = value where ``last``, so nothing reaches from one episode into another.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

    def backward(carry: tuple[Array, Array], slot: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        next_value, next_return = carry
        r, d, v, l = slot  # noqa: E741
        g = jnp.where(l, v, r + d * ((1.0 - td_lambda) * next_value + td_lambda * next_return))
        return (v, g), g

    end = value[-1]
    slots = (reward[:-1], discount[:-1], value[:-1], last[:-1])
    _, returns = jax.lax.scan(backward, (end, end), slots, reverse=True)
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

    def backward(ahead: Array, slot: tuple[Array, ...]) -> tuple[Array, Array]:
        r, d, v, l, b, c = slot  # noqa: E741
        g = jnp.where(l, v, r + d * ahead)
        return jnp.where(l, v, v + c * (g - b)), g

    slots = tuple(x[:-1] for x in (reward, discount, value, last, baseline, trace))
    _, returns = jax.lax.scan(backward, value[-1], slots, reverse=True)
    return jnp.concatenate([returns, value[-1:]])


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
