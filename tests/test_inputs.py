"""What comes from outside: plain data alone, numbers of 32 bits, paths of any kind, and streams that are broken."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jqmix import cli
from jqmix.cli import main
from jqmix.config import ConfigError, build, dump, load_config
from jqmix.inputs import MOST_BYTES, check_new_folder, one_line, parse_yaml, quoted

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import fuzz_inputs  # noqa: E402


def test_malformed_inputs_are_one_line():
    """The kept fuzzer, at a small size: `python benchmarks/fuzz_inputs.py` is the whole."""
    result = fuzz_inputs.fuzz(cases=8 * len(fuzz_inputs.KINDS), seed=1)
    assert result["failed"] == []
    assert len(result["kinds"]) >= 25


def test_the_fuzzer_finds_faults(monkeypatch):
    """Each fault that it looks for, put where the command line begins: all cases fail."""

    def write(_):
        Path("left_over").touch()
        return 2

    def hang(_):
        time.sleep(60)

    def two_lines(_):
        print("jqmix: a\njqmix: b", file=sys.stderr)
        return 2

    monkeypatch.setattr(fuzz_inputs, "LIMIT_S", 0.1)
    faults = {"ZeroDivision": lambda _: 1 / 0, "exit code 1": lambda _: 1, "more than": hang, "one line": two_lines}
    for says, broken in {**faults, "accepted": lambda _: 0, "written": write}.items():
        monkeypatch.setattr(cli, "main", broken)
        (failed,) = fuzz_inputs.fuzz(cases=1, seed=1, only="tags")["failed"]
        assert says in failed["fault"]


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: -5e-1, b: 1e3, c: 1.5, d: .5, e: 1_0.5}", [-0.5, 1e3, 1.5, 0.5, 10.5]),
        ("{a: 1_000, b: 0x10, c: 0o17, d: 010, e: -3}", [1000, 16, 15, 10, -3]),
        ("{a: yes, b: 1:30, c: 2001-01-01, d: '1', e: '~'}", ["yes", "1:30", "2001-01-01", "1", "~"]),
        ("{a: true, b: FALSE, c: null, d: ~, e: , f: [1, [x]]}", [True, False, None, None, None, [1, ["x"]]]),
        ("{a: '<<', '<<': 1}", ["<<", 1]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    tree = parse_yaml(text)
    assert list(tree.values()) == value
    assert [type(v) for v in tree.values()] == [type(v) for v in value]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!!timestamp x: 1", "line 1 has a tag, 'tag:yaml.org,2002:timestamp'"),
        ("a: !!python/object/apply:os.system ['true']", "has a tag"),
        ("a: &x 1\nb: *x", "line 1 has an anchor"),
        ("a: {<<: {b: 1}}", "line 1 merges another mapping"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice"),
        ("1: 2", "line 1: 1 is not allowed as a key; keys are text"),
        ("a: 1\n---\nb: 1", "several documents"),
        ("[" * 1000, "more than 20 levels deep"),
        ("[" + "1," * 20_000 + "]", "more than 10,000 values"),
        ("#" * (MOST_BYTES + 1), "more than 200,000 characters"),
        ('"\\UFFFFFFFF"', "not YAML"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "not YAML"),
    ],
)
def test_yaml_is_plain_data_only(text, says):
    begin = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        parse_yaml(text)
    assert says in str(error.value)
    assert time.perf_counter() - begin < 5


def test_text_that_looks_like_numbers_stays_text(tmp_path):
    words = ["1e3", "-5e-1", "0x10", "0o7", "1_0", "yes", "~", "1:30", "", "<<", "a\nb"]
    cfg = build({"env.name": "matrix_game", "env.kwargs": {"payoff": words, "scale": [1e3, -0.5, 7, True, None]}})
    (tmp_path / "c.yaml").write_text(dump(cfg))
    assert load_config(tmp_path / "c.yaml") == cfg


# Values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optim.lr": "1e300"}, "optim.lr: 1e+300 is beyond what a 32-bit float holds"),
        ({"optim.lr": 1e-60}, "optim.lr: 1e-60 is so small that it is 0 as a 32-bit float"),
        ({"optim.lr": 10**400}, "optim.lr: a number of hundreds of digits is beyond what"),
        ({"explore.eps_steps": "1e300"}, "is out of range; it must be ≥ 1 and ≤ 1000000000000000"),
        ({"updates": "1e23"}, "is out of range; it must be ≥ 1 and ≤ 1000000"),
        (
            {"algo.target_period": 2**31},
            "algo.target_period: 2147483648 is out of range; it must be ≥ 1 and ≤ 2147483647",
        ),
        ({"seeds": "١"}, "seeds: '١' is not allowed; it takes a whole number"),
        ({"replay.capacity": 2**30}, "replay.capacity: 1073741824 windows of 102 slots are more than 32 bits count"),
        ({"env.kwargs": {"batch": 3}}, "env.kwargs: batch is not allowed as a key"),
        ({"env.kwargs": {1: 2}}, "env.kwargs: 1 is not allowed as a key; keys are text"),
        ({"env.kwargs": {"a-b": 2}}, "env.kwargs: 'a-b' is not allowed as a key; keys are names of arguments"),
        ({"env.kwargs": {"a": [0, 1e300]}}, "env.kwargs.a[1]: 1e+300 is beyond what a 32-bit float holds"),
        ({"env.kwargs": {"a": {1, 2}}}, "env.kwargs.a: {1, 2} is not plain data"),
        ({"env.factory": "..:f"}, "env.factory: '..:f' must look like package.module:function"),
        ({"env.factory": "a:b:c"}, "env.factory: 'a:b:c' must look like package.module:function"),
        ({"run_dir": "a\nb"}, r"run_dir: 'a\nb' is not allowed; it takes a path, without control characters"),
        ({"run_dir": ""}, "run_dir: '' is not allowed"),
        ({"run_dir": "~/runs/x"}, "run_dir: '~/runs/x' is not allowed; ~ is not replaced here"),
        ({"algo": 3}, "algo: no field but a group of fields, such as algo.name"),
        ({"mixer": 3}, "mixer: no field but a group of fields, such as mixer.embed"),
        ({"algo.mixer": "x" * 99_999}, "algo.mixer: 'xxx"),
    ],
)
def test_values_beyond_reason(values, says):
    with pytest.raises(ConfigError) as error:
        build(values)
    assert says in str(error.value)
    assert len(str(error.value)) < 300


def test_long_runs_are_within_reason():
    assert build({"total_steps": "3e9", "explore.eps_steps": 10**12}).total_steps == 3_000_000_000
    assert build({"optim.lr": "1e30"}).optim.lr == 1e30
    assert build({"env.kwargs": "{a: -5e-1}"}).env.kwargs == {"a": -0.5}


def test_text_that_is_shown_is_short_and_printable():
    for text in ("a\nb", "\udce9", "\x1b[31m", "\u202e", "x" * 10_000, "\x00" * 10_000):
        for line in (quoted(text), one_line(text)):
            assert line.isprintable()
            assert len(line) <= 390
    assert quoted("it is") == "'it is'"
    nested: list = []
    nested.append(nested)
    assert len(quoted(nested)) <= 60


# Files and folders


def test_a_presets_name_is_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smax_3m").touch()
    assert load_config("smax_3m").rollouts == 32
    with pytest.raises(ConfigError, match="smax_3m: holds no fields"):
        load_config("./smax_3m")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# é".encode("latin-1"), "not UTF-8 (byte 2)"),
        ("rollouts: 8".encode("utf-16"), "not UTF-8 (byte 0)"),
        (b"", "holds no fields"),
        (b"x" * (MOST_BYTES + 1), "larger than 200,000 bytes"),
        (b"algo: {gamma: 0.9}\nalgo.gamma: 0.8", "algo.gamma: given twice"),
        (b"extends: [smax_3m]", "extends: no preset ['smax_3m']"),
    ],
)
def test_files_that_hold_no_configuration(content, says, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("/dev/zero", "/dev/full", tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="cannot be read: not a regular file"):
            load_config(path)
    for path in (tmp_path, tmp_path / "loop", "x" * 300, "a\x00b", "~", "..", ""):
        with pytest.raises(ConfigError, match="no file or preset"):
            load_config(path)


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, says in [
        ("file/x", "is not a folder"),
        ("file", "already exists and is not a folder"),
        ("full", "already exists and is not empty; nothing was overwritten"),
        ("dangling", "already exists and is not a folder"),
        ("dangling/x", "is not a folder"),
        ("new/" + "x" * 256 + "/y", "File name too long"),
        ("a/" * 3000, "File name too long"),
        ("a\nb", "control characters"),
    ]:
        with pytest.raises(ConfigError, match=says):
            check_new_folder("run_dir", tmp_path / name)
    for name in ("new", "new/a/b", "full/x", "[ ]\\"):
        check_new_folder("run_dir", tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "full"]


# Options without effect


@pytest.mark.parametrize("argv", [["train"], ["bench"], ["ablate"], ["sweep", "--grid", "optim.lr=0.1,0.2"]])
def test_a_flag_without_effect_is_answered(argv, capsys):
    assert main([*argv, "--algo.n-step", "5"]) == 2
    assert capsys.readouterr().err == (
        "jqmix: algo.n_step: has no effect with algo.target peng; it needs algo.target nstep\n"
    )


def test_a_flag_that_has_an_effect_somewhere_in_a_study_is_not(monkeypatch):
    monkeypatch.setattr(cli, "_prepare", lambda: 1 / 0)
    monkeypatch.setenv("JQMIX_DEBUG", "1")
    grids = ["algo.target=peng,nstep"], ["algo.target=nstep", "algo.n_step=1,3"]
    for grid, flags in zip(grids, (["--algo.n-step", "5"], []), strict=True):
        with pytest.raises(ZeroDivisionError):  # as far as computing
            main(["sweep", "two_step_game", *flags, "--grid", *grid])


def test_a_setting_of_another_mixer_is_answered(capsys):
    for flag in ("--mixer.embed", "--algo.embed"):
        assert main(["train", "smax_vdn", flag, "8"]) == 2
        assert capsys.readouterr().err == (
            "jqmix: mixer.embed: has no effect with algo.mixer vdn; it needs algo.mixer qmix or qatten or cw_qmix or "
            "ow_qmix\n"
        )


def test_a_file_may_hold_what_another_mixer_needs(tmp_path):
    """It is read where that mixer is chosen, and left out elsewhere."""
    assert load_config("matrix_game_a").mixer.embed == 8
    assert load_config("matrix_game_a", **{"algo.mixer": "cw_qmix"}).mixer.alpha == 0.1
    assert "mixer: {}" in dump(load_config("matrix_game_a", **{"algo.mixer": "vdn"}))
    assert load_config("smax_vdn", **{"mixer.embed": 8, "algo.mixer": "qatten"}).mixer.embed == 8
    (tmp_path / "c.yaml").write_text("algo: {mixer: vdn}\nmixer: {embd: 8}\n")
    with pytest.raises(ConfigError, match="mixer.embd: no such field"):
        load_config(tmp_path / "c.yaml")


# Streams and what goes wrong


def jqmix(*argv, **options):
    command = [sys.executable, "-m", "jqmix.cli", *argv]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


def test_a_full_or_closed_stdout_is_one_line():
    for way, says in ((">/dev/full", b"No space left"), (">&-", b"Bad file descriptor")):
        for command in ("envs", "train --help"):
            line = f"exec {sys.executable} -m jqmix.cli {command} {way}"
            done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, check=False)
            assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
            assert says in done.stderr


def test_a_stdout_that_is_not_utf_8():
    done = jqmix("train", "--help", stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--algo.td-lambda" in done.stdout


def test_arguments_that_are_not_utf_8():
    done = jqmix(b"train", b"--run-dir=\xe9")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), RecursionError("deep\nand deeper")])
def test_whatever_escapes_is_one_line(error, capsys, monkeypatch):
    def broken():
        raise error

    monkeypatch.setattr(cli, "entries", broken)
    assert main(["envs"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"jqmix: {type(error).__name__}: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("JQMIX_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["envs"])


def test_places_are_looked_at_before_jax_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    code = "from jqmix.cli import main; assert main(sys.argv[1:]) == 2; assert 'jax' not in sys.modules"
    for argv in (["train", "--run-dir", "file/x"], ["sweep", "--out", "file", "--grid", "optim.lr=1,2"]):
        monkeypatch.chdir(tmp_path)
        assert main(argv) == 2
    (tmp_path / "runs").touch()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr
