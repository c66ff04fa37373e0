"""Wrong environments are answered in one line that names the field and the user's file; right ones are left alone."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import wrong_envs
from wrong_envs import MISTAKES, RIGHT

import jqmix
from jqmix.cli import main
from jqmix.plugins import raised

TRAINING = [
    "--rollouts",
    "2",
    "--replay.capacity",
    "4",
    "--replay.batch",
    "2",
    "--window",
    "50",
    "--total-steps",
    "100",
]


def answer(argv, capsys, code=2):
    """The one line that a command ends with."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("jqmix: ")
    return err


def test_there_are_many():
    assert len(MISTAKES) >= 100


@pytest.mark.parametrize("factory", MISTAKES)
def test_a_wrong_environment_is_one_line(factory, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = f"wrong_envs:{factory}"
    line = answer(["train", "--env.factory", named, *TRAINING], capsys)
    for words in (*MISTAKES[factory], "wrong_envs.py"):
        assert words in line
    assert len(line) < 600
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize("factory", RIGHT)
def test_a_right_environment_passes(factory, capsys):
    assert main(["envs", "--check", f"wrong_envs:{factory}", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["check"] == "ok"
    assert row["n_agents"] == 2


@pytest.mark.parametrize("factory", [f for f in RIGHT if f != "Bytes"])  # the type checks of tests refuse its integers
def test_a_right_environment_trains(factory):
    """What the check lets pass, the trainer can trace."""
    cfg = jqmix.load_config(
        None, **{"env.factory": f"wrong_envs:{factory}", "rollouts": 2, "replay.capacity": 4, "replay.batch": 2}
    )
    init, chunk = jqmix.make_train(cfg)
    member, shared = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.int32))
    jax.eval_shape(chunk, member, shared)


def test_check_env_takes_what_make_env_gives_and_what_a_user_has():
    jqmix.check_env(wrong_envs.Corridor(), steps=20)
    jqmix.check_env(jqmix.make_env("two_step_game"), steps=20)
    with pytest.raises(jqmix.EnvError, match=r"^NaNObs.step \(.*wrong_envs.py:\d+\): obs holds NaN"):
        jqmix.check_env(wrong_envs.NaNObs())


def test_a_registered_environment_is_checked():
    if "wide" not in jqmix.envs.registry.names():
        jqmix.register("wide", wrong_envs.WideObs)
    with pytest.raises(jqmix.EnvError, match=r"^env.name: wide: WideObs.reset \(.*wrong_envs.py:\d+\): obs is float32"):
        jqmix.make_env("wide", batch=2)


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("overcooked_cramped_room", {"layout": "moon"}, "^env.kwargs: KeyError: 'moon'$"),
        ("overcooked_cramped_room", {"agents": 2}, "^env.kwargs: .*agents"),
        ("smax_3m", {"max_steps": "ten"}, "^env.kwargs: "),
        ("predator_prey", {"n_agents": 2.5}, "^env.kwargs: "),
        ("chain_probe", {"length": -1}, "^env.kwargs: .*spec.obs_size is -1"),
        ("matrix_game", {"payoff": 3}, "^env.kwargs"),
    ],
)
def test_arguments_that_our_own_do_not_take(name, kwargs, says):
    with pytest.raises(jqmix.EnvError, match=says) as error:
        jqmix.make_env(name, **kwargs)
    assert "\n" not in str(error.value)


def test_arguments_reach_the_factory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sized.py").write_text("from jqmix.envs.probes import ChainProbe\n")
    monkeypatch.syspath_prepend("")
    assert main(["envs", "--check", "sized:ChainProbe", "--env.kwargs", "{length: 7}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["obs_size"] == 7


BROKEN = {
    "syntax": ("def build(:", "SyntaxError"),
    "absent": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "fails": ("\n\n1 / 0\n", "ZeroDivisionError: division by zero (fails.py:3)"),
    "exits": ("raise SystemExit('no')\n", "SystemExit: no (exits.py:1)"),
}


@pytest.mark.parametrize("module", BROKEN)
def test_a_module_that_cannot_be_imported(module, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    text, says = BROKEN[module]
    (tmp_path / f"{module}.py").write_text(text)
    line = answer(["envs", "--check", f"{module}:build"], capsys)
    assert f"env.factory: cannot load '{module}:build'" in line
    assert says in line
    assert f"{module}.py:" in line


@pytest.mark.parametrize("path", ["", ":", "a:", ":b", "..:f", "a..b:f", "a b:c", "a:b:c", "a:b.c"])
def test_a_path_that_is_none(path):
    with pytest.raises(jqmix.EnvError, match="must look like package.module:function"):
        jqmix.make_env(None, factory=path)


def test_the_current_directory_is_searched(tmp_path):
    """The console script does not put it on the path, as `python -m` does."""
    (tmp_path / "mine.py").write_text("from jqmix.envs.games import TwoStepGame as build\n")
    code = "import sys; sys.path.remove(''); from jqmix.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "envs", "--check", "mine:build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "two_step_game" in done.stdout


def test_a_users_line_is_shown_not_a_librarys():
    try:
        wrong_envs.PythonIf().step(None, None, None)
    except TypeError as error:
        line = raised(error)
    assert "wrong_envs.py" in line
