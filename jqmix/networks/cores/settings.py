"""What can be set of the cores that come with jqmix. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from jqmix.settings import setting

WIDEST_KERNEL = 128  # a wider one's weights would not be in a processor's registers and its own cache


@dataclass(frozen=True)
class GRUSettings:
    one_kernel: Literal["auto", "true", "false"] = setting(
        "auto",
        "on a GPU, the recurrence over a window as one kernel, not as a scan: auto does where it proves right there, "
        f"true says where it does not (agent.hidden ≤ {WIDEST_KERNEL})",
    )
