"""Matrix products of a program, read from its jaxpr: how often, how much work, how fast this device computes each.

No script: ``parts.py`` and ``peers.py`` use it. The products are timed alone, on all devices at once, compiled as
training is, as they are written and with their operands exchanged; the better time counts. The order matters most to
the gradients of weights, for which the package chooses it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measure import median_ms

# The work of one timed call: enough that the time to start one is lost in it, in no more passes than that.
CALL_FLOPS, CALL_FLOPS_ON_CPU = 1e11, 4e8
MOST_PASSES = 2000


class Product(NamedTuple):
    """A ``dot_general``: both operands' shapes and what is contracted and batched."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    dimensions: Any

    @property
    def flops(self) -> float:
        """2 per multiply-add."""
        (_, contracted), (_, batch) = self.dimensions
        free = [n for axis, n in enumerate(self.b) if axis not in (*contracted, *batch)]
        return 2.0 * float(np.prod(self.a)) * float(np.prod(free))

    @property
    def turned(self) -> "Product":
        """The same numbers with the operands exchanged: compilers take either for the other."""
        contracted, batch = self.dimensions
        return Product(self.b, self.a, (contracted[::-1], batch[::-1]))

    @property
    def as_matrices(self) -> "Product":
        """The same with all contracted axes as one and all others as another, as compilers compute it."""
        (contracted, batch), shapes, axes = self.dimensions, [], []
        if batch[0]:
            return self
        for shape, over in zip((self.a, self.b), contracted, strict=True):
            first = 0 in over  # the contracted axes come first; else last
            inner = int(np.prod([shape[axis] for axis in over]))
            free = int(np.prod(shape)) // inner
            shapes.append((inner, free) if first else (free, inner))
            axes.append((0 if first else 1,))
        return Product(shapes[0], shapes[1], (tuple(axes), batch))

    def compute(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, self.dimensions)


def products_in(function: Callable[..., Any], args: tuple[Any, ...]) -> Counter[Product]:
    """How often a function computes each product, without what its results do not depend on."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def flops(found: Counter[Product]) -> float:
    return sum(product.flops * times for product, times in found.items())


def _programs_within(eqn: Any) -> Iterator[Any]:
    """The programs that an equation runs: a loop's body, a condition's branches."""
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(each, "jaxpr", each)  # of a closed one
            if hasattr(inner, "eqns"):
                yield inner


def _count(jaxpr: Any, times: int = 1) -> Counter[Product]:
    """Of a condition's branches, the one with most work counts."""
    found: Counter[Product] = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            a, b = (v.aval.shape for v in eqn.invars)
            found[Product(a, b, eqn.params["dimension_numbers"])] += times
            continue
        inner = [_count(program, times * eqn.params.get("length", 1)) for program in _programs_within(eqn)]
        if eqn.primitive.name == "cond":
            inner = [max(inner, key=flops)]
        for counted in inner:
            found.update(counted)
    return found


def _first(x: jax.Array) -> jax.Array:
    """The first number, with as many axes."""
    return jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)


def milliseconds(product: Product) -> float:
    """Of a pass, while every device computes it."""
    call = CALL_FLOPS_ON_CPU if jax.default_backend() == "cpu" else CALL_FLOPS
    passes = min(max(1, int(call / product.flops)), MOST_PASSES)
    mesh = Mesh(np.array(jax.local_devices()), ("all",))

    def repeated(a: jax.Array, b: jax.Array) -> jax.Array:
        def again(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a, y = carry
            changed = _first(a) + 1e-9 * _first(y).reshape((1,) * a.ndim)  # so that every pass is a new product
            a = jax.lax.dynamic_update_slice(a, changed, (0,) * a.ndim)  # in place: ``at`` would copy it
            return a, product.compute(a, b)

        return jax.lax.fori_loop(0, passes, again, (a, product.compute(a, b)))[1]

    each, n = PartitionSpec("all"), mesh.size
    alone = lambda a, b: repeated(a[0], b[0])[None]  # noqa: E731
    everywhere = jax.shard_map(alone, mesh=mesh, in_specs=(each, each), out_specs=each, check_vma=False)
    operands = (0.1 * jax.random.normal(jax.random.key(0), (n, *shape)) for shape in (product.a, product.b))
    placed = (jax.device_put(x, NamedSharding(mesh, each)) for x in operands)
    return median_ms(everywhere, *placed, repeats=7) / (passes + 1)


def timed(found: Counter[Product]) -> dict[str, Any]:
    """All products with their times; ``total_ms`` is what they take together in the better order of each."""
    rows = []
    for product, times in found.items():
        written, turned = (milliseconds(p) for p in (product.as_matrices, product.as_matrices.turned))
        each = min(written, turned)
        rows.append(
            {
                "a": product.a,
                "b": product.b,
                "contracted": product.dimensions[0],
                "times": times,
                "gflop": product.flops * times / 1e9,
                "ms": each * times,
                "as_written_ms": written * times,
                "turned_ms": turned * times,
                "gflops_per_device": product.flops / each / 1e6,
            }
        )
    rows.sort(key=lambda row: -row["ms"])
    sums = {f"total_{name}": sum(row[name] for row in rows) for name in ("ms", "as_written_ms", "gflop")}
    return {"products": rows} | sums


def measured_peak() -> dict[str, float]:
    """What this device does in a product and a copy, large enough that nothing else limits them: flops, bytes/s."""
    big = jnp.ones((2048, 2048))
    stream, passes = jnp.ones((64 * 2**20,)), 10

    def copy(x: jax.Array) -> jax.Array:
        """Many passes in one call: a fresh result for every pass would cost page faults, not bandwidth."""
        return jax.lax.fori_loop(0, passes, lambda _, x: x + 1.0, x)

    rate = 2 * 2048**3 / (1e-3 * median_ms(lambda x: x @ x, big, repeats=7))
    moved = passes * 2 * 4 * stream.size / (1e-3 * median_ms(copy, stream, repeats=5))
    return {"flops": rate, "bytes": moved}
