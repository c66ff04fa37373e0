"""jqmix from Python: it has what the command line has, short texts, and the user's own environment under its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jqmix
from jqmix.analysis.results import make_groups, read_run
from jqmix.cli import main
from jqmix.config import build
from jqmix.runs.checkpoint import load_learned

MINE = """
from jqmix.envs.games import TwoStepGame

class Env(TwoStepGame):
    def __init__(self):
        super().__init__()
        self.spec = self.spec._replace(name="my_corridor")
"""
SMALL = {"agent.hidden": 8, "replay.capacity": 64, "replay.batch": 16}
SMALL |= {"eval.every": 64, "eval.episodes": 4, "total_steps": 128}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run on an environment in the current folder, begun from a preset of another one."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_corridor_module.py").write_text(MINE)
    before = os.getcwd()
    os.chdir(folder)
    try:
        own = {"env.factory": "my_corridor_module:Env", "run_dir": None}
        yield jqmix.train(jqmix.load_config("two_step_game", **SMALL, **own), quiet=True)
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_an_environment_of_ones_own_has_its_own_name(result):
    assert build({"env.factory": "my_corridor_module:Env"}).env.name == "my_corridor_module:Env"
    assert result.config.env.name == "my_corridor"
    assert Path(result.run_dir).name.startswith("my_corridor_qmix_")
    assert "name: my_corridor\n" in (result.run_dir / "config.yaml").read_text()
    (group,) = make_groups(read_run(result.run_dir).members)
    assert group.task == "my_corridor (my_corridor_module:Env)"


def test_runs_that_say_another_name_go_on(result, capsys):
    """As those of earlier versions, which wrote the default's."""
    path = result.run_dir / "config.yaml"
    path.write_text(path.read_text().replace("name: my_corridor\n", "name: smax_3m\n"))
    assert read_run(result.run_dir).members[0].settings["env.name"] == "my_corridor"
    again = jqmix.resume(result.run_dir, trust=True, quiet=True)
    assert again.config.env.name == "my_corridor" and "name: my_corridor\n" in path.read_text()


def test_texts_are_short(result):
    assert repr(result).startswith("Result(qmix on my_corridor, 1 seed: return ") and len(repr(result)) < 250
    assert str(result.run_dir) in repr(result) and "after 128 steps" in repr(result)
    policy = jqmix.load_policy(result.run_dir)
    count = sum(x.size for x in _leaves(policy.params))
    assert repr(policy) == (f"Policy(2 agents, 2 actions, observations of 4 numbers; gru of 8, {count:,} parameters)")
    assert len(repr(jqmix.make_train(jqmix.load_config("two_step_game")))) < 250


def _leaves(tree):
    return [x for value in tree.values() for x in (_leaves(value) if isinstance(value, dict) else [value])]


def test_evaluate_and_report(result, tmp_path):
    (row,) = jqmix.evaluate(result.run_dir, episodes=3, trust=True)
    assert row["episodes"] == 3
    rows, folder = jqmix.report([result.run_dir], tmp_path / "report")
    assert rows[0]["group"].startswith("my_corridor (") and (folder / "report.md").is_file()


def test_every_public_name_is_there():
    assert all(getattr(jqmix, name) is not None for name in jqmix.__all__)


@pytest.mark.slow
def test_sweep(tmp_path, capsys):
    folder = jqmix.sweep(jqmix.load_config("two_step_game", **SMALL), {"optim.lr": [0.1, 0.2]}, str(tmp_path / "s"))
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["optim.lr=0.1", "optim.lr=0.2"]
    assert load_learned(folder / "optim.lr=0.1", jqmix.load_config(folder / "optim.lr=0.1"), print).members == [0]


DEVICES = """
import os, sys
os.sched_getaffinity = lambda pid: {0, 1, 2}
import jax
if sys.argv[1] == "started":
    jax.devices()
from jqmix.runs.jax_settings import settled
with settled():
    print(len(jax.devices()), jax.config.values["jax_compilation_cache_dir"])
"""


@pytest.mark.parametrize(("program", "devices"), [("new", 3), ("started", 1)])
def test_python_uses_all_cores_and_the_cache(program, devices, tmp_path):
    """Unless JAX has started in a program that embeds jqmix."""
    kept = {name: x for name, x in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    env = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", DEVICES, program]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == [str(devices), str(tmp_path / "jqmix" / "xla")]


def test_a_factory_is_looked_for_in_the_current_folder(tmp_path, monkeypatch, capsys):
    """Also one that was written after others were looked for."""
    monkeypatch.chdir(tmp_path)
    argv = ["envs", "--check", "written_later:Env"]
    assert main(argv) == 2
    assert "cannot load 'written_later:Env': ModuleNotFoundError" in capsys.readouterr().err
    (tmp_path / "written_later.py").write_text(MINE)
    assert main(argv) == 0
    assert "my_corridor" in capsys.readouterr().out
