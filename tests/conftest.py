import functools
import os
import shutil
import tempfile
from importlib.metadata import version

# Tests compile far more than they run, so that LLVM polishes a program less; and before jax 0.11, XLA can be told to
# write fused loops without a compiler of their own, half of the time that a small program compiles. What one test
# compiled, others need not: workers and the commands that they start keep it for the session.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="jqmix-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest
from jaxtyping import _decorator
from matplotlib.figure import Figure

from jqmix.analysis import figures
from jqmix.config import flatten, to_dict
from jqmix.kernels.platform import platform
from jqmix.runs import experiment
from jqmix.runs.population import compile_population
from jqmix.runs.programs import MemberPrograms


def once(make):
    """``make``, called once for the same arguments where these can be hashed; the latest few thousand are kept."""
    kept = functools.lru_cache(4096)(make)

    @functools.wraps(make)
    def made(*args, **kwargs):
        try:
            hash((args, tuple(kwargs.values())))
        except TypeError:
            return make(*args, **kwargs)
        return kept(*args, **kwargs)

    return made


# A function within a function is decorated whenever the outer one runs, and jaxtyping writes and compiles its checks
# anew, which was a sixth of the tests' time. They depend on its name and signature alone,
# and are shared where the annotations compare equal.
_decorator._make_fn_with_signature = once(_decorator._make_fn_with_signature)
_decorator._apply_typechecker = once(_decorator._apply_typechecker)

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


MADE = {}  # by what they depend on: programs, and populations that were compiled
NOT_COMPILED = ("run_dir", "seed", "group", "log", "total_steps", "checkpoint.", "eval.every", "eval.absolute")


@pytest.fixture(scope="module")
def shared_programs():
    """Runs of one setting have one pair of programs, whichever file trains them. For tests of what runs write, say and
    go on from; not where something of what is compiled is replaced."""

    def once(what, make, cfg, *more):
        if cfg.env.factory is not None:
            return make()
        settings = flatten(to_dict(cfg))
        key = what, platform(), *more, *(str(settings[path]) for path in settings if not path.startswith(NOT_COMPILED))
        if key not in MADE:
            MADE[key] = make()
            while len(MADE) > 12:
                del MADE[next(iter(MADE))]
        return MADE[key]

    def programs(cfg):
        return once("traced", lambda: MemberPrograms(cfg), cfg)

    def compiled(cfg, group, starts, stage, programs):
        population = once("compiled", lambda: compile_population(cfg, group, starts, stage, programs), cfg, group)
        if population.cfg is cfg:
            return population
        for what in ("initialising", "tracing", "compiling"):
            stage(what)
        members, shared = population.init(starts)
        return population._replace(cfg=cfg, starts=starts, members=members, shared=shared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "MemberPrograms", programs)
        patch.setattr(experiment, "compile_population", compiled)
        yield


@pytest.fixture
def own_programs(monkeypatch):
    """A run that traces and compiles, where others share."""
    monkeypatch.setattr(experiment, "MemberPrograms", MemberPrograms)
    monkeypatch.setattr(experiment, "compile_population", compile_population)


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
