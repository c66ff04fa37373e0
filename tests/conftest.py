import os
import shutil
import tempfile

# Tests compile far more than they run. What XLA makes of a program stays the same, LLVM only polishes it less; and what
# one test compiled, others need not: workers and the commands that they start keep it for the session.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="jqmix-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from jqmix.analysis import figures

# As the command line has it on a machine of two cores: members are shared out, and batches where no member is left.
jax.config.update("jax_num_cpu_devices", 2)


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file's tests compiled leaves memory with them: of all files it would be many gigabytes."""
    yield
    jax.clear_caches()


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
