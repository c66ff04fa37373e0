"""The GRU over a window, forward and backward, in turns: one program for each way of computing it.

Gates as slices of one array; as separate arrays; and separate with the hand-written backward pass, which is jqmix's,
in both of its forms: the weights' gradients summed within its scan, or as one product after it. On a GPU also with the
recurrence as one kernel (``core.one_kernel``), and how far its gradients are from those of the scan.

python benchmarks/gru.py [--rows 12 48 96] [--steps 102] [--hidden 64 128] [--json OUT]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from measure import write

from jqmix.kernels import gru
from jqmix.networks.cores import gru as plain
from jqmix.runs.devices import compiler_options


def sliced(params: gru.GRUParams, h: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """One [T, M, 3H] array cut in the step, gradients by automatic differentiation."""
    gates = x @ jnp.concatenate(params.w_i, axis=-1)

    def step(h: jax.Array, inputs: Any) -> Any:
        h = plain.cell(params, gru.reset_where(inputs[1], h), gru.Gates(*jnp.split(inputs[0], 3, axis=-1)))
        return h, h

    return jax.lax.scan(step, h, (gates, first))[1]


def apart(params: gru.GRUParams, h: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """Three [T, M, H] arrays, gradients by automatic differentiation."""
    return plain.unroll(params, h, x, first)


def form(within: bool) -> Callable[..., jax.Array]:
    """jqmix's, told which form its backward pass has."""

    def unroll(*args: Any) -> jax.Array:
        gru.sums_within = lambda *_: within  # asked while the gradient is traced
        return gru.unroll(*args)

    return unroll


def kernel(*args: Any) -> jax.Array:
    """jqmix's, its recurrence as one kernel."""
    return gru.unroll(*args, True)


WAYS = {"sliced": sliced, "apart": apart, "within": form(True), "after": form(False), "kernel": kernel}
INSIDE = 10  # passes in one call, so that no result is fresh memory


def ways(hidden: int) -> dict[str, Callable[..., jax.Array]]:
    """Those that this device can compute."""
    return {name: way for name, way in WAYS.items() if name != "kernel" or gru.fits_one_kernel(hidden)}


class Case(NamedTuple):
    """What is computed: a window of inputs, episodes starting within it, and the parameters."""

    params: gru.GRUParams
    x: jax.Array
    first: jax.Array

    def loss(self, unroll: Any, params: gru.GRUParams, x: jax.Array) -> jax.Array:
        """Something whose gradient needs all of the backward pass."""
        return jnp.sum(jnp.square(unroll(params, jnp.zeros_like(x[0]), x, self.first)))


def case_of(rows: int, steps: int, hidden: int) -> Case:
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, *shape: 0.1 * jax.random.normal(key, shape)  # noqa: E731
    shapes = (hidden, hidden), (hidden,), (hidden, hidden), (hidden,)
    params = gru.GRUParams(*(gru.Gates(*draw(k, 3, *shape)) for k, shape in zip(keys, shapes, strict=False)))
    x, first = draw(keys[4], steps, rows, hidden), jax.random.bernoulli(keys[5], 0.02, (steps, rows))
    return Case(params, x, first)


def programs(case: Case, hidden: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Per way, a compiled call of the forward pass and one of both passes."""
    params, x, first = case

    def forward(unroll: Any, params: gru.GRUParams, x: jax.Array) -> jax.Array:
        zero = jnp.zeros_like(x[0])
        return jax.lax.fori_loop(0, INSIDE, lambda _, x: x - 1e-6 * unroll(params, zero, x, first), x)

    def both(unroll: Any, params: gru.GRUParams, x: jax.Array) -> Any:
        gradient = jax.grad(partial(case.loss, unroll), (0, 1))
        descend = lambda _, at: jax.tree.map(lambda a, g: a - 1e-6 * g, at, gradient(*at))  # noqa: E731
        return jax.lax.fori_loop(0, INSIDE, descend, (params, x))

    def call(f: Any, unroll: Any) -> Callable[[], Any]:
        compiled = jax.jit(partial(f, unroll)).lower(params, x).compile(compiler_options())
        return lambda: compiled(params, x)

    every = ways(hidden).items()
    return {way: {"forward_ms": call(forward, unroll), "both_ms": call(both, unroll)} for way, unroll in every}


def furthest(case: Case, hidden: int) -> dict[str, float]:
    """How far each way's gradients are from those by automatic differentiation, over the largest number in each."""
    gradients = {
        way: jax.jit(jax.grad(partial(case.loss, unroll), (0, 1)))(case.params, case.x)
        for way, unroll in ways(hidden).items()
    }
    far = lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))  # noqa: E731
    return {way: max(jax.tree.leaves(jax.tree.map(far, g, gradients["apart"]))) for way, g in gradients.items()}


def measure(rows: int, steps: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a pass, all ways taking turns."""
    case = case_of(rows, steps, hidden)
    calls = programs(case, hidden)
    times: dict[str, dict[str, list[float]]] = {what: {way: [] for way in calls} for what in ("forward_ms", "both_ms")}
    for turn in range(repeats + 1):
        for what, ways in times.items():
            for way, taken in ways.items():
                begin = time.perf_counter()
                jax.block_until_ready(calls[way][what]())
                if turn:  # the first one warms up
                    taken.append(1e3 * (time.perf_counter() - begin) / INSIDE)
    medians = {what: {way: statistics.median(taken) for way, taken in ways.items()} for what, ways in times.items()}
    return {"rows": rows, "steps": steps, "hidden": hidden} | medians | {"furthest": furthest(case, hidden)}


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
