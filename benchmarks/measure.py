"""What the benchmarks share: timing a function, and saying what it was timed on."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jqmix.runs.devices import compiler_options
from jqmix.runs.experiment import provenance


def median_ms(function: Callable[..., Any], *args: Any, repeats: int = 15) -> float:
    """Median milliseconds of a function, compiled as training is and warmed up, its arguments made ready before."""
    compiled = jax.jit(function).lower(*args).compile(compiler_options())
    jax.block_until_ready((args, compiled(*args)))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def write(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON, with the device, the versions and the commit that it holds for; nothing where no path is."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(provenance() | result, indent=1) + "\n", encoding="utf-8")
