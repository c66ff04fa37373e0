"""Whatever the machine and the user's environment are: settings of JAX, devices, caches, git."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqmix
from jqmix.config import ConfigError
from jqmix.runs import devices, policy, provenance
from jqmix.runs.jax_settings import check_environment, settled
from jqmix.runs.policy import evaluate_run

TINY = ["--env.name", "two_step_game", "--total-steps", "600", "--eval.every", "300", "--eval.episodes", "4"]
TINY += ["--replay.capacity", "64", "--replay.batch", "8", "--agent.hidden", "8", "--algo.mixer", "vdn"]

UNUSUAL = {
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "JAX_LOG_COMPILES": "1",
    "JAX_TRANSFER_GUARD": "disallow",
}


def run(*args, environ=None, **variables):
    """jqmix in a process of its own, with these environment variables; those that are None are not set."""
    names = {**os.environ, **(environ or {}), **variables}
    names = {name: value for name, value in names.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-m", "jqmix.cli", *map(str, args)], capture_output=True, text=True, env=names, check=False
    )


def metrics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs that are equal, whatever the settings."""
    folder = tmp_path_factory.mktemp("xla")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("usual") / "run"
    done = run("train", *TINY, "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.slow
def test_settings_of_jax_change_nothing(usual, tmp_path):
    """All at once, with no home beside."""
    done = run("train", *TINY, "--run-dir", tmp_path / "run", environ=UNUSUAL, HOME="/dev/null", XDG_CACHE_HOME=None)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run") == metrics(usual)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("evaluate", "--episodes", "8"), ("igm",)])
def test_settings_of_jax_change_no_reader(usual, command):
    name, *rest = command
    plain, done = (run(name, usual, *rest, "--json", environ=environ) for environ in ({}, UNUSUAL))
    assert plain.returncode == done.returncode == 0, done.stderr
    assert done.stdout == plain.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [*UNUSUAL, "JAX_DEBUG_NANS", "JAX_CHECK_TRACER_LEAKS", "JAX_ENABLE_CHECKS"])
def test_each_setting_alone(usual, tmp_path, name):
    value = UNUSUAL.get(name, "1")
    done = run("train", *TINY, "--run-dir", tmp_path / "run", environ={name: value})
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run") == metrics(usual)
    assert run("bench", *TINY, environ={name: value}).returncode == 0


@pytest.mark.slow
def test_settings_within_a_process(usual):
    """A process that embeds jqmix may have set JAX to 64 bits: what jqmix computes stays the same, and so do they."""
    plain = evaluate_run(usual, 8)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert evaluate_run(usual, 8) == plain
        trained = jqmix.load_policy(usual)
        spec = trained.agent
        state = trained.initial_state(3)
        for dtype in (jnp.float64, jnp.float32):
            obs, avail = jnp.ones((3, 2, spec.obs_size), dtype), jnp.ones((3, 2, spec.n_actions), bool)
            action, state = trained.act(state, obs, avail)
            assert action.dtype == state.last_action.dtype == jnp.int32 and state.memory.dtype == jnp.float32
        assert jnp.ones(()).dtype == jnp.float64


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS: JAX cannot start on 'nonsense': "),
        ({"XLA_FLAGS": "--xla_nonsense=3"}, "XLA_FLAGS: Unknown flag in XLA_FLAGS: --xla_nonsense=3"),
        ({"JAX_ENABLE_X64": "maybe"}, "environment variables: invalid truth value 'maybe'"),
    ],
)
def test_environment_variables_that_cannot_work(tmp_path, variables, said):
    done = run("train", *TINY, "--run-dir", tmp_path / "run", **variables)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"jqmix: {said}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "bench", "evaluate", "igm"])
@pytest.mark.parametrize("name", ["JAX_PLATFORMS", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES"])
def test_every_command_refuses_them(usual, command, name):
    given = [usual] if command in ("evaluate", "igm") else TINY
    done = run(command, *given, **{name: "cuda" if name == "JAX_PLATFORMS" else "--nonsense"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no backend\nof this name"), AssertionError()])
def test_no_devices(monkeypatch, error):
    """JAX asserts that it has a plugin for CUDA, where there is none."""

    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with (
        pytest.raises(ConfigError, match=r"^JAX_PLATFORMS: JAX cannot start.*(no backend|no such device)"),
        settled(),
    ):
        pass


def test_flags_that_xla_knows(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    check_environment()


# Devices and the cache of compiled programs


@pytest.fixture
def jax_config(monkeypatch):
    """What is asked of ``jax.config`` and set in it, in place of the real one."""
    values = {"jax_num_cpu_devices": -1, "jax_compilation_cache_dir": None}

    class Config:
        def __init__(self):
            self.values = values

        def update(self, name, value):
            values[name] = value

    monkeypatch.setattr(jax, "config", Config())
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return values


def test_every_core_is_a_device(jax_config, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4}, raising=False)
    devices.use_cpu_cores()
    assert jax_config["jax_num_cpu_devices"] == 3


def test_a_number_of_devices_that_was_chosen_stays(jax_config, monkeypatch):
    jax_config["jax_num_cpu_devices"] = 1
    devices.use_cpu_cores()
    assert jax_config["jax_num_cpu_devices"] == 1
    jax_config["jax_num_cpu_devices"] = -1
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=5")
    devices.use_cpu_cores()
    assert jax_config["jax_num_cpu_devices"] == -1


def cache_with(monkeypatch, **variables):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    devices.use_compilation_cache()


def test_a_cache_of_compiled_programs(jax_config, monkeypatch, tmp_path):
    cache_with(monkeypatch, HOME=tmp_path)
    assert jax_config["jax_compilation_cache_dir"] == str(tmp_path / ".cache" / "jqmix" / "xla")
    jax_config["jax_compilation_cache_dir"] = "mine"
    cache_with(monkeypatch, XDG_CACHE_HOME=tmp_path)
    assert jax_config["jax_compilation_cache_dir"] == "mine"


def test_no_cache_where_there_is_no_place(jax_config, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    cache_with(monkeypatch, HOME=tmp_path / "file")
    cache_with(monkeypatch, XDG_CACHE_HOME="/proc/nowhere")

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    cache_with(monkeypatch)
    monkeypatch.setattr(devices.tempfile, "TemporaryFile", full_disk)
    cache_with(monkeypatch, XDG_CACHE_HOME=tmp_path)
    assert jax_config["jax_compilation_cache_dir"] is None


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


# Evaluation, so many episodes at a time


def test_every_episode_counts_once(usual, monkeypatch):
    """In batches of 8, those of 21 episodes are the first 21 of 24, the batches' keys folded from one."""
    one = evaluate_run(usual, 8, seed=3)
    assert one[0]["episodes"] == 8
    monkeypatch.setattr(policy, "EPISODES_AT_ONCE", 8)
    assert evaluate_run(usual, 8, seed=3) == one
    played = []
    original = policy._sums
    monkeypatch.setattr(policy, "_sums", lambda episodes, count: played.append(episodes) or original(episodes, count))
    row = evaluate_run(usual, 21, seed=3)[0]
    assert row["episodes"] == 21
    for name, of in policy.SUMMED.items():
        if name in row:
            all_of_them = np.concatenate([getattr(episodes, of)[0] for episodes in played])
            assert len(all_of_them) == 24
            np.testing.assert_allclose(row[name], all_of_them[:21].mean(dtype=np.float64), rtol=1e-12)


def test_sums_stay_exact():
    """Where numbers of 32 bits would count no further."""
    large = np.full((2, 4), 2.0**24, np.float32)
    sums = policy._sums(policy.Episodes(large, large + 0, large, None), 3)
    assert sums.keys() == {"ended", "score", "length"}
    assert (sums["ended"] + 1).tolist() == [3 * 2**24 + 1] * 2


def test_an_evaluation_that_does_not_fit(usual, monkeypatch):
    from jqmix.runs import memory

    monkeypatch.setattr(memory, "available_bytes", lambda: (10_000, 1))
    with pytest.raises(ConfigError, match=r"^episodes: 1024 at a time take about \d MB, and 0 MB is free$"):
        evaluate_run(usual, 4_000_000)
    for episodes, seed, field in ((0, 0, "episodes"), (2**31, 0, "episodes"), (1, -1, "seed"), (1, 2**31, "seed")):
        with pytest.raises(ConfigError, match=rf"^{field}: -?\d+ is out of range"):
            evaluate_run(usual, episodes, seed)


# Which commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of jqmix; ``commit`` asks git anew every time."""
    monkeypatch.setattr(provenance, "commit", provenance.commit.__wrapped__)
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "jqmix"\n')
    return root, made_a_repository(root)


def made_a_repository(root):
    def git(*args):
        names = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", "-C", root, *who, *args], check=True, capture_output=True, text=True, env=names
        ).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", "x")
    return git("rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout(checkout, monkeypatch, tmp_path):
    root, head = checkout
    assert provenance.commit(root) == head
    other = tmp_path / "other"
    other.mkdir()
    made_a_repository(other)
    for name, value in (("GIT_DIR", other / ".git"), ("GIT_WORK_TREE", other), ("GIT_CEILING_DIRECTORIES", tmp_path)):
        monkeypatch.setenv(name, str(value))
    assert provenance.commit(root) == head


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_no_commit_of_somebody_elses_repository(checkout, tmp_path):
    """Where jqmix is installed inside it, or copied into it; nor where the repository's project is another."""
    root, _ = checkout
    installed = root / "venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    assert provenance.commit(installed) is None
    (installed / "pyproject.toml").write_text('[project]\nname = "jqmix"\n')
    assert provenance.commit(installed) is None
    for text in ('[project]\nname = "theirs"\n', "[tool]\n", "no TOML [", 'project = "jqmix"\n'):
        (root / "pyproject.toml").write_text(text)
        assert provenance.commit(root) is None
    (root / "pyproject.toml").write_bytes(b"\xff\xfe")
    assert provenance.commit(root) is None


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\n/bin/sleep 30\n",
        "#!/bin/sh\necho warning: something\necho $3\necho 0123456789012345678901234567890123456789\n",
        "#!/bin/sh\nexit 128\n",
        "no program\n",
        None,
    ],
    ids=["slow", "chatty", "fails", "no program", "missing"],
)
def test_a_git_that_does_not_answer(checkout, tmp_path, monkeypatch, script):
    root, _ = checkout
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "git").write_text(script)
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "SECONDS", 0.5)
    begin = time.perf_counter()
    assert provenance.commit(root) is None
    assert time.perf_counter() - begin < 10
