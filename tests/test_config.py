"""Configurations: round trips, presets, and one clear line for whatever is wrong."""

import dataclasses
from dataclasses import replace

import pytest

from jqmix.config import Config, ConfigError, build, dump, load_config, preset_names, to_dict
from jqmix.envs.registry import SMAX_MAPS
from jqmix.learning.train import make_program, updates_per_iteration

# What shrinks a preset to something one iteration of which runs in a moment.
REDUCED = {
    "rollouts": 2,
    "agent.hidden": 8,
    "mixer.embed": 4,
    "mixer.hypernet_hidden": 8,
    "replay.capacity": 4,
    "replay.batch": 2,
    "eval.episodes": 2,
    "seeds": 2,
    "updates": 1,
}
QUICK = {"two_step_game", "mpe_simple_spread"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_fits(name):
    cfg = load_config(name)
    assert load_config(None) == Config()
    assert cfg.total_steps > 0


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in preset_names()])
def test_every_preset_runs_an_iteration(name):
    """At reduced size; nothing is compiled for the large maps, but everything is traced."""
    import jax
    import jax.numpy as jnp

    pqn = {"algo.minibatches": 2} if load_config(name).algo.name == "pqn" else {}
    cfg = load_config(name, **REDUCED, **pqn)
    program = make_program(cfg)
    member, shared = jax.vmap(program.init, out_axes=(0, None))(jnp.arange(2))
    step = jax.jit(jax.vmap(program.iteration, in_axes=(0, None), out_axes=(0, None)))
    member, shared = step(member, shared)
    assert int(shared.updates) == updates_per_iteration(cfg)
    assert jnp.isfinite(member.tally.learning["loss"]).all()


def test_the_published_setting():
    cfg = load_config("smax_published")
    assert (cfg.rollouts, cfg.replay.capacity, cfg.replay.batch, cfg.updates) == (8, 5000, 128, 1)
    assert (cfg.algo.gamma, cfg.algo.td_lambda, cfg.optim.grad_clip, cfg.optim.lr) == (0.99, 0.6, 10, 1e-3)
    assert (cfg.explore.eps_end, cfg.explore.eps_steps, cfg.algo.target_period) == (0.05, 100_000, 200)
    assert (cfg.agent.hidden, cfg.mixer.embed, cfg.mixer.hypernet_hidden) == (64, 32, 64)
    large = load_config("smax_2s3z_large")
    assert (large.agent.hidden, large.mixer.embed, large.mixer.hypernet_hidden) == (256, 64, 256)
    frugal = load_config("smax_2s3z_sample_efficient")
    assert (frugal.rollouts, frugal.replay.capacity, frugal.replay.batch, frugal.algo.td_lambda) == (4, 2500, 64, 0.5)


def test_every_smax_map_has_the_same_setting():
    """A map's preset is `smax` with the map's name."""
    general = load_config("smax")
    presets = [f"smax_{name}" for name in SMAX_MAPS if name != "3m"]  # 3m's is for a first run, of seconds
    assert set(presets) <= set(preset_names())
    for name in presets:
        cfg = load_config(name)
        assert cfg.env.name == name and replace(cfg, env=general.env) == general
    for name in ("smax_vdn", "smax_pqn"):
        assert load_config(name).env.time_limit == general.env.time_limit


def test_a_dumped_configuration_reads_back_equal(tmp_path):
    cfg = build(
        {"algo.td_lambda": 0.3, "env.kwargs": {"payoff": [[1, 2], [3, 4]]}, "env.name": "matrix_game", "seed": 7}
    )
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert load_config(tmp_path) == cfg


def test_overrides_win_and_text_is_read():
    cfg = load_config("smax_2s3z", **{"algo.td_lambda": "0.3", "total_steps": "2e6", "algo.double_q": "false"})
    assert (cfg.algo.td_lambda, cfg.total_steps, cfg.algo.double_q) == (0.3, 2_000_000, False)
    assert cfg.env.name == "smax_2s3z"


def test_everything_in_the_configuration_is_a_field():
    def leaves(tree):
        return sum(leaves(v) if isinstance(v, dict) and v else 1 for v in tree.values())

    assert leaves(to_dict(Config())) == len(dataclasses.fields(Config)) - 10 + sum(
        len(dataclasses.fields(getattr(Config(), g)))
        for g in ("env", "agent", "core", "algo", "mixer", "optim", "explore", "replay", "eval", "checkpoint")
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"algo.mixr": 1}, "algo.mixr: no such field; did you mean algo.mixer"),
        ({"algo.mixer": "qmixx"}, "algo.mixer: 'qmixx' is not allowed; it takes one of iql, vdn, qmix"),
        ({"env.name": "smax_4m"}, "env.name: no environment 'smax_4m'; did you mean smax_"),
        ({"env.factory": "nothing"}, "env.factory: 'nothing' must look like package.module:function"),
        ({"algo.gamma": 1.01}, "algo.gamma: 1.01 is out of range; it must be ≥ 0 and ≤ 1"),
        ({"algo.gamma": "a lot"}, "algo.gamma: 'a lot' is not allowed; it takes a number"),
        ({"algo.gamma": float("nan")}, "algo.gamma: nan is not allowed"),
        ({"optim.lr": 0}, "optim.lr: 0.0 is out of range; it must be > 0"),
        ({"rollouts": 2.5}, "rollouts: 2.5 is not allowed; it takes a whole number"),
        ({"rollouts": True}, "rollouts: True is not allowed"),
        ({"seeds": 0}, "seeds: 0 is out of range; it must be ≥ 1"),
        ({"replay.batch": 6000}, "replay.batch: 6000 windows do not fit in replay.capacity 5000"),
        (
            {"rollouts": 7, "replay.capacity": 5000},
            "replay.capacity: 5000 must be a multiple of rollouts (7), e.g. 4998",
        ),
        ({"window": 50}, "window: 50 does not cover an episode; it must be ≥ 101"),
        ({"explore.eps_start": 0.1, "explore.eps_end": 0.5}, "explore.eps_end: 0.5 must be ≤ explore.eps_start 0.1"),
        ({"env.kwargs": "[1]"}, "env.kwargs: '[1]' is not allowed; it takes a mapping"),
    ],
)
def test_bad_values(values, says):
    defaults = {"replay.capacity": 5000, "replay.batch": 128, "rollouts": 8}
    with pytest.raises(ConfigError) as error:
        build({**defaults, **values})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    for text, says in [
        ("a: [", "not YAML"),
        ("- 1", "is a mapping of fields"),
        ("algo: {x: 1}", "algo.x: no such field"),
    ]:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=says) as error:
            load_config(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="no file or preset 'smax_2s3y'; presets include smax_2s3z"):
        load_config("smax_2s3y")


def test_a_file_may_extend_a_preset_and_no_other(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: smax_3m\nrollouts: 4\n")
    assert load_config(path) == load_config("smax_3m", rollouts=4)
    path.write_text("extends: smax_3n\n")
    with pytest.raises(ConfigError, match="extends: no preset 'smax_3n'; presets include smax_3m"):
        load_config(path)
