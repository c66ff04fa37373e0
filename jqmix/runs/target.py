"""Training compiled for a chip that need not be here: what it launches, moves and holds, and how fast it might be."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from jqmix.chips import hlo
from jqmix.chips.catalogue import Chip, chip_named
from jqmix.chips.compile_only import compile_only_devices, compiler_flags
from jqmix.chips.forecast import forecast
from jqmix.config import Config, ConfigError
from jqmix.inputs import one_line
from jqmix.kernels.platform import compiling_for
from jqmix.learning.train import build_env, divides, learning_batch, window_length
from jqmix.runs.devices import AXIS, compiler_options, make_mesh
from jqmix.runs.jax_settings import settled
from jqmix.runs.population import lower_training

PARTS = ("collecting", "learning")  # the scopes of an iteration


@settled(cache=False)
def bench_target(cfg: Config, target: str, devices: int = 1) -> dict[str, Any]:
    """One iteration of all members of ``cfg``, compiled for so many of the chip ``target``: a device's share.

    Raises ``ConfigError`` for a chip that is not known, and where what compiles for it is not installed.
    """
    chip = chip_named(target)
    with compiling_for(chip.platform):
        there = compile_only_devices(chip, devices)
        mesh = make_mesh(cfg.seeds, learning_batch(cfg), there, partial(divides, cfg))
        found = compiled_for(chip, lambda: lower_training(cfg, mesh), compiler_options(), PARTS)
    steps = cfg.rollouts * window_length(cfg, build_env(cfg, 1).spec) * cfg.seeds
    about = {"target": chip.name, "devices": mesh.size, "members_per_device": cfg.seeds // mesh.shape[AXIS]}
    return about | found | {"predicted_steps_per_s": steps / found["total"]["seconds"], "jax": jax.__version__}


def compiled_for(
    chip: Chip,
    lower: Callable[[], Any],
    options: Mapping[str, Any] | None = None,
    parts: Sequence[str] = (),
    iterations: int = 1,
) -> dict[str, Any]:
    """What a program takes that ``lower`` traces for compile-only devices of a chip; one of its ``iterations``."""
    begin = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    compiled = lowered.compile({**(options or {}), **compiler_flags(chip)})
    compile_s = time.perf_counter() - traced
    try:
        text = compiled.as_text()
    except RuntimeError as error:  # of a compiler that is newer than jax: libtpu 0.0.52 beside jax 0.10.2, a v6e
        raise ConfigError(
            f"target: compiled for {chip.name}, but jax cannot read what its compiler made "
            f'({one_line(str(error))}); pip install "{chip.extra}" has the one that fits'
        ) from None
    counted = forecast(hlo.parse(text), chip, parts, iterations).as_dict()
    times = {"trace_s": traced - begin, "compile_s": compile_s}
    return counted | {"memory": memory_of(compiled, chip)} | times


def memory_of(compiled: Any, chip: Chip) -> dict[str, int]:
    """Bytes of a device that a compiled program reserves."""
    told = compiled.memory_analysis()
    state, temporary = int(told.argument_size_in_bytes), int(told.temp_size_in_bytes)
    new = int(told.output_size_in_bytes) - int(told.alias_size_in_bytes)
    return {"state": state, "temporary": temporary, "reserved": state + temporary + new, "available": chip.memory}


def target_summary(result: Mapping[str, Any]) -> str:
    """What :func:`bench_target` found, to be read."""
    memory, total = result["memory"], result["total"]
    lines = [
        f"{result['devices']} × {result['target']}, {result['members_per_device']} member(s) on each device; "
        f"one iteration of a device, compiled with jax {result['jax']} and not run",
        f"{'':12}{'launches':>10}{'GB moved':>12}{'GFLOP':>10}{'predicted ms':>14}",
    ]
    for name, part in {**result["parts"], "in all": total}.items():
        moved, flops, ms = part["bytes_moved"] / 1e9, part["flops"] / 1e9, 1e3 * part["seconds"]
        lines.append(f"{name:12}{part['launches']:>10,}{moved:>12,.2f}{flops:>10,.1f}{ms:>14,.2f}")
    between = ", ".join(f"{count:,} {name}" for name, count in result["collectives"].items()) or "none"
    lines += [
        f"between devices: {between} ({result['collective_bytes'] / 1e6:,.1f} MB)",
        f"memory: {memory['state'] / 1e6:,.0f} MB of state, {memory['temporary'] / 1e6:,.0f} MB temporary, "
        f"{memory['reserved'] / 1e9:,.2f} of {memory['available'] / 1e9:,.0f} GB in all",
        f"traced in {result['trace_s']:.1f} s, compiled in {result['compile_s']:.1f} s",
        f"predicted, not measured: {result['predicted_steps_per_s']:,.0f} environment steps per second, all members",
    ]
    if result["unknown_loops"]:
        lines.append(f"counted with one turn: {result['unknown_loops']} loop(s) of which it is not known how often")
    return "\n".join(lines)
