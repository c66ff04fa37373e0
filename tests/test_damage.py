"""Damaged run directories: whoever reads one goes on without what is damaged, or says in one line what is wrong."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from test_report import META, append, line, write_lines, write_run

from jqmix.analysis import comparison, results
from jqmix.analysis import report as reporting
from jqmix.analysis.report import report
from jqmix.analysis.results import DEPTH, LINE_LIMIT, find_runs, read_metrics
from jqmix.analysis.statistics import crossings, probability_of_improvement, stratified_bootstrap
from jqmix.analysis.study import load_tricks
from jqmix.cli import main
from jqmix.config import ConfigError, fields_of
from jqmix.runs.policy import load_run_config

WRONG = (None, True, -1, 3, 1e30, 10**30, "x", "", [1], {"a": 1}, [], {}, "\n", "\x00", "$\\frac$")
STUDY = {"tricks": [{"name": "n", "title": "t", "published": "p", "variants": [{"label": "0", "run": "base"}]}]}


def said(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def assert_fine_or_one_line(argv, capsys) -> int:
    """Success, with a line for each thing that was left out, or exit 2 and one line."""
    capsys.readouterr()
    code = main(argv)
    lines = said(capsys)
    assert code in (0, 2)
    assert len(lines) == 1 if code == 2 else len(lines) <= 3
    assert all(text.startswith("jqmix: ") for text in lines)
    return code


# Lines of metrics

SOUND = line(0, 250, win_rate=0.5)
TEXT = json.dumps(SOUND)
LINES = {
    "torn": TEXT[:-20],
    "two in one": TEXT + TEXT,
    "not UTF-8": TEXT.encode()[:-1] + b', "x": "\xe9"}',
    "UTF-16": TEXT.encode("utf-16"),
    "NUL bytes": b"\0" * 300,
    "NUL in it": TEXT.encode()[:40] + b"\0" + TEXT.encode()[40:],
    "not an object": "[250, 0]",
    "a number": "3",
    "deep": TEXT[:-1] + ', "x": ' + "[" * 10_000 + "]" * 10_000 + "}",
    "deep and torn": "[" * 100_000,
    "digits without end": TEXT.replace("250", "9" * 10_000),
    "long": TEXT[:-1] + ', "x": "' + "a" * (3 * LINE_LIMIT) + '"}',
    **{
        f"{key} {value}": json.dumps(SOUND | {key: value})
        for key in ("env_steps", "seed")
        for value in WRONG
        if value != 3
    },
    **{f"updates {value}": json.dumps(SOUND | {"updates": value}) for value in (10**30, -1, "x", None, 0.5)},
    **{
        f"a win rate of {value}": TEXT.replace('win_rate": 0.5', f'win_rate": {value}')
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "1e300", "true", '"0.5"', "null", "[0.5]", "{}")
    },
    "a seed that is not of the run": json.dumps(SOUND | {"seed": 7}),
    "another member's": json.dumps(SOUND | {"member": 1}),
    "twice": json.dumps(line(0, 200, win_rate=0.5)),
    "backwards": json.dumps(line(0, 50, win_rate=0.5)),
    "far ahead": json.dumps(line(0, 10**12, win_rate=0.5)),
    "no seed": json.dumps({k: v for k, v in SOUND.items() if k != "seed"}),
    "a fault without words": json.dumps(SOUND | {"fault": 3}),
}


@pytest.mark.parametrize("what", LINES)
def test_a_damaged_line_is_skipped(what, tmp_path):
    """The fourth of seven: before and after it, everything is read."""
    text = LINES[what] if isinstance(LINES[what], bytes) else LINES[what].encode()
    before, after = ([line(i, s, win_rate=0.1) for s in steps for i in (0, 1)] for steps in ([100, 200], [300]))
    write_lines(tmp_path, before)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(text.replace(b"\n", b" ") + b"\n" + "".join(json.dumps(x) + "\n" for x in after).encode())
    lines, skipped = read_metrics(tmp_path / "metrics.jsonl", range(2))
    assert len(skipped) == 1
    if what == "twice":  # of a run that was resumed, the later line counts
        assert skipped == [3]
        assert lines == [*before[:2], before[3], line(0, 200, win_rate=0.5), *after]
    else:
        assert (lines, skipped) == ([*before, *after], [5])


def test_a_resumed_run_that_repeated_itself_is_read_once(tmp_path):
    """A member's steps fall back by two evaluations: the fewest lines are given up, and each member's on its own."""
    write_lines(
        tmp_path, [line(s, t, win_rate=v) for t, v in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1)) for s in (0, 5)]
    )
    lines, skipped = read_metrics(tmp_path / "metrics.jsonl")
    for seed in (0, 5):
        of_seed = [(x["env_steps"], x["eval/win_rate"]) for x in lines if x["seed"] == seed]
        assert of_seed == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert skipped == [3, 4, 5, 6]


def test_last_words_are_at_the_step_of_the_last_evaluation(tmp_path):
    words = [
        line(0, 300, win_rate=0.5),
        {"env_steps": 300, "seed": 0, "absolute/win_rate": 0.5},
        {"env_steps": 300, "seed": 0, "fault": "loss is not finite", "fault_env_steps": 290},
    ]
    write_lines(tmp_path, words)
    assert read_metrics(tmp_path / "metrics.jsonl") == (words, [])


def test_a_huge_line_is_never_held(tmp_path):
    """300 MB on one line, in a process that has 100 MB to spend beyond what it starts with."""
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.write(TEXT.encode() + b"\n")
        file.seek(300_000_000, os.SEEK_CUR)
        file.write(b"\n" + json.dumps(line(0, 300, win_rate=0.5)).encode() + b"\n")
    code = "\n".join(
        [
            "import resource, sys; from pathlib import Path; from jqmix.analysis.results import read_metrics",
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss",
            "lines, skipped = read_metrics(Path(sys.argv[1]))",
            "assert (len(lines), skipped) == (2, [2])",
            "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000",
        ]
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_what_was_skipped_is_said_once_and_in_the_report(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b"\xff\n" + text + b'{"env_steps": 4')
    assert main(["report", str(run)]) == 0
    (warning,) = said(capsys)
    assert warning == f"jqmix: {run}/metrics.jsonl: 2 damaged lines skipped, the first is line 1"
    assert warning.removeprefix("jqmix: ") in (run / "report" / "report.md").read_text()
    assert "| 0.550 |" in (run / "report" / "report.md").read_text()


def test_evaluations_of_another_kind_are_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    append(run, line(0, 400, return_mean=0.5))
    (row,), _ = report([run])
    assert (row["metric"], row["env_steps"]) == ("eval/win_rate", 300)
    assert "1 evaluation left out" in said(capsys)[0]


# Whole files


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures and with few resamples, which take most of the time."""
    monkeypatch.setattr(results, "stratified_bootstrap", partial(stratified_bootstrap, resamples=10))
    for bootstrap in (crossings, probability_of_improvement):
        monkeypatch.setattr(comparison, bootstrap.__name__, partial(bootstrap, resamples=10))
    for name in ("draw_curves", "draw_points"):
        monkeypatch.setattr(reporting, name, lambda panels, path, **_: path.write_bytes(b""))


def write_study(path) -> Path:
    """A study of two runs, of two seeds each."""
    for name, rate in {"base": 0.1, "other": 0.2}.items():
        write_run(path / name, [0.5, 0.6], **{"optim.lr": rate})
    variants = [{"label": name, "run": name} for name in ("base", "other")]
    (path / "study.json").write_text(json.dumps({"tricks": [{**STUDY["tricks"][0], "variants": variants}]}))
    return path


FILES = ("base/config.yaml", "base/metadata.json", "base/metrics.jsonl", "study.json")


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + b"\0" * (len(data) - first)


def overwritten(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + rng.randbytes(20) + data[first + 20 :]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flipped, zeroed, overwritten])
def test_damaged_bytes(name, damage, tmp_path, undrawn, capsys):
    study, rng = write_study(tmp_path / "study"), random.Random(f"{name} {damage.__name__}")
    sound = (study / name).read_bytes()
    for _ in range(8):
        (study / name).write_bytes(damage(sound, rng))
        if name != "study.json":
            assert_fine_or_one_line(["report", str(study / "base"), "--overwrite"], capsys)
        code = assert_fine_or_one_line(["report", str(study), "--overwrite"], capsys)
        assert code == 0 or name == "study.json"  # the other run is sound


WHOLE_FILES = {
    "empty": b"",
    "text": b"hello",
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "binary": bytes(range(256)),
    "UTF-16": "{}".encode("utf-16"),
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 10_000,
    "digits": b"9" * 10_000,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", [*WHOLE_FILES, "a folder", "a pipe", "missing", "a loop of links"])
def test_something_else_in_a_files_place(name, what, tmp_path, undrawn, capsys):
    study = write_study(tmp_path / "study")
    path = study / name
    path.unlink()
    if what in WHOLE_FILES:
        path.write_bytes(WHOLE_FILES[what])
    elif what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a loop of links":
        path.symlink_to(path)
    code = assert_fine_or_one_line(["report", str(study / "base"), "--out", str(tmp_path / "a")], capsys)
    assert code == (0 if name in ("base/metadata.json", "study.json") else 2)
    code = assert_fine_or_one_line(["report", str(study), "--out", str(tmp_path / "b")], capsys)
    assert code == 0 or name == "study.json"


@pytest.mark.slow
def test_wrong_types_in_a_configuration(tmp_path, undrawn, capsys):
    """Every field, and every group of fields, with values of every kind."""
    run = write_run(tmp_path / "run", [0.5, 0.6])
    tree = yaml.safe_load((run / "config.yaml").read_text())
    paths = [path.split(".") for path, _, _ in fields_of()] + [[name] for name in tree if isinstance(tree[name], dict)]
    wrong, refused = itertools.cycle((None, [1], {"a": 1}, "x", True, -1, 0.5)), 0
    for path in paths:
        for value in itertools.islice(wrong, 2):
            spoilt = json.loads(json.dumps(tree))
            group = spoilt[path[0]] if len(path) == 2 else spoilt
            group[path[-1]] = value
            (run / "config.yaml").write_text(json.dumps(spoilt))  # which is YAML, too
            refused += assert_fine_or_one_line(["report", str(run), "--overwrite"], capsys) == 2
            try:
                load_run_config(run)
            except ConfigError as error:
                assert str(run / "config.yaml") in str(error) or "--trust" in str(error)
    assert len(paths) > 60
    assert refused > 40


def test_fields_that_are_missing_or_of_another_version(tmp_path, undrawn, capsys):
    """Those of an earlier or a later version do not keep a report from being made; a file that was cut does."""
    run = write_run(tmp_path / "run", [0.5, 0.6])
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("  last_action: true\n", "  last_actions: [1]\n"))
    assert main(["report", str(run)]) == 0
    with pytest.raises(ConfigError, match=r"config\.yaml: agent\.last_actions: no such field"):
        load_run_config(run)
    lines = text.splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (run / "config.yaml").write_text("".join(lines[:kept]))
        assert assert_fine_or_one_line(["report", str(run), "--overwrite"], capsys) == 2


def test_wrong_types_in_metadata_are_unknown(tmp_path, undrawn, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    for key in META:
        for value in WRONG:
            (run / "metadata.json").write_text(json.dumps(META | {key: value}))
            assert assert_fine_or_one_line(["report", str(run), "--overwrite"], capsys) == 0
    (run / "metadata.json").write_text(json.dumps(META | {"versions": [], "device": None, "commit": 7}))
    report([run], overwrite=True)
    assert "| ? × ? | ? | ? | ? | 7 |" in (run / "report" / "report.md").read_text()


def test_wrong_types_in_a_study(tmp_path, undrawn, capsys):
    study = write_study(tmp_path / "study")
    tree = json.loads((study / "study.json").read_text())
    trick = tree["tricks"][0]
    spoilt = [{"tricks": value} for value in WRONG] + [{"tricks": [value]} for value in WRONG]
    spoilt += [{"tricks": [trick | {key: value}]} for key in (*trick, "more") for value in WRONG]
    spoilt += [{"tricks": [trick | {"variants": [value, *trick["variants"]]}]} for value in WRONG]
    spoilt += [
        {"tricks": [trick | {"variants": [trick["variants"][0] | {key: value}, *trick["variants"]]}]}
        for key in ("label", "run", "more")
        for value in WRONG
    ]
    read = 0
    for other in spoilt:
        (study / "study.json").write_text(json.dumps(other))
        try:
            read += load_tricks(study) is not None
        except ConfigError as error:
            assert str(error) == f"{study / 'study.json'}: not a study"
        else:
            assert_fine_or_one_line(["report", str(study), "--overwrite"], capsys)
    assert 10 < read < 40


@pytest.mark.parametrize("name", ["$\\frac{", "_hidden", "a\nb|c", "漢字\u0000", "x" * 5000, "\\ud800"])
def test_whatever_names_are_they_can_be_drawn(name, tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    tree = yaml.safe_load((run / "config.yaml").read_text())
    for i, env in enumerate([name, "smax_3m"]):
        tree["env"]["name"] = "placeholder"
        text = yaml.safe_dump(tree, sort_keys=False).replace("placeholder", json.dumps(env).replace("\\\\u", "\\u"))
        folder = tmp_path / "runs" / str(i)
        shutil.copytree(run, folder)
        (folder / "config.yaml").write_text(text)
    rows, _ = report([tmp_path / "runs"])
    assert len(rows) == 3
    assert said(capsys) == []


# Where runs lie


NAMES = (
    "[a]",
    "b*",
    "c?",
    "d\\e",
    "f\ng",
    "{h,i}",
    "~",
    "-j",
    "k l",
    "λ",
    "$HOME",
    b"\xff".decode(errors="surrogateescape"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_themselves(name, tmp_path, undrawn, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / name / "deeper"
    folder.parent.mkdir(parents=True)
    write_run(tmp_path / "run", [0.5, 0.6]).rename(folder)
    # What the name would match as a pattern.
    write_run(tmp_path / "runs" / "a", [0.5, 0.6], **{"algo.mixer": "vdn"})
    assert find_runs([tmp_path / "runs" / name]) == [folder]
    assert find_runs([folder]) == [folder]
    rows, _ = report([tmp_path / "runs"])
    assert len(rows) == 2
    assert find_runs([Path("runs")]) == sorted([Path("runs") / name / "deeper", Path("runs/a")])


def test_runs_are_found_in_folders_of_folders(tmp_path):
    runs = tmp_path / "runs"
    inside = ["a", "jaxmarl/b", "jaxmarl/c", "/".join("deep"[:DEPTH])]
    for name in inside:
        write_run(runs / name, [0.5])
    write_run(runs / "a" / "checkpoints" / "inner", [0.5])  # a run holds no run
    write_run(runs / "/".join("too_deep"[: DEPTH + 1]), [0.5])
    (runs / "jaxmarl" / "up").symlink_to(runs)
    (runs / "latest").symlink_to(runs / "a")
    (runs / "nowhere").symlink_to(runs / "nowhere")
    assert {p.resolve() for p in find_runs([runs])} == {(runs / name).resolve() for name in inside}
    assert len(find_runs([runs, runs / "a", runs / "jaxmarl"])) == len(inside)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing", tmp_path / ("x" * 300), Path("\0"), runs / "nowhere"):
        with pytest.raises(ConfigError, match="is not a run directory"):
            find_runs([path])


def test_a_damaged_run_among_others_is_left_out(tmp_path, undrawn, capsys):
    for i, name in enumerate("abc"):
        write_run(tmp_path / "runs" / name, [0.5], first_seed=i)
    (tmp_path / "runs" / "b" / "config.yaml").write_text("a: [")
    assert main(["report", str(tmp_path / "runs")]) == 0
    (warning,) = said(capsys)
    assert "left out" in warning
    assert f"{tmp_path / 'runs' / 'b' / 'config.yaml'}: not YAML" in warning
    assert warning.removeprefix("jqmix: ") in (tmp_path / "runs" / "report" / "report.md").read_text()
    # Named itself, or alone, it is refused.
    named = ["report", *(str(tmp_path / "runs" / name) for name in "ab"), "--out", str(tmp_path / "x")]
    assert assert_fine_or_one_line(named, capsys) == 2
    for name in "ac":
        (tmp_path / "runs" / name / "metrics.jsonl").write_text("")
    assert assert_fine_or_one_line(["report", str(tmp_path / "runs"), "--overwrite"], capsys) == 2


# Where reports are written


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    assert main(["report", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in (run / "report").iterdir()}
    write_lines(run, [line(0, s, win_rate=1.0) for s in (100, 200)])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("draw_curves", "write_csv"):
        with monkeypatch.context() as patch:
            patch.setattr(reporting, name, full)
            for out in (run / "report", tmp_path / "new"):
                capsys.readouterr()
                assert main(["report", str(run), "--overwrite", "--out", str(out)]) == 2
                assert said(capsys) == [f"jqmix: out: {out} cannot be written: No space left on device"]
    assert {path.name: path.read_bytes() for path in (run / "report").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_made(tmp_path, capsys):
    run = write_run(tmp_path / "run", [0.5, 0.6])
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in ("file", "file/below", "x" * 300, "loop", "nul\0"):
        assert assert_fine_or_one_line(["report", str(run), "--out", str(tmp_path / out)], capsys) == 2


def test_a_full_disk(tmp_path, capsys):
    """Caused: the file system ends after 20 KB, which the picture takes."""
    run, small = write_run(tmp_path / "run", [0.5, 0.6]), tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    try:
        assert main(["report", str(run), "--out", str(small / "report")]) == 2
        assert "cannot be written: No space left on device" in said(capsys)[0]
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
