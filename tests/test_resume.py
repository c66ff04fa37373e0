"""Runs that stop and go on: what comes out is what an undisturbed run makes, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import worlds
from slow import slow

from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.interrupts import Interrupted
from jqmix.runs import checkpoint, schedule, training
from jqmix.runs.experiment import resume, train
from jqmix.runs.log import Log
from jqmix.runs.policy import evaluate_run, load_policy
from jqmix.runs.run_dir import RunDir, RunError
from jqmix.runs.terminal import Terminal

pytestmark = pytest.mark.usefixtures("shared_programs")
SMALL = worlds.SMALL_RUN | {"checkpoint.every": 200, "checkpoint.share": 1.0, "total_steps": 2000}


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    monkeypatch.setattr(schedule, "CALL_S", 0.05)


def config(path, **overrides):
    return load_config(None, **{**SMALL, "run_dir": str(path), **overrides})


def lines_of(run_dir):
    """The log without the clock."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def states_of(run_dir):
    """The newest whole checkpoint of every part of a run."""
    seeds = load_config(run_dir).seeds
    newest = {}
    for saved in reversed([s for s in checkpoint.find(Path(run_dir), seeds) if not s.final]):
        newest[saved.first] = saved
    return [checkpoint.load_state(newest[first].path, with_replay=True) for first in sorted(newest)]


def assert_same(a, b):
    """Log and state, bit for bit."""
    assert lines_of(a) == lines_of(b)
    leaves = [jax.tree_util.tree_leaves_with_path(states_of(run)) for run in (a, b)]
    assert len(leaves[0]) > 50
    for (path, x), (same, y) in zip(*leaves, strict=True):
        assert path == same
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


class StopAfter:
    """As a signal that comes after so many calls of the program, or so many for the members from ``first`` on."""

    def __init__(self, monkeypatch, calls, first=0):
        self.left = calls
        wait = training.Training._wait

        def counted(this, *args):
            wait(this, *args)
            self.left -= this.group.first >= first
            if self.left == 0:
                this.stop.take(signal.SIGTERM)

        monkeypatch.setattr(training.Training, "_wait", counted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of two members."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(config(path, seeds=2), quiet=True)
    return path


def test_twice_as_far_in_two_runs(tmp_path, whole):
    """The first ends in the middle of an interval, with an evaluation that the longer run does not make."""
    path = tmp_path / "run"
    train(config(path, seeds=2, total_steps=1000), quiet=True)
    assert lines_of(path)[-1]["absolute/episodes"] == 120
    resume(path, total_steps=2000, quiet=True)
    assert_same(path, whole)
    assert load_config(path).total_steps == 2000


@pytest.mark.parametrize("calls", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)])
def test_stopped_and_resumed(tmp_path, monkeypatch, whole, calls, capsys):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        StopAfter(patch, calls)
        with pytest.raises(Interrupted) as stopped:
            train(config(path, seeds=2), quiet=True)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert f"go on with: jqmix resume {path}" in capsys.readouterr().err
    before = lines_of(path)
    assert before == lines_of(whole)[: len(before)]
    resume(path, quiet=True)
    assert_same(path, whole)


GOING_ON = {
    "pqn": {"algo.name": "pqn", "window": 4, "algo.minibatches": 2, "agent.obs_norm": "running"},
    "pqn_overlap": {"algo.name": "pqn", "window": 4, "algo.minibatches": 2, "replay.burn_in": 2, "agent.core": "lstm"},
    "dqn": {"window_start": "continue", "window": 6, "replay.burn_in": 3, "replay.prioritised": True},
}


@pytest.mark.parametrize("kind", ["dqn", *slow(["pqn", "pqn_overlap"])])
def test_rollouts_that_go_on_resume(tmp_path, monkeypatch, kind, capsys):
    """Stopped in the middle of episodes, and once more: the rollouts are part of what is saved."""
    undisturbed, path, fields = tmp_path / "undisturbed", tmp_path / "run", GOING_ON[kind]
    train(config(undisturbed, seeds=2, **fields), quiet=True)
    with monkeypatch.context() as patch:
        StopAfter(patch, 3)
        with pytest.raises(Interrupted):
            train(config(path, seeds=2, **fields), quiet=True)
    saved = checkpoint.find(path, 2)[0]
    assert (saved.path / "replay").exists() == ("algo.name" not in fields)
    assert "ongoing" in checkpoint.load_state(saved.path, with_replay=True)["member"]
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        with pytest.raises(Interrupted):
            resume(path, quiet=True)
    assert lines_of(path) == lines_of(undisturbed)[: len(lines_of(path))]
    capsys.readouterr()
    resume(path, quiet=True)
    assert "no replay" not in capsys.readouterr().err
    assert_same(path, undisturbed)


@pytest.mark.slow
def test_members_in_groups_resume(tmp_path, monkeypatch):
    """Stopped in the second group: the first one's results are there, and it is not trained again."""
    settings = {"seeds": 4, "group": 2, "replay.prioritised": True, "algo.reward_norm": "running"}
    undisturbed, path = tmp_path / "undisturbed", tmp_path / "run"
    train(config(undisturbed, **settings), quiet=True)
    with monkeypatch.context() as patch:
        StopAfter(patch, 3, first=2)
        with pytest.raises(Interrupted):
            train(config(path, **settings), quiet=True)
    rows = evaluate_run(path, episodes=4)
    assert {row["member"] for row in rows} >= {0, 1}
    calls = []
    wait = training.Training._wait
    monkeypatch.setattr(training.Training, "_wait", lambda *args: (calls.append(args[0].group.first), wait(*args)))
    resume(path, quiet=True)
    assert set(calls) == {2}
    assert_same(path, undisturbed)
    assert len(evaluate_run(path, episodes=4, best=True)) == 4


def test_members_that_were_not_trained_are_not_shown(tmp_path, monkeypatch):
    path = tmp_path / "run"
    StopAfter(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(config(path, seeds=4, group=2), quiet=True)
    assert [row["member"] for row in evaluate_run(path, episodes=4)] == [0, 1]
    with pytest.raises(ConfigError, match="member: 3 was not trained yet; 0, 1 were"):
        load_policy(path, 3)


def test_a_run_that_had_no_checkpoint_begins_again(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    shutil.rmtree(path / "checkpoints")
    resume(path, quiet=True)
    assert_same(path, whole)


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path, whole):
    """As after a kill: the log is ahead of the checkpoint, and its last line torn."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    newest = checkpoint.find(path, 2)[:2]
    assert newest[0].final and newest[0].iteration == newest[1].iteration
    for saved in newest:
        shutil.rmtree(saved.path)
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"env_steps": 12')
    resume(path, quiet=True)
    assert_same(path, whole)


@pytest.mark.slow
def test_without_the_replay(tmp_path, capsys, monkeypatch):
    """Said, and smaller; it learns again once the replay holds a batch."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        with pytest.raises(Interrupted):
            train(config(path, **{"checkpoint.replay": False}), quiet=True)
    saved = checkpoint.find(path, 1)[0]
    assert not (saved.path / "replay").exists()
    capsys.readouterr()
    resume(path, quiet=True)
    assert "the checkpoint has no replay" in capsys.readouterr().err
    assert lines_of(path)[-1]["absolute/episodes"] == 120


@pytest.mark.slow
def test_on_another_number_of_devices(tmp_path, whole):
    """Saved on two devices, resumed on one: the same up to rounding."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    for saved in checkpoint.find(path, 2)[:2]:
        shutil.rmtree(saved.path)
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 1); from jqmix.runs.experiment import resume; "
        f"resume({str(path)!r}, quiet=True); assert jax.local_device_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for a, b in zip(lines_of(path), lines_of(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


def test_a_finished_run_says_so(whole, capsys):
    before = (whole / "metrics.jsonl").read_bytes()
    assert main(["resume", str(whole)]) == 0
    assert "finished, with 2,000 steps" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--total-steps", "50"], "total_steps: 50 are fewer than the"),
        (["--total-steps", "0"], "--total-steps: '0' is not allowed"),
    ],
)
def test_what_cannot_be_resumed(whole, argv, says, capsys):
    try:
        code = main(["resume", str(whole), *argv])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count("\n") == 1


def test_changed_settings_are_refused(tmp_path, whole, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("gamma: 0.99", "gamma: 0.9"))
    assert main(["resume", str(path)]) == 2
    assert "algo.gamma: config.yaml says 0.9, but the run was begun with 0.99" in capsys.readouterr().err


def test_a_run_in_use_is_refused(tmp_path, whole, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    lock = RunDir(path, made=False)
    try:
        assert main(["resume", str(path), "--total-steps", "3000"]) == 2
    finally:
        lock.close()
    assert f"run_dir: {path} is in use" in capsys.readouterr().err


def test_two_starts_at_the_same_instant(tmp_path):
    """One is accepted, and the other told; whoever comes first."""
    code = (
        "import sys, time; from jqmix.config import ConfigError; from jqmix.runs.run_dir import RunDir\n"
        "time.sleep(float(sys.argv[2]) - time.time())\n"
        "try: run = RunDir.create(sys.argv[1], 'x')\n"
        "except ConfigError as error: print(error)\n"
        "else: run.path.joinpath('config.yaml').write_text('mine'); print('accepted'); time.sleep(0.2)"
    )
    import time

    for k in range(3):
        at = str(time.time() + 1.5)
        command = [sys.executable, "-c", code, str(tmp_path / str(k)), at]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = sorted(process.communicate()[0].strip() for process in both)
        assert said[0] == "accepted" and said[1].startswith("run_dir: "), said


@pytest.mark.slow
def test_a_directory_deleted_under_a_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    seen = []
    monkeypatch.setattr(Terminal, "evaluation", lambda *args: seen.append(args) or shutil.rmtree(path, True))
    with pytest.raises(RunError, match="was deleted or renamed while the run went on"):
        train(config(path), quiet=True)
    assert len(seen) == 1


def test_a_failed_start_leaves_nothing(tmp_path, monkeypatch):
    """So that the same command can be given again."""
    from jqmix.runs import experiment

    def fails(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "compile_population", fails)
        with pytest.raises(RuntimeError):
            train(config(tmp_path / "run"), quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.parametrize("phase", ["saving", *slow(["logging"])])
def test_the_disk_is_full(tmp_path, monkeypatch, phase, capfd):
    """A real, small file system: one line, older checkpoints are good, and with room again the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        undisturbed = tmp_path / "undisturbed"
        train(config(undisturbed), quiet=True)
        rest = disk / "rest"

        def fill():
            if checkpoint.find(disk / "run", 1):
                with pytest.raises(OSError), rest.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(512))

        owner, name = {"logging": (Log, "_write"), "saving": (checkpoint, "save")}[phase]
        before = getattr(owner, name)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args: (fill(), before(*args))[1])
            with pytest.raises(RunError, match=r"No space left on device\).*; go on with: jqmix resume"):
                train(config(disk / "run"), quiet=True)
        rest.unlink()
        capfd.readouterr()
        resume(disk / "run", quiet=True)
        assert "damaged" not in capfd.readouterr().err
        assert_same(disk / "run", undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("broken", ["pipe", "full"])
def test_the_display_never_matters(tmp_path, broken):
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "jqmix", "train", *flags, "--run-dir", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        out = full if broken == "full" else subprocess.PIPE
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        if process.stdout is not None:
            process.stdout.close()
        err = process.communicate()[1]
    assert process.returncode == 0, err
    assert err.count("\n") == 1 and "the display is broken" in err
    assert lines_of(tmp_path / "run")[-1]["absolute/episodes"] == 120


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch, capfd):
    """Two programs, two runs in each: stopped in the second. The first's runs are not trained again."""
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command = ["sweep", *flags, "--grid", "algo.td_lambda=0,0.9", "agent.hidden=8,12"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    trained = []
    run = training.Training.run
    monkeypatch.setattr(training.Training, "run", lambda self: (trained.append(self.cfg.agent.hidden), run(self))[1])
    with monkeypatch.context() as patch:
        finish = training.Training._finish

        def stop_later(self):
            finish(self)
            StopAfter(patch, 4)

        patch.setattr(training.Training, "_finish", stop_later)
        assert main([*command, "--out", str(tmp_path / "study")]) == 128 + signal.SIGTERM
    assert f"go on with: jqmix resume {tmp_path / 'study'}" in capfd.readouterr().err
    assert trained == [8, 12]
    assert main(["resume", str(tmp_path / "study")]) == 0
    assert trained == [8, 12, 12]
    names = sorted(path.parent.name for path in (tmp_path / "study").glob("*/config.yaml"))
    assert len(names) == 4
    for name in names:
        assert_same(tmp_path / "study" / name, tmp_path / "whole" / name)
    assert (tmp_path / "study" / "report" / "report.md").is_file()


@pytest.mark.slow
def test_in_other_groups(tmp_path, monkeypatch):
    """Begun in groups of two, resumed with all four at once: each goes on from its own checkpoint."""
    path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    train(config(undisturbed, seeds=4, group=2), quiet=True)
    StopAfter(monkeypatch, 10**6)
    train(config(path, seeds=4, group=2, total_steps=1000), quiet=True)
    text = (path / "config.yaml").read_text()
    assert "group: 2" in text
    (path / "config.yaml").write_text(text.replace("group: 2", "group: 4"))
    resume(path, total_steps=2000, quiet=True)
    assert_same(path, undisturbed)
    # And the other way round.
    train(config(tmp_path / "at_once", seeds=4, total_steps=1000), quiet=True)
    text = (tmp_path / "at_once" / "config.yaml").read_text()
    (tmp_path / "at_once" / "config.yaml").write_text(text.replace("group: null", "group: 2"))
    resume(tmp_path / "at_once", total_steps=2000, quiet=True)
    by_member = {}
    for line in lines_of(tmp_path / "at_once"):
        by_member.setdefault(line["member"], []).append(line)
    for member, lines in by_member.items():
        wanted = [line for line in lines_of(undisturbed) if line["member"] == member]
        for a, b in zip(lines, wanted, strict=True):
            assert {k: v for k, v in a.items() if k != "updates"} == pytest.approx(
                {k: v for k, v in b.items() if k != "updates"}, rel=1e-2, abs=1e-2
            )


def test_an_end_alone_is_nothing_to_go_on_from(tmp_path, whole, capsys):
    """And nothing of the log is lost over it."""
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    for saved in checkpoint.find(path, 2):
        if not saved.final:
            shutil.rmtree(saved.path)
    before = lines_of(path)
    assert main(["resume", str(path), "--total-steps", "3000"]) == 2
    assert "holds what the run ended with, but nothing to go on from" in capsys.readouterr().err
    assert lines_of(path) == before
    assert main(["resume", str(path)]) == 0


def test_damaged_newer_checkpoints_do_not_push_out_sound_ones(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    newest = checkpoint.find(path, 2)[1]
    for iteration in (newest.iteration + 1000, newest.iteration + 2000):
        (path / "checkpoints" / str(iteration)).mkdir()
    resume(path, total_steps=2500, quiet=True)
    iterations = [s.iteration for s in checkpoint.find(path, 2)]
    assert max(iterations) < newest.iteration + 1000
    assert len(iterations) == 3


@pytest.mark.slow
def test_what_a_killed_start_left_is_no_obstacle(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".config.yaml.tmp").write_text("half")
    train(config(path), quiet=True)
    assert not (path / ".config.yaml.tmp").exists()
    (path / "metadata.json").unlink()
    resume(path, total_steps=2200, quiet=True)
    assert load_policy(path).agent.n_actions == 2


def test_a_deleted_log_stops_the_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    monkeypatch.setattr(Terminal, "evaluation", lambda *args: (path / "metrics.jsonl").unlink(missing_ok=True))
    with pytest.raises(RunError, match=r"metrics\.jsonl could not be written"):
        train(config(path), quiet=True)


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/tmp/x"])
def test_a_study_names_folders_of_its_own_alone(tmp_path, name, capsys):
    from jqmix.config import to_dict

    tree = {"tricks": [], "configs": {name: to_dict(config("x"))}}
    (tmp_path / "study.json").write_text(json.dumps(tree))
    assert main(["resume", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "is not a folder's name" in err and err.count("\n") == 1


def test_a_study_runs_no_code_that_it_names(tmp_path, capsys):
    from jqmix.config import to_dict

    cfg = config("x", **{"env.factory": "worlds:Counting"})
    (tmp_path / "study.json").write_text(json.dumps({"tricks": [], "configs": {"a": to_dict(cfg)}}))
    assert main(["resume", str(tmp_path)]) == 2
    assert "this study names code of its own (worlds:Counting); --trust runs it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"learned/../../../dev/zero": "0"}},
        {"files": {}},
        {"env_steps": []},
        {"lines": ["x", 1]},
        {"iteration": -1},
        {"index": {"member.seed": ["int32", [-1]]}},
        {"settings": 7},
        {"more": 1},
    ],
)
def test_a_hostile_manifest_is_damaged(tmp_path, whole, change):
    """With a checksum that fits: what it says must make sense, and name files of its own."""
    import hashlib

    path = tmp_path / "run"
    shutil.copytree(whole, path)
    saved = checkpoint.find(path, 2)[1]
    tree = json.loads((saved.path / "manifest.json").read_text().partition("\n")[2])
    text = json.dumps(tree | change)
    (saved.path / "manifest.json").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n" + text)
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.check_files(saved.path)
