"""Sweeps and ablations: what is compared, what one program trains, and what the report makes of it."""

import csv
import json

import pytest
from test_report import line, write_lines, write_run
from test_train import SMALL, config, curves

from jqmix.analysis.published import read_published
from jqmix.analysis.report import report
from jqmix.analysis.study import TRICKS, Study, Trick, Variant, ablation, load_tricks, parse_grid, sweep
from jqmix.cli import main
from jqmix.config import ConfigError, load_config, preset_names, read_values
from jqmix.runs.experiment import shape_of, train, train_together

FLAGS = [text for path, value in SMALL.items() for text in (f"--{path}", str(value))]


@pytest.mark.slow
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
    assert first[0][0]["train/lr"] != second[5][0]["train/lr"]


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


def test_settings_of_mixers_are_varied_where_they_are():
    """A preset's α is used where a grid comes to the mixer that has it; what a mixer lacks is not varied with it."""
    texts = ["algo.mixer=vdn,qmix,cw_qmix", "mixer.embed=4,8"]
    values = read_values("matrix_game_a", **{"eval.every": 1000})
    study = sweep(load_config("matrix_game_a"), parse_grid(texts), values)
    assert list(study.configs) == [
        "algo.mixer=vdn",
        *(f"algo.mixer={name},mixer.embed={embed}" for name in ("qmix", "cw_qmix") for embed in (4, 8)),
    ]
    assert study.configs["algo.mixer=cw_qmix,mixer.embed=4"].mixer.alpha == 0.1
    traced = parse_grid(["mixer.alpha=0.1,0.2"], config(**{"algo.mixer": "ow_qmix"}))
    assert traced == {"mixer.alpha": [0.1, 0.2]}
    study = sweep(config(**{"algo.mixer": "ow_qmix"}), traced)
    assert len({shape_of(cfg) for cfg in study.configs.values()}) == 1
    assert parse_grid(["algo.embed=4,8"]) == {"mixer.embed": [4, 8]}
    assert parse_grid(["agent.recurrent=true,false"]) == {"agent.core": ["gru", "none"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mixer.embd=1", "did you mean mixer.embed"),
        ("mixer.embed=x", "mixer.embed: 'x' is not allowed; it takes a whole number"),
        ("algo.mixer=no.such:mixer", "algo.mixer: cannot load 'no.such:mixer'"),
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


def test_every_trick_has_a_published_result_for_each_value():
    published = read_published()
    assert list(published.findings) == list(TRICKS)
    assert (published.source, published.measure) == ("2102.03479", "SMAC win %")
    assert published.findings["optimiser"].results == "corridor 81 / 0, 3s5z_vs_3s6z 24 / 0"
    assert (
        published.findings["epsilon"].results == "100k / 500k / 1000k: 6h_vs_8z 32 / 77 / 0, 3s5z_vs_3s6z 57 / 76 / –"
    )
    assert published.findings["rollouts_same_ratio"] == ("not studied", "the ratio changed with them")
    for finding in published.findings.values():
        values, colon, maps = finding.results.rpartition(": ")
        counts = {result.count("/") for result in maps.split(", ")}
        assert len(counts) == 1 and (not colon or counts == {values.count("/")})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_all_tricks_to_study(name):
    cfg = load_config(name)
    if cfg.eval.every >= cfg.total_steps:
        pytest.skip("a preset of one evaluation")
    study = ablation(cfg)
    if cfg.algo.name == "pqn":  # without a replay, or updates to be held in a ratio to what is collected
        assert [t.name for t in study.tricks] == [t for t in TRICKS if t not in ("replay", "rollouts_same_ratio")]
        return
    assert [t.name for t in study.tricks] == list(TRICKS)
    held = next(t for t in study.tricks if t.name == "rollouts_same_ratio")
    ratios = {study.configs[v.run].updates / study.configs[v.run].rollouts for v in held.variants}
    assert len(held.variants) == 3 and ratios == {cfg.updates / cfg.rollouts}


def test_replay_sizes_are_such_that_a_run_can_tell_them_apart():
    """No larger than what is collected, but for the configuration's own."""
    label = lambda cfg: [v.label for v in ablation(cfg, {}, ["replay"]).tricks[0].variants]  # noqa: E731
    long = load_config("smax_3m_dense", total_steps=3_000_000)
    assert label(long) == ["832", "1,648", "4,096 (config)", "8,192"]
    short = load_config("smax_3m_dense", total_steps=101_000)  # 1,000 windows
    assert label(short) == ["208", "400", "4,096 (config)"]


def test_where_targets_are_n_step_returns_their_trick_is_n():
    study = ablation(config(**{"algo.target": "nstep"}), {}, ["lambda"])
    assert [v.label for v in study.tricks[0].variants] == ["1 (config)", "3", "5"]


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
    with pytest.raises(
        ConfigError, match=r"grid: replay\.capacity is not the field of a trick that is studied \(lambda\)"
    ):
        ablation(config(), {"replay.capacity": [8]}, ["lambda"])
    with pytest.raises(ConfigError, match="grid: rollouts: 0 is out of range"):
        ablation(config(), {"rollouts": [0]})
    with pytest.raises(ConfigError, match="only: rollouts_same_ratio has no value beside the configuration's 8"):
        ablation(config(), {"rollouts": [3]}, ["rollouts_same_ratio"])


def test_ablate_writes_runs_and_a_report(tmp_path, capsys):
    out = tmp_path / "study"
    command = ["ablate", *FLAGS, "--seeds", "2", "--only", "lambda", "optimiser", "--grid", "algo.td_lambda=0,0.9"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "program 1 of 2: base; algo.td_lambda=0.0; algo.td_lambda=0.9" in said
    assert {trick.name for trick in load_tricks(out)} == {"lambda", "optimiser"}
    text = (out / "report" / "report.md").read_text()
    assert "| λ | 0.3 to 0.6 over 0 and, on two maps of three, over 0.9 | 0 / 0.3 / 0.5 / 0.6 / 0.9: corridor" in text
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
    assert main(["report", str(out), "--out", str(tmp_path / "broken")]) == 0
    assert "base has no evaluations" in capsys.readouterr().err
    assert "| optimiser |" not in (tmp_path / "broken" / "report.md").read_text()  # it has one variant left


@pytest.mark.slow
def test_sweep_writes_runs_and_a_report(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["sweep", *FLAGS, "--grid", "algo.td_lambda=0,0.9", "--out", str(out)]) == 0
    assert "program 1 of 1" in capsys.readouterr().out
    assert (out / "algo.td_lambda=0.9" / "metrics.jsonl").is_file()
    assert "Greedy results" in (out / "report" / "report.md").read_text()


def test_a_tricks_variants_are_compared_where_all_of_them_were(tmp_path):
    """One went on for longer, and better: that does not count, but in its own row."""
    runs = {"base": [0.2, 0.4], "longer": [0.1, 0.3, 0.9]}
    for name, rates in runs.items():
        lines = [
            line(seed, 100 * (k + 1), win_rate=rate, episodes=8.0) for k, rate in enumerate(rates) for seed in (0, 1)
        ]
        write_run(tmp_path / name, [0, 0], **{"optim.name": {"base": "adam", "longer": "rmsprop"}[name]})
        write_lines(tmp_path / name, lines)
    variants = tuple(Variant(name, name) for name in runs)
    Study({}, [Trick("optimiser", "optimiser", "Adam", "1 / 0", variants)]).save(tmp_path)
    rows, folder = report([tmp_path])
    text = (folder / "report.md").read_text()
    assert "| optimiser | Adam | 1 / 0 | base: 0.400 [0.400, 0.400], longer: 0.300 [0.300, 0.300] |" in text
    assert "best and worst differ | 200 |" in text
    assert [row["env_steps"] for row in rows] == [200, 300]


def test_studies_of_an_earlier_version_are_read(tmp_path):
    """They had no word on directions."""
    trick = {"name": "lambda", "title": "λ", "published": "x", "variants": [{"label": "0", "run": "base"}]}
    (tmp_path / "study.json").write_text(json.dumps({"tricks": [trick]}))
    assert load_tricks(tmp_path) == [Trick("lambda", "λ", "–", "x", (Variant("0", "base"),))]
