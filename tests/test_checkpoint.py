"""Checkpoints of earlier versions, and states of every form."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from jqmix.cli import main
from jqmix.config import load_config
from jqmix.envs import registry
from jqmix.networks.agent import Agent
from jqmix.runs import checkpoint, experiment
from jqmix.runs.checkpoint import _core_apart, _gates_apart
from jqmix.runs.experiment import resume, train
from jqmix.runs.policy import evaluate_run, load_policy
from jqmix.runs.population import compile_population

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = worlds.SMALL_RUN | {"total_steps": 640}


def config(path, **overrides):
    return load_config(None, **{**SMALL, "run_dir": str(path), **overrides})


@pytest.mark.parametrize("share", [True, False])
def test_parameters_of_earlier_checkpoints_are_taken_apart(key, share):
    """A GRU's gates in one array a side, [P, (N,) 3, …], beside the other layers, as they were kept first; then each
    gate's own, still beside them. What is kept now stays as it is."""
    agent = Agent(3, 4, 5, hidden=6, share_parameters=share)
    params = {"agent": jax.vmap(agent.init)(jax.random.split(key, 2)), "mixer": {}}
    core, rest = params["agent"]["core"], {k: x for k, x in params["agent"].items() if k != "core"}
    beside = {f"gru_{name}": x for name, x in core.items()}
    together = {
        name: np.stack([x[gate] for gate in "rzn"], axis=-3 if name.startswith("gru_w") else -2)
        for name, x in beside.items()
    }
    assert together["gru_w_i"].shape == (2, *(() if share else (3,)), 3, 6, 6)
    for kept in (core_as_now(params), rest | beside, rest | together):
        tree = {"agent": kept, "mixer": {}} if "agent" not in kept else kept
        read = _core_apart(_gates_apart(jax.tree.map(np.asarray, tree)))
        assert jax.tree.structure(read) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, read, params)


def core_as_now(params):
    assert set(params["agent"]) == {"encoder", "core", "head"}
    assert set(params["agent"]["core"]) == {"w_i", "w_h", "b_i", "b_h"}
    return params


def test_a_core_without_memory_has_the_name_that_it_had(key):
    agent = Agent(3, 4, 5, hidden=6, core="none")
    params = jax.tree.map(np.asarray, agent.init(key))
    assert jax.tree.structure(_core_apart(params)) == jax.tree.structure(params)


# A run of the format before this one


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    train(config(path, seeds=2), quiet=True)
    return path


@pytest.fixture
def earlier(tmp_path, finished):
    """The same run as the version before this one has it: names of parameters and hyperparameters, and the format."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    for saved in checkpoint.find(path, 2):
        as_format_1(saved.path)
    return path


def as_format_1(folder: Path):
    text = (folder / "manifest.json").read_text().partition("\n")[2]
    tree = json.loads(text)
    index = {}
    for name, about in tree["index"].items():
        name = name.replace(".agent.core.", ".agent.gru_").replace(".params.core.", ".params.gru_")
        if name.startswith("member.hyper."):
            name = f"member.hyper.{name.split('.')[-1]}"
        index[name] = about
    assert any(".gru_w_i.r" in name for name in index) and "member.hyper.lr" in index
    del tree["format"]
    text = json.dumps(tree | {"index": index}, indent=1) + "\n"
    (folder / "manifest.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def test_a_run_of_the_format_before_is_evaluated(earlier, finished):
    for best in (False, True):
        assert evaluate_run(earlier, 8, best=best) == evaluate_run(finished, 8, best=best)
    old, new = (load_policy(path, 1).params for path in (earlier, finished))
    jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parametrize("steps", [(), ("--total-steps", "1280")])
def test_a_run_of_the_format_before_is_not_gone_on_with(earlier, capsys, steps):
    """And stays as it was."""
    before = {p: p.read_bytes() for p in earlier.rglob("*") if p.is_file() and p.name not in (".lock", "lock")}
    assert main(["resume", str(earlier), *steps]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"jqmix: run_dir: {earlier} is of an earlier version and can't be resumed; `jqmix train ")
    assert {p: p.read_bytes() for p in before} == before
    assert len(evaluate_run(earlier, 4)) == 2


def test_the_format_is_written(finished):
    for saved in checkpoint.find(finished, 2):
        assert checkpoint.check_files(saved.path).format == checkpoint.FORMAT == 2
    assert {field.name: field.default for field in dataclasses.fields(checkpoint.Manifest)}["format"] == 1


# States that are more than numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"algo.name": "pqn", "algo.minibatches": 2},
        pytest.param({"window_start": "continue"}, marks=pytest.mark.slow),
    ],
)
def test_typed_random_keys_of_an_environment_are_saved_and_resumed(tmp_path, monkeypatch, fields):
    """Rollouts that go on hold its state, which draws with keys of its own: of each kind that JAX has."""
    monkeypatch.setitem(registry._ENTRIES, "keyed", registry.EnvEntry(worlds.Keyed, {}, None))
    fields = {"env.name": "keyed", "window": 4, **fields}
    monkeypatch.setattr(experiment, "check_own_env", lambda cfg: None)
    undisturbed, path = tmp_path / "undisturbed", tmp_path / "run"
    train(config(undisturbed, **fields, total_steps=1280), quiet=True)
    train(config(path, **fields), quiet=True)
    resume(path, total_steps=1280, quiet=True)
    trees = [newest_state(run) for run in (undisturbed, path)]
    state = trees[0]["member"]["ongoing"]["actor"]["env_state"]
    assert [x.dtype for x in jax.tree.leaves(state)].count(np.uint32) == 2
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def newest_state(run):
    saved = next(s for s in checkpoint.find(run, 1) if not s.final)
    return checkpoint.load_state(saved.path, with_replay=True)


@pytest.mark.slow
def test_a_typed_key_comes_back_as_the_one_that_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, "keyed", registry.EnvEntry(worlds.Keyed, {}, None))
    population = compile_population(config(tmp_path, **{"env.name": "keyed", "window": 4, "window_start": "continue"}))
    host, shared = checkpoint.snapshot(population.members, population.shared)
    members, _ = population.place(checkpoint.fill(population.members, named(host)), shared)
    for a, b in zip(jax.tree.leaves(members.ongoing), jax.tree.leaves(population.members.ongoing), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def named(members):
    """A state as it is read from a checkpoint."""
    tree = {}
    for name, x in checkpoint._leaves(members).items():
        checkpoint._put(tree, name, x)
    return tree
