"""Prioritised replay: what is drawn how often, what it counts, and how priorities move."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqmix.config import load_config
from jqmix.learning import count, priorities
from jqmix.learning.train import make_program

CAPACITY, HELD, BATCH = 12, 9, 4


def held(rng):
    """Priorities of a replay that is not full."""
    priority = np.zeros(CAPACITY, np.float32)
    priority[:HELD] = rng.uniform(0.1, 2.0, HELD)
    return priority


def probabilities(priority, alpha):
    mass = np.where(priority > 0, priority.astype(np.float64) ** alpha, 0)
    return mass / mass.sum()


@jax.jit
def many_draws(key, priority, alpha):
    return jax.vmap(lambda k: priorities.draw(k, priority, alpha, BATCH))(jax.random.split(key, 20_000))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_windows_are_drawn_in_proportion(rng, key, alpha):
    """Each with frequency pᵅ / Σ pᵅ, and in one batch never more than once above or below its share."""
    priority = held(rng)
    index = np.asarray(many_draws(key, priority, jnp.float32(alpha)))
    counts = np.stack([(index == k).sum(axis=1) for k in range(CAPACITY)], axis=1)
    expected = BATCH * probabilities(priority, alpha)
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.015)
    assert (np.abs(counts - expected) < 2).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, CAPACITY), st.floats(0, 1, width=32))
def test_nothing_is_drawn_that_is_not_held(seed, count, alpha):
    rng = np.random.default_rng(seed)
    priority = np.zeros(CAPACITY, np.float32)
    priority[:count] = 10.0 ** rng.uniform(-6, 6, count)
    index = many_draws(jax.random.key(seed), priority, jnp.float32(alpha))
    assert set(np.unique(index)) <= set(range(count))


def test_the_weights_are_schauls(rng):
    priority, index = held(rng), np.array([3, 0, 3, 8])
    for alpha, beta in [(0.6, 0.4), (1.0, 1.0), (0.6, 0.0), (0.0, 1.0)]:
        full = (HELD * probabilities(priority, alpha)[index]) ** -beta
        got = priorities.weights(jnp.asarray(priority), jnp.asarray(index), jnp.float32(alpha), jnp.float32(beta))
        np.testing.assert_allclose(got, full / full.max(), rtol=1e-5)


def test_with_full_weights_the_mean_is_that_of_all_windows(rng, key):
    """β = 1, each batch's scale taken back: the weighted mean of anything is unbiased; the plain mean is not."""
    priority, alpha, one = held(rng), jnp.float32(0.6), jnp.float32(1.0)
    anything = np.where(priority > 0, priority**2, np.nan)  # goes with the priority, as losses do
    index = np.asarray(many_draws(key, priority, alpha))
    weight = jax.vmap(lambda i: priorities.weights(jnp.asarray(priority), i, alpha, one))(jnp.asarray(index))
    scale = 1.0 / (HELD * probabilities(priority, 0.6)[index].min(axis=1))
    estimates = (np.asarray(weight) * anything[index]).mean(axis=1) * scale
    truth = anything[:HELD].mean()
    assert estimates.mean() == pytest.approx(truth, abs=4 * estimates.std() / len(estimates) ** 0.5)
    assert anything[index].mean() > 1.2 * truth


def test_new_windows_get_the_largest_priority():
    priority = priorities.init(6)
    priority = priorities.add(priority, jnp.int32(0), 2)
    np.testing.assert_allclose(priority, [1, 1, 0, 0, 0, 0])
    priority = priorities.add(jnp.asarray([0.25, 0.5, 0, 0, 0, 0]), jnp.int32(2), 2)
    np.testing.assert_allclose(priority, [0.25, 0.5, 0.5, 0.5, 0, 0])
    priority = priorities.add(jnp.asarray([1, 2, 3, 4, 5, 6.0]), jnp.int32(2), 2)
    np.testing.assert_allclose(priority, [1, 2, 6, 6, 5, 6])


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_a_windows_priority_is_r2d2s(rng, shape):
    """Errors where no transition leaves do not count."""
    error = rng.normal(size=shape).astype(np.float32)
    last = rng.random(shape[:2]) < 0.3
    last[0], last[-1] = False, True
    error[last] = 1e6
    got = priorities.of_errors(jnp.asarray(error), jnp.asarray(~last))
    np.testing.assert_allclose(got, oracles.window_priority(error, last), rtol=1e-5)


def test_priorities_of_a_population_follow_what_it_learns():
    """An iteration gives new windows the largest priority, and changes that of no more windows than it drew."""
    small = {"agent.hidden": 8, "rollouts": 4, "replay.capacity": 16, "replay.batch": 4, "updates": 2}
    cfg = load_config(None, **small, **{"env.name": "chain_probe", "algo.mixer": "vdn", "replay.prioritised": True})
    program = make_program(cfg)
    members, shared = jax.vmap(program.init, out_axes=(0, None))(jnp.arange(3))
    step = jax.jit(jax.vmap(program.iteration, in_axes=(0, None), out_axes=(0, None, 0)))
    for k in range(6):  # the last two write over the oldest windows
        written = np.arange(4 * k, 4 * (k + 1)) % 16
        before = np.array(members.priority)
        before[:, written] = before.max(axis=1, keepdims=True) if k else 1.0
        members, shared, _ = step(members, shared)
        changed = (np.asarray(members.priority) != before).sum(axis=1)
        assert (changed >= 1).all() and (changed <= 8).all()
        np.testing.assert_array_equal((np.asarray(members.priority) > 0).sum(axis=1), min(4 * (k + 1), 16))
    assert not np.array_equal(members.priority[0], members.priority[1])


def test_beta_rises_to_one_at_total_steps():
    cfg = load_config(None, **{"env.name": "chain_probe", "replay.prioritised": True, "total_steps": 1000})
    program = make_program(cfg)
    member, _ = program.init(jnp.int32(0))
    for steps, beta in [(0, 0.4), (500, 0.7), (1000, 1.0), (3000, 1.0)]:
        assert float(program.priority_beta(member._replace(env_steps=count.of(steps)))) == pytest.approx(beta)
