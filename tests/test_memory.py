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
    reserved = plan.copies * population.compiled.memory_analysis().temp_size_in_bytes
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
    """Two cores, whose members take turns: each core needs a copy of one's state beside what it holds."""
    cfg = load_config(None, **SMALL, **{"env.name": "two_step_game", "seeds": 12})
    plan = plan_of(cfg)
    state, working = plan.state, plan.working
    assert (plan.group, plan.busy, plan.need) == (12, 2, 14 * state + 2 * working)
    assert plan._replace(group=2).need == 2 * (state + working)
    assert plan._replace(busy=12).need == 12 * (state + working)  # all at once, as on an accelerator
    for need, group in [(14 * state + 2 * working, 12), (8 * state + 2 * working, 6), (6 * state + 2 * working, 4)]:
        for short, fewer in ((0, group), (1, {12: 6, 6: 4, 4: 3}[group])):
            monkeypatch.setattr(memory, "available_bytes", lambda n=need - short: (n, 1))
            assert plan_of(cfg).group == fewer
            assert f"{fewer} of 12 at once" in str(plan_of(cfg)) or fewer == 12
    # Two devices: each needs what its half of the members takes.
    monkeypatch.setattr(memory, "available_bytes", lambda: (2 * (4 * state + working), 2))
    assert plan_of(cfg).group == 6
    monkeypatch.setattr(memory, "available_bytes", lambda: (state + working - 1, 1))
    assert plan_of(cfg).group == 1


def test_members_that_take_turns_share_their_working_space():
    """What the compiler reserves for six of them is not six times as much: one's work, and a copy of its state."""
    settings = {"env.name": "predator_prey", "replay.batch": 32, "env.episode_limit": 20, "algo.mixer": "vdn"}
    two, six = (compile_population(load_config(None, **SMALL, **settings, seeds=n)) for n in (2, 6))
    one_state = tree_bytes(two.members) // 2
    reserved = [p.compiled.memory_analysis().temp_size_in_bytes for p in (two, six)]
    assert reserved[1] < reserved[0] + 1.5 * one_state


def test_a_replay_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: (1000, 1))
    with pytest.raises(ConfigError, match=r"replay\.capacity: 128 windows take .* per member; a device has"):
        plan_of(load_config(None, **SMALL, **{"env.name": "two_step_game"}))


def test_a_group_divides_the_members():
    with pytest.raises(ConfigError, match=r"group: 3 must divide seeds \(4\)"):
        load_config(None, seeds=4, group=3)
