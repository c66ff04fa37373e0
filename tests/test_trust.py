"""Weights and code of a run directory: a configuration that no longer fits, and what is never executed untold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_damage import WRONG, said

import jqmix
from jqmix.analysis.report import report
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.runs.experiment import train
from jqmix.runs.igm import joint_values
from jqmix.runs.policy import evaluate_run, load_run_config

pytestmark = pytest.mark.usefixtures("shared_programs")
# Weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    overrides = {
        "env.name": "two_step_game",
        "agent.hidden": 16,
        "replay.capacity": 32,
        "replay.batch": 8,
        "eval.every": 64,
        "eval.episodes": 2,
    }
    train(load_config(None, total_steps=64, seeds=2, run_dir=str(run_dir), **overrides), quiet=True)
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def readers(run_dir):
    """Whoever reads weights, by what it needs."""
    return [lambda: jqmix.load_policy(run_dir), lambda: evaluate_run(run_dir, 2), lambda: joint_values(run_dir)]


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("hidden: 16", "hidden: 32", "agent.core.b_h.n is 16 in the checkpoint, 32 by the configuration"),
        ("core: gru", "core: none", "agent.core.b_h.n is 16 in the checkpoint, absent by"),
        ("layer_norm: false", "layer_norm: true", "agent.encoder.norm.bias is absent in the checkpoint"),
        ("share_parameters: true", "share_parameters: false", "agent.core.b_h.n is 16 in the checkpoint, 2 × 16"),
        ("last_action: true", "last_action: false", "agent.encoder.kernel is 8 × 16 in the checkpoint, 6 × 16"),
        ("mixer: qmix", "mixer: vdn", "in the checkpoint, absent by the configuration"),
        ("mixer: qmix", "mixer: qplex", "does not fit its weights: mixer."),
        ("embed: 32", "embed: 8", "does not fit its weights: mixer."),
        ("seeds: 2", "seeds: 3", "seeds: config.yaml says 3"),
        ("name: two_step_game", "name: two_step", "no environment 'two_step'"),
        ("run_dir:", "run_dri:", "was cut short"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(old, new, says, run_dir):
    replace(run_dir / "config.yaml", old, new)
    for read in readers(run_dir):
        with pytest.raises(ConfigError) as raised:
            read()
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)


def test_another_environment_does_not_fit(run_dir):
    replace(run_dir / "config.yaml", "name: two_step_game", "name: matrix_game")
    for read in readers(run_dir)[1:]:  # a policy builds none
        with pytest.raises(ConfigError, match="does not fit its weights"):
            read()


def test_arguments_that_a_game_does_not_take(run_dir):
    replace(run_dir / "config.yaml", "kwargs: {}", "kwargs: {pay: 1}")
    for read in readers(run_dir)[1:]:
        with pytest.raises(ValueError, match="pay") as raised:
            read()
        assert type(raised.value).__name__ in ("ConfigError", "EnvError")


@pytest.mark.parametrize("key", ["n_agents", "n_actions", "obs_size", "state_size"])
def test_sizes_in_metadata(key, run_dir):
    path = run_dir / "metadata.json"
    tree = json.loads(path.read_text())
    for value in (*WRONG, 0, 1.5, "3", 2**10, 2**40):
        path.write_text(json.dumps(tree | {"environment": tree["environment"] | {key: value}}))
        with pytest.raises(ConfigError, match=f"environment.{key}|does not fit its weights"):
            jqmix.load_policy(run_dir)


def test_metadata_without_an_environment(run_dir):
    path = run_dir / "metadata.json"
    tree = json.loads(path.read_text())
    for spoilt in [tree | {"environment": value} for value in WRONG] + [{}, [], 3, "x", None]:
        path.write_text(json.dumps(spoilt))
        with pytest.raises(ConfigError, match=r"metadata\.json: "):
            jqmix.load_policy(run_dir)
    path.unlink()
    with pytest.raises(ConfigError, match="metadata.json: cannot be read"):
        jqmix.load_policy(run_dir)
    assert len(evaluate_run(run_dir, 2)) == 2  # builds its environment, and needs none


# Code that a run names

# A mixer as a user writes it; loading it leaves a trace.
MIXER = """
import pathlib
import jax.numpy as jnp
from jqmix.networks.mixers import Mixer

pathlib.Path(__file__).with_name("executed").touch()

def make(sizes):
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: jnp.sum(q, axis=-1))
"""


def test_a_mixer_from_outside_is_not_even_loaded_unless_trusted(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untrusted_mixer.py").write_text(MIXER)
    replace(run_dir / "config.yaml", "mixer: qmix", "mixer: untrusted_mixer:make")
    replace(run_dir / "config.yaml", "  positivity: abs", "  sharpness: 3")  # which nobody knows without loading it
    says = "algo.mixer: this run names code of its own (untrusted_mixer:make); --trust runs it"
    for command in (["evaluate"], ["igm"], ["resume"]):
        assert main([*command, str(run_dir)]) == 2
        assert said(capsys) == [f"jqmix: {says}"]
    with pytest.raises(ConfigError, match="--trust runs it"):
        jqmix.load_policy(run_dir)
    (row,), _ = report([run_dir])
    assert row["group"] == "two_step_game, untrusted_mixer:make"
    study = {"tricks": [], "configs": {"a": {"algo": {"mixer": "untrusted_mixer:make"}}}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert main(["resume", str(tmp_path)]) == 2
    assert said(capsys) == [f"jqmix: {says.replace('this run', 'this study')}"]
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigError, match=r"mixer\.sharpness: no such field"):
        jqmix.load_policy(run_dir, trust=True)
    assert (tmp_path / "executed").exists()


def test_a_core_from_outside_is_not_even_loaded_unless_trusted(run_dir, capsys):
    replace(run_dir / "config.yaml", "core: gru", "core: os:system")
    for read in readers(run_dir):
        with pytest.raises(ConfigError, match=r"agent\.core: this run names code of its own \(os:system\)"):
            read()
    report([run_dir])


TOUCHED = []


def spy(**kwargs):
    """A factory as a run may name it; it makes the game, so that a trusted run can be evaluated."""
    TOUCHED.append(kwargs)
    return jqmix.envs.games.TwoStepGame()


def test_nothing_that_a_run_names_is_executed_unless_trusted(run_dir, capsys):
    replace(run_dir / "config.yaml", "factory: null", "factory: test_trust:spy")
    TOUCHED.clear()
    report([run_dir])
    policy = jqmix.load_policy(run_dir)
    assert policy.initial_state(1).memory.shape == (1, 2, 16)
    for command in ("evaluate", "igm"):
        assert main([command, str(run_dir)]) == 2
        assert said(capsys) == ["jqmix: env.factory: this run names code of its own (test_trust:spy); --trust runs it"]
    assert not TOUCHED
    assert main(["evaluate", str(run_dir), "--episodes", "2", "--trust"]) == 0
    assert TOUCHED == [{}]
    assert main(["igm", str(run_dir), "--trust"]) == 0
    assert len(TOUCHED) == 2


def test_a_shell_command_is_not_run(run_dir, tmp_path):
    """Not even imported is what it names."""
    replace(run_dir / "config.yaml", "factory: null", "factory: os:system")
    replace(run_dir / "config.yaml", "kwargs: {}", f"kwargs: {{command: touch {tmp_path / 'executed'}}}")
    for read in readers(run_dir)[1:]:
        with pytest.raises(ConfigError, match=r"os:system\); --trust runs it"):
            read()
    (row,), _ = report([run_dir])
    assert row["group"].startswith("two_step_game (os:system, ")  # by the metadata, and what the file names
    jqmix.load_policy(run_dir)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigError, match="joint values are shown for"):
        joint_values(Path(run_dir), trust=True)


@pytest.mark.parametrize("path", ["missing", "x" * 300, "nul\0", "new\nline", ""])
def test_what_is_no_run_directory(path, tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory") as raised:
        load_run_config(tmp_path / path)
    assert "\n" not in str(raised.value)


def test_numbers_are_what_they_were(run_dir):
    """Of an undamaged run: what a policy acts on are the checkpoint's own parameters."""
    policies = [jqmix.load_policy(run_dir, member).params for member in (0, 1)]
    kernels = [np.asarray(p["encoder"]["kernel"]) for p in policies]
    assert kernels[0].shape == (8, 16)
    assert not np.array_equal(*kernels)
