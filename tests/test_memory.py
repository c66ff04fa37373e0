"""The memory plan: its estimate against compiled programs, and members in groups."""

import pytest

from jqmix.config import ConfigError, load_config
from jqmix.envs.registry import make_env
from jqmix.learning.learner import mixer_sizes
from jqmix.networks.mixers import MIXERS, make_mixer
from jqmix.runs import memory
from jqmix.runs.memory import make_plan, tree_bytes
from jqmix.runs.population import abstract_member, compile_population

SMALL = {"replay.capacity": 128, "eval.every": 1, "eval.episodes": 4}


def plan_of(cfg):
    return make_plan(cfg, *abstract_member(cfg))


@pytest.mark.parametrize(
    "overrides",
    [
        {"env.name": "two_step_game", "replay.batch": 128, "agent.hidden": 128},
        {"env.name": "predator_prey", "replay.batch": 32, "env.episode_limit": 20, "algo.mixer": "vdn"},
        {"env.name": "predator_prey", "replay.batch": 32, "env.episode_limit": 20, "algo.mixer": "ow_qmix"},
    ],
)
def test_the_estimate_is_near_what_the_compiler_reserves(overrides):
    cfg = load_config(None, **SMALL, **overrides)
    plan = plan_of(cfg)
    population = compile_population(cfg)
    assert plan.replay == tree_bytes(population.members.replay)
    assert plan.parameters + plan.optimiser == tree_bytes(population.members.learner)
    reserved = plan.copies * population.step.memory_analysis().temp_size_in_bytes
    assert reserved / 1.6 < plan.working < 1.6 * reserved


def test_every_mixer_is_counted():
    """Beyond the agents', a wider mixer keeps more; one without parameters nothing to speak of."""
    spec = make_env("two_step_game", batch=1).spec
    kept = {}
    for name in MIXERS:
        sizes = mixer_sizes(load_config(None, **{"env.name": "two_step_game", "algo.mixer": name}), spec)
        kept[name] = memory.mixer_bytes(make_mixer(name, **sizes._asdict()), sizes)
    assert kept["iql"] == kept["vdn"] == 0
    n, e, hh = 2, 32, 64
    hidden_layers = 2 * hh + e + e  # of W1 and W2, of V, and the mixed one: each ReLU or ELU keeps what it needs
    assert 4 * hidden_layers < kept["qmix"] < 4 * (3 * hidden_layers + 4 * n * e)
    assert min(kept[name] for name in ("qatten", "qplex", "qtran")) > kept["qmix"]


def test_as_many_members_at_once_as_fit(monkeypatch):
    cfg = load_config(None, **SMALL, **{"env.name": "two_step_game", "seeds": 12})
    plan = plan_of(cfg)
    each = plan.state + plan.working
    assert plan.group == 12
    for devices, memory_of_each, group in [(1, 5 * each, 4), (1, 4 * each, 4), (2, 3 * each, 6), (1, each - 1, 1)]:
        monkeypatch.setattr(memory, "available_bytes", lambda d=devices, m=memory_of_each: (d * m, d))
        assert plan_of(cfg).group == group
        assert f"{group} of 12 at once" in str(plan_of(cfg))


def test_a_replay_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: (1000, 1))
    with pytest.raises(ConfigError, match=r"replay\.capacity: 128 windows take .* per member; a device has"):
        plan_of(load_config(None, **SMALL, **{"env.name": "two_step_game"}))


def test_a_group_divides_the_members():
    with pytest.raises(ConfigError, match=r"group: 3 must divide seeds \(4\)"):
        load_config(None, seeds=4, group=3)
