"""The SMAX learning suite: what is trained in which order; that nothing is lost or done twice; the report's numbers.

Most tests have a stand-in for jqmix, which trains nothing, but keeps run directories as jqmix does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import smax_suite
import smax_suite_report

ROOT = Path(__file__).parents[1]

TINY = """
base:
  config: smax_3m
  agent.hidden: 8
  mixer: {embed: 8, hypernet_hidden: 8}
  rollouts: 2
  updates: 2
  replay: {capacity: 64, batch: 2}
  eval: {every: 1000, absolute: 1}
  checkpoint.every: 1000
vdn: {algo.mixer: vdn}
"""

STAND_IN = """
import json, os, pathlib, shutil, signal, sys, time, yaml
command, where = sys.argv[1:3]
source = pathlib.Path(where) if command == "train" else pathlib.Path(where, "config.yaml")
cfg = yaml.safe_load(source.read_text())
run = pathlib.Path(cfg["run_dir"])
with open(os.environ["STARTS"], "a") as file:
    print(command, run, *sorted(os.sched_getaffinity(0)), file=file)
if cfg["algo"]["mixer"] == "iql":
    print("no such luck", file=sys.stderr)
    sys.exit(3)
if command == "train":
    run.mkdir(parents=True)
    shutil.copy(source, run / "config.yaml")
    about = {"versions": {"jqmix": "1", "jax": "2", "jaxmarl": "3"}, "commit": "abc", "replay_ratio": {}}
    (run / "metadata.json").write_text(json.dumps(about | {"device": {"count": 1, "kind": "cpu"}}))
    (run / "metrics.jsonl").touch()
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
steps = 1000 * len((run / "metrics.jsonl").read_text().splitlines()) // cfg["seeds"]
with (run / "metrics.jsonl").open("a") as file:
    while steps < cfg["total_steps"] and not stopped:
        time.sleep(0.02)
        steps += 1000
        for i in range(cfg["seeds"]):
            line = {"env_steps": steps, "updates": 1, "member": i, "seed": cfg["seed"] + i, "wall_s": steps / 500}
            line |= {"eval/win_rate": (i + 1) / 3, "eval/return_mean": 1.5, "eval/episodes": 128}
            print(json.dumps(line), file=file, flush=True)
(run / "checkpoints" / ("1" if stopped else "1_final")).mkdir(parents=True)
sys.exit(143 if stopped else 0)
"""

SUITE = [sys.executable, "-c", (
    "import os, sys; sys.path.insert(0, os.environ['BENCHMARKS']); import smax_suite; "
    "smax_suite.JQMIX = [sys.executable, os.environ['STAND_IN']]; smax_suite.device_platform = lambda: 'cpu'; "
    "sys.exit(smax_suite.main(sys.argv[1:]))"
)]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with candidates, where the stand-in trains."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "stand_in.py"))
    monkeypatch.setenv("BENCHMARKS", str(ROOT / "benchmarks"))
    monkeypatch.setattr(smax_suite, "JQMIX", [sys.executable, str(tmp_path / "stand_in.py")])
    monkeypatch.setattr(smax_suite, "device_platform", lambda: "cpu")
    return tmp_path


def words(*more, steps=3000, seeds=(0,), maps=("3m",)):
    said = ["run", "--out", "out", "--candidates", "tiny.yaml", "--total-steps", str(steps)]
    return [*said, "--seeds", *map(str, seeds), "--maps", *maps, *map(str, more)]


def starts(here):
    path = here / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# What is trained


def test_something_of_every_algorithm_and_map_comes_early(here, capsys):
    assert smax_suite.main(words(seeds=(4, 2), maps=("3m", "8m"))) == 0
    places = [place for _, place, *_ in starts(here)]
    assert places == [f"out/{a}/{m}/{s}" for s in (4, 2) for m in ("3m", "8m") for a in ("base", "vdn")]
    assert "0 of 8 runs are left" in capsys.readouterr().out
    assert smax_suite.main(words(seeds=(4, 2), maps=("3m", "8m"))) == 0
    assert len(starts(here)) == 8  # nothing was left


def test_a_candidate_without_a_config_changes_base(here):
    found = smax_suite.read_candidates(here / "tiny.yaml")
    runs = [smax_suite.make_run(here, found[name], "2s3z", range(7, 8), 5000) for name in ("base", "vdn")]
    assert [(run.cfg.algo.mixer, run.cfg.agent.hidden) for run in runs] == [("qmix", 8), ("vdn", 8)]
    assert all((run.cfg.env.name, run.cfg.seed, run.cfg.total_steps) == ("smax_2s3z", 7, 5000) for run in runs)


def test_the_kept_candidates_can_be_run(tmp_path):
    for candidate in smax_suite.find_candidates(None, ROOT / "benchmarks" / "smax_candidates.yaml"):
        smax_suite.make_run(tmp_path, candidate, "2s3z", range(100, 101), 500_000)


def test_all_maps():
    assert smax_suite.find_maps(["all"]) == list(smax_suite.SMAX_MAPS)
    assert set(smax_suite.MAPS) <= set(smax_suite.SMAX_MAPS)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--maps", "3x"], "maps: no map '3x'; there are 3m, "),
        (["--algorithms", "smox_3m"], "smox_3m: config: no file or preset 'smox_3m'; presets include smax_3m"),
        (["--algorithms", "a/b.yaml"], "algorithms: 'a/b.yaml' can't name a folder"),
        (["--candidates", "none.yaml"], "none.yaml: cannot be read: No such file"),
        (["--candidates", "few.yaml"], "few: eval.episodes: 64 are too few; the suite takes 128 or more"),
        (["--candidates", "own.yaml"], "own: seed: not a candidate's to choose"),
        (["--candidates", "idle.yaml"], "idle: mixer.embed: has no effect with algo.mixer vdn"),
        (["--candidates", "bare.yaml"], "bare.yaml: x: config is missing"),
        (["--candidates", "list.yaml"], "list.yaml: candidates are a mapping of names"),
        (["--seeds", "x"], "argument --seeds: 'x' is not a number from 0"),
        (["--minutes", "nan"], "argument --minutes: 'nan' is not a number from 0"),
        (["--out", "tiny.yaml/x"], "out: tiny.yaml/x/run cannot be made: tiny.yaml is not a folder"),
        (["--workers", "4000"], "cores: 4000 × 1 are more than the "),
    ],
)
def test_wrong_input_is_one_line(here, capsys, more, says):
    texts = {
        "few": "few: {config: smax_3m, eval.episodes: 64}",
        "own": "own: {config: smax_3m, seed: 1}",
        "idle": "idle: {config: smax_3m, algo.mixer: vdn, mixer.embed: 4}",
        "bare": "x: {algo.mixer: vdn}",
        "list": "[base]",
    }
    for name, text in texts.items():
        (here / f"{name}.yaml").write_text(text)
    try:
        code = smax_suite.main(words(*more))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1
    assert not starts(here)


def test_other_settings_than_a_run_was_begun_with(here, capsys):
    assert smax_suite.main(words()) == 0
    assert smax_suite.main(words(steps=4000)) == 2
    assert "base: total_steps: 4000 now, but out/base/3m/0 was begun with 3000" in capsys.readouterr().err
    (here / "tiny.yaml").write_text(TINY.replace("updates: 2", "updates: 4"))
    assert smax_suite.main(words()) == 2
    assert "base: updates: 4 now, but out/base/3m/0 was begun with 2" in capsys.readouterr().err


def test_a_seed_is_in_one_run(here, capsys):
    assert smax_suite.main(words("--algorithms", "base")) == 0
    assert smax_suite.main(words("--algorithms", "base", "--together", seeds=(0, 1))) == 2
    assert "seeds: base on 3m has 0 in out/base/3m/0 already" in capsys.readouterr().err
    assert smax_suite.main(words("--algorithms", "base", "--together", seeds=(1, 2))) == 0
    assert smax_suite.main(words("--algorithms", "base", seeds=(2,))) == 2
    assert "seeds: base on 3m has 2 in out/base/3m/1-2 already" in capsys.readouterr().err


# Nothing is lost, nothing is done twice


def test_a_slice_ends_and_the_next_call_goes_on(here, capsys):
    args = words("--algorithms", "base", "--minutes", 0.02, steps=100_000)
    assert smax_suite.main(args) == 0
    out = capsys.readouterr().out
    assert "base on 3m, seed 0: stopped; " in out and "1 of 1 runs are left: about " in out
    lines = (here / "out/base/3m/0/metrics.jsonl").read_text()
    assert 0 < lines.count("\n") < 100
    assert smax_suite.main(words("--algorithms", "base", steps=100_000)) == 0
    assert [command for command, *_ in starts(here)] == ["train", "resume"]
    after = (here / "out/base/3m/0/metrics.jsonl").read_text()
    assert after.startswith(lines) and after.count("\n") == 100


def test_a_signal_stops_it_with_what_was_trained_saved(here):
    suite = subprocess.Popen([*SUITE, *words(steps=10**7)], stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len(starts(here)) == 1 and (here / "out/base/3m/0/metrics.jsonl").exists())
    suite.send_signal(signal.SIGTERM)
    assert "2 of 2 runs are left" in suite.communicate()[0]
    assert suite.returncode == 128 + signal.SIGTERM
    assert (here / "out/base/3m/0/checkpoints/1").is_dir()


def test_a_killed_suite_leaves_its_run_to_nobody_else(here):
    """The run goes on without it. Nobody begins it a second time, or takes its core."""
    suite = subprocess.Popen([*SUITE, *words("--algorithms", "base", steps=150_000)], stdout=subprocess.DEVNULL)
    wait_until(lambda: (here / "out/base/3m/0/metrics.jsonl").exists())
    suite.kill()
    suite.wait()
    assert smax_suite.main(words("--algorithms", "base", steps=150_000)) == 0
    assert len(starts(here)) == 1
    core = int(starts(here)[0][2])
    assert smax_suite.lock_file(here / "out" / f"core-{core}.lock") is None
    wait_until(lambda: list(here.glob("out/base/3m/0/checkpoints/*_final")))
    wait_until(lambda: (lock := smax_suite.lock_file(here / "out/base/3m/0.lock")) is not None and not os.close(lock))


def test_a_run_that_another_call_finished_just_now(here, monkeypatch):
    (candidate,) = smax_suite.find_candidates(["smax_3m"], None)
    run = smax_suite.make_run(here / "out", candidate, "3m", range(1), 3000)
    lock_file = smax_suite.lock_file
    (run.dir / "checkpoints").mkdir(parents=True)

    def finish_first(path):
        (run.dir / "checkpoints" / "1_final").mkdir()
        return lock_file(path)

    monkeypatch.setattr(smax_suite, "lock_file", finish_first)
    assert smax_suite.next_run([run], set()) is None
    lock = lock_file(run.beside("lock"))
    assert lock is not None  # it was let go
    os.close(lock)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_two_calls_share_runs_and_cores(here):
    both = [subprocess.Popen([*SUITE, *words(seeds=range(4), steps=30_000)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    every = [f"out/{name}/3m/{seed}" for name in ("base", "vdn") for seed in range(4)]
    assert sorted(place for _, place, _ in starts(here)) == every
    assert len({core for *_, core in starts(here)}) == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_two_workers_have_a_core_each(here):
    assert smax_suite.main(words("--workers", 2)) == 0
    cores = [cores for _, _, *cores in starts(here)]
    assert len(cores) == 2 and cores[0] != cores[1] and all(len(some) == 1 for some in cores)


def test_a_failed_run_does_not_stop_the_others(here, capsys):
    (here / "tiny.yaml").write_text("bad: {config: smax_3m, algo.mixer: iql}\nbase: {config: smax_3m}\n")
    assert smax_suite.main(words()) == 1
    out, err = capsys.readouterr()
    assert "base on 3m, seed 0: 3,000 steps, win rate 0.333" in out and "1 of 2 runs are left" in out
    assert err == "bad on 3m, seed 0: failed with 3: no such luck\n"


def test_an_accelerator_has_one_worker(here, monkeypatch, capsys):
    monkeypatch.setattr(smax_suite, "device_platform", lambda: "gpu")
    assert smax_suite.main(words("--workers", 2)) == 2
    assert "workers: 2 would share an accelerator; it takes 1" in capsys.readouterr().err
    assert smax_suite.main(words()) == 0
    assert {len(cores) for _, _, *cores in starts(here)} == {len(os.sched_getaffinity(0))}
    lock = smax_suite.lock_file(here / "out" / "gpu.lock")
    assert smax_suite.main(words()) == 2
    os.close(lock)
    assert "out: another call in out has the accelerator" in capsys.readouterr().err


def test_the_plan(here, capsys):
    """Two steps a millisecond were measured of one algorithm; the other has an estimate."""
    assert smax_suite.main(words("--algorithms", "base", steps=100_000)) == 0
    capsys.readouterr()
    assert smax_suite.main(words("--plan", steps=100_000, seeds=(0, 1))) == 0
    vdn, base, _, total, about = capsys.readouterr().out.splitlines()
    assert " ".join(base.split()) == "base on 3m, seed 1 100,000 steps left 500 steps/s (measured) 3.3 min"
    assert vdn.startswith("vdn on 3m, seed 0") and "steps/s (estimate)" in vdn
    assert total.startswith("3 of 4 runs are left: about 3.")
    assert about.startswith("Estimates are for two CPU cores")
    assert len(starts(here)) == 1


# Results


def test_collect(here, capsys):
    assert smax_suite.main(words("--algorithms", "base")) == 0
    assert smax_suite.main(words("--algorithms", "vdn", "--minutes", 0.01, steps=100_000)) == 0
    collect = ["collect", "--out", "out", "--json-dir", "json"]
    assert smax_suite.main(collect) == 0
    files = sorted(path.relative_to(here / "json") for path in (here / "json").rglob("*.json"))
    assert list(map(str, files)) == ["base/3m-0.json", "vdn/3m-0.json"]
    text = (here / "json/base/3m-0.json").read_text()
    found = json.loads(text)
    assert found["curve"] == {
        "env_steps": [1000, 2000, 3000],
        "updates": [1, 1, 1],
        "wall_s": [2, 4, 6],
        "win_rate": [0.33333] * 3,
        "return_mean": [1.5] * 3,
    }
    assert [found[name] for name in ("algorithm", "map", "seed", "env_steps", "commit")] == [
        "base",
        "3m",
        0,
        3000,
        "abc",
    ]
    assert (found["config"]["agent"]["hidden"], found["finished"], found["fault"]) == (8, True, None)
    assert "run_dir" not in found["config"] and len(text) < 4000
    partial = json.loads((here / "json/vdn/3m-0.json").read_text())
    assert not partial["finished"] and 0 < partial["env_steps"] < 100_000
    assert smax_suite.main(collect) == 0
    assert (here / "json/base/3m-0.json").read_text() == text
    # What goes further is kept, and another run's never overwritten.
    (here / "json/base/3m-0.json").write_text(further := text.replace('"env_steps": 3000', '"env_steps": 9000'))
    assert smax_suite.main(collect) == 0
    assert (here / "json/base/3m-0.json").read_text() == further
    (here / "json/base/3m-0.json").write_text(other := text.replace('"hidden": 8', '"hidden": 9'))
    assert smax_suite.main(collect) == 2
    assert "base/3m-0.json is of other settings; nothing was overwritten" in capsys.readouterr().err
    assert (here / "json/base/3m-0.json").read_text() == other


def test_seeds_together(here, capsys):
    assert smax_suite.main(words("--algorithms", "base", "--together", seeds=(3, 0, 1))) == 0
    said = capsys.readouterr().out
    assert [place for _, place, *_ in starts(here)] == ["out/base/3m/0-1", "out/base/3m/3"]
    assert "base on 3m, seeds 0-1: 3,000 steps, win rate 0.333, 0.667" in said
    assert "base on 3m, seed 3: 3,000 steps, win rate 0.333" in said
    assert smax_suite.main(["collect", "--out", "out", "--json-dir", "json"]) == 0
    found = [json.loads((here / f"json/base/3m-{seed}.json").read_text()) for seed in (0, 1, 3)]
    assert [one["curve"]["win_rate"][-1] for one in found] == [0.33333, 0.66667, 0.33333]
    assert [(one["seed"], one["config"]["seed"], one["config"]["seeds"]) for one in found] == [
        (0, 0, 2),
        (1, 0, 2),
        (3, 3, 1),
    ]


def put_seed(folder, algorithm, name, seed, rates, finished=True, fault=None, budget=2_000_000, **config):
    """A collected run that was evaluated every half a million steps, with these win rates."""
    steps = [500_000 * (i + 1) + 300 for i in range(len(rates))]
    curve = {"env_steps": steps, "wall_s": [step / 1000 for step in steps], "win_rate": rates}
    about = {
        "versions": {"jqmix": "1", "jax": "2", "jaxmarl": "3"},
        "commit": "c0ffee",
        "device": {"count": 1, "kind": "cpu"},
    }
    who = {
        "algorithm": algorithm,
        "map": name,
        "seed": seed,
        "total_steps": budget,
        "finished": finished,
        "fault": fault,
    }
    file = folder / algorithm / f"{name}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    config = {"env": {"name": f"smax_{name}"}, "optim": {"lr": 0.001}, "seed": seed, **config}
    file.write_text(json.dumps(who | about | {"config": config, "curve": curve}))


def table(text, title):
    """The rows of the table below a heading, as lists of cells."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return {row[0] if title != "On the way, map by map" else tuple(row[:2]): row for row in rows}


def test_the_reports_numbers(tmp_path, drawn):
    """Of eight scores 0.1 … 0.8, two are cut from either end: the IQM is (0.3 + 0.4 + 0.5 + 0.6) / 4."""
    scores = {"2s3z": (0.8, 0.3), "3m": (0.5, 0.7), "5m_vs_6m": (0.1, 0.2), "8m": (0.6, 0.4)}
    for name, pair in scores.items():
        for seed, score in enumerate(pair):
            put_seed(tmp_path / "json", "mine", name, seed, [0.0, score / 2, score / 2, score])
    put_seed(tmp_path / "json", "other", "2s3z", 0, [0.25, 0.5], finished=False, optim={"lr": 0.1})
    assert smax_suite.main(["report", "--json-dir", str(tmp_path / "json"), "--to", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.md").read_text()
    head, budget = (table(text, "At the budget")[name] for name in ("algorithm", "mine"))
    assert head[3:] == ["worst map", "3m", "8m", "2s3z", "5m_vs_6m"]
    assert budget[:2] == ["mine", "2 M"] and budget[2].startswith("0.450 [0.") and budget[3] == "0.150 (5m_vs_6m)"
    assert budget[4:] == ["0.600 (2)", "0.500 (2)", "0.550 (2)", "0.150 (2)"]
    other = table(text, "At the budget")["other"]
    assert budget[2].endswith("] (8 runs)")
    assert other[2:] == ["–", "–", "–", "–", "*0.500 (1) at 1.00 M*", "–"]
    way = table(text, "On the way")
    assert way["mine"][3].startswith("0.450 [0.") and way["mine"][4:] == ["–", "–"]
    assert way["mine"][2].startswith("0.225 [0.") and way["mine"][2].endswith(" (8 runs); 0.075 (5m_vs_6m)")
    assert way["other"][2] == "0.500 (1 run, 1 of 4 maps); 0.500 (2s3z)"
    published = {"PQN-VDN": "0.48 0.83 0.95", "QMIX": "0.07 0.40 0.66", "VDN": "0.07 0.42 0.63"}
    for name, numbers in (published | {"MAPPO": "0.45 0.66 0.79"}).items():
        row = way[f"{name} (published, SMAX before JaxMARL 0.2, eleven maps)"]
        assert row[1:] == ["–", "–", *numbers.split()]
    assert table(text, "On the way, map by map")[("2s3z", "other")][2:] == ["0.250 (1)", "0.500 (1)", "–", "–", "–"]
    assert table(text, "Settings")["other"][1] == "optim.lr=0.1"
    assert "Not finished: other on 2s3z, seed 0: 1,000,300 steps." in text
    for figure in drawn:
        *maps, together = figure.axes
        assert [ax.get_title() for ax in maps] == ["3m", "8m", "2s3z", "5m_vs_6m"]
        assert together.get_title() == "IQM over 4 maps" and len(together.lines) == 1
        assert together.lines[0].get_ydata()[-1] == pytest.approx(0.45)
    assert [figure.axes[0].get_xlabel() for figure in drawn] == ["environment steps", "time (min)"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", "steps.png", "seconds.png"}


def test_a_run_that_diverged_has_lost(tmp_path):
    put_seed(tmp_path, "mine", "3m", 0, [0.9], fault="the loss is not finite")
    (seed,) = smax_suite_report.read_seeds([tmp_path])
    assert (seed.at(500_000), seed.at(2_000_000)) == (0.9, 0.0)
    smax_suite_report.write_report([tmp_path], tmp_path / "report", overwrite=False)
    text = (tmp_path / "report/report.md").read_text()
    assert table(text, "At the budget")["mine"][2] == "0.000 (1 run)"
    assert "**Diverged**: mine on 3m, seed 0" in text


def test_budgets_are_told_apart(tmp_path):
    put_seed(tmp_path / "a", "mine", "3m", 0, [0.1, 0.2])
    put_seed(tmp_path / "b", "mine", "3m", 0, [0.1, 0.2], budget=1_000_000)
    smax_suite_report.write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report", overwrite=False)
    assert {"mine, 2 M", "mine, 1 M"} <= table((tmp_path / "report/report.md").read_text(), "Settings").keys()


def test_a_report_of_nothing_or_of_something_else(tmp_path, capsys):
    def says(*folders):
        assert smax_suite.main(["report", "--json-dir", *map(str, folders), "--to", str(tmp_path / "report")]) == 2
        assert not (tmp_path / "report").exists()
        return capsys.readouterr().err

    assert smax_suite.main(["collect", "--out", str(tmp_path / "none"), "--json-dir", str(tmp_path)]) == 2
    assert "none has no runs with evaluations" in capsys.readouterr().err
    assert smax_suite.main(["collect", "--out", str(tmp_path), "--json-dir", __file__]) == 2
    assert "json_dir: " in capsys.readouterr().err
    assert "json_dir: no results of evaluated runs" in says(tmp_path / "none")
    put_seed(tmp_path / "a", "mine", "3m", 0, [0.1])
    put_seed(tmp_path / "b", "mine", "3m", 0, [0.1])
    assert "are the same run" in says(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a/mine/3m-1.json").write_text("{}")
    assert "3m-1.json: not a result of the suite" in says(tmp_path / "a")


# With jqmix itself


@pytest.mark.slow
def test_killed_while_training(tmp_path, monkeypatch):
    """With kill -9 on jqmix, then on the suite: it goes on from a checkpoint, and its clock goes on, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, str(ROOT / "benchmarks" / "smax_suite.py"), *words("--algorithms", "base", steps=30_000)]
    run = tmp_path / "out/base/3m/0"
    suite = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(run.glob("checkpoints/*/manifest.json")), 120)
    child = Path(f"/proc/{suite.pid}/task/{suite.pid}/children").read_text().split()
    os.kill(int(child[0]), signal.SIGKILL)
    assert "base on 3m, seed 0: failed with -9" in suite.communicate()[1]
    assert suite.returncode == 1
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert "0 of 1 runs are left" in done.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/win_rate" in line]
    assert [line["env_steps"] // 1000 for line in evaluated][-1] >= 30
    clock = [line["wall_s"] for line in evaluated]
    assert clock == sorted(clock)
    assert smax_suite.main(["collect", "--out", "out", "--json-dir", "json"]) == 0
    found = json.loads((tmp_path / "json/base/3m-0.json").read_text())
    assert found["finished"] and found["absolute"]["episodes"] == 128 and found["versions"]["jax"]
    smax_suite_report.write_report([tmp_path / "json"], tmp_path / "report", overwrite=False)
    assert "Not finished" not in (tmp_path / "report/report.md").read_text()
