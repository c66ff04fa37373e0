"""The expected duration of a run: near the speeds that were measured, and told by `presets` and `train --dry-run`."""

import json

import pytest

from jqmix.analysis.duration import expected_seconds, expected_speed, spell_seconds
from jqmix.cli import main
from jqmix.config import load_config, preset_names
from jqmix.envs.registry import entries

# Environment steps per second of one seed on two idle cores of a Xeon (benchmarks/README.md).
WORK = {"rollouts": 16, "window": 128, "updates": 8, "replay.batch": 32, "replay.capacity": 1024}
WORK |= {"mixer.embed": 64, "mixer.hypernet_hidden": 256}
MEASURED = [
    ("smax_3m_dense", {}, 13_400),
    ("smax_3m_dense", {"rollouts": 4}, 3_658),
    ("smax_3m_dense", {"rollouts": 64}, 40_627),
    ("smax_3m_dense", {"agent.hidden": 32}, 20_185),
    ("smax_3m_dense", {"agent.hidden": 256}, 2_024),
    ("smax_published", {}, 4_514),
    ("predator_prey", {}, 3_320),
    ("smax_3m_dense", WORK, 6_350),
    ("smax_3m_dense", WORK | {"agent.hidden": 512}, 332),
    ("smax_published", WORK, 3_937),
]
# Two cores of an EPYC do the same work at 0.71 and 0.76 of the speed (JaxMARL's work on 3m and 2s3z, ibidem).
EPYC = 0.74
MEASURED += [("smax_2s3z", {}, 5_085 / EPYC), ("smax_pqn", {}, 9_531 / EPYC)]


@pytest.mark.parametrize(("preset", "changes", "speed"), MEASURED)
def test_near_what_was_measured(preset, changes, speed):
    cfg = load_config(preset, **changes)
    assert expected_speed(cfg, entries()[cfg.env.name].sizes) == pytest.approx(speed, rel=0.2)


def test_seeds_and_steps_take_their_time():
    cfg, more = load_config("smax_3m"), load_config("smax_3m", seeds=4, total_steps=400_000)
    sizes = entries()["smax_3m"].sizes
    assert expected_seconds(more, sizes) == pytest.approx(8 * expected_seconds(cfg, sizes))
    assert expected_speed(load_config("smax_pqn_published", rollouts=256), sizes) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (41.7, "42 s"), (1e2, "1.7 min"), (1.5e3, "25 min"), (1.1e4, "3.1 h"), (2e5, "2.3 days")],
)
def test_spelled(seconds, text):
    assert spell_seconds(seconds) == text


def test_presets(capsys):
    assert main(["presets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["preset"] for row in rows] == preset_names()
    assert all(row["seconds"] > 0 for row in rows)
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    assert "an estimate for one seed on two CPU cores" in out and "10,000,000" in out


def test_a_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "two_step_game", "--seeds", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run directory: runs/two_step_game_qmix_<time>"
    assert "qmix on two_step_game: 2 agents" in out[1] and "memory per member" in out[3]
    assert "20,000 environment steps of each of 2 seeds: about 1 s without compiling (an estimate" in out[4]
    assert out[5] == "nothing was written" and list(tmp_path.iterdir()) == []
    assert main(["train", "two_step_game", "--algo.name", "pqn", "--algo.minibatches", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "run directory: runs/two_step_game_pqn_qmix_<time>"
    assert out[1].startswith("pqn_qmix on two_step_game: 2 agents")
    assert main(["train", "two_step_game", "--dry-run", "--json"]) == 2
    assert "json: has no effect with --dry-run" in capsys.readouterr().err
    assert main(["train", "--env.factory", "worlds:Counting", "--dry-run", "--window", "2"]) == 2
    assert main(["train", "two_step_game", "--run-dir", str(tmp_path), "--dry-run"]) == 0
    (tmp_path / "there").write_text("")
    assert main(["train", "two_step_game", "--run-dir", str(tmp_path), "--dry-run"]) == 2
