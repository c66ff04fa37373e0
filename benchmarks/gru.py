"""The recurrent scan, forward and backward: gates as separate arrays against slices of one, side by side.

python benchmarks/gru.py [--rows 96] [--steps 102] [--hidden 64] [--json OUT]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import median_ms, write

from jqmix.networks import gru


def sliced_unroll(params: gru.GRUParams, h: jax.Array, gates: jax.Array, first: jax.Array) -> jax.Array:
    """The plain version: one [T, M, 3H] array cut in the step, gradients by automatic differentiation."""

    def step(h: jax.Array, inputs: Any) -> Any:
        x = gru.Gates(*jnp.split(inputs[0], 3, axis=-1))
        h = gru.cell(params, gru.reset_where(inputs[1], h), x)
        return h, h

    return jax.lax.scan(step, h, (gates, first))[1]


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
    gates, zero, first = draw(keys[4], t, m, 3 * h), jnp.zeros((m, h)), jnp.zeros((t, m), bool)
    apart = gru.Gates(*(jnp.asarray(g) for g in jnp.split(gates, 3, axis=-1)))

    def gradient(unroll: Callable[..., Any]) -> Callable[..., Any]:
        return lambda p, x: jax.grad(lambda p, x: jnp.sum(jnp.square(unroll(p, zero, x, first))), (0, 1))(p, x)

    result = {
        "rows": m,
        "steps": t,
        "hidden": h,
        "forward_ms": {
            "sliced": median_ms(lambda p, x: sliced_unroll(p, zero, x, first), params, gates),
            "apart": median_ms(lambda p, x: gru.unroll(p, zero, x, first), params, apart),
        },
        "gradient_ms": {
            "sliced": median_ms(gradient(sliced_unroll), params, gates),
            "apart": median_ms(gradient(gru.unroll), params, apart),
        },
    }
    for part in ("forward_ms", "gradient_ms"):
        a, b = result[part]["sliced"], result[part]["apart"]
        print(f"{part:12} sliced {a:7.2f}   apart {b:7.2f}   ratio {a / b:.2f}")
    write(args.json, result)


if __name__ == "__main__":
    main()
