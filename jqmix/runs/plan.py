"""Where a run would go and what it would take: members on devices, memory, what is sent between them, speed and cost.

Nothing is trained. For a chip that is not here, all of it follows from the traced program and a model (``chips``), or
from the compiled program where that is asked for; for the machine at hand there is no speed, as nothing is measured.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from jqmix.chips.catalogue import Chip, chip_named
from jqmix.chips.speed import estimate
from jqmix.config import Config
from jqmix.kernels.platform import compiling_for
from jqmix.learning import split
from jqmix.learning.split import Split
from jqmix.learning.train import (
    check_own_env,
    divides,
    learning_batch,
    make_program,
    updates_per_iteration,
    window_length,
)
from jqmix.runs.devices import divides_rollouts, mesh_shape
from jqmix.runs.jax_settings import settled
from jqmix.runs.memory import MemoryPlan, make_plan
from jqmix.runs.programs import MemberPrograms
from jqmix.runs.target import bench_target
from jqmix.types import EnvSpec


@settled(cache=False)
def plan(
    cfg: Config, target: str | None = None, devices: int = 1, price: int | float | None = None, compiled: bool = False
) -> dict[str, Any]:
    """What ``jqmix plan`` says, as plain data. ``price``: dollars for a chip and hour.

    Raises ``ConfigError`` for what does not fit, for a chip that is not known, and where ``compiled`` needs what is not
    installed.
    """
    check_own_env(cfg)
    chip = None if target is None else chip_named(target)
    with compiling_for(chip.platform) if chip else contextlib.nullcontext():
        programs = MemberPrograms(cfg)
        memory = make_plan(cfg, programs, chip=chip, devices=devices)
        devices = devices if chip else len(jax.local_devices())
        rows, columns = mesh_shape(memory.group, learning_batch(cfg), devices, partial(divides, cfg))
        free = int(chip.usable * chip.memory) if chip else memory.available // memory.memories
        said = _layout(memory, rows, columns, devices) | {"target": target, "memory": _memory(memory, free)}
        if chip is not None:
            if compiled:
                found = _compiled(cfg, chip, devices, memory)
            else:
                found = estimate(traced_iteration(programs, columns), chip, memory.group // rows)._asdict()
            said |= _speed(cfg, programs.spec, memory, rows, **found)
            said |= {"speed_from": "compiled" if compiled else "model"}
    if chip is not None and price is not None:
        hours = said["run_s"] / 3600
        said |= {"dollars": price * devices * hours, "dollars_per_chip_hour": price}
        said |= {"dollars_per_million_steps": said["dollars"] / (cfg.seeds * cfg.total_steps) * 1e6}
    return said


def _layout(memory: MemoryPlan, rows: int, columns: int, devices: int) -> dict[str, int]:
    return {
        "members": memory.members,
        "devices": devices,
        "devices_used": rows * columns,
        "members_per_device": memory.group // rows,
        "devices_per_member": columns,
        "members_at_once": memory.group,
        "groups": memory.members // memory.group,
    }


def _memory(memory: MemoryPlan, free: int) -> dict[str, int]:
    """Bytes of one device, or of the host where that is all there is."""
    share = memory.group // memory.memories
    return {
        "replay": share * memory.replay,
        "parameters": share * memory.parameters,
        "optimiser": share * memory.optimiser,
        "working": memory.busy * memory.working // memory.memories,
        "needed": memory.need // memory.memories,
        "available": free,
        "of_the_host_for_checkpoints": memory.snapshot,
    }


def traced_iteration(programs: MemberPrograms, devices: int) -> Any:
    """The jaxpr of a member's iteration, as one of so many devices that share the member computes it."""
    if devices == 1:
        return programs.iteration
    program = make_program(programs.cfg, Split(devices, rollouts=divides_rollouts()))
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    mesh, same = AbstractMesh((devices,), (split.AXIS,)), PartitionSpec()
    on_each = partial(jax.shard_map, mesh=mesh, in_specs=same, out_specs=same, check_vma=False)
    states = jax.eval_shape(on_each(program.init), seed)
    return jax.make_jaxpr(on_each(program.iteration))(*states).eqns[0].params["jaxpr"]


def _compiled(cfg: Config, chip: Chip, devices: int, memory: MemoryPlan) -> dict[str, Any]:
    found = bench_target(replace(cfg, seeds=memory.group, group=None), chip.name, devices)
    told = {name: found[name] for name in ("collectives", "collective_bytes")}
    return told | {"seconds": found["total"]["seconds"]}


def _speed(
    cfg: Config,
    spec: EnvSpec,
    memory: MemoryPlan,
    rows: int,
    seconds: float,
    collectives: dict[str, int],
    collective_bytes: int,
) -> dict[str, Any]:
    """From an iteration of a group, ``seconds`` long, in which a device takes part in these collectives."""
    steps, updates = cfg.rollouts * window_length(cfg, spec), updates_per_iteration(cfg)
    iterations = math.ceil(cfg.total_steps / steps) * (memory.members // memory.group)
    return {
        "collectives_per_update": {name: count / updates for name, count in collectives.items()},
        "collective_bytes_per_update": collective_bytes / updates,
        "iteration_s": seconds,
        "steps_per_s_of_a_device": steps * memory.group / rows / seconds,
        "steps_per_s": steps * memory.group / seconds,
        "run_s": iterations * seconds,
    }


def plan_text(said: dict[str, Any]) -> str:
    """The same, to be read."""
    return "\n".join(_lines(said))


def _lines(said: dict[str, Any]) -> Iterator[str]:
    chips = (
        f"{said['devices']} × {said['target']}" if said["target"] else f"{said['devices']} device(s) of this machine"
    )
    yield f"{said['members']} member(s) on {chips}"
    if said["devices_per_member"] > 1:
        where = f"{said['devices_per_member']} devices share each member"
    else:
        where = f"{said['members_per_device']} member(s) on each of {said['devices_used']} device(s)"
    idle = said["devices"] - said["devices_used"]
    yield f"  layout     {where}" + (f"; {idle} device(s) have nothing to do" if idle else "")
    if said["groups"] > 1:
        yield f"  groups     {said['groups']} of {said['members_at_once']} members, one after another: not all fit"
    memory = {name: f"{count / 1e9:,.2f}" for name, count in said["memory"].items()}
    parts = ", ".join(f"{memory[name]} {name}" for name in ("replay", "parameters", "optimiser", "working"))
    where = "a device" if said["target"] else "a device, or of the host's for all CPU cores"
    yield f"  memory     {memory['needed']} of {memory['available']} GB of {where}: {parts}"
    if said["target"] is None:
        yield "  speed      not predicted for this machine: `jqmix bench` measures it"
        return
    sent = ", ".join(f"{count:,.1f} {name}" for name, count in said["collectives_per_update"].items())
    size = f" ({said['collective_bytes_per_update'] / 1e6:,.2f} MB)" if sent else ""
    yield f"  sent       {sent or 'nothing'} between devices in an update{size}"
    each, every = said["steps_per_s_of_a_device"], said["steps_per_s"]
    how = "the compiled program" if said["speed_from"] == "compiled" else "the traced program"
    yield f"  speed      {each:,.0f} steps/s of a device, {every:,.0f} of all: a model of {how}, not measured"
    yield f"  run        {said['run_s'] / 3600:,.2f} h without evaluations"
    if "dollars" in said:
        yield f"  cost       ${said['dollars']:,.2f}, ${said['dollars_per_million_steps']:,.4f} per million steps"
