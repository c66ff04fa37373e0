"""The report on runs: what it groups, what it writes, what it refuses."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from jqmix.analysis.figures import LearningCurve, Panel, Point, draw_curves, draw_points
from jqmix.analysis.report import report
from jqmix.analysis.statistics import Estimate
from jqmix.analysis.tables import markdown_table
from jqmix.cli import main
from jqmix.config import dump, load_config

STEPS = (100, 200, 300)
FILES = {"report.md", "report.png", "tables.tex", "curves.csv", "efficiency.csv", "raw.csv"}
META = {
    "versions": {"python": "3.11.7", "jax": "0.10.2", "jqmix": "0.1.0"},
    "device": {"platform": "cpu", "kind": "EPYC", "count": 2},
    "commit": "0123456789abcdef",
}


def line(seed, steps, **metrics):
    scores = {f"eval/{name}": value for name, value in metrics.items()}
    return {"env_steps": steps, "updates": steps // 10, "seed": seed, "wall_s": 1.5, "train/loss": 0.1, **scores}


def write_run(path, finals, metric="win_rate", first_seed=0, **settings):
    """A run whose seed i climbs to ``finals[i]`` in a straight line from nothing at step 0."""
    path.mkdir(parents=True)
    fields = {"env.name": "smax_3m", "seed": first_seed, "seeds": len(finals), "run_dir": str(path), **settings}
    (path / "config.yaml").write_text(dump(load_config(None, **fields)))
    (path / "metadata.json").write_text(json.dumps(META))
    lines = [
        line(first_seed + i, steps, **{metric: final * steps / STEPS[-1], "episodes": 32.0})
        for steps in STEPS
        for i, final in enumerate(finals)
    ]
    write_lines(path, lines)
    return path


def write_lines(path, lines):
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_group(rows):
    return {row["group"]: row for row in rows}


def test_one_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.9, 0.1, 0.3, 0.6])
    assert main(["report", str(run), "--json", "--threshold", "0.3"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    low, high = row.pop("low"), row.pop("high")
    assert row == {
        "group": "smax_3m, qmix",
        "metric": "eval/win_rate",
        "seeds": 4,
        "env_steps": 300,
        "iqm": pytest.approx(0.45),
        "min": 0.1,
        "max": 0.9,
        "diverged": [],
        "absolute": None,
        "absolute_low": None,
        "absolute_high": None,
        "threshold": 0.3,
        "reached_at": 200,
    }
    assert 0.1 <= low < 0.45 < high <= 0.9
    assert {p.name for p in (run / "report").iterdir()} == FILES

    curve = read_csv(run / "report" / "curves.csv")
    assert list(curve[0]) == ["group", "env_steps", "iqm", "low", "high", "n_seeds"]
    assert [(r["group"], r["env_steps"], r["n_seeds"]) for r in curve] == [
        ("smax_3m, qmix", str(steps), "4") for steps in STEPS
    ]
    # Scores at a step are all shares of the final ones, so estimates are too.
    for name, final in (("iqm", 0.45), ("low", low), ("high", high)):
        np.testing.assert_allclose([float(r[name]) for r in curve], [final / 3, final * 2 / 3, final])

    raw = read_csv(run / "report" / "raw.csv")
    assert list(raw[0]) == [
        "group",
        "run_dir",
        "seed",
        "env_steps",
        "updates",
        "wall_s",
        "eval/episodes",
        "eval/win_rate",
        "fault",
    ]
    assert len(raw) == 12
    assert {r["seed"]: float(r["eval/win_rate"]) for r in raw if r["env_steps"] == "300"} == {
        "0": 0.9,
        "1": 0.1,
        "2": 0.3,
        "3": 0.6,
    }

    text = (run / "report" / "report.md").read_text()
    assert (
        f"| smax_3m, qmix | greedy win rate | 4 | 300 | 0.450 | {low:.3f} – {high:.3f} | 0.100 – 0.900 | 200 |" in text
    )
    assert f"| {run} | smax_3m, qmix | 0, 1, 2, 3 | 2 × EPYC | 3.11.7 | 0.10.2 | 0.1.0 | 0123456789 |" in text
    assert "![Learning curves](report.png)" in text
    assert (run / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_it_says_where_the_report_is(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.7])
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["group", "metric", "seeds", "env_steps", "iqm", "low", "high", "min", "max"]
    assert out[-1] == f"report: {run / 'report' / 'report.md'}"


def test_a_group_differs_in_its_seeds_alone(tmp_path, monkeypatch):
    """Two runs of other seeds are one group; another mixer and another λ are groups of their own."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [0.2, 0.4])
    write_run(tmp_path / "b", [0.6, 0.8], first_seed=2)
    write_run(tmp_path / "c", [0.5, 0.5], **{"algo.mixer": "vdn", "algo.double_q": False})
    rows, folder = report(["a", "b", "c"])
    assert {name: (row["seeds"], row["iqm"]) for name, row in by_group(rows).items()} == {
        "smax_3m, algo.mixer=qmix, algo.double_q=true": (4, pytest.approx(0.5)),
        "smax_3m, algo.mixer=vdn, algo.double_q=false": (2, pytest.approx(0.5)),
    }
    assert str(folder) == "report"
    assert {p.name for p in (tmp_path / "report").iterdir()} == FILES | {"improvement.csv"}


def test_a_folder_of_runs(tmp_path):
    for mixer in ("vdn", "qmix"):
        write_run(tmp_path / "runs" / mixer, [0.1, 0.2], **{"algo.mixer": mixer})
    rows, folder = report([tmp_path / "runs", tmp_path / "runs" / "vdn"], out=tmp_path / "out")
    assert list(by_group(rows)) == ["smax_3m, algo.mixer=qmix", "smax_3m, algo.mixer=vdn"]
    assert folder == tmp_path / "out"
    _, folder = report([tmp_path / "runs"])
    assert folder == tmp_path / "runs" / "report"
    assert len(report([tmp_path / "runs"], overwrite=True)[0]) == 2  # the report inside is no run


def test_every_environment_on_its_own_and_win_rates_together(tmp_path):
    write_run(tmp_path / "a", [0.0, 0.0, 0.0, 0.0])
    write_run(tmp_path / "b", [1.0, 1.0, 1.0, 1.0], **{"env.name": "smax_2s3z", "optim.lr": 0.1})
    write_run(tmp_path / "c", [-30, -50], metric="return_mean", **{"env.name": "mpe_simple_spread_v3"})
    write_run(tmp_path / "d", [8, 8], metric="return_mean", **{"env.name": "matrix_game", "env.kwargs": "{payoff: b}"})
    rows, folder = report([tmp_path / x for x in "abcd"], out=tmp_path / "out")
    found = by_group(rows)
    assert list(found) == [
        "smax_3m, qmix",
        "smax_2s3z, qmix",
        "mpe_simple_spread_v3, qmix",
        "matrix_game (payoff=b), qmix",
        "2 environments together, qmix",
    ]
    assert found["mpe_simple_spread_v3, qmix"]["metric"] == "eval/return_mean"
    together = found["2 environments together, qmix"]
    # Each environment's seeds are all alike: nothing that is drawn within environments can vary.
    assert (together["seeds"], together["iqm"], together["low"], together["high"]) == (8, 0.5, 0.5, 0.5)
    assert len(read_csv(folder / "raw.csv")) == 36  # no evaluation twice


def test_only_groups_of_every_environment_are_taken_together(tmp_path):
    for i, (env, mixer) in enumerate(
        [("smax_3m", "qmix"), ("smax_3m", "vdn"), ("smax_8m", "qmix"), ("smax_8m", "iql")]
    ):
        write_run(tmp_path / "runs" / str(i), [0.1, 0.2], **{"env.name": env, "algo.mixer": mixer})
    rows, _ = report([tmp_path / "runs"])
    assert [name for name in by_group(rows) if "together" in name] == ["2 environments together, algo.mixer=qmix"]


def test_beside_a_factory_an_environments_name_says_nothing(tmp_path):
    for i, name in enumerate(["smax_3m", "smax_8m"]):
        write_run(tmp_path / "runs" / name, [0.1], first_seed=i, **{"env.factory": "my.worlds:make", "env.name": name})
    rows, _ = report([tmp_path / "runs"])
    assert [(row["group"], row["seeds"]) for row in rows] == [("my.worlds:make, qmix", 2)]


def test_one_seed_has_no_interval_and_that_is_said(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5])
    (row,), folder = report([run])
    assert (row["iqm"], row["low"], row["high"]) == (0.5, None, None)
    assert {r["low"] for r in read_csv(folder / "curves.csv")} == {""}
    text = (folder / "report.md").read_text()
    assert "| 0.500 | none (one seed) |" in text
    assert "One seed says nothing of how seeds differ" in text
    assert main(["report", str(run), "--overwrite"]) == 0
    assert "–" in capsys.readouterr().out.splitlines()[1].split()


def test_seeds_that_stopped_early_are_compared_where_all_were(tmp_path):
    run = write_run(tmp_path / "run", [0.3, 0.6, 0.9])
    lines = [line(0, 110, win_rate=0.1), line(0, 205, win_rate=0.5), line(0, 300, win_rate=0.6)]
    lines += [line(1, 100, win_rate=0.2), line(1, 200, win_rate=0.7)]
    write_lines(run, lines)
    (row,), folder = report([run])
    # At 200, where seed 1 stopped: seed 0's own evaluation nearest to it, not an interpolated one.
    assert (row["env_steps"], row["min"], row["max"], row["iqm"]) == (200, 0.5, 0.7, pytest.approx(0.6))
    curve = read_csv(folder / "curves.csv")
    assert [int(r["env_steps"]) for r in curve] == [110, 200]
    between = 0.1 + 0.4 * 90 / 95
    np.testing.assert_allclose([float(r["iqm"]) for r in curve], [(0.1 + 0.25) / 2, (between + 0.7) / 2])
    text = (folder / "report.md").read_text()
    assert "1 of 2 seeds went further than 200 env steps" in text
    assert f"{run}: 2 of 3 seeds were evaluated" in text


def test_few_seeds_are_warned_of(tmp_path):
    _, few = report([write_run(tmp_path / "few", [0.5] * 9)])
    _, enough = report([write_run(tmp_path / "enough", [0.5] * 10)])
    assert "too narrow" in (few / "report.md").read_text()
    assert "too narrow" not in (enough / "report.md").read_text()


def test_runs_stay_readable_without_their_environment_and_metadata(tmp_path):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: smax_3m", "name: mine") + "field_of_another_version: 1\n")
    (run / "metadata.json").unlink()
    (row,), folder = report([run])
    assert row["group"] == "mine, qmix"
    assert "| ? × ? | ? | ? | ? | ? |" in (folder / "report.md").read_text()


def test_nothing_is_overwritten_unless_told(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    assert main(["report", str(run)]) == 0
    kept = run / "report" / "notes.txt"
    kept.write_text("mine")
    before = (run / "report" / "report.md").read_bytes()
    write_lines(run, [line(0, s, win_rate=1.0) for s in STEPS])
    capsys.readouterr()
    assert main(["report", str(run)]) == 2
    assert "already exists and is not empty" in capsys.readouterr().err
    assert (run / "report" / "report.md").read_bytes() == before
    assert main(["report", str(run), "--overwrite"]) == 0
    assert (run / "report" / "report.md").read_bytes() != before
    assert kept.read_text() == "mine"


def nothing(run):
    (run / "metrics.jsonl").unlink()


def empty(run):
    write_lines(run, [])


def training_only(run):
    write_lines(run, [{"env_steps": 1, "seed": 0, "train/loss": 1.0}])


def no_metric(run):
    write_lines(run, [line(0, 100, episodes=3), line(0, 200, episodes=3)])


def apart(run):
    write_lines(run, [line(i, s, win_rate=0.5) for i in (0, 1) for s in (1 + i * 1000, 100 + i * 1000)])


def broken(run):
    (run / "metrics.jsonl").write_text('{"env_steps": 1, "seed": 0}\n{"env_st')


def no_seed(run):
    write_lines(run, [{"env_steps": 1}])


def bad_config(run):
    (run / "config.yaml").write_text("a: [")


def cut_config(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config[: config.index("rollouts:")])


def no_mapping(run):
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seeds: 2", "seeds: [2]"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (nothing, "metrics.jsonl: cannot be read"),
        (empty, "has no evaluations"),
        (training_only, "has no evaluations"),
        (no_metric, "has no evaluations in metrics.jsonl; 2 evaluations left out for lack of the metric"),
        (apart, "smax_3m, qmix: one curve begins at 1,001 environment steps, after another ended at 100"),
        (broken, "has no evaluations in metrics.jsonl; 1 damaged line skipped, the first is line 2"),
        (no_seed, "has no evaluations in metrics.jsonl; 1 damaged line skipped, the first is line 1"),
        (bad_config, "config.yaml: not YAML"),
        (cut_config, "config.yaml: was cut short: run_dir"),
        (no_mapping, "config.yaml: seeds: [2] is not allowed"),
    ],
)
def test_a_spoilt_run_is_one_line_and_exit_2(spoil, says, tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    spoil(run)
    assert_refused(["report", str(run)], says, capsys)
    assert not (run / "report").exists()


def assert_refused(argv, says, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_one_evaluation_is_a_point(tmp_path, drawn):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    write_lines(run, [line(seed, 100, win_rate=0.4 + 0.2 * seed) for seed in (0, 1)])
    (row,), folder = report([run])
    assert (row["env_steps"], row["iqm"], row["seeds"]) == (100, 0.5, 2)
    assert drawn[0].axes[0].lines[0].get_marker() == "o"
    assert len(read_csv(folder / "curves.csv")) == 1


def final_words(seed, steps, **words):
    return {"env_steps": steps, "updates": steps // 10, "member": seed, "seed": seed, "wall_s": 2.0, **words}


def fault(seed, steps):
    return final_words(seed, steps, fault="loss is not finite", fault_env_steps=steps - 50)


def absolute(seed, steps, rate):
    return final_words(
        seed, steps, **{"absolute/return_mean": 9.0, "absolute/win_rate": rate, "absolute/episodes": 320}
    )


def append(run, *lines):
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(x) + "\n" for x in lines)


def test_a_seed_that_diverged_has_no_result(tmp_path, capsys):
    """Seed 3 was the best until it diverged: neither that nor anything else of it counts."""
    run = write_run(tmp_path / "run", [0.2, 0.4, 0.6, 1.0])
    append(run, fault(3, 300))
    assert main(["report", str(run)]) == 0
    assert "[3]" in capsys.readouterr().out.splitlines()[1]
    (row,), folder = report([run], overwrite=True)
    assert (row["seeds"], row["diverged"], row["iqm"]) == (3, [3], pytest.approx(0.4))
    assert row["max"] == 0.6
    text = (folder / "report.md").read_text()
    assert "| seed 3 |" in text
    assert "**Diverged**: smax_3m, qmix, seed 3: loss is not finite at 250 env steps." in text
    assert "no final result" in text
    assert {r["seed"]: r["fault"] for r in read_csv(folder / "raw.csv")}["3"] == "loss is not finite"
    assert {r["n_seeds"] for r in read_csv(folder / "curves.csv")} == {"3"}


def test_a_group_that_diverged_has_no_result(tmp_path, capsys):
    """Nor has it one over several environments, where it has seeds left in another."""
    for mixer in ("qmix", "vdn"):
        for env in ("smax_3m", "smax_8m"):
            write_run(tmp_path / "runs" / f"{mixer}_{env}", [0.4, 0.6], **{"env.name": env, "algo.mixer": mixer})
    append(tmp_path / "runs" / "vdn_smax_8m", fault(0, 300), fault(1, 300))
    rows, folder = report([tmp_path / "runs"], threshold=0.1)
    found = by_group(rows)
    for name in ("smax_8m, algo.mixer=vdn", "2 environments together, algo.mixer=vdn"):
        assert found[name]["seeds"] == 0
        assert {found[name][key] for key in ("iqm", "low", "env_steps", "min", "max", "reached_at")} == {None}
    assert found["2 environments together, algo.mixer=qmix"]["iqm"] == 0.5
    assert (
        "| smax_8m, algo.mixer=vdn | greedy win rate | 0 | – | – | – | – | seed 0, seed 1 |"
        in (folder / "report.md").read_text()
    )
    assert main(["report", str(tmp_path / "runs"), "--overwrite"]) == 0
    # A run of which nothing is left but this.
    alone = write_run(tmp_path / "alone", [0.4, 0.6])
    write_lines(alone, [fault(0, 50), fault(1, 50)])
    (row,), folder = report([alone])
    assert (row["seeds"], row["diverged"]) == (0, [0, 1])
    assert read_csv(folder / "curves.csv") == read_csv(folder / "raw.csv") == []


def test_the_absolute_metric(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.2, 0.4, 0.6])
    append(run, *(absolute(i, 300, rate) for i, rate in enumerate([0.5, 0.6, 0.7])))
    (row,), folder = report([run])
    assert row["absolute"] == pytest.approx(0.6)
    assert 0.5 <= row["absolute_low"] < 0.6 < row["absolute_high"] <= 0.7
    assert row["iqm"] == pytest.approx(0.4)
    text = (folder / "report.md").read_text()
    assert f"| 0.600 [{row['absolute_low']:.3f}, {row['absolute_high']:.3f}] |" in text
    assert "Gorsane" in text
    # A seed that has none leaves the group without; where nobody has one, there is no column.
    other = write_run(tmp_path / "other", [0.2, 0.4], **{"algo.mixer": "vdn"})
    append(other, absolute(0, 300, 0.5))
    rows, folder = report([run, other], out=tmp_path / "both")
    assert [r["absolute"] for r in rows] == [row["absolute"], None]
    (row,), folder = report([other])
    assert "| absolute (" in text
    assert "| absolute (" not in (folder / "report.md").read_text()


def test_what_a_study_names_and_has_not_is_left_out(tmp_path, capsys):
    for name, settings in {"base": {}, "a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.2}}.items():
        write_run(tmp_path / name, [0.2, 0.4], **settings)
    tricks = [
        {"name": name, "title": name, "published": "x", "variants": [{"label": run, "run": run} for run in runs]}
        for name, runs in {"first": ("base", "a", "b"), "second": ("base", "a")}.items()
    ]
    (tmp_path / "study.json").write_text(json.dumps({"tricks": tricks}))
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    assert main(["report", str(tmp_path)]) == 0
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert "a has no evaluations" in err[0]
    assert "a is named in study.json but holds no results" in err[1]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| first |" in text
    assert "| second |" not in text
    # A variant that diverged is shown as that, and last.
    append(tmp_path / "base", fault(0, 300), fault(1, 300))
    _, folder = report([tmp_path], overwrite=True)
    assert "b: 0.300 [0.200, 0.400], base: diverged | diverged: unknown | 300 |" in (folder / "report.md").read_text()


def test_bad_arguments_are_one_line_and_exit_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [0.5, 0.6])
    write_run(tmp_path / "b", [0.5, 0.6], first_seed=1)
    (tmp_path / "file").write_text("")
    assert_refused(["report", "nowhere"], "nowhere is not a run directory", capsys)
    assert_refused(["report", "a", "file"], "file is not a run directory", capsys)
    # Seed 1 is in both; as two scores, it would make the interval narrower than it is.
    assert_refused(["report", "a", "b"], "a and b both hold seed 1 with the same settings", capsys)
    assert_refused(["report", "a", "--out", "file"], "out: file already exists and is not a folder", capsys)
    assert_refused(["report", "a", "--outt", "x"], "--outt: no such argument", capsys)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "file"}


def test_help_needs_neither_jax_nor_matplotlib_and_a_report_no_jax(tmp_path):
    code = "\n".join(
        [
            "import sys; from jqmix.cli import main",
            "try: code = main(sys.argv[2:])",
            "except SystemExit as stop: code = stop.code",
            "assert code == 0, code",
            "assert not set(sys.argv[1].split(',')) & set(sys.modules)",
        ]
    )
    run = write_run(tmp_path / "run", [0.5, 0.6])
    for absent, argv in (("jax,matplotlib,scipy", ["report", "--help"]), ("jax", ["report", str(run)])):
        done = subprocess.run([sys.executable, "-c", code, absent, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# Figures


def estimate(*values):
    iqm = np.array(values, float)
    return Estimate(iqm, iqm - 0.1, iqm + 0.2)


def test_curves_show_estimates_and_intervals(tmp_path, drawn):
    steps = np.array([100, 200])
    lines = [LearningCurve("a", steps, estimate(0.2, 0.4)), LearningCurve("b", steps, estimate(0.5, 0.6))]
    panels = [Panel("one", "win rate", lines, (0.0, 1.0)), Panel("two", "return", lines[::-1])]
    draw_curves(panels, tmp_path / "x.png")
    (figure,) = drawn
    one, two = figure.axes
    assert [ax.get_title() for ax in (one, two)] == ["one", "two"]
    assert [ax.get_ylabel() for ax in (one, two)] == ["win rate", "return"]
    np.testing.assert_array_equal(one.lines[0].get_xydata(), [[100, 0.2], [200, 0.4]])
    band = one.collections[0].get_datalim(one.transData)
    np.testing.assert_allclose(band.intervaly, [0.1, 0.6])
    assert one.get_ylim()[0] < 0
    assert one.get_ylim()[1] > 1
    # One legend, outside the axes; a label has one colour everywhere, and no two labels have the same.
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert one.lines[0].get_color() == two.lines[1].get_color() == legend.get_lines()[0].get_color()
    assert one.lines[0].get_color() != one.lines[1].get_color()
    assert not any(legend.get_window_extent().overlaps(ax.get_tightbbox()) for ax in figure.axes)


def test_labels_that_mean_something_else_in_every_panel_have_legends_of_their_own(tmp_path, drawn):
    steps = np.array([100, 200])
    lines = {name: LearningCurve(name, steps, estimate(0.2, 0.4)) for name in ("64", "256", "32")}
    panels = [
        Panel("replay", "return", [lines["64"], lines["256"]]),
        Panel("width", "return", [lines["32"], lines["64"]]),
    ]
    draw_curves(panels, tmp_path / "x.png", shared_labels=False)
    (figure,) = drawn
    assert figure.legends[0].get_texts() == []  # it only says what curves are
    for ax, labels in zip(figure.axes, (["64", "256"], ["32", "64"]), strict=True):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == labels
        assert [line.get_color() for line in ax.get_legend().get_lines()] == [line.get_color() for line in ax.lines]
        assert len({line.get_color() for line in ax.lines}) == 2


def test_many_groups_are_told_apart_and_leave_the_axes_their_room(tmp_path, drawn):
    lines = [LearningCurve(f"algo.td_lambda={i}, optim.lr=0.001", np.array([1, 2]), estimate(i, i)) for i in range(20)]
    draw_curves([Panel("one", "return", lines)], tmp_path / "x.png")
    (figure,) = drawn
    (ax,) = figure.axes
    assert len({(x.get_color(), x.get_linestyle()) for x in ax.lines}) == 20
    assert ax.get_window_extent().height / figure.dpi > 2
    page, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert page.x0 <= legend.x0 < legend.x1 <= page.x1
    assert page.y0 <= legend.y0


def test_points_show_estimates_intervals_and_scores(tmp_path, drawn):
    """A panel per trick, a row per group; a group of one seed has no interval."""
    nan = np.array(np.nan)
    on = Point("on", Estimate(np.array(0.5), np.array(0.4), np.array(0.7)), np.array([0.3, 0.5, 0.8]))
    off = Point("off", Estimate(np.array(0.2), nan, nan), np.array([0.2]))
    draw_points([Panel(f"trick {i}", "win rate", [on, off], (0.0, 1.0)) for i in range(5)], tmp_path / "x.png")
    (figure,) = drawn
    assert [ax.get_title() for ax in figure.axes] == [f"trick {i}" for i in range(5)]
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["on", "off"]
    scores, iqm = ax.lines[:2]
    assert scores.get_xdata().tolist() == [0.3, 0.5, 0.8]
    assert (float(iqm.get_xdata()[0]), float(iqm.get_ydata()[0])) == (0.5, 0)
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0], [[0.4, 0], [0.7, 0]])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_table():
    table = markdown_table(["name", "value"], [["a|b", "1"], ["c", "2"]])
    assert table.splitlines() == ["| name | value |", "| --- | ---: |", r"| a\|b | 1 |", "| c | 2 |"]
