"""Malformed configurations and command lines, by the thousand: each is answered in one line, and none does harm.

    python benchmarks/fuzz_inputs.py --cases 10000 --seed 0 [--json FILE]

Every case goes through the command line's own code up to where it would load JAX. It must be refused (exit code 2, one
line on stderr, nothing written), or, where its kind allows that, be accepted with fields that are all valid and that
read back equal from the file that a run would write. Exits 1 if a case fails.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import os
import random
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jqmix import cli, config, inputs

PARSER = functools.lru_cache(99)(cli._parser)  # to build it takes longer than most cases
LIMIT_S = 30  # for one case; the slowest take a tenth of a second where nothing else runs
COMPUTING = ("experiment", "ablate", "bench", "policy", "igm", "report")


class Case(NamedTuple):
    """Arguments of ``jqmix``, and whether there is anything valid about them."""

    argv: list[str]
    may_pass: bool = False


class Accepted(BaseException):
    """The command line has nothing against a case and would begin to compute."""


class Hang(BaseException):
    """A case took longer than :data:`LIMIT_S`."""


Kind = Callable[[random.Random, Path], Case]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    KINDS[make.__name__.replace("_", " ")] = make
    return make


# What cases are made of

FIELDS = {path: (hint, f) for path, hint, f in config.known_fields().values()}
INTS = [p for p, (hint, _) in FIELDS.items() if "int" in str(hint)]
FLOATS = [p for p, (hint, _) in FIELDS.items() if hint is float]
BOOLS = [p for p, (hint, _) in FIELDS.items() if hint is bool]
CHOICES = [p for p, (hint, _) in FIELDS.items() if "Literal" in str(hint)]
NO_INT = ["1e300", "1e23", "-1", "-5e-1", "0.5", "nan", ".inf", "1" * 5000, "1:30", "0x", "²", "١", "1 2", "1,5"]
NO_INT += ["1__0"]
NO_FLOAT = ["1e300", "3.5e38", "1e-60", "-1", "-5e-1", "nan", "-.inf", "9" * 5000, "abc", "1e", "0x1p3", "1 2", "½"]
JUNK = ["", " ", "\n", "a\nb", "\x00", "\x1b[31m", "\udce9", "\u2028", "\u202e", "é" * 9, "%s", "{0}", "'", '"']
JUNK += ["a" * 5000]
JUNK += ["☃" * 300, "\t", "-", "--", "=", "~", "..", "../..", "*", "&a", "!!x", "null", "[]", "{}", "[" * 999, "1e999"]
CHARACTERS = "ab01 \n:-?,[]{}#&*!|>'\"%@`~=.<\\é☃"
COMMANDS = ["train", "resume", "bench", "sweep", "ablate", "evaluate", "report", "igm", "envs"]


def text_of(rng: random.Random, most: int = 40) -> str:
    text = "".join(rng.choices(CHARACTERS, k=rng.randrange(1, most)))
    return text + rng.choice("\t\x00\x85\ufeff\x07") if rng.random() < 0.1 else text


def data_of(rng: random.Random, depth: int = 0) -> Any:
    """Plain data of any shape, with text that other versions of YAML take for something else."""
    if depth < 4 and rng.random() < 0.4:
        items = [data_of(rng, depth + 1) for _ in range(rng.randrange(4))]
        return items if rng.random() < 0.5 else {text_of(rng): item for item in items}
    words = ["1e3", "-5e-1", "yes", "0o7", "0x1", "1_0", "~", "=", "<<", "", " a ", "a\n\nb\n", "2001-01-01", ".inf"]
    numbers = [0, -1, 2**31 - 1, 0.1, -1e-30, 3e38, 1e16, True, False, None]
    return rng.choice([*words, *numbers, text_of(rng), rng.gauss(0, 1)])


def flag(path: str) -> str:
    return "--" + path.replace("_", "-")


def preset(rng: random.Random) -> str:
    return (config.preset_dir() / f"{rng.choice(config.preset_names())}.yaml").read_text(encoding="utf-8")


def file(folder: Path, content: str | bytes) -> str:
    """A configuration file with this content; its path."""
    path = folder / "case.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


def from_file(rng: random.Random, folder: Path, content: str | bytes, may_pass: bool = False) -> Case:
    command = rng.choice([["train"], ["bench"], ["ablate"], ["sweep", "--grid", "optim.lr=0.1,0.2"]])
    return Case([command[0], file(folder, content), *command[1:]], may_pass)


# Configuration files


@kind
def bytes_of_a_preset(rng: random.Random, folder: Path) -> Case:
    data = bytearray(preset(rng).encode())
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(data) + 1)
        new = rng.choice([b"", rng.choice(CHARACTERS).encode(), b"\n", rng.randbytes(1)])
        data[at : at + rng.choice([0, 1, 1, 5])] = new if rng.random() < 0.9 else new * 50
    return from_file(rng, folder, bytes(data), may_pass=True)


@kind
def encodings(rng: random.Random, folder: Path) -> Case:
    text = f"# é ☃ ε\n{preset(rng)}"
    ways = [text.replace("☃", "").replace("ε", "").encode("latin-1", "ignore"), text.encode("utf-16")]
    ways += [text.encode("utf-32"), text.encode() + b"\xff", b"\x00" + text.encode()]
    ways += [text.encode("utf-8", "surrogatepass") + b"\xed\xb3\xa9", text.encode("utf-16-le")]
    ways += [rng.randbytes(rng.randrange(20, 3000)) + b"\x00\x80"]
    return from_file(rng, folder, rng.choice(ways))


@kind
def soup(rng: random.Random, folder: Path) -> Case:
    return from_file(rng, folder, text_of(rng, 200), may_pass=True)


@kind
def tags(rng: random.Random, folder: Path) -> Case:
    tag = rng.choice(["timestamp", "bool", "binary", "set", "omap", "python/name:os.system", "int", "str", "x" * 5000])
    tag = rng.choice([f"!!{tag}", f"!<tag:yaml.org,2002:{tag}>", "!", "!local", "!!python/object/apply:os.system"])
    value = rng.choice(["x", "maybe", "1", "['true']", "{a: b}", "2001-01-01", "''"])
    line = rng.choice(
        [f"rollouts: {tag} {value}", f"{tag} {value}: 1", f"env: {{kwargs: {{a: {tag} {value}}}}}", f"{tag} {{a: 1}}"]
    )
    return from_file(rng, folder, f"{line}\n")


@kind
def aliases(rng: random.Random, folder: Path) -> Case:
    n = rng.randrange(2, 40)
    bomb = "\n".join([f"a0: &a0 [{', '.join('x' * n)}]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, n))])
    ways = [bomb, f"env: {{kwargs: {{a: &x [{n}], b: *x}}}}", "env: &e {name: hanabi}", "a: &a [*a]", "a: *nowhere"]
    ways += ["optim: &o {lr: 0.1}\nalgo: {<<: *o}", f"algo: {{<<: {{gamma: 0.{n}}}}}", "? &k seed\n: 1"]
    return from_file(rng, folder, rng.choice(ways))


@kind
def keys_given_twice(rng: random.Random, folder: Path) -> Case:
    path, n = rng.choice(INTS), rng.randrange(99)
    group, _, name = f"env.kwargs.a.{path}".rpartition(".")
    ways = [f"{path}: {n}\n{path}: {n}", f"env: {{kwargs: {{{name}: 1, {name}: {n}}}}}", f'"{path}": 1\n{path}: {n}']
    if "." in path:
        group, _, name = path.partition(".")
        ways += [f"{group}: {{{name}: 1}}\n{path}: {n}", f"{group}: {{{name}: 1}}\n{group}: {{{name}: {n}}}"]
    return from_file(rng, folder, rng.choice(ways))


@kind
def keys_of_no_text(rng: random.Random, folder: Path) -> Case:
    key = rng.choice(["1", "1.5", "true", "null", "? [a]\n", "? {a: 1}\n", "", "~", "1e3", ".nan"])
    where = rng.choice(
        ["%s: 1", "algo:\n  %s: 1", "env:\n  kwargs:\n    %s: 1", "env:\n  kwargs:\n    a:\n      %s: 1"]
    )
    indent = " " * (where.index("%") - where.rfind("\n") - 1)
    return from_file(rng, folder, where % key.replace("\n", f"\n{indent}"))


@kind
def several_documents(rng: random.Random, folder: Path) -> Case:
    mark = rng.choice(["\n---\n", "\n...\n---\n", "\n--- # next\n"])
    return from_file(rng, folder, mark.join(["rollouts: 8"] * rng.randrange(2, 500)))


@kind
def deep_or_large(rng: random.Random, folder: Path) -> Case:
    n = rng.choice([30, 1000, 20_000])
    ways = ["env: {kwargs: {a: " + "[" * n + "]" * n + "}}", "env: {kwargs: " + "{a: " * n + "1" + "}" * n + "}"]
    ways += ["env:\n  kwargs:\n    a:\n      " + "- " * n + "1", "\n".join(" " * i + "a:" for i in range(600))]
    ways += ["? " * n, "env: {kwargs: {a: [" + "1," * 60_000 + "]}}", "# " + "x" * 300_000 + "\nrollouts: 8"]
    ways += ["env: {kwargs: {a: " + "x" * 300_000 + "}}", "\n".join(f"k{i}: 1" for i in range(12_000))]
    return from_file(rng, folder, rng.choice(ways))


@kind
def values_of_any_shape(rng: random.Random, folder: Path) -> Case:
    path = rng.choice(list(FIELDS))
    value = rng.choice(["[1]", "{a: 1}", "2001-01-01", "null", "true", "yes", "1:30", "0x10", "1_000", "-5e-1", "'1'"])
    value = rng.choice([value, value, json.dumps(text_of(rng)), "1" + "0" * rng.randrange(400), "x" * 9999])
    base = rng.choice(["", "extends: smax_3m\n", "extends: two_step_game\n"])
    return from_file(rng, folder, f"{base}{path}: {value}\n", may_pass=True)


@kind
def values_out_of_range(rng: random.Random, folder: Path) -> Case:
    path = rng.choice(INTS + FLOATS)
    value = rng.choice(NO_INT if path in INTS else NO_FLOAT)
    if rng.random() < 0.5:
        return Case(["train", f"{flag(path)}={value}"])
    return from_file(rng, folder, f"{path}: {json.dumps(value) if rng.random() < 0.3 else value}\n")


@kind
def numbers_of_any_size(rng: random.Random, folder: Path) -> Case:
    path = rng.choice(INTS + FLOATS)
    value = 10 ** rng.uniform(-2, 12) if path in INTS else 10 ** rng.uniform(-45, 45)
    text = str(int(value) if path in INTS else value)
    return from_file(rng, folder, f"{rng.choice(['', 'extends: two_step_game'])}\n{path}: {text}\n", may_pass=True)


@kind
def words_that_are_none(rng: random.Random, folder: Path) -> Case:
    path = rng.choice(CHOICES + BOOLS + ["env.name", "env.factory"])
    value = rng.choice(["maybe", "yes", "1", "qmixx", "QMIX", *JUNK, text_of(rng)])
    if path == "env.factory" and value in ("null", "~"):
        value = "a"
    return Case([rng.choice(["train", "bench"]), f"{flag(path)}={value}"])


@kind
def fields_that_are_none(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([text_of(rng), "algo.mixr", "algo", "env.name.x", "a" * 9999, "algo.", ".seed", "seed.", "Seed"])
    if rng.random() < 0.5:
        return Case(["train", f"--{name}=1"])
    return from_file(rng, folder, f"{json.dumps(name)}: {rng.choice(['1', '{a: 1}', '[]'])}\n")


@kind
def fields_that_disagree(rng: random.Random, folder: Path) -> Case:
    n = rng.randrange(3, 1000)
    ways = [f"--replay.batch {n + 1} --replay.capacity {n} --rollouts 1"]
    ways += [f"--replay.capacity {n * 999 + 1} --rollouts 999 --replay.batch 1", f"--seeds {2 * n + 1} --group 2"]
    ways += [f"--seed {2**31 - n} --seeds {n + 1}", f"--window-start reset --window {n % 100 + 1}"]
    ways += ["--explore.eps-start 0.1 --explore.eps-end 0.2", f"--env.episode-limit {2**31 - n}"]
    ways += [f"--window {2**31 - n}", f"--replay.capacity {2**30} --rollouts 8"]
    ways += [f"--eval.episodes {10**7} --env.episode-limit {n + 300} --window {n + 300}"]
    ways += [f"--rollouts {2**20} --replay.capacity {2**20} --window {n + 3000}"]
    return Case([rng.choice(["train", "bench", "ablate"]), *rng.choice(ways).split()])


@kind
def arguments_of_environments(rng: random.Random, folder: Path) -> Case:
    ways = ["{1: 2}", "{batch: 3}", "{name: x}", "{factory: 'os:system'}", "{time_limit: 1}", "{episode_limit: 2}"]
    ways += ["[1]"]
    ways += ["{a b: 1}", "{'': 1}", "{a-b: 1}", "{a: 1e300}", "{a: 1e-60}", "{a: .nan}", "{a: 99999999999}"]
    ways += ["{a: [-.inf]}"]
    ways += ["{a: !!timestamp x}", "{a: &b 1, c: *b}", "{a: 1, a: 2}", "{a: {1: 2}}", "{a: {<<: {b: 1}}}", "1", "a: ["]
    ways += ["}"]
    ways += ["{a: " * 1000 + "1" + "}" * 1000, "[" * 1000, "--- {}\n--- {}", "x" * 9999, "{a: '\udce9'}"]
    ways += ['{a: "\\ud800"}']
    ways += [f"{{{json.dumps(text_of(rng))}: 1, 9: 9}}", "{a: " + "1" * 5000 + "}", "{a: [" + "1," * 60_000 + "]}"]
    value = rng.choice(ways)
    if rng.random() < 0.5:
        return Case(["train", f"--env.kwargs={value}"])
    return from_file(rng, folder, f"env: {{name: matrix_game}}\nenv.kwargs: {value}\n")


@kind
def arguments_of_any_shape(rng: random.Random, folder: Path) -> Case:
    value = json.dumps({"a": data_of(rng)}, ensure_ascii=False)
    return Case([rng.choice(["train", "ablate"]), "--env.name=matrix_game", f"--env.kwargs={value}"], may_pass=True)


@kind
def factories(rng: random.Random, folder: Path) -> Case:
    ways = ["..:f", "a:b:c", ":f", "a:", " a : b", ".a:f", "a..b:f", "a.:f", "a:f.g", "a:f()", "1a:f", "a:1", "a b:f"]
    ways += ["class:f", "a:class", "a/b:f", "a", ":", "a:f ", "a\n:f", "\udce9:f", "a" * 5000 + ":", text_of(rng)]
    return Case([rng.choice(["train", "bench"]), f"--env.factory={rng.choice(ways)}"])


# Paths


def bad_places(rng: random.Random, folder: Path) -> list[str]:
    """Paths where no new folder can be made."""
    (folder / "full" / "x").mkdir(parents=True, exist_ok=True)
    (folder / "a_file").touch()
    for name, target in (("dangling", "nowhere"), ("loop", "loop")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    below = rng.choice(["a_file", "loop", "dangling"])
    inside = [f"{below}/x", "a_file", "full", "dangling", "loop", "x" * 256, "a/" * 3 + "x" * 300, "a/" * 3000]
    inside += [f"{below}/../y"]
    return [f"{folder}/{name}" for name in inside] + [
        "",
        "a\nb",
        "a\x00b",
        "\udce9",
        "\x1b[31m",
        "/dev/null/x",
        "/dev/zero",
    ]


@kind
def run_directories(rng: random.Random, folder: Path) -> Case:
    path = rng.choice(bad_places(rng, folder))
    if rng.random() < 0.3:
        return Case([rng.choice(["ablate", "sweep"]), f"--out={path}", "--grid", "optim.name=adam,rmsprop"])
    return Case(["train", f"--run-dir={path}"])


@kind
def configuration_paths(rng: random.Random, folder: Path) -> Case:
    bad_places(rng, folder)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    names = ["full", "dangling", "loop", "a_file", "pipe", "x" * 256, "a/" * 3000, "a_file/x", "a\nb", "a\x00b"]
    names += ["\udce9"]
    outside = ["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full", "/", ".", "..", "~", "", "/proc/self/mem"]
    path = rng.choice([f"{folder}/{rng.choice(names)}", rng.choice(outside), text_of(rng), "smax_2s3y", "x" * 9999])
    return Case([rng.choice(["train", "bench", "ablate"]), "--", path])


@kind
def files_with_nothing_to_say(rng: random.Random, folder: Path) -> Case:
    content = rng.choice(
        ["", "\n", "# only words\n", "---\n", "null\n", "{}\n", "[]\n", "1\n", "text\n", "- a\n", "%YAML 1.2\n---\n"]
    )
    return from_file(rng, folder, content * rng.choice([1, 1, 3]))


@kind
def what_is_extended(rng: random.Random, folder: Path) -> Case:
    own = json.dumps(str(folder / "case.yaml"))
    base = rng.choice(
        [own, "[smax_3m]", "{a: 1}", "1", "true", "''", "smax_3n", "../smax_3m", "x" * 9999, '"a\\nb"', "case"]
    )
    return from_file(rng, folder, f"extends: {base}\nrollouts: 4\n")


# Command lines


@kind
def flags(rng: random.Random, folder: Path) -> Case:
    path = rng.choice([flag(p) for p in FIELDS])
    ways = [[path], [f"{path}x", "1"], [f"{path[:-1]}é", "1"], [path[1:], "1"], [f"--no{path[1:]}"], ["--json=1"]]
    ways += [["--quiet=x"]]
    ways += [["smax_3m", "smax_3m"], ["smax_3m", text_of(rng)], [f"--{rng.choice(JUNK)}x", "1"], ["-q"]]
    ways += [["--seed", "--", "1"]]
    return Case([rng.choice(["train", "bench"]), *rng.choice(ways)])


@kind
def commands(rng: random.Random, folder: Path) -> Case:
    ways = [[], ["fly"], ["Train"], ["--quiet"], ["smax_3m", "train"], ["--", "fly"], [rng.choice(JUNK)]]
    ways += [[text_of(rng)]]
    return Case(rng.choice(ways))


@kind
def grids(rng: random.Random, folder: Path) -> Case:
    many = ",".join(str(i / 9999) for i in range(1, 101))
    ways = [[], ["optim.lr"], ["optim.lr="], ["=1"], ["="], ["optim.lr=0.1,,0.2"], ["optim.lr=0.1,"], ["optim.lr=a"]]
    ways += [[","]]
    ways += [["optim.lrr=1"], ["optim.lr=1", "optim.lr=2"], ["env.kwargs={}"], ["run_dir=a,b"], ["group=1,1"]]
    ways += [["seeds=0"]]
    ways += [
        [f"optim.lr={many}", f"algo.gamma={many}"],
        ["seed=" + ",".join(map(str, range(1, 99_999)))],
        [text_of(rng)],
    ]
    ways += [[f"{rng.choice(JUNK)}=1"], [f"algo.mixer={rng.choice(JUNK)}"], ["rollouts=7"], ["algo.n_step=2,3"]]
    ways += [["eval.every=10000000"]]
    ways += [[f"{p}=0.1234567891234" for p in FLOATS if "lr" not in p] + ["optim.lr=0.1,0.2"]]
    grid = rng.choice(ways)
    if rng.random() < 0.3:
        only = rng.choice(["x", *JUNK[1:8], "optimizer"])
        return Case(["ablate", "smax_2s3z", f"--only={only}", "--grid", *(grid or ["x"])])
    return Case(["sweep", "smax_2s3z", "--grid", *grid])


@kind
def options_of_commands(rng: random.Random, folder: Path) -> Case:
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(config.dump(config.Config()), encoding="utf-8")
    numbers = ["0.5", "-1", "nan", "inf", "1e99", "²", "", "1" * 5000, "x", "\udce9", "99999999999", *JUNK[:9]]
    number, of_all, of_report = rng.choice(numbers), ["0.5", "-1", "99999999999"], ["report", "--threshold"]
    options = [["evaluate", "--episodes"], ["evaluate", "--seed"], ["igm", "--episodes"]]
    name, option = rng.choice(options if number in of_all else [*options, of_report])
    ways = [[str(run_dir), f"{option}={number}"], [str(run_dir), option], [], [str(run_dir), "--nothing"]]
    ways += [["a/" * 3000], ["x" * 300], ["a\x00b"], [f"{run_dir}/config.yaml/x" * 40]]
    places = [path for path in bad_places(rng, folder) if not path.endswith(("a_file", "/y"))]
    drawings = [["igm", str(run_dir), f"--out={path}"] for path in places]
    return Case(rng.choice([[name, *rng.choice(ways)], rng.choice(drawings), ["envs", f"{number}x"]]))


@kind
def options_without_effect(rng: random.Random, folder: Path) -> Case:
    ways = [
        "--algo.n-step 5",
        "--algo.td-lambda 0.1 --algo.target nstep",
        "--replay.priority-alpha 0.3",
        "--replay.priority-beta 0.3",
        "--algo.target-tau 0.1",
        "--algo.target-period 9 --algo.target-update soft",
        "--mixer.heads 2",
        "--algo.heads 2",
        "--mixer.alpha 0.2",
        "--algo.wqmix-alpha 0.2",
        "--mixer.critic-hidden 8 --algo.mixer vdn",
        "--mixer.positivity square --algo.mixer vdn",
        "--mixer.opt 2 --algo.mixer qplex",
        "--algo.state-norm none --algo.mixer iql",
        "--mixer.embed 8 --algo.mixer qplex",
        "--algo.init-gain 0.5",
        "--agent.one-kernel true --agent.recurrent false",
        "--core.one-kernel true --agent.core lstm",
        "--core.one-kernel true --agent.hidden 129",
        "--algo.epochs 2",
        "--algo.minibatches 8",
        "--algo.name pqn --rollouts 16 --replay.batch 8",
        "--algo.name pqn --rollouts 16 --algo.double-q false",
        "--algo.name pqn --rollouts 16 --updates 2",
        "--agent.agent-id false --agent.share-parameters false",
        "--env.name hanabi --env.factory a:f",
        "--explore.eps-end 1 --explore.eps-steps 9",
    ]
    return Case(["train", *rng.choice(ways).split()])


@kind
def anything(rng: random.Random, folder: Path) -> Case:
    words = [*COMMANDS, *map(flag, FIELDS), *JUNK, *NO_INT, "smax_3m", "1", "0.5", "true", "vdn", "--grid", "--only"]
    words += ["--json"]
    argv = [rng.choice(COMMANDS), *(rng.choice(words) for _ in range(rng.randrange(1, 7)))]
    return Case(argv, may_pass=True)


# Judging


@contextlib.contextmanager
def without_computing(seen: list[config.Config]) -> Iterator[None]:
    """The command line up to where it would compute; ``seen`` collects the configurations that it accepts."""

    def accept(*_: Any, **__: Any) -> None:
        raise Accepted

    def build(values: dict[str, Any]) -> config.Config:
        seen.append(config.build(values))
        return seen[-1]

    stubs = {}
    for name in COMPUTING:
        stub = types.ModuleType(f"jqmix.runs.{name}")
        stub.__dict__["__getattr__"] = lambda _: accept
        stubs[stub.__name__] = stub
    before = {name: sys.modules.get(name) for name in stubs}
    own = cli._parser, cli._prepare, cli.build
    sys.modules.update(stubs)
    cli._parser, cli._prepare, cli.build = PARSER, accept, build  # type: ignore[assignment]
    try:
        yield
    finally:
        cli._parser, cli._prepare, cli.build = own
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def run(argv: list[str]) -> tuple[int | None, str]:
    """The exit code (None: accepted) and stderr of one command line. Raises what it raises."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: int | None = cli.main(argv)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Accepted:
            code = None
    return code, err.getvalue()


def unfit(cfg: config.Config, folder: Path) -> str | None:
    """What is wrong with a configuration that was accepted; None if nothing is."""
    for path, value in config.flatten(config.to_dict(cfg)).items():
        _, f = FIELDS[path]
        if isinstance(value, float) and inputs.unfit_number(value):
            return f"{path} is {value}"
        if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= 10**15:
            return f"{path} is {value}"
    again = folder / "again.yaml"
    again.write_text(config.dump(cfg), encoding="utf-8")
    return None if config.load_config(again) == cfg else "reads back differently"


def fault(case: Case, folder: Path) -> tuple[str | None, str]:
    """What is wrong with the answer to a case (None: nothing), and how it was answered."""
    seen: list[config.Config] = []
    before = sorted(os.listdir())
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with without_computing(seen):
            code, err = run(case.argv)
        if sorted(os.listdir()) != before:
            return "something was written", "?"
        if code == 2:
            short = err.endswith("\n") and err.count("\n") == 1 and len(err) < 400
            plain = err[:-1].isprintable() and "Traceback" not in err
            return (None if short and plain else f"not one line: {err[:2000]!r}"), "refused"
        if code in (None, 0):
            wrong = None if case.may_pass else "accepted"
            return wrong or next(filter(None, (unfit(cfg, folder) for cfg in seen)), None), "accepted"
        return f"exit code {code}: {err[:2000]!r}", "?"
    except Hang:
        return f"more than {LIMIT_S} s", "?"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}", "?"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(cases: int, seed: int, only: str | None = None) -> dict[str, Any]:
    """Counts of answers by kind, and every case that failed. Kinds take turns; case i of a seed is always the same."""
    kinds = {name: make for name, make in KINDS.items() if only in (None, name)}
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in kinds}
    failed = []

    def too_long(*_: Any) -> None:
        raise Hang

    previous, home = signal.signal(signal.SIGALRM, too_long), Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        folder, work = Path(place) / "files", Path(place) / "work"
        folder.mkdir()
        work.mkdir()
        os.chdir(work)
        try:
            for i in range(cases):
                name = list(kinds)[i % len(kinds)]
                case = kinds[name](random.Random(f"{seed} {i}"), folder)
                wrong, answer = fault(case, folder)
                counts[name][answer] += 1
                if wrong:
                    failed.append(
                        {"case": i, "kind": name, "argv": [inputs.quoted(a) for a in case.argv], "fault": wrong}
                    )
        finally:
            os.chdir(home)
            signal.signal(signal.SIGALRM, previous)
    return {"cases": cases, "seed": seed, "kinds": {k: dict(c) for k, c in counts.items()}, "failed": failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="this kind alone")
    parser.add_argument("--json", type=Path, help="where the counts and failures are written, too")
    args = parser.parse_args()
    result = fuzz(args.cases, args.seed, args.kind)
    for name, answers in result["kinds"].items():
        print(f"{name:28}", ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items())))
    for failure in result["failed"][:50]:
        print(failure)
    print(f"{args.cases - len(result['failed'])} of {args.cases} cases answered in one line")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
