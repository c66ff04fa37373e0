"""The chips that programs can be compiled for without having one, and the constants of the model of their speed.

Sizes and rates of GPUs are those of XLA's own device descriptions (``xla/tools/hlo_opt/gpu_specs``), those of TPUs of
Google's tables (docs.cloud.google.com/tpu/docs/v5e and v6e); rates of products those of the makers' data sheets. What a
launch takes, and what the host's look at a flag takes, are no published constants: they are guesses until a chip is at
hand (``benchmarks/accelerator.sh`` measures them).
"""

from dataclasses import dataclass

from jqmix.inputs import ConfigError, quoted


@dataclass(frozen=True)
class Chip:
    """One chip."""

    name: str
    platform: str  # as jqmix.kernels.platform has it
    memory: int  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s to the other chips
    product_rate: float  # FLOP/s of float32 products at JAX's default precision: TF32 on a GPU, bfloat16 on a TPU
    launch_s: float  # the least that an operation takes
    sync_s: float  # of a loop or a branch that the host decides on
    usable: float = 0.75  # of the memory: what JAX takes of a GPU by default

    @property
    def extra(self) -> str:
        """What of jqmix compiles for it."""
        return f"jqmix[target-{self.platform}]"


H100 = Chip("h100", "gpu", 84_978_434_048, 3.352e12, 4.5e11, 4.0e14, 2.0e-6, 1.0e-5)
A100 = Chip("a100", "gpu", 85_100_068_864, 2.039e12, 3.0e11, 1.56e14, 2.5e-6, 1.0e-5)
V5E = Chip("v5e", "tpu", 16 * 2**30, 8.19e11, 2.0e11, 1.97e14, 5.0e-7, 0.0, usable=0.95)
V6E = Chip("v6e", "tpu", 32 * 2**30, 1.638e12, 4.0e11, 9.18e14, 5.0e-7, 0.0, usable=0.95)
CHIPS = {chip.name: chip for chip in (H100, A100, V5E, V6E)}

MOST_DEVICES = 256  # a pod of either TPU


def chip_named(name: str) -> Chip:
    """Raises ``ConfigError`` for a chip that is not known."""
    if name not in CHIPS:
        raise ConfigError(f"target: {quoted(name)} is not allowed; one of {', '.join(CHIPS)}")
    return CHIPS[name]
