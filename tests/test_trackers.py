"""Trackers, loggers and callbacks: what they get, also when a run stops and goes on, and what becomes of errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import worlds

import jqmix
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.interrupts import Interrupted
from jqmix.runs import schedule, training
from jqmix.runs.experiment import resume, train
from jqmix.runs.log import check_callbacks
from jqmix.trackers import feed
from jqmix.trackers.base import TRACKERS, TrackedRun, measured, name_loggers

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = worlds.SMALL_RUN | {"eval.episodes": 4, "checkpoint.every": 200, "checkpoint.share": 1.0}
SMALL |= {"total_steps": 1280, "seeds": 2}


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    monkeypatch.setattr(schedule, "CALL_S", 0.05)


def config(path, **overrides):
    return load_config(None, **{**SMALL, "run_dir": str(path), **overrides})


def lines_of(run_dir, *without):
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in without} for line in lines]


class Stopping:
    """A signal that comes after so many calls of the program."""

    def __init__(self, monkeypatch, calls):
        wait, self.left = training.Training._wait, calls

        def counted(this, *args):
            wait(this, *args)
            self.left -= 1
            if self.left == 0:
                this.stop.take(signal.SIGTERM)

        monkeypatch.setattr(training.Training, "_wait", counted)


def timeless(lines):
    """An evaluation that was logged, but not saved, is made and written again: the same, but for the clock."""
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def stop_and_resume(path, monkeypatch, **fields):
    """A run that stops in the middle and goes on to its end; how many lines were written before."""
    with monkeypatch.context() as patch:
        Stopping(patch, 4)
        with pytest.raises(Interrupted):
            train(config(path, **fields), quiet=True)
    before = len(lines_of(path))
    resume(path, quiet=True)
    return before


class Notebook:
    """A logger of one's own."""

    def __init__(self):
        self.calls, self.lines, self.threads = [], [], set()

    def begin(self, run):
        self.calls.append("begin")
        self.run = run
        self.found = dict(run.notes)
        run.notes["id"] = "7"

    def log(self, lines):
        self.threads.add(threading.current_thread())
        self.lines += lines

    def end(self):
        self.calls.append("end")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run with a logger and a callback, and what they got."""
    path = tmp_path_factory.mktemp("tracked") / "run"
    book, seen = Notebook(), []
    result = train(config(path), quiet=True, loggers=[book], callbacks=[seen.append])
    return result, book, seen


# Loggers


def test_a_logger_gets_the_lines_of_the_log(tracked):
    result, book, _ = tracked
    assert book.calls == ["begin", "end"]
    assert book.lines == result.metrics and len(book.lines) > 8
    assert book.threads != {threading.main_thread()}
    run = book.run
    assert (run.path, run.seeds, run.group, run.name(1)) == (result.run_dir, [0, 1], "run", "run, seed 1")
    assert run.config["algo"]["mixer"] == "qmix" and run.metadata["seeds"] == [0, 1]


def test_after_a_stop_each_line_comes_once(tmp_path, monkeypatch):
    first, second, path = Notebook(), Notebook(), tmp_path / "run"
    with monkeypatch.context() as patch:
        Stopping(patch, 6)
        with pytest.raises(Interrupted):
            train(config(path), quiet=True, loggers=[first])
    assert first.calls == ["begin", "end"] and first.lines == lines_of(path)
    # As after kill -9, the log is further than what is gone on from: what the logger has does not come again.
    resume(path, quiet=True, loggers=[second])
    assert second.found == {"id": "7"} and first.found == {}
    assert timeless([*first.lines, *second.lines]) == lines_of(path, "wall_s")
    # One that comes later gets everything; one that has it all, nothing.
    late, third = type("Late", (Notebook,), {})(), Notebook()
    resume(path, quiet=True, loggers=[late, third])
    assert late.lines == lines_of(path) and third.lines == []


@pytest.mark.slow
def test_what_a_checkpoint_does_not_know_is_not_logged_twice(tmp_path, monkeypatch):
    """As after kill -9: the run goes back to its checkpoint, the tracker does not."""
    first, second, path = Notebook(), Notebook(), tmp_path / "run"
    monkeypatch.setattr(training.Training, "_save", lambda self: None)
    with monkeypatch.context() as patch:
        Stopping(patch, 6)
        with pytest.raises(Interrupted):
            train(config(path), quiet=True, loggers=[first])
    assert first.lines
    monkeypatch.undo()
    resume(path, quiet=True, loggers=[second])
    assert timeless([*first.lines, *second.lines]) == lines_of(path, "wall_s")


class Broken(Notebook):
    def __init__(self, method, error):
        super().__init__()
        self.method, self.error = method, error

    def _fail(self, name):
        if name == self.method:
            raise self.error

    def begin(self, run):
        self._fail("begin")
        super().begin(run)

    def log(self, lines):
        self._fail("log")

    def end(self):
        self._fail("end")


class Hanging(Notebook):
    def begin(self, run):
        time.sleep(100)


def test_loggers_that_fail_or_hang_neither_end_nor_delay_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feed, "CLOSE_S", 1.0)
    book, broken = Notebook(), [Broken(method, OSError(f"no {method}")) for method in ("begin", "log", "end")]
    begin = time.perf_counter()
    result = train(config(tmp_path / "run"), quiet=True, loggers=[*broken, Hanging(), book])
    assert time.perf_counter() - begin < 100
    assert book.lines == result.metrics
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4
    for name, method in (("Broken", "begin"), ("Broken-2", "log"), ("Broken-3", "end")):
        (line,) = [line for line in err if f"{name}: OSError: no {method} (" in line]
        assert "test_trackers.py:" in line and "the run goes on without it" in line
    assert any("Hanging: not done 1 s after the run" in line for line in err)


def test_an_object_without_the_methods_is_no_logger():
    for logger in (print, Notebook):
        with pytest.raises(ConfigError, match="is none; a logger is an object with begin, log and end"):
            name_loggers([logger])
    with pytest.raises(ConfigError, match="it takes a list of loggers"):
        name_loggers(Notebook())
    assert list(name_loggers([Notebook(), Notebook()])) == ["Notebook", "Notebook-2"]


def test_every_logger_has_notes_of_its_own(tmp_path):
    about = TrackedRun(tmp_path, {}, {}, [0])
    books = {"a": Notebook(), "b": Notebook()}
    feed.close_feeds([feed.Feed(name, book, about, print) for name, book in books.items()])
    assert [book.found for book in books.values()] == [{}, {}]
    books["a"].run.notes["mine"] = "1"
    assert books["b"].run.notes == {"id": "7"} and about.notes == {}


def test_a_damaged_note_is_one_line(tracked, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(tracked[0].run_dir, path)
    (path / "trackers" / "Notebook.json").write_text('{"notes": 3}')
    book = Notebook()
    resume(path, quiet=True, loggers=[book])
    assert book.lines == [] and "Notebook.json is damaged" in capsys.readouterr().err


# Callbacks


def test_callbacks_get_the_new_lines_of_each_evaluation(tracked):
    result, _, seen = tracked
    assert [line for lines in seen for line in lines] == result.metrics
    assert [len(lines) for lines in seen] == [2] * len(seen)


def test_a_callback_ends_training_early(tmp_path, capsys):
    def enough(lines):
        if lines[0]["env_steps"] >= 640:
            raise jqmix.StopTraining("far enough")

    path = tmp_path / "run"
    result = train(config(path), callbacks=[enough])
    assert "stopped by a callback (far enough); saved; go on with: jqmix resume" in capsys.readouterr().out
    before = result.metrics
    assert 640 <= before[-1]["env_steps"] < 1280
    assert "absolute/return_mean" not in before[-1]
    after = resume(path, quiet=True).metrics
    assert after[: len(before)] == before and "absolute/return_mean" in after[-1]


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_callbacks_error_comes_out_once_the_run_is_saved(tmp_path, when):
    """Also where another one asks to stop at the same time."""

    def is_time(lines):
        return when == "first" or "absolute/return_mean" in lines[0]

    def stop(lines):
        if is_time(lines):
            raise jqmix.StopTraining

    def fail(lines):
        if is_time(lines):
            raise ZeroDivisionError("mine")

    path = tmp_path / "run"
    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        train(config(path), quiet=True, callbacks=[stop, fail])
    assert f"the run was saved; go on with: jqmix resume {path}" in raised.value.__notes__[0]
    finished = "absolute/return_mean" in jqmix.runs.experiment.Result(config(path), path, 0.0, 0.0, 0.0).metrics[-1]
    assert finished == (when == "last")


def test_what_is_no_list_of_functions_is_refused():
    for callbacks in (print, [print, 3]):
        with pytest.raises(ConfigError, match="callbacks: .* is not allowed; it takes a list of functions"):
            check_callbacks(callbacks)


# TensorBoard


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def expected(lines, seed, name):
    return [
        (line["env_steps"], pytest.approx(line[name], rel=1e-6))
        for line in lines
        if line["seed"] == seed and name in line
    ]


def test_tensorboard(tmp_path, monkeypatch):
    """A folder for each seed, steps that a resumed run goes on with, each value once."""
    pytest.importorskip("tensorboardX")
    path = tmp_path / "run"
    before = stop_and_resume(path, monkeypatch, log="tensorboard", seed=3)
    lines = lines_of(path)
    assert 0 < before < len(lines)
    assert sorted(p.name for p in (path / "tensorboard").iterdir()) == ["seed_3", "seed_4"]
    for seed in (3, 4):
        found, events = scalars(path / "tensorboard" / f"seed_{seed}")
        names = {name for line in lines for name in measured(line)}
        assert found.keys() == names and {"eval/return_mean", "absolute/return_mean", "train/loss"} <= names
        for name in names - {"wall_s"}:
            assert found[name] == expected(lines, seed, name)
        (text,) = events.Tensors("config/text_summary")
        assert "mixer: qmix" in text.tensor_proto.string_val[0].decode()
        assert len(events.Tensors("metadata/text_summary")) == 1


@pytest.mark.slow
def test_a_finished_run_gets_a_tracker_later(tracked, tmp_path):
    pytest.importorskip("tensorboardX")
    result, _, _ = tracked
    assert main(["resume", str(result.run_dir), "--log", "tensorboard", "--quiet"]) == 0
    found, _ = scalars(result.run_dir / "tensorboard" / "seed_1")
    assert found["eval/return_mean"] == expected(result.metrics, 1, "eval/return_mean")
    assert load_config(result.run_dir).log == "tensorboard"
    assert main(["resume", str(result.run_dir), "--log", "none", "--quiet"]) == 0
    assert load_config(result.run_dir).log is None


@pytest.mark.slow
def test_a_study_has_a_tracker_in_every_run(tmp_path):
    pytest.importorskip("tensorboardX")
    flags = [x for name, value in {**SMALL, "log": "tensorboard"}.items() for x in (f"--{name}", str(value))]
    assert main(["sweep", *flags, "--grid", "optim.lr=0.001,0.01", "--out", str(tmp_path / "study")]) == 0
    for name in ("optim.lr=0.001", "optim.lr=0.01"):
        run = tmp_path / "study" / name
        found, _ = scalars(run / "tensorboard" / "seed_1")
        assert found["eval/return_mean"] == expected(lines_of(run), 1, "eval/return_mean")
        assert TrackedRun(run, {}, {}, [0]).group == f"study/{name}"


# Weights & Biases, MLflow


def wandb_records(path):
    """What a .wandb file holds: a header of 7 bytes, then LevelDB's log format, blocks of 32 KiB."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, piece = path.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block that holds no header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = records.Record()
            record.ParseFromString(piece)
            yield record
            piece = b""


def wandb_runs(path):
    """The starts and the history of every offline run below a folder, by its identifier."""
    runs = {}
    for file in sorted(Path(path).glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                run = runs.setdefault(record.run.run_id, {"history": [], "starts": []})
                run["starts"].append(record.run)
            elif record.WhichOneof("record_type") == "history":
                pairs = {x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in record.history.item}
                run["history"].append({k: v for k, v in pairs.items() if not k.startswith("_")})
    return runs


def test_wandb_offline(tmp_path, monkeypatch):
    """One run per seed, also over a stop: the same identifiers, each line once."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    path = tmp_path / "run"
    stop_and_resume(path, monkeypatch, log="wandb")
    runs, lines = wandb_runs(path), lines_of(path)
    assert len(runs) == 2
    for seed, run in enumerate(sorted(runs.values(), key=lambda run: run["starts"][0].display_name)):
        assert [start.display_name for start in run["starts"]] == [f"run, seed {seed}"] * 2
        assert {start.run_group for start in run["starts"]} == {"run"}
        assert {start.project for start in run["starts"]} == {"jqmix"}
        wanted = [{"env_steps": x["env_steps"], **measured(x)} for x in lines if x["seed"] == seed]
        assert timeless(run["history"]) == timeless(wanted)
        config = {item.key: json.loads(item.value_json) for item in run["starts"][0].config.update}
        assert config["algo"]["mixer"] == "qmix" and config["metadata"]["seeds"] == [0, 1]


def test_wandb_without_a_login_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert main(["train", "--log", "wandb", "--run-dir", str(tmp_path / "run")]) == 2
    assert "log: wandb is not logged in; `wandb login` does that, WANDB_MODE=offline" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert main(["train", "--log", "wandb", "--run-dir", str(tmp_path / "run")]) == 2
    assert "log: wandb: WANDB_API_KEY invalid" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow(tmp_path, monkeypatch, store):
    """A local store, read back by MLflow's own client."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if store == "sqlite" else (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(feed, "CLOSE_S", 300.0)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    stop_and_resume(path, monkeypatch, log="mlflow")
    client, lines = mlflow.MlflowClient(tracking_uri=uri), lines_of(path)
    runs = client.search_runs([client.get_experiment_by_name("jqmix").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["run, seed 0", "run, seed 1"]
    for run in runs:
        seed = int(run.data.tags["seed"])
        assert run.info.status == "FINISHED" and run.data.tags["group"] == "run"
        assert run.data.params["algo.mixer"] == "qmix"
        assert run.data.tags["metadata.versions.jqmix"] == jqmix.runs.experiment._version("jqmix")
        for name in {name for line in lines for name in measured(line)} - {"wall_s"}:
            history = client.get_metric_history(run.info.run_id, name)
            assert sorted((m.step, m.value) for m in history) == expected(lines, seed, name)


# Names


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("tensorbord", "log: 'tensorbord' is not allowed; it takes tensorboard, wandb, mlflow, or several with commas"),
        ("tensorboard,", "log: '' is not allowed"),
        ("wandb,wandb", "log: wandb is given twice"),
    ],
)
def test_unknown_trackers_are_refused(value, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--log", value]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert main(["sweep", "--grid", "log=wandb,mlflow"]) == 2
    assert "log is not varied in a study" in capsys.readouterr().err
    assert main(["bench", "--log", "wandb"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_tracker_that_is_not_installed_is_refused(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TRACKERS, "wandb", TRACKERS["wandb"]._replace(package="no_such_package"))
    grid = ["--grid", "optim.lr=0.1,0.2"] if command == "sweep" else []
    assert main([command, "--log", "wandb", *grid]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert 'log: wandb needs the package no_such_package, which is not installed; pip install "jqmix[wandb]"' in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_closes_trackers(tmp_path):
    """A whole process: what was logged before the signal is in the files."""
    pytest.importorskip("tensorboardX")
    path = tmp_path / "run"
    flags = [
        x
        for name, value in {**SMALL, "total_steps": 10**9, "log": "tensorboard"}.items()
        for x in (f"--{name}", str(value))
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "jqmix", "train", *flags, "--run-dir", str(path)], env=os.environ
    ) as run:
        while run.poll() is None and not (path / "metrics.jsonl").exists():
            time.sleep(0.1)
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    found, _ = scalars(path / "tensorboard" / "seed_0")
    assert found["eval/return_mean"] == expected(lines_of(path), 0, "eval/return_mean")
