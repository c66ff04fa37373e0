"""λ-returns: arrays in, arrays out."""

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
    """Peng's Q(λ) targets, natively batched and time-major; what published QMIX code calls "td_lambda".

        G_t = value_t                                                       where last_t
        G_t = reward_t + discount_t ((1 − λ) value_{t+1} + λ G_{t+1})        elsewhere

    ``reward[t]`` and ``discount[t]`` (γ folded in, 0 after a true termination) belong to the transition that leaves
    slot t; ``value[t]`` bootstraps at slot t; ``last[t]`` is true where no transition leaves: an episode's final
    observation, or the end of the window. The final slot counts as last whatever ``last[T]`` says.
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
