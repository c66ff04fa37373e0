"""The GRU over a window, forward and backward, three ways side by side.

Gates as slices of one array; as separate arrays; and separate with the hand-written backward pass, which is jqmix's.

python benchmarks/gru.py [--rows 96] [--steps 102] [--hidden 64] [--json OUT]
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import median_ms, write

from jqmix.networks import gru


def sliced(params: gru.GRUParams, h: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """One [T, M, 3H] array cut in the step, gradients by automatic differentiation."""
    gates = x @ jnp.concatenate(list(params.w_i), axis=-1) + params.b_i.reshape(-1)

    def step(h: jax.Array, inputs: Any) -> Any:
        h = gru.cell(params, gru.reset_where(inputs[1], h), gru.Gates(*jnp.split(inputs[0], 3, axis=-1)))
        return h, h

    return jax.lax.scan(step, h, (gates, first))[1]


def apart(params: gru.GRUParams, h: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """Three [T, M, H] arrays, gradients by automatic differentiation."""

    def step(h: jax.Array, inputs: Any) -> Any:
        h = gru.cell(params, gru.reset_where(inputs[1], h), inputs[0])
        return h, h

    return jax.lax.scan(step, h, (gru.project(params, x), first))[1]


WAYS = {"sliced": sliced, "apart": apart, "jqmix": gru.unroll}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96, help="batch × agents")
    parser.add_argument("--steps", type=int, default=102)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    t, m, h = args.steps, args.rows, args.hidden
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda key, *shape: 0.1 * jax.random.normal(key, shape)  # noqa: E731
    params = gru.GRUParams(draw(keys[0], 3, h, h), draw(keys[1], 3, h), draw(keys[2], 3, h, h), draw(keys[3], 3, h))
    x, zero, first = draw(keys[4], t, m, h), jnp.zeros((m, h)), jnp.zeros((t, m), bool)

    def forward(way: str) -> float:
        return median_ms(lambda p, x: WAYS[way](p, zero, x, first), params, x)

    def gradient(way: str) -> float:
        squared = lambda p, x: jnp.sum(jnp.square(WAYS[way](p, zero, x, first)))  # noqa: E731
        return median_ms(jax.grad(squared, (0, 1)), params, x)

    result = {"rows": m, "steps": t, "hidden": h}
    for name, time_of in (("forward_ms", forward), ("gradient_ms", gradient)):
        result[name] = {way: time_of(way) for way in WAYS}
        ours = result[name]["jqmix"]
        print(f"{name:12} " + "   ".join(f"{way} {ms:7.2f} (×{ms / ours:.2f})" for way, ms in result[name].items()))
    write(args.json, result)


if __name__ == "__main__":
    main()
