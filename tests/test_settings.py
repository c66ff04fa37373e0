"""Settings: names of earlier versions, and mixers from outside with settings of their own."""

import json
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_damage import said

import jqmix
from jqmix.cli import main
from jqmix.config import (
    RENAMED,
    Config,
    ConfigError,
    build,
    dump,
    fields_for,
    foreign_code,
    load_config,
    read_fields,
    traced_paths,
    window_start,
)
from jqmix.learning.hyper import bind, hyper_of
from jqmix.learning.train import make_program
from jqmix.networks.mixers import MIXERS, Mixer, MixerSizes, build_mixer, mixer_names, register_mixer
from jqmix.settings import NoSettings, make_settings, settings_in

SMALL = {
    "env.name": "two_step_game",
    "agent.hidden": 8,
    "replay.capacity": 16,
    "replay.batch": 8,
    "eval.every": 64,
    "eval.episodes": 2,
    "total_steps": 128,
}
FLAGS = [text for path, value in SMALL.items() for text in (f"--{path}", str(value))]


# Names of earlier versions


@pytest.mark.parametrize(
    ("old", "mixer", "value"),
    [
        ("algo.embed", "qmix", 8),
        ("algo.hypernet_hidden", "qplex", 8),
        ("algo.positivity", "qmix", "square"),
        ("algo.heads", "qatten", 2),
        ("algo.critic_hidden", "ow_qmix", 8),
        ("algo.wqmix_alpha", "cw_qmix", 0.25),
        ("agent.one_kernel", "qmix", True),
        ("optim.lr_end", "qmix", 0.5),
    ],
)
def test_old_names_mean_the_new_ones(old, mixer, value, tmp_path):
    chosen, new = {"algo.mixer": mixer}, RENAMED[old]
    expected = build({**chosen, new: value})
    assert expected != build(chosen)
    assert build({**chosen, old: value}) == expected == build({**chosen, old: str(value)})
    group, _, name = old.partition(".")
    (tmp_path / "c.yaml").write_text(f"algo.mixer: {mixer}\n{group}: {{{name}: {json.dumps(value)}}}\n")
    assert load_config(tmp_path / "c.yaml") == expected
    # An override by either name wins over a file's by either name.
    default = build({**chosen, **{f"{g}": v for g, v in [(new, expected_default(mixer, new))]}})
    for name in (old, new):
        assert load_config(tmp_path / "c.yaml", **{name: expected_default(mixer, new)}) == default
    written = dump(expected).partition(f"{new.partition('.')[0]}:")[0]
    assert f" {old.partition('.')[2]}:" not in written
    with pytest.raises(ConfigError, match=f"{new}: given twice"):
        build({**chosen, old: value, new: value})


def expected_default(mixer, path):
    return next(f.default for p, _, f in fields_for({"algo.mixer": mixer}) if p == path)


def test_recurrent_is_a_core():
    assert build({"agent.recurrent": True}) == build({}) == build({"agent.core": "gru"})
    assert build({"agent.recurrent": "false"}) == build({"agent.core": "none"})
    assert build({"agent.core": "lstm"}).core == NoSettings()


def test_a_run_directory_of_an_earlier_version_is_read(tmp_path):
    """It held what all mixers can be set to; today's knows the chosen one's."""
    old = {"embed": 16, "hypernet_hidden": 64, "positivity": "abs", "heads": 4, "critic_hidden": 9, "wqmix_alpha": 0.5}
    agent = {"hidden": 64, "recurrent": True, "one_kernel": False}
    for mixer, kept in (("vdn", set()), ("qmix", {"mixer.embed", "mixer.hypernet_hidden", "mixer.positivity"})):
        tree = {"agent": agent, "algo": {"mixer": mixer, **old}, "run_dir": None}
        (tmp_path / "config.yaml").write_text(json.dumps(tree))
        read = read_fields(tmp_path / "config.yaml")
        assert {path for path in read if path.startswith("mixer.")} == kept
        assert read.get("mixer.embed", 16) == 16 and read["agent.core"] == "gru"
        cfg = load_config(tmp_path)
        assert build(read) == cfg


# New fields


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"algo.name": "pqn", "rollouts": 6}, "algo.minibatches: 4 must divide rollouts (6)"),
        ({"algo.name": "pqn", "rollouts": 16, "window_start": "reset"}, "window_start: reset is not allowed with"),
        ({"replay.burn_in": 4}, "replay.burn_in: 4 needs window_start continue"),
        ({"replay.burn_in": 9, "window": 9, "window_start": "continue"}, "replay.burn_in: 9 must be < window (9)"),
        ({"algo.name": "pqn", "rollouts": 16, "replay.burn_in": 8, "window": 8}, "replay.burn_in: 8 must be < window"),
        ({"agent.layers": 9}, "agent.layers: 9 is out of range; it must be ≥ 1 and ≤ 8"),
        ({"eval.parallel": 2**15}, "eval.parallel: 32768 is out of range"),
        ({"algo.name": "sarsa"}, "algo.name: 'sarsa' is not allowed; it takes one of dqn, pqn"),
    ],
)
def test_bad_values_of_new_fields(values, says):
    with pytest.raises(ConfigError) as error:
        build(values)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_windows_that_go_on_may_be_of_any_length():
    assert window_start(build({})) == "reset"
    assert build({"window": 1, "window_start": "continue"}).window == 1
    pqn = build({"algo.name": "pqn", "rollouts": 128, "window": 32, "replay.batch": 9999, "replay.capacity": 7})
    assert window_start(pqn) == "continue"  # and its replay, which it has not, need not fit


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--algo.epochs 2", "algo.epochs: has no effect with algo.name dqn; it needs algo.name pqn"),
        ("--algo.minibatches 2", "algo.minibatches: has no effect with algo.name dqn; it needs algo.name pqn"),
        ("--algo.name pqn --rollouts 16 --replay.capacity 16 --replay.batch 8", "replay.capacity: has no effect with"),
        ("--algo.name pqn --rollouts 16 --algo.target-update soft", "algo.target_update: has no effect with"),
        ("--algo.name pqn --rollouts 16 --algo.double-q false", "algo.double_q: has no effect with algo.name pqn"),
        ("--agent.core none --core.one-kernel true", "core.one_kernel: has no effect with agent.core none; it needs "),
    ],
)
def test_flags_of_another_algorithm_or_core_are_answered(flags, says, capsys):
    assert main(["train", *flags.split()]) == 2
    (line,) = said(capsys)
    assert says in line


# Mixers from outside

CODE = """
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

import jqmix
from jqmix.networks.mixers import Mixer, MixerSizes


@dataclass(frozen=True)
class Settings:
    coefficient: float = jqmix.setting(0.0, "weight of its own loss", low=0, high=1, traced=True)
    width: int = jqmix.setting(8, "a number that changes shapes", low=1, high=64)
    kind: Literal["sum", "mean"] = jqmix.setting("sum", "how it mixes")
    limit: float | None = jqmix.setting(None, "none, or a number", above=0)


def make(sizes: MixerSizes, settings: Settings) -> Mixer:
    def apply(params, q, state, joint=None):
        return jnp.sum(q + params["bias"], axis=-1) / (sizes.n_agents if settings.kind == "mean" else 1)

    def auxiliary(params, batch, settings, key):
        size = jnp.square(batch.q_tot)
        return settings.coefficient * size, {"size": size}

    return Mixer(lambda key: {"bias": jnp.ones((sizes.n_agents,))}, apply, auxiliary=auxiliary)


def plain(sizes):
    return make(sizes, Settings())


def unannotated(sizes, settings):
    return plain(sizes)


def of_a_dict(sizes, settings: dict):
    return plain(sizes)


def nothing():
    return None


def broken(sizes):
    raise KeyError("no such size")


def number(sizes):
    return 3


def too_many_axes(sizes):
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: q)


def needs_a_joint(sizes):
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: jnp.sum(joint.best, axis=-1))


def scalar_loss(sizes):
    return plain(sizes)._replace(auxiliary=lambda params, batch, settings, key: (jnp.zeros(()), {}))


def loss_alone(sizes):
    return plain(sizes)._replace(auxiliary=lambda params, batch, settings, key: batch.q_tot)


def loss_that_raises(sizes):
    return plain(sizes)._replace(auxiliary=lambda params, batch, settings, key: params["critic"])


constant = 3
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The name of a module in the current folder, another one for every test: modules are loaded once."""
    name = f"mixers_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_settings_from_outside_are_declared_once(outside):
    cfg = load_config(None, **SMALL, **{"algo.mixer": f"{outside}:make", "mixer.coefficient": "0.25", "mixer.limit": 2})
    assert (cfg.mixer.coefficient, cfg.mixer.width, cfg.mixer.kind, cfg.mixer.limit) == (0.25, 8, "sum", 2.0)
    assert "mixer.coefficient" in traced_paths(cfg) and "mixer.width" not in traced_paths(cfg)
    assert foreign_code(cfg) == {"algo.mixer": f"{outside}:make"} and foreign_code(Config()) == {}
    assert {path for path, _, _ in fields_for({"algo.mixer": f"{outside}:make"})} >= {"mixer.limit", "algo.gamma"}
    with open("c.yaml", "w") as file:
        file.write(dump(cfg))
    assert load_config("c.yaml") == cfg
    # What the file's mixer alone has is dropped with it; what other mixers have never troubles it.
    assert load_config("c.yaml", **{"algo.mixer": "vdn"}).mixer == NoSettings()
    assert load_config("matrix_game_a", **{"algo.mixer": f"{outside}:make"}).mixer.width == 8
    assert load_config(None, **{"algo.mixer": f"{outside}:plain"}).mixer == NoSettings()


@pytest.mark.parametrize(
    ("factory", "flags", "says"),
    [
        ("make", "--mixer.coefficient 3", "mixer.coefficient: 3.0 is out of range; it must be ≥ 0 and ≤ 1"),
        ("make", "--mixer.coefficent 1", "mixer.coefficent: no such field; did you mean mixer.coefficient?"),
        ("make", "--mixer.kind max", "mixer.kind: 'max' is not allowed; it takes one of sum, mean"),
        ("make", "--mixer.width 0.5", "mixer.width: '0.5' is not allowed; it takes a whole number"),
        ("make", "--mixer.embed 8", "mixer.embed: has no effect with algo.mixer"),
        ("plain", "--mixer.width 8", "mixer.width: no such field; algo.mixer"),
        ("unannotated", "", "its second parameter, settings, must be annotated with its settings"),
        ("of_a_dict", "", "its settings must be a frozen dataclass of jqmix.setting(…), not <class 'dict'>"),
        ("nothing", "", "it must take (sizes) or (sizes, settings)"),
        ("broken", "", "algo.mixer: broken raised KeyError: 'no such size' ("),
        ("number", "", "algo.mixer: number returns int ("),
        ("too_many_axes", "", "too_many_axes: apply gives float32 [3, 2, 2] for values [3, 2, 2]; it must give floats"),
        ("needs_a_joint", "", "needs_a_joint: init or apply raised AttributeError: 'NoneType' object has no attribute"),
        ("scalar_loss", "", "its loss is float32 []; it must be floats [3, 2], [T1, B]"),
        ("loss_alone", "", "must give (loss per slot, {name: metric per slot})"),
        ("loss_that_raises", "", "raised KeyError: 'critic' ("),
        ("missing", "", "missing is missing ("),
        ("constant", "", "constant is a int, which cannot be called"),
    ],
)
def test_what_is_wrong_with_a_mixer_from_outside_is_one_line(factory, flags, says, outside, capsys, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__")
    assert main(["train", *FLAGS, "--algo.mixer", f"{outside}:{factory}", *flags.split()]) == 2
    (line,) = said(capsys)
    assert says in line
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_its_traced_numbers_are_arguments_of_the_program(outside):
    """One program serves every coefficient, and the coefficient changes what is learned."""
    cfg = load_config(None, **SMALL, **{"algo.mixer": f"{outside}:make"})
    program = make_program(cfg)
    iteration = jax.jit(program.iteration)
    learned = []
    for coefficient in (0.0, 0.0, 1.0):
        hyper = hyper_of(cfg) | {"mixer.coefficient": jnp.float32(coefficient)}
        assert bind(cfg, hyper).mixer.coefficient is hyper["mixer.coefficient"]
        member, shared = program.init(jnp.int32(0), hyper)
        for _ in range(2):
            member, shared = iteration(member, shared)
        learned.append(np.asarray(member.learner.params["mixer"]["bias"]))
    np.testing.assert_array_equal(learned[0], learned[1])
    assert np.abs(learned[0] - learned[2]).max() > 1e-5
    assert iteration._cache_size() == 1


def test_a_grid_of_its_settings_is_one_program(outside, capsys, tmp_path):
    argv = ["sweep", *FLAGS, "--algo.mixer", f"{outside}:make", "--mixer.kind=mean", "--out", "study"]
    assert main([*argv, "--grid", "mixer.coefficient=0,0.5"]) == 0
    out = capsys.readouterr().out
    assert "\nmixer.coefficient=0.0; mixer.coefficient=0.5\n" in out and "program 2" not in out
    cfg = load_config(tmp_path / "study" / "mixer.coefficient=0.5")
    assert (cfg.mixer.coefficient, cfg.mixer.kind) == (0.5, "mean")
    assert main(["evaluate", "study/mixer.coefficient=0.5", "--episodes", "2", "--trust"]) == 0
    for grid, says in (
        ("mixer.coefficient=0,2", "mixer.coefficient: 2.0 is out of range"),
        ("mixer.coeff=0,1", "mixer.coeff: no such field; did you mean mixer.coefficient"),
        ("mixer.kind=sum,max", "mixer.kind: 'max' is not allowed"),
    ):
        assert main(["sweep", *FLAGS, "--algo.mixer", f"{outside}:make", "--out", "other", "--grid", grid]) == 2
        assert says in said(capsys)[-1]


# Registered ones


@dataclass(frozen=True)
class Scale:
    scale: float = jqmix.setting(2, "a factor", above=0, traced=True)


def scaled(sizes: MixerSizes, settings: Scale) -> Mixer:
    return Mixer(lambda key: {}, lambda params, q, state, joint=None: settings.scale * jnp.sum(q, axis=-1))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(MIXERS, "_entries", dict(MIXERS._entries))
    register_mixer("scaled", scaled)


def test_a_registered_mixer_is_one_like_any_other(registered):
    assert mixer_names()[-1] == "scaled" and jqmix.register_mixer is register_mixer
    cfg = build({"algo.mixer": "scaled", "mixer.scale": 3})
    assert cfg.mixer == Scale(3.0) and foreign_code(cfg) == {}
    assert type(build({"algo.mixer": "scaled"}).mixer.scale) is float
    mixer = build_mixer("scaled", MixerSizes(2, 4), cfg.mixer)
    assert mixer.settings == cfg.mixer
    assert mixer.apply({}, jnp.ones((7, 2)), jnp.ones((7, 4))).tolist() == [6.0] * 7
    with pytest.raises(ConfigError, match="algo.mixer: 'scale' is not allowed; it takes one of iql, .*, scaled, or"):
        build({"algo.mixer": "scale"})


@pytest.mark.parametrize(
    ("name", "factory", "says"),
    [
        ("qmix", scaled, "algo.mixer: 'qmix' is already registered"),
        ("a:b", scaled, "algo.mixer: 'a:b' is not allowed as a name"),
        ("mine", "nothing", "algo.mixer: 'nothing' must look like package.module:function"),
    ],
)
def test_what_cannot_be_registered(name, factory, says, registered):
    with pytest.raises(ConfigError, match=says):
        register_mixer(name, factory)


# Classes of settings


@dataclass
class Melting:
    a: int = jqmix.setting(1, "x")


@dataclass(frozen=True)
class Undeclared:
    a: int = 1


@dataclass(frozen=True)
class Listed:
    a: list = jqmix.setting(1, "x")


@dataclass(frozen=True)
class TracedText:
    a: str = jqmix.setting("x", "x", traced=True)


@dataclass(frozen=True)
class BadDefault:
    a: int = jqmix.setting(0, "x", low=1)


@dataclass(frozen=True)
class Nested:
    a: Scale = field(default_factory=Scale)


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Melting, "Melting is not frozen"),
        (Undeclared, "Undeclared.a is none"),
        (Listed, "Listed.a must be bool, int, float, str, a Literal of texts"),
        (TracedText, "TracedText.a is traced, so it must be int or float"),
        (BadDefault, "mixer.a: 0 is out of range; it must be ≥ 1"),
        (Nested, "Nested.a is none"),
    ],
)
def test_classes_that_declare_no_settings(cls, says, registered):
    def make(sizes, settings):
        return scaled(sizes, Scale())

    make.__annotations__["settings"] = cls
    register_mixer("mine", make)
    with pytest.raises(ConfigError) as error:
        build({"algo.mixer": "mine"})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_coerced_and_checked_alike():
    assert make_settings(Scale, {"scale": "1e1"}) == Scale(10.0)
    assert [path for path, _, _ in settings_in(Scale, "mixer.")] == ["mixer.scale"]
    with pytest.raises(ConfigError, match=r"mixer\.scale: 0\.0 is out of range; it must be > 0"):
        make_settings(Scale, {"scale": 0}, "mixer.")
