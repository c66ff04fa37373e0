"""The examples as their README shows them: a mixer and a core from outside the package, and a policy taken away."""

import importlib
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import yaml

from jqmix.cli import _parse, main
from jqmix.config import foreign_code, load_config, traced_paths
from jqmix.networks.agent import Agent
from jqmix.networks.cores.base import CoreSizes
from jqmix.networks.mixers import MixerSizes, build_mixer
from jqmix.runs.export import write_policy
from jqmix.runs.policy import Trained

EXAMPLES = Path(__file__).parent.parent / "examples"
OURS = ["--algo.mixer", "attention_mixer:make", "--mixer.coefficient", "0.1", "--agent.core", "lstm_core:make"]
TINY = {
    "agent.hidden": 8,
    "mixer.embed": 4,
    "mixer.heads": 2,
    "replay.capacity": 32,
    "replay.batch": 8,
    "eval.every": 64,
    "eval.episodes": 4,
    "eval.absolute": 1,
    "checkpoint.every": 64,
}
FLAGS = [text for path, value in TINY.items() for text in (f"--{path}", str(value))]
METRIC = "train/attention_spread"


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    """In the folder, with its modules found as the command line finds them, and forgotten afterwards."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*(p for p in sys.path if p), ""])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in ("attention_mixer", "lstm_core", "act_in_jaxmarl"):
        sys.modules.pop(name, None)


def logged(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_from_beginning_to_end(tmp_path, capsys):
    """Trained, checkpointed, gone on with, played and reported; its code is executed by no one who does not say so."""
    run_dir = tmp_path / "run"
    assert main(["train", "two_step_game", *OURS, *FLAGS, "--total-steps", "128", "--run-dir", str(run_dir)]) == 0
    cfg = load_config(run_dir)
    assert foreign_code(cfg) == {"algo.mixer": "attention_mixer:make", "agent.core": "lstm_core:make"}
    assert (cfg.mixer.coefficient, cfg.mixer.heads, cfg.core.forget_bias) == (0.1, 2, 1.0)
    assert "mixer.coefficient" in traced_paths(cfg) and "core.forget_bias" not in traced_paths(cfg)
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["core"] == {"forget_bias": 1.0}
    spread = [line[METRIC] for line in logged(run_dir) if METRIC in line]
    assert len(spread) == 2 and all(0 < x <= 1 for x in spread)

    capsys.readouterr()
    for name in ("attention_mixer", "lstm_core"):
        del sys.modules[name]
    for command in (["resume", "--total-steps", "192"], ["evaluate"]):
        assert main([*command, str(run_dir)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"this run names code of its own \(\w+:make\).*--trust", line)
    assert not {"attention_mixer", "lstm_core"} & sys.modules.keys()

    assert main(["resume", str(run_dir), "--total-steps", "192", "--trust"]) == 0
    lines = [line for line in logged(run_dir) if METRIC in line]
    assert [line["env_steps"] for line in lines] == [64, 128, 192]
    assert [line[METRIC] for line in lines[:2]] == spread
    capsys.readouterr()
    assert main(["evaluate", str(run_dir), "--episodes", "4", "--trust", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["episodes"] == 4 and 0 <= row["return_mean"] <= 8
    assert main(["report", str(run_dir), "--out", str(tmp_path / "report")]) == 0
    assert "attention_mixer:make" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_grid_of_the_coefficient_is_one_program(tmp_path, capsys):
    """And what it weighs spreads attention out."""
    argv = [
        "sweep",
        "two_step_game",
        *OURS[:2],
        *OURS[4:],
        *FLAGS,
        "--total-steps",
        "512",
        "--out",
        str(tmp_path / "s"),
    ]
    assert main([*argv, "--grid", "mixer.coefficient=0,100"]) == 0
    out = capsys.readouterr().out
    assert "\nmixer.coefficient=0.0; mixer.coefficient=100.0\n" in out and "program 2" not in out
    assert main(["report", str(tmp_path / "s"), "--overwrite", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    free, held = (logged(tmp_path / "s" / f"mixer.coefficient={x}")[-2][METRIC] for x in ("0.0", "100.0"))
    assert free < held <= 1


def test_the_readme_names_what_there_is():
    """Every command in it parses, and every flag is one."""
    text = (EXAMPLES / "README.md").read_text()
    for field in re.findall(r"--(?:mixer|core)\.[a-z-]+", text):
        group, name = field.removeprefix("--").replace("-", "_").split(".")
        values = {"algo.mixer": "attention_mixer:make", "agent.core": "lstm_core:make"}
        assert hasattr(getattr(load_config("two_step_game", **values), group), name)
    commands = re.findall(r"^jqmix (.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        assert _parse(command.split())[1] == []


def attention():
    sizes = MixerSizes(3, 5, n_actions=2, obs_size=4, hidden=6)
    return sizes, build_mixer("attention_mixer:make", sizes)


def test_attention_is_monotonic_and_reads_what_agents_see(rng, key):
    sizes, mixer = attention()
    params = mixer.init(key)
    q, state, obs = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 2, 3), (7, 2, 5), (7, 2, 3, 4)))
    joint = sizes.joint(7, 2)._replace(obs=obs)
    total = lambda q, joint: mixer.apply(params, q, state, joint)  # noqa: E731
    assert total(q, joint).shape == (7, 2) and mixer.igm
    slope = jax.grad(lambda q: jnp.sum(total(q, joint)))(q)
    assert float(slope.min()) >= 0 and float(slope.mean()) > 0.1
    apart = joint._replace(obs=obs.at[..., 0, :].add(1.0))
    assert float(jnp.abs(total(q, apart) - total(q, joint)).max()) > 1e-3
    apart = apart._replace(action=1 - joint.action, greedy=1 - joint.greedy, best=joint.best + 1)
    np.testing.assert_array_equal(total(q, apart), total(q, joint._replace(obs=apart.obs)))  # not what they do


def numpy_step(p, h, c, x):
    """One vector at a time, from the paper's formulas."""
    none = {"bias": 0.0}
    norm = lambda scale, x: oracles.layer_norm({"scale": scale, **none}, x, eps=1e-5)  # noqa: E731
    gates = norm(p["scale_x"], x @ p["w_x"]) + norm(p["scale_h"], h @ p["w_h"]) + p["bias"]
    i, f, g, o = np.split(gates, 4)
    c = oracles.sigmoid(f) * c + oracles.sigmoid(i) * np.tanh(g)
    return oracles.sigmoid(o) * np.tanh(norm(p["scale_c"], c)), c


def test_the_lstm_is_the_papers(rng, key):
    module = importlib.import_module("lstm_core")
    core = module.make(CoreSizes(3, 4), module.LSTMSettings(forget_bias=0.5))
    params = core.init(key)
    assert params["bias"].tolist() == [0] * 4 + [0.5] * 4 + [0] * 8
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    x, first = rng.normal(size=(6, 2, 3)).astype(np.float32), np.zeros((6, 2), bool)
    first[3, 1] = True
    memory, expected = core.initial_state(2), np.zeros((2, 2, 4))
    for t in range(6):
        output, memory = core.step(params, memory, jnp.asarray(x[t]), jnp.asarray(first[t]))
        for b in range(2):
            before = np.zeros((2, 4)) if first[t, b] else expected[:, b]
            expected[:, b] = numpy_step(jax.tree.map(np.asarray, params), *before, x[t, b])
        np.testing.assert_allclose(output, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(memory.c, expected[1], rtol=1e-4, atol=1e-5)


class Scripted:
    """What an exported policy has, for agents that do what comes first in ``order`` and is available."""

    def __init__(self, order):
        self.order = np.array(order)

    def initial_state(self, batch):
        return batch

    def act(self, state, obs, avail):
        assert obs.shape == (state, 3, 75) and avail.shape == (state, 3, 8)
        return self.order[avail[..., self.order].argmax(axis=-1)], state


def test_win_rates_in_jaxmarl():
    """Whoever walks towards the enemies and shoots at one after the other wins about every second episode."""
    module = importlib.import_module("act_in_jaxmarl")
    right, attacks = 1, (5, 6, 7)
    assert 0.25 < module.win_rate(Scripted([*attacks, right, 4]), "3m", 64) < 0.75


def test_an_exported_policy_plays_in_jaxmarl(tmp_path, monkeypatch, capsys):
    agent = Agent(3, 8, 75, 8)
    made = Trained(agent, agent.init(jax.random.key(0)), load_config("smax_3m"), 0, False, 0)
    write_policy(made, {"environment": {"name": "smax_3m"}}, tmp_path / "policy")
    module = importlib.import_module("act_in_jaxmarl")
    monkeypatch.setattr(sys, "argv", ["act_in_jaxmarl.py", str(tmp_path / "policy"), "--episodes", "4"])
    module.main()
    said = capsys.readouterr().out
    assert re.search(r"^0\.\d+ of 4 episodes won in JaxMARL's SMAX 3m, acting with NumPy$", said, re.MULTILINE)
