"""Settings of the built-in cores. Imports no JAX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GRUSettings:
    one_kernel: bool = False
