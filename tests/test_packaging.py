"""What is installed: its version, and that nothing but JaxMARL's own environments needs JaxMARL."""

import re
import sys

import jax
import pytest

import jqmix
from jqmix.cli import main


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"jqmix {re.escape(jqmix.__version__)} \(jax \d+\.\d+\.\S+, Python \d+\.\d+\.\d+\)\n", said)


@pytest.fixture
def without_jaxmarl(monkeypatch):
    """Whoever imports it is told that there is no such module."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxmarl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jaxmarl", None)


@pytest.mark.parametrize("name", ["hanabi", "overcooked_cramped_room", "jaxmarl/smax_3m"])
def test_jaxmarls_environments_say_that_they_need_it(without_jaxmarl, tmp_path, capsys, name):
    assert main(["train", "--env.name", name, "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "jqmix: env.name: JaxMARL's environments need the package jaxmarl, which is not installed (pip install jaxmarl)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["smax_2s3z", "mpe_simple_spread_v3", "predator_prey", "two_step_game"])
def test_everything_else_works_without(without_jaxmarl, name):
    env = jqmix.make_env(name, batch=2)
    shown = jax.eval_shape(env.reset, jax.random.key(0))[1]
    assert shown.obs.shape == (2, env.spec.n_agents, env.spec.obs_size)
    init, chunk = jqmix.make_train(jqmix.load_config(**{"env.name": name}))
    jax.eval_shape(init, jax.numpy.int32(0))
