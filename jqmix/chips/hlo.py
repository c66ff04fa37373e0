"""Reads the text of a compiled XLA module: what it launches, how often, and what each launch moves and multiplies.

An operation outside fusions is a launch; a loop's are counted so many times as it turns, of a branch the longer arm.
What a loop takes of which it is not known how often it turns is counted once (:meth:`Module.turns` is None).
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"opt-barrier", "domain"}
WAITS = ("-done", "-update")  # the ends of what runs beside others: its start is the launch
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
BITS |= {"f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64, "c64": 64, "c128": 128}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")
_LINE = re.compile(r"^(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")


class Array(NamedTuple):
    """One array of a type, in the layout that it has."""

    kind: str
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool  # in memory beside the cores, not in the device's own

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """With what the tiles of its layout pad."""
        shape = list(self.shape)
        for axis, size in zip(self.minor_to_major, reversed(self.tile), strict=False):
            shape[axis] = math.ceil(shape[axis] / size) * size
        return math.ceil(math.prod(shape) * BITS.get(self.kind, 0) / 8)

    @property
    def moved(self) -> int:
        """Bytes of the device's memory that reading or writing it takes."""
        return 0 if self.on_chip else self.bytes


def arrays(text: str) -> list[Array]:
    """Of a type, which may be a tuple."""
    found = []
    for kind, shape, order, more in _ARRAY.findall(text):
        tile = re.search(r"T\(([\d,]+)\)", more)
        found.append(Array(kind, _numbers(shape), _numbers(order), _numbers(tile[1]) if tile else (), "S(1)" in more))
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",") if x)


class Operation(NamedTuple):
    """A line of a computation."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    value: str  # of a constant
    attributes: str
    is_root: bool

    @property
    def scope(self) -> str:
        """Where in the traced program it comes from."""
        told = re.search(r'op_name="([^"]*)"', self.attributes)
        return told[1] if told else ""

    @property
    def target(self) -> str | None:
        """Whom a custom call calls."""
        told = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return told[1] if told else None

    def called(self, attribute: str) -> str | None:
        told = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return told[1] if told else None

    @property
    def branches(self) -> list[str]:
        """A condition's computations."""
        arms = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if arms:
            return re.findall(r"%?([\w.\-]+)", arms[1])
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes)


Computation = dict[str, Operation]


class Module(NamedTuple):
    """A compiled program: its computations by name."""

    computations: dict[str, Computation]
    entry: str

    def turns(self, loop: Operation) -> int | None:
        """How often a loop turns: XLA's own note of it, or the number that its condition compares a counter with."""
        noted = re.search(r'known_trip_count[\\"]*:\s*\{[\\"]*n[\\"]*:[\\"]*(\d+)', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[str(loop.called("condition"))]
        root = next(op for op in condition.values() if op.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        limit = condition.get(root.operands[1])
        return int(limit.value) if limit is not None and limit.opcode == "constant" else None


class Launch(NamedTuple):
    """An operation that the program makes so many times."""

    operation: Operation
    computation: str
    times: int
    within: str  # the scopes of the loops around it, from the outermost on, then its own


def parse(text: str) -> Module:
    """Of ``compiled.as_text()``."""
    found: dict[str, Computation] = {}
    entry, name = "", None
    for line in text.splitlines():
        if name is None:
            if head := _HEAD.match(line):
                name = head[2]
                found[name] = {}
                entry = name if head[1] else entry
        elif line.startswith("}"):
            name = None
        elif operation := _operation(line.strip()):
            found[name][operation.name] = operation
    return Module(found, entry)


def _operation(line: str) -> Operation | None:
    match = _LINE.match(line)
    if match is None:
        return None
    type_, rest = _split_type(match["rest"])
    opcode, _, rest = rest.partition("(")
    inside, attributes = _closed(rest)
    is_constant = opcode == "constant"
    operands = () if is_constant else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Operation(
        match["name"], opcode, type_, operands, inside if is_constant else "", attributes, bool(match["root"])
    )


def _split_type(text: str) -> tuple[str, str]:
    """A line's type, which may be a tuple, and what follows it."""
    if not text.startswith("("):
        type_, _, rest = text.partition(" ")
        return type_, rest
    inside, rest = _closed(text[1:])
    return f"({inside})", rest.lstrip()


def _closed(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes an open one, and what follows it."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def launches(module: Module) -> list[Launch]:
    """All that one run of the module launches, loops and branches among them."""
    return list(_walk(module, module.entry, 1, ""))


def _walk(module: Module, computation: str, times: int, around: str) -> Iterator[Launch]:
    for op in module.computations[computation].values():
        if op.opcode in FREE or op.opcode.endswith(WAITS):
            continue
        within = f"{around} {op.scope}"
        if op.opcode == "while":
            yield Launch(op, computation, times, within)
            yield from _walk(module, str(op.called("body")), times * (module.turns(op) or 1), within)
        elif op.opcode == "conditional":
            yield Launch(op, computation, times, within)
            arms = [list(_walk(module, arm, times, within)) for arm in op.branches]
            yield from max(arms, key=lambda arm: sum(launch.times for launch in arm))
        elif op.opcode == "call":
            yield from _walk(module, str(op.called("to_apply")), times, within)
        else:
            yield Launch(op, computation, times, within)


# What a launch moves and multiplies


def bytes_moved(module: Module, launch: Launch) -> int:
    """Of what it reads, and of what it writes. Of arrays that it takes a part of, or changes in place, that part."""
    op, known = launch.operation, module.computations[launch.computation]
    fused = module.computations.get(str(op.called("calls"))) if op.opcode == "fusion" else None
    if fused is None:
        return sum(a.moved for a in arrays(op.type)) + sum(_moved(known, name) for name in op.operands)
    parameters = sorted((o for o in fused.values() if o.opcode == "parameter"), key=lambda o: _number(o))
    reads = sum(_read(fused, p) for p in parameters)
    return reads + sum(_written(fused, name) for name in _results(fused))


def _number(parameter: Operation) -> int:
    told = re.search(r"param(?:eter)?_(\d+)", parameter.name)
    return int(told[1]) if told else 0


def _moved(known: Computation, name: str) -> int:
    return sum(a.moved for a in arrays(known[name].type)) if name in known else 0


def _read(fused: Computation, parameter: Operation) -> int:
    users = [op for op in fused.values() if parameter.name in op.operands]
    total = 0
    for op in users:
        if op.opcode in ("dynamic-slice", "slice", "gather") and op.operands[0] == parameter.name:
            total += sum(a.moved for a in arrays(op.type))
        elif op.opcode != "dynamic-update-slice" or op.operands[0] != parameter.name:
            return sum(a.moved for a in arrays(parameter.type))
    return total


def _results(fused: Computation) -> list[str]:
    root = next(op for op in fused.values() if op.is_root)
    return list(root.operands) if root.opcode == "tuple" else [root.name]


def _written(fused: Computation, name: str) -> int:
    op = fused[name]
    while op.opcode in ("bitcast", "convert", "copy") and op.operands and op.operands[0] in fused:
        op = fused[op.operands[0]]  # a part that is written may be behind them
    if op.opcode == "dynamic-update-slice":
        return _moved(fused, op.operands[1])
    return _moved(fused, name)


def flops(module: Module, launch: Launch) -> int:
    """Of its matrix products; what a custom kernel multiplies is not known."""
    op, known = launch.operation, module.computations[launch.computation]
    if op.opcode == "fusion":
        inside = module.computations.get(str(op.called("calls")), {})
        return sum(_product(inside, o) for o in inside.values())
    return _product(known, op)


def _product(known: Computation, op: Operation) -> int:
    """2 · elements that come out · length of what is summed over."""
    target = op.target or ""
    if op.opcode != "dot" and op.opcode != "convolution" and "gemm" not in target and "matmul" not in target:
        return 0
    out = arrays(op.type)
    side = [arrays(known[name].type) for name in op.operands[:2] if name in known]
    if not out or len(side) < 2 or not side[0] or not side[1]:
        return 0
    return 2 * out[0].elements * _summed_over(op, side[0][0], side[1][0])


def _summed_over(op: Operation, left: Array, right: Array) -> int:
    if op.opcode == "convolution":  # as a TPU has its products: the kernel's input features
        labels = re.search(r"dim_labels=\w+_(\w+)->", op.attributes)
        return right.shape[labels[1].index("i")] if labels else 1
    axes = re.search(r'lhs_contracting_dim(?:ension)?s[\\"]*[=:]\s*[{\[]([\d,\\" ]*)[}\]]', op.attributes)
    return math.prod(left.shape[i] for i in _numbers(re.sub(r"[^\d,]", "", axes[1]))) if axes else 1
