"""Sweeps and ablations: what is compared, what one program trains, and what the report makes of it."""

import csv
import json

import pytest
from test_train import SMALL, config, curves

from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.runs.experiment import shape_of, train, train_together
from jqmix.runs.study import TRICKS, ablation, load_tricks, parse_grid, sweep

FLAGS = [text for path, value in SMALL.items() for text in (f"--{path}", str(value))]


def test_configurations_trained_together_learn_what_each_learns_alone(tmp_path):
    """Traced hyperparameters are a member's own: one program serves them all, each in its own run directory."""
    changes = [{"algo.td_lambda": 0.0, "seeds": 2}, {"algo.td_lambda": 0.9, "optim.lr": 0.01, "seed": 5}]
    cfgs = [config(**c, run_dir=str(tmp_path / f"together{i}")) for i, c in enumerate(changes)]
    together = train_together(cfgs, quiet=True)
    for i, (c, result) in enumerate(zip(changes, together, strict=True)):
        alone = train(config(**c, run_dir=str(tmp_path / f"alone{i}")), quiet=True)
        assert [line["member"] for line in result.metrics] == [line["member"] for line in alone.metrics]
        assert curves(result).keys() == curves(alone).keys()
        for seed, lines in curves(alone).items():
            for a, b in zip(lines, curves(result)[seed], strict=True):
                assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
        assert load_config(tmp_path / f"together{i}" / "config.yaml").algo.td_lambda == c["algo.td_lambda"]
    first, second = (curves(r) for r in together)
    assert first[0][-1]["train/lr"] != second[5][-1]["train/lr"]


def test_configurations_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="traced fields"):
        train_together([config(), config(**{"agent.hidden": 8})])


def test_sweep_takes_every_combination():
    grid = parse_grid(["algo.td-lambda=0,0.5", "agent.hidden=8,16,8"])
    assert grid == {"algo.td_lambda": [0.0, 0.5], "agent.hidden": [8, 16]}
    study = sweep(config(), grid)
    assert list(study.configs) == [
        "algo.td_lambda=0.0,agent.hidden=8",
        "algo.td_lambda=0.0,agent.hidden=16",
        "algo.td_lambda=0.5,agent.hidden=8",
        "algo.td_lambda=0.5,agent.hidden=16",
    ]
    assert len({shape_of(cfg) for cfg in study.configs.values()}) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("algo.td_lambda", "must look like"),
        ("algo.td_lamda=1", "did you mean algo.td_lambda"),
        ("algo.td_lambda=x", "it takes a number"),
        ("algo.mixer=qmix,qmux", "one of iql"),
    ],
)
def test_grids_are_checked(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_grid([text])


def test_each_trick_varies_one_thing_around_the_configuration():
    cfg = load_config("smax_3m")
    study = ablation(cfg)
    base = json.loads(shape_of(study.configs["base"]))
    fields = {
        "optimiser": {"optim.name"},
        "rollouts": {"rollouts"},
        "rollouts_same_ratio": {"rollouts", "updates"},
        "replay": {"replay.capacity"},
        "epsilon": set(),
        "lambda": set(),
        "width": {"agent.hidden"},
    }
    assert [t.name for t in study.tricks] == list(fields) == list(TRICKS)
    for trick in study.tricks:
        assert any(v.label.endswith("(config)") and v.run == "base" for v in trick.variants)
        for variant in trick.variants:
            shape = json.loads(shape_of(study.configs[variant.run]))
            assert {k for k in shape if shape[k] != base[k]} <= fields[trick.name]
    held = next(t for t in study.tricks if t.name == "rollouts_same_ratio")
    ratios = {study.configs[v.run].updates / study.configs[v.run].rollouts for v in held.variants}
    assert ratios == {cfg.updates / cfg.rollouts}
    # λ and ε steps are traced: their variants need no program of their own.
    assert len({shape_of(cfg) for cfg in study.configs.values()}) == 1 + sum(
        v.run != "base" for t in study.tricks if fields[t.name] for v in t.variants
    )


def test_values_of_a_trick_can_be_chosen():
    study = ablation(config(), {"algo.td_lambda": [0.1, 0.9]}, ["lambda"])
    assert [v.label for v in study.tricks[0].variants] == ["0.1", "0.6 (config)", "0.9"]
    assert {v.label for v in ablation(config(), {"rollouts": [2]}, ["rollouts"]).tricks[0].variants} == {
        "2",
        "8 (config)",
    }
    with pytest.raises(ConfigError, match="only: 'x' is not one of optimiser"):
        ablation(config(), {}, ["x"])
    with pytest.raises(ConfigError, match=r"eval\.every: 64 must be < total_steps 64"):
        ablation(config(total_steps=64))
    with pytest.raises(ConfigError, match=r"grid: algo\.gamma is not the field of a trick"):
        ablation(config(), {"algo.gamma": [0.1]})


def test_ablate_writes_runs_and_a_report(tmp_path, capsys):
    out = tmp_path / "study"
    command = ["ablate", *FLAGS, "--seeds", "2", "--only", "lambda", "optimiser", "--grid", "algo.td_lambda=0,0.9"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "program 1 of 2: base; algo.td_lambda=0.0; algo.td_lambda=0.9" in said
    assert {trick.name for trick in load_tricks(out)} == {"lambda", "optimiser"}
    text = (out / "report" / "report.md").read_text()
    assert "| λ | 0 / 0.3 / 0.5 / 0.6 / 0.9: corridor" in text
    assert (out / "report" / "curves.png").stat().st_size > 10_000
    with (out / "report" / "raw.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["run_dir"] for row in rows}) == 4
    assert len(rows) == 4 * 2 * 4  # runs, seeds, evaluations
    final = {}
    for row in rows:
        if row["run_dir"].endswith("rmsprop") and row["env_steps"] == "256":
            final[row["seed"]] = float(row["eval/return_mean"])
    assert f"rmsprop: {sum(final.values()) / 2:.3f}" in text
    # Nothing is overwritten, and a report can be made again elsewhere.
    assert main([*command, "--out", str(out)]) == 2
    assert main(["report", str(out), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.md").read_text() == text
    (out / "base" / "metrics.jsonl").write_text("")
    assert main(["report", str(out), "--out", str(tmp_path / "broken")]) == 2


@pytest.mark.slow
def test_sweep_writes_runs_and_a_report(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["sweep", *FLAGS, "--grid", "algo.td_lambda=0,0.9", "--out", str(out)]) == 0
    assert "program 1 of 1" in capsys.readouterr().out
    assert (out / "algo.td_lambda=0.9" / "metrics.jsonl").is_file()
    assert "Greedy results" in (out / "report" / "report.md").read_text()
