"""Numbers that go wrong: found, named, and kept from the members that are sound."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from jqmix.config import load_config
from jqmix.envs import registry
from jqmix.learning import count, health
from jqmix.learning.count import Count
from jqmix.learning.train import make_program
from jqmix.runs import experiment
from jqmix.runs.experiment import resume, train, train_together
from jqmix.runs.policy import evaluate_run
from jqmix.runs.run_dir import RunError

SMALL = {
    "agent.hidden": 8,
    "mixer.embed": 8,
    "mixer.hypernet_hidden": 8,
    "replay.capacity": 64,
    "replay.batch": 16,
    "eval.every": 400,
    "eval.episodes": 8,
    "total_steps": 1600,
}


def config(path, **overrides):
    return load_config(None, **{**SMALL, "run_dir": str(path), **overrides})


def lines_of(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
    """The name of an environment in which ``field`` goes wrong, later than a check before training sees."""
    monkeypatch.setattr(experiment, "check_own_env", lambda cfg: None)

    def named(field):
        monkeypatch.setitem(
            registry._ENTRIES, f"poisoned_{field}", registry.EnvEntry(worlds.Poisoned, {"field": field}, None)
        )
        return f"poisoned_{field}"

    return named


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("obs", "an observation of the environment is not finite"),
        pytest.param("state", "a state of the environment is not finite", marks=pytest.mark.slow),
        pytest.param("reward", "a reward of the environment is not finite", marks=pytest.mark.slow),
        pytest.param("discount", "a reward of the environment is not finite", marks=pytest.mark.slow),
        pytest.param("avail", "the environment leaves an agent no available action", marks=pytest.mark.slow),
    ],
)
def test_the_environment_is_named(tmp_path, poisoned, field, says, capfd):
    cfg = config(tmp_path / "run", **{"env.name": poisoned(field), "total_steps": 200_000})
    with pytest.raises(RunError, match=f"no member is left: seed 0: {says}, after [\\d,]+ steps"):
        train(cfg, quiet=True)
    last = lines_of(tmp_path / "run")[-1]
    assert last["fault"] == says and "eval/return_mean" not in last
    assert last["fault_env_steps"] <= last["env_steps"] < 200_000
    assert capfd.readouterr().err.count(says) == 1


@pytest.mark.slow
def test_rewards_outside_the_declared_range_are_told_once(tmp_path, poisoned, capfd):
    train(config(tmp_path / "run", **{"env.name": poisoned("range"), "total_steps": 4000}), quiet=True)
    err = capfd.readouterr().err
    assert err.count("rewards were outside the reward_range of the environment") == 1
    assert any(line.get("train/strange_rewards", 0) > 0 for line in lines_of(tmp_path / "run"))


@pytest.mark.slow
def test_a_member_that_diverges_is_frozen_and_the_others_go_on(tmp_path, capfd):
    """Two learning rates in one program: what the sound one learns is what it learns alone."""
    fields = {"env.name": "chain_probe", "seeds": 2}
    sound = config(tmp_path / "sound", **fields)
    wild = config(tmp_path / "wild", **fields, **{"optim.lr": 1e30})
    train_together([sound, wild], quiet=True)
    train(config(tmp_path / "alone", **fields), quiet=True)
    for a, b in zip(lines_of(tmp_path / "sound"), lines_of(tmp_path / "alone"), strict=True):
        assert {k: v for k, v in a.items() if k != "wall_s"} == pytest.approx(
            {k: v for k, v in b.items() if k != "wall_s"}, rel=1e-3, abs=1e-4
        )
    lines = lines_of(tmp_path / "wild")
    assert [line["seed"] for line in lines] == [0, 1]
    assert all(line["fault"].endswith("is not finite") for line in lines)
    err = capfd.readouterr().err
    assert err.count("it stays as it was before, the others go on") == 2
    # What was learned before is finite and can be evaluated.
    assert len(evaluate_run(tmp_path / "wild", episodes=4)) == 2


@pytest.mark.slow
def test_all_stop_where_that_is_wished(tmp_path):
    """Saved; and the same again when it is resumed, without another line."""
    cfg = config(tmp_path / "run", **{"env.name": "chain_probe", "optim.lr": 1e30, "on_nan": "stop"})
    with pytest.raises(RunError, match=r"stopped, as on_nan says: seed 0: .* is not finite, after"):
        train(cfg, quiet=True)
    before = lines_of(tmp_path / "run")
    with pytest.raises(RunError, match="is not finite"):
        resume(tmp_path / "run", quiet=True)
    assert lines_of(tmp_path / "run") == before


def test_a_frozen_member_stays_exactly_as_it_was():
    program = make_program(load_config(None, **{**SMALL, "env.name": "chain_probe"}))
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    for _ in range(3):
        member, shared = iteration(member, shared)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), member.learner.target)
    sick = member._replace(learner=member.learner._replace(target=broken))
    after, shared = iteration(sick, shared)
    assert health.FAULTS[int(after.fault.code)] == "the loss is not finite"
    assert int(after.fault.env_steps) == int(after.env_steps)
    same(after.learner.params, member.learner.params)
    same(after.learner.opt_state, member.learner.opt_state)
    same(after.tally.learning, member.tally.learning)
    later, _ = iteration(after, shared)
    same(later._replace(buffer=None, tally=None), after._replace(buffer=None, tally=None))
    same(later.tally.learning, member.tally.learning)


@pytest.mark.slow
def test_a_frozen_member_of_pqn_stays_exactly_as_it_was():
    """What its rollouts go on with is nobody's concern."""
    fields = {"env.name": "chain_probe", "algo.name": "pqn", "algo.minibatches": 2, "window": 4}
    program = make_program(load_config(None, **SMALL, **fields, **{"agent.obs_norm": "running"}))
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    member, shared = iteration(member, shared)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), member.learner.opt_state)
    after, shared = iteration(member._replace(learner=member.learner._replace(opt_state=broken)), shared)
    assert health.FAULTS[int(after.fault.code)] == "a parameter is not finite"
    layers = [{k: x for k, x in m.learner.params["agent"].items() if k != "obs_norm"} for m in (after, member)]
    same(*layers)
    later, _ = iteration(after, shared)
    same(later._replace(ongoing=None, tally=None), after._replace(ongoing=None, tally=None))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_first_fault_is_kept_and_comes_first(key):
    window_fault, update_fault = jnp.int32(3), jnp.int32(5)
    fault = health.found(health.Fault(jnp.int32(0), count.from_int(0)), window_fault, count.from_int(8))
    fault = health.found(fault, update_fault, count.from_int(16))
    assert (int(fault.code), int(fault.env_steps)) == (3, 8)


@pytest.mark.parametrize("start", [0, 2**30 - 5, 2**31 - 5, 5 * 2**31 + 3])
def test_counts_beyond_32_bits(start, rng):
    total, counted = start, count.from_int(start)
    for more in rng.integers(0, 2**30, 50, endpoint=True):
        total, counted = total + int(more), count.add(counted, int(more))
        assert int(counted) == total
        assert float(count.as_float(counted)) == pytest.approx(total, rel=2e-7)
    assert count.numbers(Count(jnp.array([1, 0]), jnp.array([2, 7]))) == [2**30 + 2, 7]


def test_a_run_across_the_edge_of_32_bits():
    """Steps, updates, the position in replay, target copies, ε, the learning rate and random numbers, near 2³¹."""
    edge = 2**31
    cfg = load_config(
        None,
        **{**SMALL, "env.name": "chain_probe", "total_steps": 2 * edge, "explore.eps_steps": 2 * edge},
        **{"optim.lr_end_factor": 0.5, "algo.target_period": 24},
    )
    program = make_program(cfg)
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    for _ in range(8):
        member, shared = iteration(member, shared)
    near = count.from_int(edge - 40)
    member = member._replace(env_steps=near)
    shared = shared._replace(iteration=near, updates=near)
    steps, positions, windows = [edge - 40], [], []
    for k in range(1, 7):
        before = member
        member, shared = iteration(member, shared)
        steps.append(int(member.env_steps))
        positions.append(int(shared.counters.position))
        windows.append(
            np.asarray(member.buffer.windows.action[:, (8 * (k - 1)) % 64 : (8 * (k - 1)) % 64 + 8]).tobytes()
        )
        assert int(shared.iteration) == int(shared.updates) == edge - 40 + k
        assert float(member.tally.learned - before.tally.learned) == 1 and int(member.fault.code) == 0
        assert float(program.epsilon(member)) == pytest.approx(1 - 0.95 * steps[-1] / (2 * edge), rel=1e-5)
        assert float(program.now(member).optim.lr) == pytest.approx(1e-3 * (1 - 0.5 * steps[-1] / (2 * edge)), rel=1e-5)
        targets = (m.learner.target["agent"]["head"]["bias"] for m in (member, before))
        assert np.array_equal(*targets) == (k % 3 != 1)  # a copy is due every third time
    assert all(a < b <= a + 32 for a, b in itertools.pairwise(steps)) and steps[-1] > edge
    assert positions == [8, 16, 24, 32, 40, 48]
    assert len(set(windows)) == 6
