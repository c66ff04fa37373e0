"""Every matrix product of an iteration, at its own shape: how often, how much work, and how fast this device does it.

python benchmarks/products.py [PRESET] [--set field=value …] [--json OUT]

The products are read from the program itself, as one of the devices that share a batch sees it, and timed alone, all
devices at once, compiled as training is, as they are written and with their operands exchanged. The sum of the better
times is how long the iteration would take if nothing but its products took time and each ran as fast as it does alone:
a floor for float32 that the rate of a large product, which ``roofline.py`` takes, does not give. The order matters most
to the gradients of weights (``jqmix/kernels/products.py`` chooses it).
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, PartitionSpec
from measure import median_ms, write

from jqmix.config import Config, load_config
from jqmix.learning.train import make_program
from jqmix.runs.devices import make_mesh, use_cpu_cores

# Of one timed call: so much work that what it takes to start one is lost in it, in no more passes than that.
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
    def of_matrices(self) -> "Product":
        """The same with all axes that are contracted as one, and those that are not as another, as compilers do it."""
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

    def of(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, self.dimensions)


def programs_within(eqn: Any) -> Iterator[Any]:
    """The programs that an equation runs: a loop's body, a condition's branches."""
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(each, "jaxpr", each)  # of a closed one
            if hasattr(inner, "eqns"):
                yield inner


def products_in(jaxpr: Any, times: int = 1) -> Counter[Product]:
    """How often each product is computed; of branches, the one with most work."""
    found: Counter[Product] = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            a, b = (v.aval.shape for v in eqn.invars)
            found[Product(a, b, eqn.params["dimension_numbers"])] += times
            continue
        inner = [products_in(sub, times * eqn.params.get("length", 1)) for sub in programs_within(eqn)]
        if eqn.primitive.name == "cond":
            inner = [max(inner, key=work)]
        for counted in inner:
            found.update(counted)
    return found


def work(found: Counter[Product]) -> float:
    return sum(product.flops * times for product, times in found.items())


def of_an_iteration(cfg: Config) -> Counter[Product]:
    """One member's, on one of the devices that share it."""
    parts = make_mesh(cfg.seeds, cfg.replay.batch).shape["batch"]
    program = make_program(replace(cfg, replay=replace(cfg.replay, batch=cfg.replay.batch // parts)))
    member, shared = jax.eval_shape(program.init, jnp.int32(0))
    jaxpr = jax.make_jaxpr(program.iteration)(member, shared).jaxpr
    # Without what nothing depends on (gradients of inputs, say), as the compiler leaves it away, too.
    return products_in(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def first(x: jax.Array) -> jax.Array:
    """The first number, with as many axes."""
    return jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)


def milliseconds(product: Product) -> float:
    """Of one pass, while every device computes it."""
    flops = CALL_FLOPS_ON_CPU if jax.default_backend() == "cpu" else CALL_FLOPS
    passes = min(max(1, int(flops / product.flops)), MOST_PASSES)
    mesh = Mesh(np.array(jax.local_devices()), ("all",))

    def repeated(a: jax.Array, b: jax.Array) -> jax.Array:
        def one(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a, y = carry
            changed = first(a) + 1e-9 * first(y).reshape((1,) * a.ndim)  # so that no pass is another one's
            a = jax.lax.dynamic_update_slice(a, changed, (0,) * a.ndim)  # in place: ``at`` would copy it
            return a, product.of(a, b)

        return jax.lax.fori_loop(0, passes, one, (a, product.of(a, b)))[1]

    each, n = PartitionSpec("all"), mesh.size
    alone = lambda a, b: repeated(a[0], b[0])[None]  # noqa: E731
    everywhere = jax.shard_map(alone, mesh=mesh, in_specs=(each, each), out_specs=each, check_vma=False)
    operands = (0.1 * jax.random.normal(jax.random.key(0), (n, *shape)) for shape in (product.a, product.b))
    placed = (jax.device_put(x, jax.sharding.NamedSharding(mesh, each)) for x in operands)
    return median_ms(everywhere, *placed, repeats=7) / (passes + 1)


def floor(cfg: Config) -> dict[str, Any]:
    """All products of an iteration with their times; ``total_ms`` is what they take together, ``as_written_ms`` in the
    order in which the program has their operands."""
    rows = []
    for product, times in of_an_iteration(cfg).items():
        written, turned = (milliseconds(p) for p in (product.of_matrices, product.of_matrices.turned))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="smax_2s3z")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    use_cpu_cores()
    changes = dict(text.split("=", 1) for text in args.set)
    result = floor(load_config(args.preset, **changes))
    print("| operands | times | GFLOP | as written, ms | turned, ms | GFLOP/s a device |\n|---|---|---|---|---|---|")
    for row in result["products"]:
        shapes = " · ".join("×".join(map(str, row[side])) for side in ("a", "b"))
        both = f"{row['as_written_ms']:.3g} | {row['turned_ms']:.3g}"
        print(f"| {shapes} | {row['times']} | {row['gflop']:.3g} | {both} | {row['gflops_per_device']:.0f} |")
    print(
        f"together {result['total_ms']:.1f} ms, as written {result['total_as_written_ms']:.1f} ms; "
        f"{result['total_gflop']:.2f} GFLOP a device"
    )
    write(args.json, {"preset": args.preset, "changes": changes} | result)


if __name__ == "__main__":
    main()
