"""How long an iteration might take on a chip, from the traced program alone: the model of ``chips/forecast.py`` over
what ``chips/traced.py`` counts, without compiling."""

from collections import Counter
from typing import Any, NamedTuple

from jqmix.chips.catalogue import Chip
from jqmix.chips.traced import COLLECTIVES, array_bytes, operations, tiled_bytes

# The forecast for a compiled program over that for its traced form, which launches more than is left when the compiler
# has fused it. On an H100 the geometric mean over the 13 configurations of ``benchmarks/memory.py``, with jax 0.10.2
# (0.51 to 0.97 each). On a TPU nothing has been fitted: the GPU's.
COMPILED_OVER_TRACED = {"gpu": 0.79, "tpu": 0.79}
LATENCY = 1e-5  # seconds that a collective takes at least: a guess, as the catalogue's launches are


class IterationEstimate(NamedTuple):
    """Of one iteration of a device's members."""

    seconds: float
    collectives: dict[str, int]
    collective_bytes: int


def estimate(jaxpr: Any, chip: Chip, members: int) -> IterationEstimate:
    """``jaxpr``: of one member's iteration, of which the device computes so many at once."""

    def size(shape: Any) -> int:
        return tiled_bytes(shape, members) if chip.platform == "tpu" else members * array_bytes(shape)

    seconds, collectives, sent, before = 0.0, Counter(), 0, None
    for op in operations(jaxpr, size):
        least, flops = chip.launch_s, members * op.flops
        each = max(least, op.moved / chip.bandwidth, flops / chip.product_rate)
        if op.name in COLLECTIVES:
            joined = op.name == before  # compilers make one of such that follow one another
            each = op.written / chip.link + (0.0 if joined else LATENCY)
            collectives[op.name] += 0 if joined else op.times
            sent += op.times * op.written
        before = op.name
        seconds += op.times * each
    return IterationEstimate(COMPILED_OVER_TRACED[chip.platform] * seconds, dict(collectives), sent)
