"""What can be set of the cores that come with jqmix. Imports no JAX."""

from dataclasses import dataclass

from jqmix.settings import setting


@dataclass(frozen=True)
class GRUSettings:
    one_kernel: bool = setting(
        False,
        "on a GPU, the recurrence over a window as one kernel, for widths 16, 32, 64 and 128 (not measured yet)",
    )
