"""Devices that programs can be compiled for, but not run on: of chips that are not here."""

import importlib
import os
from typing import Any

import jax
from jax.experimental import topologies

from jqmix.chips.catalogue import Chip
from jqmix.inputs import ConfigError, one_line

# XLA's own descriptions of the GPUs (catalogue.py), as its compiler takes them.
_LIMITS = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 block_dim_limit_x: 2147483647"
)
_LIMITS += " block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536"
_LIMITS += " registers_per_block_limit: 65536 shared_memory_per_block: 49152"
_GPUS = {
    "h100": "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128 "
    "l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }",
    "a100": "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 fpus_per_core: 64 "
    "l2_cache_size: 41943040 clock_rate_ghz: 1.41 cuda_compute_capability { major: 8 }",
}
_KINDS = {"h100": "NVIDIA H100 80GB HBM3", "a100": "NVIDIA A100-SXM4-80GB"}  # as their driver has it; jax 0.11 reads it
# Or it looks for a machine in Google's cloud, and says at length that there is none.
_NO_TPU_HERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
_NO_TPU_HERE |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # one process at a time may have a TPU: none is taken
_TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}


def compile_only_devices(chip: Chip, count: int = 1) -> list[Any]:
    """So many devices of a chip. Raises ``ConfigError`` where what compiles for it is not installed, or where there
    are no such numbers of it."""
    try:
        return _tpus(chip, count) if chip.platform == "tpu" else _gpus(chip, count)
    except ImportError:
        raise ConfigError(f'target: to compile for {chip.name}, pip install "{chip.extra}"') from None
    except RuntimeError as error:
        raise ConfigError(f"target: cannot compile for {count} × {chip.name}: {one_line(str(error))}") from None


def compiler_flags(chip: Chip) -> dict[str, Any]:
    """Options of the compiler: what is tried out on a GPU can't be, without one; nor can jax 0.11 without Triton's
    products, which it asks the GPU about."""
    if chip.platform != "gpu":
        return {}
    asks = {"xla_gpu_enable_triton_gemm": False} if jax.__version_info__ >= (0, 11) else {}
    return {"xla_gpu_autotune_level": 0} | asks


def _tpus(chip: Chip, count: int) -> list[Any]:
    importlib.import_module("libtpu")
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    shape = _TOPOLOGIES[min(c for c in _TOPOLOGIES if c >= count)]
    host = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}  # by default four, also of one
    return list(topologies.get_topology_desc(f"{chip.name}:{shape}", platform="tpu", **host).devices)[:count]


def _gpus(chip: Chip, count: int) -> list[Any]:
    # There is no public way to describe GPUs that are not here.
    xla_bridge = importlib.import_module("jax._src.xla_bridge")
    xla_client = importlib.import_module("jax._src.lib")._jax
    plugin = importlib.import_module("jax_plugins.xla_cuda13")
    xla_bridge.backends()
    if "cuda" not in xla_bridge._backend_factories:
        plugin.initialize()
    info = f"{_LIMITS} {_GPUS[chip.name]} memory_bandwidth: {int(chip.bandwidth)} device_memory_size: {chip.memory}"
    config = f'gpu_device_info {{ {info} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
    config += f'device_description_str: "{_KINDS[chip.name]}"'
    topology = {"target_config": config, "topology": f"1x1x{count}"}
    return list(xla_client.get_default_c_api_topology("cuda", chip.name, topology)._make_compile_only_devices())[:count]
