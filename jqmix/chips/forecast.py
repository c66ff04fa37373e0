"""What a compiled program takes on a chip: counted from its text, and a time by a model on top.

The model: an operation takes the longest of the least that one takes, what it moves over the memory's bandwidth, and
its products over their rate; one after another. A loop or a branch that the host decides on waits for the host besides.
It knows nothing of caches, of operations side by side, nor of what a kernel of one's own multiplies.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from jqmix.chips import hlo
from jqmix.chips.catalogue import Chip

OTHER = "other"


class Part(NamedTuple):
    """Sums over the launches of a part of the program."""

    launches: float = 0
    bytes_moved: float = 0
    flops: float = 0
    seconds: float = 0

    def plus(self, other: "Part", times: float = 1) -> "Part":
        return Part(*(x + y * times for x, y in zip(self, other, strict=True)))

    def as_dict(self) -> dict[str, float]:
        whole: dict[str, float] = {"launches": self.launches, "bytes_moved": self.bytes_moved, "flops": self.flops}
        return {name: round(x) for name, x in whole.items()} | {"seconds": self.seconds}


class Forecast(NamedTuple):
    """Of one run of a program. ``unknown_loops``: how often loops are entered of which it is not known how often they
    turn; all counts hold one turn of each."""

    parts: dict[str, Part]
    collectives: dict[str, int]  # how often each is made
    collective_bytes: int
    unknown_loops: int

    @property
    def total(self) -> Part:
        return functools.reduce(Part.plus, self.parts.values(), Part())

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
            "total": self.total.as_dict(),
            "collectives": self.collectives,
            "collective_bytes": self.collective_bytes,
            "unknown_loops": self.unknown_loops,
        }


def forecast(module: hlo.Module, chip: Chip, parts: Sequence[str] = (), iterations: int = 1) -> Forecast:
    """Of one of so many ``iterations`` that the module makes. ``parts``: scopes that are told apart."""
    found: dict[str, Part] = {}
    collectives: Counter[str] = Counter()
    moved_between = unknown = 0
    for launch in hlo.launches(module):
        op = launch.operation
        part = next((p for p in parts if p in launch.within), OTHER)
        new, times = _part(module, launch, chip), launch.times / iterations
        kind = next((c for c in hlo.COLLECTIVES if op.opcode.startswith(c)), None)
        if kind is not None:
            size = sum(a.bytes for a in hlo.arrays(op.type))
            collectives[kind] += round(times)
            moved_between += round(times * size)
            new = new._replace(seconds=new.seconds + size / chip.link)
        if op.opcode == "while" and module.turns(op) is None:
            unknown += round(times)
        found[part] = found.get(part, Part()).plus(new, times)
    return Forecast(found, dict(collectives), moved_between, unknown)


def _part(module: hlo.Module, launch: hlo.Launch, chip: Chip) -> Part:
    op = launch.operation
    if op.opcode in ("while", "conditional"):
        waits = op.opcode == "conditional" or module.turns(op) is None
        return Part(int(op.opcode == "conditional"), 0, 0, chip.sync_s if waits else 0.0)
    moved, flops = hlo.bytes_moved(module, launch), hlo.flops(module, launch)
    return Part(1, moved, flops, max(chip.launch_s, moved / chip.bandwidth, flops / chip.product_rate))
