import os

# Tests compile far more than they run. What XLA makes of a program stays the same, LLVM only polishes it less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from jqmix.analysis import figures

# As the command line has it on a machine of two cores: members are shared out, and batches where no member is left.
jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, to look into."""
    made = []

    class Seen(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figures, "Figure", Seen)
    return made
