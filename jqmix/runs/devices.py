"""Where members run: the devices that share them, and the cache of compiled programs."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "members"
EACH, SAME = PartitionSpec(AXIS), PartitionSpec()  # what has an axis of members, and what they share


def shares(members: int, devices: int) -> int:
    """The most devices, no more than there are, that can take equally many members each."""
    return max(d for d in range(1, devices + 1) if members % d == 0)


def members_mesh(members: int) -> Mesh:
    """This host's devices, as many as can share the members equally."""
    devices = jax.local_devices()
    return Mesh(np.array(devices[: shares(members, len(devices))]), (AXIS,))


def over_devices(f: Any, members: int, ins: Any, outs: Any) -> Any:
    """``f``, a function over the axis of members, with the members shared out; ``ins`` and ``outs`` say which of its
    arguments and results have that axis."""
    return jax.shard_map(f, mesh=members_mesh(members), in_specs=ins, out_specs=outs, check_vma=False)


def use_cpu_cores(members: int) -> None:
    """Makes every CPU core that can have members of its own a device: one program on two cores gains little, two
    members on a core each nearly double the speed (``benchmarks/README.md``).

    Does nothing for accelerators, and nothing once JAX has started: a process that embeds jqmix keeps its devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", shares(members, cores))


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, where the user has not chosen a place (``JAX_COMPILATION_CACHE_DIR``)
    or switched it off (``JAX_ENABLE_COMPILATION_CACHE=false``)."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jqmix" / "xla"))
