"""What a traced program holds at once, launches, moves and multiplies: about, and known without compiling it.

The model: what products, loops and the like read and write has a place in memory, from where it is made to where it is
last read. What lies between, element by element, is computed on the way, as compilers fuse it. A loop's carry, and an
array that is updated, keep their places.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

VIEWS = {
    "reshape",
    "squeeze",
    "expand_dims",
    "copy",
    "stop_gradient",
    "bitcast_convert_type",
    "optimization_barrier",
    "layout_constraint",
}
LOOPS = {"scan", "while", "cond"}
# What reads arrays from memory, and what writes to it, other than a view.
READS = {"dot_general", "sort", "cumsum", "pallas_call", "custom_vmap_call", *LOOPS}
WRITES = READS | {"concatenate", "gather", "scatter", "scatter-add", "random_bits", "threefry2x32", "reduce_sum"}
# Of what these read, no more than what they write.
PARTIAL = {"dynamic_slice", "slice", "gather"}
COLLECTIVES = {"psum", "psum_invariant", "all_gather", "all_gather_invariant", "reduce_scatter", "all_to_all"}
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")  # where the primitive that calls a function has it

Shape = Any  # of one array: ``shape`` and ``dtype``


class Value:
    """An array of the traced program; each is itself alone."""

    def __init__(self, shape: Shape):
        self.shape = shape


class Step(NamedTuple):
    """An operation. Calls are replaced by what they call."""

    equation: Any
    reads: list[Value]
    writes: list[Value]
    carried: list[Value]  # of a loop: what its results take the place of

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def scope(self) -> str:
        """Where in the program it was traced."""
        return str(self.equation.source_info.name_stack)

    @property
    def bodies(self) -> list[Any]:
        """What a loop repeats; of a condition, its branches."""
        params = self.equation.params
        inner = {"scan": ["jaxpr"], "while": ["body_jaxpr"]}.get(self.name, ["call"] if self.in_turns else [])
        bodies = [params[key] for key in inner] + list(params.get("branches", ()))
        return [body.jaxpr for body in bodies]

    @property
    def in_turns(self) -> bool:
        """Whether it is a call that members make one after another, though they are vmapped."""
        return self.name == "custom_vmap_call" and "sequential_vmap" in self.equation.params["rule"].__qualname__

    @property
    def turns(self) -> int:
        """How often a loop repeats it; once, where that is not known."""
        return self.equation.params.get("length", 1)


class Traced(NamedTuple):
    """A program's steps, what is given to it, and its results."""

    steps: list[Step]
    given: set[Value]
    results: list[Value]


class Held(NamedTuple):
    """An array that a program holds."""

    shape: Shape
    in_turns: bool = False  # where members that are vmapped take turns nevertheless: of one of them
    multiplied: bool = False  # whether products alone read it: a TPU may keep it as they take it, in half the bits


class TracedLaunch(NamedTuple):
    """A launch: how often it is made, and what it moves, writes (bytes) and multiplies each time."""

    name: str
    times: int
    moved: int
    written: int
    flops: int


def array_bytes(shape: Shape) -> int:
    """Of a device without tiles."""
    return math.prod(shape.shape) * _item_bytes(shape)


def _item_bytes(shape: Shape) -> int:
    return 8 if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key) else shape.dtype.itemsize


def tiled_bytes(shape: Shape, members: int = 1) -> int:
    """Of a TPU, for so many members: two axes are padded to tiles, those that waste the least, as its compiler chooses
    layouts. A row has 128 numbers. Eight rows make a tile, where a number has 32 bits, fewer where there are fewer."""
    size, sizes = _item_bytes(shape), [*shape.shape, *([] if members == 1 else [members])]
    if size > 4:
        size, sizes = 4, [*sizes, size // 4]
    sizes = [1] * (2 - len(sizes)) + sizes
    rows = 32 // size

    def padded(row: int, column: int) -> int:
        down = math.ceil(row / rows) * rows if row >= rows else 1 << (row - 1).bit_length()
        return down * math.ceil(column / 128) * 128

    count = math.prod(sizes)
    pairs = [(a, b) for i, a in enumerate(sizes) for j, b in enumerate(sizes) if i != j]
    return size * min(count // (a * b) * padded(a, b) for a, b in pairs) if count else 0


# A program


def read_steps(jaxpr: Any) -> Traced:
    """Of a jaxpr."""
    values = {v: Value(v.aval) for v in (*jaxpr.invars, *jaxpr.constvars)}
    given, steps = set(values.values()), []
    results = _inline(jaxpr, dict(values), steps)
    return Traced(steps, given, [v for v in results if v is not None])


def _inline(jaxpr: Any, values: dict[Any, Value | None], steps: list[Step]) -> list[Value | None]:
    """Appends to ``steps``; returns the results. ``values``: those of variables; None: of a literal."""

    def value(x: Any) -> Value | None:
        return None if isinstance(x, Literal) else values[x]

    for e in jaxpr.eqns:
        reads, params = [value(x) for x in e.invars], e.params
        called = next((params[key] for key in CALLS if key in params), None)
        step = Step(e, [], [], [])
        if called is None or e.primitive.name in (*LOOPS, "pallas_call") or step.in_turns:
            writes = [Value(x.aval) for x in e.outvars]
            carried = reads[_carried(e)]
            steps.append(Step(e, *([v for v in some if v is not None] for some in (reads, writes, carried))))
        else:
            inner = getattr(called, "jaxpr", called)
            within = dict(zip(inner.invars, reads, strict=True)) | {c: Value(c.aval) for c in inner.constvars}
            writes = _inline(inner, within, steps)
        values |= dict(zip(e.outvars, writes, strict=True))
    return [value(x) for x in jaxpr.outvars]


def _carried(e: JaxprEqn) -> slice:
    """Which of an equation's arguments a loop hands from turn to turn."""
    if e.primitive.name == "scan":
        if "num_carry" in e.params:
            first, count = e.params["num_consts"], e.params["num_carry"]
        else:  # as jax 0.11.2 has it
            first, count = map(len, e.params["ft_in"].unpack()[:2])
        return slice(first, first + count)
    return slice(None) if e.primitive.name == "while" else slice(0)


Sources = dict[Value, int]  # arrays in memory, and how many bytes of each are read


def sources(traced: Traced, size: Callable[[Shape], int]) -> dict[Value, Sources]:
    """Of every value, what is read for it; of an array that has its own place, that."""
    placed = {v for step in traced.steps if step.name in READS for v in step.reads} | set(traced.results)
    placed |= {v for step in traced.steps if step.name in WRITES for v in step.writes}
    found = {v: {v: size(v.shape)} for v in traced.given}
    for step in traced.steps:
        reads = [found.setdefault(v, {v: size(v.shape)}) for v in step.reads]
        for v in step.writes:
            whole = size(v.shape)
            if step.name in VIEWS or step.name == "dynamic_update_slice":
                found[v] = reads[0] if reads else {}
            elif v in placed:
                found[v] = {v: whole}
            else:
                merged = {place: most for each in reads for place, most in each.items()}
                found[v] = {p: min(n, whole) for p, n in merged.items()} if step.name in PARTIAL else merged
    return found


def peak(jaxpr: Any, counts: Callable[[Step], bool] = lambda step: True) -> list[Held]:
    """The arrays that a program holds at the same time, besides what is given to it, at that of the steps that count
    where they take the most."""
    traced = read_steps(jaxpr)
    found = sources(traced, array_bytes)
    last: dict[Value, int] = {}
    for i, step in enumerate(traced.steps):
        last |= {place: i for v in (*step.reads, *step.writes) for place in found[v]}
    last |= {place: len(traced.steps) for v in traced.results for place in found[v]}
    elsewhere = _read_elsewhere(traced, found)
    live: dict[Value, int] = {}
    most, at_most = -1, []
    for i, step in enumerate(traced.steps):
        within = max((peak(body) for body in step.bodies), key=_total, default=[])
        within = [held._replace(in_turns=held.in_turns or step.in_turns) for held in within]
        ending = {place for v in step.carried for place in found[v] if last[place] == i}
        after = {v: n for v, n in live.items() if v not in ending}
        new = [place for v in step.writes for place in found[v] if place not in traced.given and place not in after]
        after |= {place: array_bytes(place.shape) for place in new}
        # What a condition or a call returns is among what it holds within.
        during = after if step.name in ("scan", "while") else live
        for held, inside in ((during, within), (after, [])):
            if counts(step) and sum(held.values()) + _total(inside) > most:
                most = sum(held.values()) + _total(inside)
                at_most = [*(Held(v.shape, multiplied=v not in elsewhere) for v in held), *inside]
        live = {v: n for v, n in after.items() if last[v] > i}
    return at_most


def _read_elsewhere(traced: Traced, found: dict[Value, Sources]) -> set[Value]:
    """The arrays that are not read by products alone, or, element by element, for arrays that are."""
    places = {place for v in traced.results for place in found[v]}
    for step in reversed(traced.steps):
        by_element = step.name not in WRITES - {"concatenate"} and not any(v in places for v in step.writes)
        if step.name != "dot_general" and _writes(step, found) and not by_element:
            places |= {place for v in step.reads for place in found[v]}
    return places


def operations(jaxpr: Any, size: Callable[[Shape], int], times: int = 1) -> Iterator[TracedLaunch]:
    """What a program launches: every step that writes an array to memory, in loops as often as they turn, of a
    condition's branches the one with the most."""
    traced = read_steps(jaxpr)
    found = sources(traced, size)
    for step in traced.steps:
        each = [list(operations(body, size, times * step.turns)) for body in step.bodies]
        if each:
            yield from max(each, key=lambda made: sum(op.times for op in made))
        elif step.name in COLLECTIVES or _writes(step, found):
            written = sum(size(v.shape) for v in step.writes)
            if step.name == "dynamic_update_slice":
                written = size(step.reads[1].shape) if len(step.reads) > 1 else 0
            most = written if step.name in {*PARTIAL, "dynamic_update_slice"} else math.inf
            reads = {place: n for v in step.reads for place, n in found[v].items()}
            moved = written + sum(int(min(n, most)) for n in reads.values())
            yield TracedLaunch(step.name, times, moved, written, _flops(step))


def _writes(step: Step, found: dict[Value, Sources]) -> bool:
    return step.name == "dynamic_update_slice" or any(v in found[v] for v in step.writes)


def _flops(step: Step) -> int:
    if step.name != "dot_general":
        return 0
    (contracted, _), _ = step.equation.params["dimension_numbers"]
    left, out = step.equation.invars[0].aval, step.writes[0].shape
    return 2 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)


def _total(held: list[Held]) -> int:
    return sum(array_bytes(one.shape) for one in held)
