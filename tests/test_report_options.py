"""What a report can be asked for: metrics, names, kinds and sizes of figures; comparisons, LaTeX, marl-eval."""

import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from test_report import absolute, append, assert_refused, by_group, fault, line, read_csv, write_lines, write_run

from jqmix.analysis.figures import LearningCurve, Panel, draw_curves, parse_drawing
from jqmix.analysis.labels import parse_labels
from jqmix.analysis.report import report
from jqmix.analysis.statistics import Estimate
from jqmix.analysis.tables import Table, latex_table, metric_name
from jqmix.cli import main

MIXERS = {"qmix": [0.8, 0.9, 1.0], "vdn": [0.3, 0.4, 0.5]}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of two runs on one environment, of three seeds each: runs/qmix and runs/vdn."""
    monkeypatch.chdir(tmp_path)
    for mixer, finals in MIXERS.items():
        write_run(tmp_path / "runs" / mixer, finals, **{"algo.mixer": mixer})
    return tmp_path / "runs"


# Names


@pytest.mark.parametrize(
    "what",
    [
        "runs/vdn",
        "algo.mixer=vdn",
        "algo.mixer=vdn, algo.double_q=true",
        "smax_3m, algo.mixer=vdn",
        "./runs/../runs/vdn/",
    ],
)
def test_a_group_is_named_by_its_run_or_its_settings(what, runs, drawn):
    rows, folder = report([runs], labels=parse_labels([f"VDN = {what}", "Q|$x_1$=runs/qmix"]))
    assert [row["group"] for row in rows] == ["smax_3m, VDN", "smax_3m, Q|$x_1$"]  # in the order of the labels
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["VDN", r"Q|\$x_1\$"]
    assert "| smax_3m, VDN |" in (folder / "report.md").read_text()
    assert {row["group"] for row in read_csv(folder / "curves.csv")} == {row["group"] for row in rows}


def test_settings_name_a_group_of_which_they_are_no_part_of_the_name(tmp_path):
    (row,), _ = report([write_run(tmp_path / "run", [0.5])], labels={"QMIX": "algo.mixer=qmix"})
    assert row["group"] == "smax_3m, QMIX"


def test_what_has_no_name_keeps_its_own(runs):
    rows, _ = report([runs], labels={"VDN": "algo.mixer=vdn"})
    assert [row["group"] for row in rows] == ["smax_3m, VDN", "smax_3m, algo.mixer=qmix"]


def test_groups_of_the_same_name_in_several_environments_are_taken_together(tmp_path):
    """Their own labels differ, as the two are tuned apart."""
    for env, rate in (("smax_3m", 0.1), ("smax_8m", 0.2)):
        for mixer, finals in MIXERS.items():
            write_run(tmp_path / env / mixer, finals, **{"env.name": env, "algo.mixer": mixer, "optim.lr": rate})
    write_run(tmp_path / "smax_8m" / "other", [0.1], **{"env.name": "smax_8m", "optim.lr": 0.3, "algo.mixer": "iql"})
    rows, _ = report([tmp_path / "smax_3m", tmp_path / "smax_8m"], tmp_path / "plain")
    assert not [row for row in rows if "together" in row["group"]]
    labels = {"QMIX": "algo.mixer=qmix", "VDN": "algo.mixer=vdn"}
    rows, _ = report([tmp_path / "smax_3m", tmp_path / "smax_8m"], tmp_path / "named", labels=labels)
    assert [row["group"] for row in rows if "together" in row["group"]] == [
        "2 environments together, QMIX",
        "2 environments together, VDN",
    ]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["VDN"], "labels: 'VDN' must look like NAME=RUN_DIR or NAME=GROUP"),
        (["=runs/vdn"], "must look like"),
        (["A=runs/vdn", "A=runs/qmix"], "labels: 'A' is given twice"),
        (["A=nowhere"], "groups are 'algo.mixer=qmix', 'algo.mixer=vdn'"),
        (["A=runs/vdn", "B=algo.mixer=vdn"], "labels: 'A' and 'B' both name smax_3m, algo.mixer=vdn"),
        (["A=runs"], "labels: 'A' would be 2 groups of smax_3m"),
        (["algo.mixer=runs/qmix", "A=a\0b"], "labels: 'a\\x00b' is not allowed"),
    ],
)
def test_names_are_checked(labels, says, runs, capsys):
    assert_refused(["report", "runs", "--labels", *labels], says, capsys)
    assert not (runs / "report").exists()


# Metrics


def test_a_trainings_own_number(runs, drawn):
    """Not in every line: it is there where there was something to tell of."""
    for mixer, loss in (("qmix", 0.5), ("vdn", 1.5)):
        lines = [line(i, s, win_rate=0.5) | {"train/loss": loss + i} for s in (100, 200) for i in range(3)]
        lines[0].pop("train/loss")
        write_lines(runs / mixer, lines)
    rows, folder = report([runs], metric="train/loss")
    assert {row["group"]: (row["metric"], row["iqm"]) for row in rows} == {
        "smax_3m, algo.mixer=qmix": ("train/loss", 1.5),
        "smax_3m, algo.mixer=vdn": ("train/loss", 2.5),
    }
    text = (folder / "report.md").read_text()
    assert text.startswith("# Results: training loss\n")
    assert "| training loss |" in text
    assert drawn[0].axes[0].get_ylabel() == "training loss"
    assert "train/loss" in read_csv(folder / "raw.csv")[0]
    # Less is better here, or nothing is: nobody is the best.
    assert "## " in text
    assert "Probability of improvement" not in text
    assert not (folder / "improvement.csv").exists()


def test_returns_where_win_rates_are(tmp_path):
    lines = [line(0, s, win_rate=0.5, return_mean=s / 10) for s in (100, 200)]
    run = write_run(tmp_path / "run", [0.5])
    write_lines(run, lines)
    (row,), _ = report([run], metric="eval/return_mean")
    assert (row["metric"], row["iqm"]) == ("eval/return_mean", 20.0)


def test_metrics_are_checked(runs, capsys):
    says = "metric: 'eval/return_mean' is not allowed; all of these runs have eval/episodes, eval/win_rate, train/loss"
    assert_refused(["report", "runs", "--metric", "eval/return_mean"], says, capsys)
    assert_refused(["report", "runs", "--metric", "wall_s"], "metric: 'wall_s' is not allowed", capsys)
    append(runs / "vdn", line(0, 400, win_rate=0.5) | {"train/only_here": 1.0})
    assert_refused(["report", "runs", "--metric", "train/only_here"], "is not allowed", capsys)
    assert not (runs / "report").exists()


def test_metrics_have_plain_names():
    names = {metric: metric_name(metric) for metric in ("eval/win_rate", "train/q_taken", "eval/length_mean")}
    assert list(names.values()) == ["greedy win rate", "training q taken", "greedy length"]


# Figures


def test_kinds_and_size_of_figures(runs, capsys):
    assert main(["report", "runs", "--format", "svg,png,pdf", "--size", "5x2.5"]) == 0
    folder = runs / "report"
    assert imread(folder / "report.png").shape[:2] == (500, 1000)
    text = (folder / "report.svg").read_text()
    assert ">environment steps</text>" in text  # text, no outlines of letters
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert b"/FontFile2" in (folder / "report.pdf").read_bytes()  # a font that is embedded as it is
    assert "![Learning curves](report.svg)" in (folder / "report.md").read_text()
    assert main(["report", "runs", "--format", "pdf", "--overwrite"]) == 0
    assert "\n[Learning curves](report.pdf)" in (folder / "report.md").read_text()


def test_nothing_of_an_earlier_report_is_left_beside_a_new_one(runs):
    """Its figures and comparisons are of other runs; what is not a report's stays."""
    _, folder = report([runs], drawing=parse_drawing(formats="png,svg"))
    (folder / "notes.txt").write_text("mine")
    assert (folder / "improvement.csv").exists()
    report([runs / "qmix"], folder, overwrite=True, drawing=parse_drawing(formats="pdf"))
    held = {"report.md", "report.pdf", "tables.tex", "curves.csv", "efficiency.csv", "raw.csv", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == held
    # A folder of one's own holds no earlier report.
    (runs / "mine").mkdir()
    (runs / "mine" / "curves.pdf").write_text("mine")
    report([runs / "qmix"], runs / "mine", overwrite=True)
    assert (runs / "mine" / "curves.pdf").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--format", "gif"], "format: 'gif' is not allowed; it takes png, svg, pdf"),
        (["--format", "png,,"], "format: '' is not allowed"),
        (["--size", "small"], "size: 'small' is not allowed; it takes one of column, wide, or WIDTHxHEIGHT in inches"),
        (["--size", "5"], "size: '5'"),
        (["--size", "0.1x5"], "size: '0.1x5'"),
        (["--size", "5x1e3"], "size: '5x1e3'"),
        (["--size", "1.1.1x5"], "size: '1.1.1x5'"),
        (["--over", "hours"], "over: 'hours' is not allowed; it takes one of steps, seconds"),
        (["--marl-eval", "nowhere/x.json"], "marl_eval: nowhere/x.json cannot be made: nowhere is not a folder"),
        (["--marl-eval", "runs"], "marl_eval: runs already exists and is not a file"),
    ],
)
def test_flags_are_checked(flags, says, runs, capsys):
    assert_refused(["report", "runs", *flags], says, capsys)
    assert not (runs / "report").exists()


def curve(label, n_seeds=3, last=500_000):
    x = np.linspace(last / 5, last, 5)
    iqm = np.linspace(0.1, 0.9, 5)
    return LearningCurve(label, x, Estimate(iqm, iqm - 0.1, iqm + 0.1), np.tile(iqm, (n_seeds, 1)))


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (4, 1)])
def test_a_column_holds_one_panel_beside_another_only_where_both_are_legible(panels, columns, tmp_path, drawn):
    shown = [Panel(f"environment {i}", "win rate", [curve("QMIX"), curve("VDN")], (0.0, 1.0)) for i in range(panels)]
    draw_curves(shown, tmp_path / "x.png", parse_drawing("column"))
    (figure,) = drawn
    assert figure.get_figwidth() == 3.3
    assert len({round(ax.get_position().x0, 3) for ax in figure.axes}) == columns
    for ax in figure.axes:
        width, height = ax.get_window_extent().size / figure.dpi
        assert width > 2
        assert height > 1
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
            assert text.get_fontsize() >= 7.5


def test_long_labels_go_on_in_another_line(tmp_path, drawn):
    label = ", ".join(f"replay.capacity_{i}=4096" for i in range(4))
    draw_curves([Panel("one", "win rate", [curve(label)])], tmp_path / "x.png", parse_drawing("column"))
    (figure,) = drawn
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert not legend.overlaps(figure.axes[0].get_tightbbox())


@pytest.mark.parametrize(
    ("last", "ticks"),
    [(800, {"200", "400"}), (80_000, {"20 k"}), (500_000, {"100 k"}), (2_000_000, {"0.5 M", "1 M"}), (4e9, {"1 G"})],
)
def test_steps_are_spelled_in_one_unit(last, ticks, tmp_path, drawn):
    draw_curves([Panel("one", "win rate", [curve("a", last=last)])], tmp_path / "x.png")
    (ax,) = drawn[0].axes
    shown = {text.get_text() for text in ax.get_xticklabels()} - {"0"}
    assert ticks <= shown
    assert len({re.sub("[^kMG]", "", text) for text in shown}) == 1
    assert ax.get_xlabel() == "environment steps"


def test_seeds_are_faint_and_behind(tmp_path, drawn):
    draw_curves([Panel("one", "win rate", [curve("a", 3), curve("b", 1)])], tmp_path / "x.png")
    (ax,) = drawn[0].axes
    seeds = [c for c in ax.collections if len(c.get_segments() if hasattr(c, "get_segments") else []) > 0]
    assert [len(c.get_segments()) for c in seeds] == [3]  # a single seed is the curve itself
    assert seeds[0].get_alpha() < 0.5
    assert seeds[0].zorder < ax.lines[0].zorder


def test_curves_over_time(runs, drawn, capsys):
    for mixer, pace in (("qmix", 2.0), ("vdn", 4.0)):
        lines = [line(i, s, win_rate=0.5) | {"wall_s": s / 100 * pace + i} for s in (100, 200) for i in range(3)]
        write_lines(runs / mixer, lines)
    assert main(["report", "runs", "--over", "seconds"]) == 0
    (ax,) = drawn[0].axes
    assert [x.get_xdata().tolist() for x in ax.lines] == [[3, 5], [5, 9]]  # the mean over seeds
    assert ax.get_xlabel() == "time (s)"
    write_lines(runs / "vdn", [{k: v for k, v in x.items() if k != "wall_s"} for x in lines])
    assert_refused(
        ["report", "runs", "--over", "seconds", "--overwrite"],
        "over: smax_3m, algo.mixer=vdn has no wall_s in its metrics",
        capsys,
    )


# Comparisons


def test_steps_and_seconds_to_shares_of_the_best(runs):
    """QMIX ends at 0.9 in a straight line by way of 0.3 and 0.6; half of that, 0.45, is VDN's never."""
    _, folder = report([runs])
    rows = read_csv(folder / "efficiency.csv")
    assert [(row["group"], row["percent"]) for row in rows[:3]] == [
        ("smax_3m, algo.mixer=qmix", percent) for percent in ("50", "80", "95")
    ]
    np.testing.assert_allclose([float(row["level"]) for row in rows[:3]], [0.45, 0.72, 0.855])
    assert [float(row["env_steps"]) for row in rows] == [200, 300, 300, np.inf, np.inf, np.inf]
    assert [float(row["seconds"]) for row in rows] == [1.5, 1.5, 1.5, np.inf, np.inf, np.inf]
    # Where QMIX's seeds are all drawn the worst, 0.8, its curve ends below 0.855.
    assert (float(rows[2]["env_steps_low"]), float(rows[2]["env_steps_high"])) == (300, np.inf)
    text = (folder / "report.md").read_text()
    assert "| 200 | 300 | 300 [300, not reached] | 2 | 2 | 2 [2, not reached] |" in text
    assert "| smax_3m, algo.mixer=vdn | 0.45 / 0.72 / 0.855 | not reached [300, not reached] | not reached |" in text


def test_shares_of_returns_below_zero_are_of_the_way_there(tmp_path):
    run = write_run(tmp_path / "run", [0, 0], metric="return_mean")
    values = {100: -90.0, 200: -65.0, 300: -45.0, 400: -40.0}
    write_lines(run, [line(i, s, return_mean=v) for s, v in values.items() for i in (0, 1)])
    _, folder = report([run])
    rows = read_csv(folder / "efficiency.csv")
    np.testing.assert_allclose([float(row["level"]) for row in rows], [-65, -50, -42.5])
    assert [float(row["env_steps"]) for row in rows] == [200, 300, 400]
    write_lines(run, [line(i, s, return_mean=-90.0) for s in (100, 200) for i in (0, 1)])
    _, folder = report([run], tmp_path / "nothing_learned")
    assert not (folder / "efficiency.csv").exists()


def test_the_best_group_beside_the_others(runs):
    """By hand: QMIX's 0.8, 0.9, 1 against 0.8, 0.8, 0.9; every seed of VDN is below."""
    write_run(runs / "iql", [0.8, 0.8, 0.9], **{"algo.mixer": "iql"})
    write_lines(runs / "vdn", [line(0, 300, win_rate=0.1)])
    _, folder = report([runs])
    rows = {row["other"].rpartition("=")[2]: row for row in read_csv(folder / "improvement.csv")}
    assert {row["group"] for row in rows.values()} == {"smax_3m, algo.mixer=qmix"}
    assert float(rows["iql"]["probability"]) == pytest.approx((1 + 2.5 + 3) / 9)
    assert float(rows["iql"]["low"]) < 0.6 < 0.9 < float(rows["iql"]["high"]) <= 1
    assert (rows["vdn"]["probability"], rows["vdn"]["low"], rows["vdn"]["other_seeds"]) == ("1.0", "", "1")
    text = (folder / "report.md").read_text()
    assert "| smax_3m, algo.mixer=qmix | smax_3m, algo.mixer=vdn | 1.000 | 3 / 1 |" in text


def test_the_best_group_is_the_best_in_the_end(runs):
    """QMIX was better before it fell."""
    curve = {100: 1.0, 200: 1.0, 300: 0.2}
    write_lines(runs / "qmix", [line(i, s, win_rate=v) for s, v in curve.items() for i in (0, 1)])
    _, folder = report([runs])
    (row,) = read_csv(folder / "improvement.csv")
    assert (row["group"], row["other"]) == ("smax_3m, algo.mixer=vdn", "smax_3m, algo.mixer=qmix")
    levels = {row["percent"]: float(row["level"]) for row in read_csv(folder / "efficiency.csv")}
    assert levels == pytest.approx({"50": 0.2, "80": 0.32, "95": 0.38})


def test_seeds_are_compared_within_their_environment(tmp_path):
    """By hand: QMIX is above VDN in all pairs of 3m and in half of those of 8m. Its seeds of one environment are alike,
    so what resamples draw within each makes no difference."""
    finals = {"smax_3m": ([0.9, 0.9], [0.1, 0.2]), "smax_8m": ([0.2, 0.2], [0.1, 0.4])}
    for env, by_mixer in finals.items():
        for mixer, values in zip(MIXERS, by_mixer, strict=True):
            write_run(tmp_path / env / mixer, values, **{"env.name": env, "algo.mixer": mixer})
    _, folder = report([tmp_path])
    together = "2 environments together, algo.mixer=qmix"
    (row,) = [row for row in read_csv(folder / "improvement.csv") if row["group"] == together]
    assert float(row["probability"]) == pytest.approx((1 + 0.5) / 2)
    rows = [row for row in read_csv(folder / "efficiency.csv") if row["group"] == together]
    assert [[row[f"env_steps{end}"] for end in ("", "_low", "_high")] for row in rows] == [
        ["200.0"] * 3,
        ["300.0"] * 3,
        ["300.0"] * 3,
    ]


def test_a_seed_that_diverged_is_in_no_comparison(runs):
    append(runs / "qmix", fault(2, 300))
    _, folder = report([runs])
    (row,) = read_csv(folder / "improvement.csv")
    assert (row["seeds"], row["other_seeds"]) == ("2", "3")


# LaTeX


def test_latex_has_no_character_that_means_something_else():
    text = latex_table(
        Table("50 % & more", ["a_b", "P(A > B)"], [["[x] {y} $z$ #1 ~ ^ \\ |", "0.1 – 0.2"], ["λ", "1"]])
    )
    lines = [x.strip() for x in text.splitlines()]
    assert lines == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% \& more}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & P(A $>$ B) \\",
        r"\midrule",
        r"{[}x] \{y\} \$z\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} $|$ & 0.1 -- 0.2 \\",
        "λ & 1 \\\\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_every_table_is_there_in_latex(runs):
    _, folder = report([runs])
    text = (folder / "tables.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    for row in re.findall(r"^    (.*) \\\\$", text, re.MULTILINE):
        assert re.search(r"(?<!\\)[_%#]", row) is None
    assert r"smax\_3m, algo.mixer=qmix & greedy win rate & 3 & 300 & 0.900 &" in text


# marl-eval


@pytest.fixture
def marl_eval_runs(tmp_path):
    """Two tasks, two algorithms, two seeds, each with an absolute metric."""
    for env in ("smax_3m", "smax_2s3z"):
        for mixer, finals in {"qmix": [0.6, 0.9], "vdn": [0.3, 0.6]}.items():
            run = write_run(tmp_path / "runs" / env / mixer, finals, **{"env.name": env, "algo.mixer": mixer})
            append(run, *(absolute(i, 300, final + 0.05) for i, final in enumerate(finals)))
    return tmp_path / "runs"


def test_marl_eval(marl_eval_runs, tmp_path, capsys):
    path = tmp_path / "data.json"
    argv = ["report", str(marl_eval_runs), "--marl-eval", str(path), "--labels", "QMIX, ours=algo.mixer=qmix"]
    assert main(argv) == 0
    assert capsys.readouterr().err == ""
    tree = json.loads(path.read_text())
    assert {env: {task: list(named) for task, named in tasks.items()} for env, tasks in tree.items()} == {
        "smax": {task: ["QMIX; ours", "algo.mixer=vdn"] for task in ("2s3z", "3m")}
    }
    assert list(tree["smax"]["3m"]["QMIX; ours"]) == ["seed_0", "seed_1"]
    seed = tree["smax"]["3m"]["QMIX; ours"]["seed_1"]
    assert list(seed) == ["step_0", "step_1", "step_2", "absolute_metrics"]
    assert seed["step_2"] == {"step_count": 300, "elapsed_time": 1.5, "win_rate": [0.9]}
    assert seed["absolute_metrics"] == {"return": [9.0], "win_rate": [pytest.approx(0.95)]}
    # Nothing is overwritten unless told to.
    before = path.read_text()
    assert_refused([*argv, "--out", str(tmp_path / "new")], "data.json already exists; nothing was overwritten", capsys)
    assert not (tmp_path / "new").exists()
    append(marl_eval_runs / "smax_3m" / "qmix", fault(0, 300))
    assert main([*argv, "--overwrite"]) == 0
    assert "marl-eval needs as many seeds of every algorithm" in capsys.readouterr().err
    assert path.read_text() != before
    assert "seed_0" not in json.loads(path.read_text())["smax"]["3m"]["QMIX; ours"]


def test_what_marl_eval_would_refuse_is_said(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", [0.5, 0.6])
    write_run(tmp_path / "runs" / "b", [0.5], **{"env.name": "smax_8m", "algo.mixer": "vdn"})
    write_lines(tmp_path / "runs" / "b", [line(0, 100, win_rate=0.5)])
    write_run(tmp_path / "runs" / "c", [1, 2], metric="return_mean", **{"env.name": "matrix_game"})
    assert main(["report", str(tmp_path / "runs"), "--marl-eval", str(tmp_path / "x.json")]) == 0
    smax, game = capsys.readouterr().err.splitlines()
    for missing in ("as many seeds", "absolute metrics", "as many evaluations"):
        assert missing in smax
    assert game == (
        "jqmix: marl_eval: matrix_game: marl-eval needs absolute metrics of every seed (of a run that ended, with "
        "eval.absolute)"
    )
    assert json.loads((tmp_path / "x.json").read_text()).keys() == {"smax", "matrix_game"}


@pytest.mark.slow
def test_marl_evals_own_loader_reads_it(marl_eval_runs, tmp_path):
    """``pip install --no-deps id-marl-eval colorama``: its plots need packages that ours do not go with."""
    processing = pytest.importorskip("marl_eval.utils.data_processing_utils")
    diagnosis = pytest.importorskip("marl_eval.utils.diagnose_data_errors")
    for env in marl_eval_runs.iterdir():  # absolute metrics have a return, and so must evaluations
        for run in env.iterdir():
            lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
            scored = [x | {"eval/return_mean": 2.0 * x["eval/win_rate"]} for x in lines if "eval/win_rate" in x]
            write_lines(run, [*scored, *(x for x in lines if "eval/win_rate" not in x)])
    rows, _ = report([marl_eval_runs], marl_eval=tmp_path / "data.json")
    raw = json.loads((tmp_path / "data.json").read_text())
    checked = diagnosis.DiagnoseData(raw).check_data()["smax"]
    # Its own logger writes elapsed_time beside evaluations and not beside absolute metrics, and so do we.
    assert {name for name, valid in checked.items() if not valid} == {"valid_metrics"}
    processed = processing.data_process_pipeline(raw, ["return"])
    assert processed["extra"]["number_of_steps"] == 3
    assert processed["extra"]["number_of_runs"] == 2
    assert processed["extra"]["environment_list"] == {"smax": ["2s3z", "3m"]}
    final, curves = processing.create_matrices_for_rliable(processed, "smax", ["return"])
    assert set(final) == {"mean_win_rate", "mean_norm_return"}
    np.testing.assert_allclose(final["mean_win_rate"]["algo.mixer=qmix"], [[0.65, 0.65], [0.95, 0.95]])
    np.testing.assert_allclose(curves["mean_win_rate"]["algo.mixer=vdn"][:, 0], [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]])
    task = processing.get_and_aggregate_data_single_task(processed, "win_rate", [], "3m", "smax")
    assert task["algo.mixer=qmix"]["mean"][-1] == pytest.approx(by_group(rows)["smax_3m, algo.mixer=qmix"]["iqm"])
