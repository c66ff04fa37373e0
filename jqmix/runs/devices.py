"""Where members run: the devices that share them, and the cache of compiled programs."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jqmix.buffers.base import Stored
from jqmix.buffers.windows import BATCH_AXIS, ring_axes
from jqmix.kernels.platform import plain, platform
from jqmix.learning import split
from jqmix.learning.rollout import Ongoing, draws_start_by_slot
from jqmix.learning.split import Split
from jqmix.learning.state import Member

AXIS = "members"
EACH, SAME = PartitionSpec(AXIS), PartitionSpec()  # what has an axis of members, and what they share

# CPU cores that share a batch repeat everything else, so more than a few gain nothing; nor do they on too few windows.
MOST_PARTS = 4
FEWEST_WINDOWS = 4


def shares(members: int, devices: int) -> int:
    """The most devices, no more than there are, that can take equally many members each."""
    return max(d for d in range(1, devices + 1) if members % d == 0)


def undivided(parts: int) -> bool:
    """Of what cannot be divided, into how many parts it can be."""
    return parts == 1


def parts(batch: int, devices: int, divides: Callable[[int], bool] = undivided) -> int:
    """How many of the devices that are left to a member share it.

    CPU cores share its batches, as many as that is worth. Accelerators share its rollouts, its buffer and its batches:
    as many as ``divides`` says can do so equally.
    """
    if divides_rollouts():
        return next(p for p in range(devices, 0, -1) if divides(p))
    most = min(devices, MOST_PARTS, max(batch // FEWEST_WINDOWS, 1))
    return max(p for p in range(1, most + 1) if batch % p == 0)


def divides_rollouts() -> bool:
    """Whether devices that share a member share its rollouts and its buffer, and not only its batches: on a CPU nothing
    came of it. Where starts are drawn when some rollout has none left, they can't be."""
    return draws_start_by_slot()


def mesh_shape(
    members: int, batch: int = 1, devices: int | None = None, divides: Callable[[int], bool] = undivided
) -> tuple[int, int]:
    """Of so many devices, this host's unless told: how many share the members, and how many share each one."""
    devices = len(jax.local_devices()) if devices is None else devices
    rows = shares(members, devices)
    return rows, parts(batch, devices // rows, divides)


def make_mesh(
    members: int,
    batch: int = 1,
    devices: Sequence[Any] | None = None,
    divides: Callable[[int], bool] = undivided,
) -> Mesh:
    """This host's devices, unless told: as many as can share the members equally, and where some are left, those that
    share each member; its ``batch`` is so many windows."""
    devices = jax.local_devices() if devices is None else devices
    rows, columns = mesh_shape(members, batch, len(devices), divides)
    return Mesh(np.array(devices[: rows * columns]).reshape(rows, columns), (AXIS, split.AXIS))


def split_over(mesh: Mesh) -> Split:
    """How the devices of a column of the mesh share a member."""
    columns = mesh.shape[split.AXIS]
    return Split(columns, columns > 1 and divides_rollouts())


def layout(member: Member) -> Member:
    """How members lie on devices that share each one's rollouts, for :func:`over_devices`: each device has a part of
    these and of the buffer, and all of the rest. ``member`` says what there is of that."""

    def along(axis: int) -> Any:
        return PartitionSpec(AXIS, *[None] * axis, split.AXIS)

    ring, windows, ongoing = jax.tree.map(along, ring_axes()), jax.tree.map(along, BATCH_AXIS), member.ongoing
    placed: Any = Member(*(None if field is None else EACH for field in member))  # type: ignore[arg-type]
    if member.buffer is not None:
        ring = ring._replace(start=None if member.buffer.windows.start is None else ring.start)
        placed = placed._replace(buffer=Stored(ring, EACH))
    if ongoing is not None:
        placed = placed._replace(ongoing=Ongoing(along(0), None if ongoing.tail is None else windows))
    return placed


def members_take_turns() -> bool:
    """Whether a device's members are computed one after another, or all at once.

    A core gains nothing from more work at once: by ``vmap``, four members took longer by a seventh, sixteen by a third
    (``benchmarks/LOG.md``).
    """
    return platform() == "cpu"


def over_devices(f: Any, mesh: Mesh, ins: Any, outs: Any) -> Any:
    """``f``, a function over the axis of members, with the members shared out; ``ins`` and ``outs`` say which of its
    arguments and results have that axis."""
    return jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)


def use_cpu_cores() -> None:
    """Makes every CPU core a device: one program on two cores gains little, two members on a core each much more; two
    halves of a small batch gain something, of a large one nothing (``benchmarks/LOG.md``).

    Does nothing for accelerators, nothing where the user chose a number (``JAX_NUM_CPU_DEVICES``, or XLA's flag), and
    nothing once JAX has started: a process that embeds jqmix keeps its devices.
    """
    chosen = jax.config.values["jax_num_cpu_devices"] >= 0
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", cpu_cores())


def cpu_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiler_options() -> dict[str, str | bool]:
    """For programs that train. On a CPU, vectors as wide as the machine has them (LLVM prefers half of AVX-512), and
    LLVM's first level of optimisation, which compiles faster and runs no slower (``benchmarks/LOG.md``). On a GPU,
    products of the same rows are one, however many members there are."""
    if plain("compiler_options"):
        return {}
    options: dict[str, dict[str, str | bool]] = {
        "cpu": {"xla_cpu_prefer_vector_width": "512", "xla_backend_optimization_level": "1"},
        "gpu": {"xla_gpu_dot_merger_threshold_mb": "65536"},
    }
    return options.get(platform(), {})


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, where the user has not chosen a place (``JAX_COMPILATION_CACHE_DIR``)
    or switched it off (``JAX_ENABLE_COMPILATION_CACHE=false``). Without a folder to write to, there is no cache."""
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # a full disk, too
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = (Path(home) / "jqmix" / "xla").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        jax.config.update("jax_compilation_cache_dir", str(folder))
