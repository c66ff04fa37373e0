"""The GRU over a window, forward and backward, in turns: one program for each way of computing it.

Gates as slices of one array; as separate arrays; and separate with the hand-written backward pass, which is jqmix's,
in both of its forms: the weights' gradients summed within its scan, or as one product after it.

python benchmarks/gru.py [--rows 12 48 96] [--steps 102] [--hidden 64 128] [--json OUT]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import write

from jqmix.networks import gru
from jqmix.runs.devices import compiler_options


def sliced(params: gru.GRUParams, h: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """One [T, M, 3H] array cut in the step, gradients by automatic differentiation."""
    gates = x @ jnp.concatenate(params.w_i, axis=-1)

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


def form(within: bool) -> Callable[..., jax.Array]:
    """jqmix's, told which form its backward pass has."""

    def unroll(*args: Any) -> jax.Array:
        gru.sums_within = lambda *_: within  # asked while the gradient is traced
        return gru.unroll(*args)

    return unroll


WAYS = {"sliced": sliced, "apart": apart, "within": form(True), "after": form(False)}
INSIDE = 10  # passes in one call, so that no result is fresh memory


def programs(rows: int, steps: int, hidden: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Per way, a compiled call of the forward pass and one of both passes."""
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, *shape: 0.1 * jax.random.normal(key, shape)  # noqa: E731
    shapes = (hidden, hidden), (hidden,), (hidden, hidden), (hidden,)
    params = gru.GRUParams(*(gru.Gates(*draw(k, 3, *shape)) for k, shape in zip(keys, shapes, strict=False)))
    x, zero = draw(keys[4], steps, rows, hidden), jnp.zeros((rows, hidden))
    first = jax.random.bernoulli(keys[5], 0.02, (steps, rows))

    def forward(unroll: Any, params: gru.GRUParams, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, INSIDE, lambda _, x: x - 1e-6 * unroll(params, zero, x, first), x)

    def both(unroll: Any, params: gru.GRUParams, x: jax.Array) -> Any:
        gradient = jax.grad(lambda p, x: jnp.sum(jnp.square(unroll(p, zero, x, first))), (0, 1))
        descend = lambda _, at: jax.tree.map(lambda a, g: a - 1e-6 * g, at, gradient(*at))  # noqa: E731
        return jax.lax.fori_loop(0, INSIDE, descend, (params, x))

    def call(f: Any, unroll: Any) -> Callable[[], Any]:
        compiled = jax.jit(partial(f, unroll)).lower(params, x).compile(compiler_options())
        return lambda: compiled(params, x)

    return {way: {"forward_ms": call(forward, unroll), "both_ms": call(both, unroll)} for way, unroll in WAYS.items()}


def measure(rows: int, steps: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a pass, all ways taking turns."""
    calls = programs(rows, steps, hidden)
    times: dict[str, dict[str, list[float]]] = {what: {way: [] for way in calls} for what in ("forward_ms", "both_ms")}
    for turn in range(repeats + 1):
        for what, ways in times.items():
            for way, taken in ways.items():
                begin = time.perf_counter()
                jax.block_until_ready(calls[way][what]())
                if turn:  # the first one warms up
                    taken.append(1e3 * (time.perf_counter() - begin) / INSIDE)
    medians = {what: {way: statistics.median(taken) for way, taken in ways.items()} for what, ways in times.items()}
    return {"rows": rows, "steps": steps, "hidden": hidden} | medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[96], help="batch × agents")
    parser.add_argument("--steps", type=int, default=102)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    results = []
    for hidden in args.hidden:
        for rows in args.rows:
            results.append(measure(rows, args.steps, hidden, args.repeats))
            for what in ("forward_ms", "both_ms"):
                shown = "   ".join(f"{way} {ms:7.2f}" for way, ms in results[-1][what].items())
                print(f"hidden {hidden:4} rows {rows:4} {what:10} {shown}", flush=True)
    write(args.json, {"sizes": results})


if __name__ == "__main__":
    main()
