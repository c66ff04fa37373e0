"""Buffers: what is kept of windows, which are drawn how often, what each counts, and how priorities move."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow
from worlds import Counting

from jqmix.buffers import Buffer, Prioritised, Uniform, make_buffer, prioritised, uniform, windows
from jqmix.config import ReplayConfig, load_config
from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.registry import make_env
from jqmix.learning import count
from jqmix.learning.exploration import random_available
from jqmix.learning.learner import surprise
from jqmix.learning.train import make_program
from jqmix.networks import normalise
from jqmix.networks.agent import Agent, AgentStart
from jqmix.types import Packed

ENV = TimeLimit(Batched(Counting(), 4), 6, "bootstrap")

# Windows


def marked(mark: int, e: int = 4, slots: int = 7, start=None) -> Packed:
    """E windows that carry their number, mark·E + e, in every array."""
    number = mark * e + jnp.arange(e)

    def numbered(axis, x):
        shape = tuple(e if k == axis else 1 for k in range(x.ndim))
        return jnp.broadcast_to(number.reshape(shape), x.shape).astype(x.dtype)

    ring = windows.empty(ENV, slots, e, start)
    return jax.tree.map(lambda axis, x: jax.tree.map(lambda x: numbered(axis, x), x), windows.BATCH_AXIS, ring)


def filled(times: int, capacity: int = 12, start=None):
    ring = windows.empty(ENV, 7, capacity, start)
    for k in range(times):
        ring = windows.write(ring, marked(k, start=start), jnp.int32(4 * k % capacity))
    return ring


@pytest.mark.parametrize("times", [1, 3, 4, 8])
def test_keeps_the_newest(times):
    ring = filled(times)
    held = set(np.asarray(ring.reward[0]).astype(int)[: 4 * times])
    assert held == set(range(max(0, 4 * times - 12), 4 * times))


def test_all_arrays_stay_together():
    ring = filled(5)
    number = np.asarray(ring.reward[0])
    for leaf in jax.tree.leaves(ring):
        column = np.asarray(leaf).reshape(7, 12, -1)
        expected = number.astype(leaf.dtype)[None, :, None]
        np.testing.assert_array_equal(column, np.broadcast_to(expected, column.shape))


def numbers(ring, index):
    """Those of the windows at ``index``."""
    return np.asarray(windows.take(ring, index).reward[0]).astype(int)


def test_samples_are_different_windows_and_only_added_ones(key):
    ring = filled(2)
    for k in jax.random.split(key, 20):
        drawn = numbers(ring, uniform.draw_uniformly(k, 12, jnp.int32(8), 6))
        assert len(set(drawn)) == 6
        assert set(drawn) <= set(range(8))


def test_samples_are_uniform(key):
    ring = filled(3)
    draw = jax.vmap(lambda k: windows.take(ring, uniform.draw_uniformly(k, 12, jnp.int32(12), 3)).reward[0])
    drawn = draw(jax.random.split(key, 4000))
    share = np.bincount(np.asarray(drawn).astype(int).ravel(), minlength=12) / 12_000
    np.testing.assert_allclose(share, 1 / 12, atol=0.01)


@pytest.mark.parametrize(("n_actions", "dtype"), [(5, jnp.int8), (127, jnp.int8), (128, jnp.int16)])
def test_actions_take_the_smallest_integer_that_holds_them(n_actions, dtype):
    assert windows.action_dtype(n_actions) == dtype


@pytest.mark.parametrize(
    "name",
    [
        "smax_smacv2_5_units",
        "predator_prey",
        "mpe_simple_speaker_listener_v4",
        *slow(["smax_2s3z", "mpe_simple_spread_v3", "jaxmarl/mpe_simple_spread_v3", "mpe_simple_reference_v3"]),
    ],
)
def test_what_is_packed_shows_again_what_was_seen(name, key):
    """Over a played episode, at every slot; SMAX keeps less than a tenth of it, MPE less than all."""
    env = make_env(name, batch=3)
    state, timestep = env.reset(key)

    def step(carry, key):
        state, seen = carry
        u = jax.random.uniform(key, (3, env.spec.n_agents))
        after = env.step(key, state, random_available(u, seen.avail))
        return after, (env.pack(state, seen), seen)

    _, (packed, seen) = jax.lax.scan(step, (state, timestep), jax.random.split(key, 20))
    shown = env.unpack(packed)
    for name_, x in shown._asdict().items():
        np.testing.assert_allclose(x, getattr(seen, name_), atol=1e-6)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(packed) < {"smax": 0.1, "mpe": 0.8}.get(name.split("_")[0], 1.01) * size(shown)


def test_windows_come_back_with_whole_actions(key):
    index = uniform.draw_uniformly(key, 12, jnp.int32(8), 6)
    window = windows.unpack(ENV, windows.take(filled(2), index))
    assert window.action.dtype == jnp.int32
    assert window.obs.shape == (7, 6, 2, 1)


def test_floats_kept_in_half_the_bits():
    """They come back rounded to 8 significant bits; nothing else changes."""
    rounded, exact = windows.empty(ENV, 7, 4, dtype="bfloat16"), windows.empty(ENV, 7, 4)
    marks = jax.tree.map(lambda x: (x + 1.00390625).astype(x.dtype), marked(1))  # 1 + 2⁻⁸ takes nine bits
    kept, whole = (windows.unpack(ENV, windows.write(ring, marks, jnp.int32(0))) for ring in (rounded, exact))
    assert whole.obs.dtype == kept.obs.dtype == jnp.float32
    np.testing.assert_array_equal(kept.obs, whole.obs.astype(jnp.bfloat16).astype(jnp.float32))
    assert not np.array_equal(kept.obs, whole.obs)
    for name in ("action", "reward", "discount", "first", "last", "avail"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(whole, name))
    floats = [x for x in jax.tree.leaves(exact.seen) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sum(x.nbytes for x in jax.tree.leaves(rounded)) == sum(x.nbytes for x in jax.tree.leaves(exact)) - sum(
        x.nbytes // 2 for x in floats
    )


def begins(core):
    """What agents with this core begin a window from, leaves [1, N, …]."""
    agent = Agent(2, 3, 1, hidden=5, core=core)
    return AgentStart(agent.initial_state(1), jnp.zeros((1, 2), jnp.int32))


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_what_a_window_starts_from_stays_with_it(core, key):
    """Through writing, drawing and unpacking; of whatever leaves a core's state has, and none of them changes type."""
    start = begins(core)
    ring = filled(5, start=start)
    assert jax.tree.map(lambda x: (12, *x.shape[1:]), start) == jax.tree.map(lambda x: x.shape, ring.start)
    assert len(jax.tree.leaves(ring.start)) == {"gru": 2, "lstm": 3, "none": 1}[core]
    index = uniform.draw_uniformly(key, 12, jnp.int32(12), 6)
    window = windows.unpack(ENV, windows.take(ring, index))
    number = np.asarray(ring.reward[0])[np.asarray(index)]
    assert len(set(number)) == 6 and number.max() >= 12  # of those written over the first ones, too
    np.testing.assert_array_equal(window.reward, np.broadcast_to(number, (7, 6)))
    assert jax.tree.structure(window.start) == jax.tree.structure(start)
    for leaf, like in zip(jax.tree.leaves(window.start), jax.tree.leaves(start), strict=True):
        assert leaf.dtype == like.dtype and leaf.shape == (6, *like.shape[1:])
        np.testing.assert_array_equal(leaf, np.broadcast_to(number.reshape(6, *(1,) * (leaf.ndim - 1)), leaf.shape))


def test_memory_is_kept_whole_where_what_is_seen_is_not():
    """What a window starts from keeps its bits whatever ``replay.dtype`` says."""
    ring = windows.empty(ENV, 7, 4, begins("gru"), "bfloat16")
    fine = jax.tree.map(lambda x: (x + 1.00390625).astype(x.dtype), marked(1, start=begins("gru")))
    kept = windows.unpack(ENV, windows.write(ring, fine, jnp.int32(0)))
    jax.tree.map(np.testing.assert_array_equal, kept.start, fine.start)


# Priorities

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
    return jax.vmap(lambda k: prioritised.draw_by_priority(k, priority, alpha, BATCH))(jax.random.split(key, 20_000))


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
        got = prioritised.weights(jnp.asarray(priority), jnp.asarray(index), jnp.float32(alpha), jnp.float32(beta))
        np.testing.assert_allclose(got, full / full.max(), rtol=1e-5)


def test_with_full_weights_the_mean_is_that_of_all_windows(rng, key):
    """β = 1, each batch's scale taken back: the weighted mean of anything is unbiased; the plain mean is not."""
    priority, alpha, one = held(rng), jnp.float32(0.6), jnp.float32(1.0)
    anything = np.where(priority > 0, priority**2, np.nan)  # goes with the priority, as losses do
    index = np.asarray(many_draws(key, priority, alpha))
    weight = jax.vmap(lambda i: prioritised.weights(jnp.asarray(priority), i, alpha, one))(jnp.asarray(index))
    scale = 1.0 / (HELD * probabilities(priority, 0.6)[index].min(axis=1))
    estimates = (np.asarray(weight) * anything[index]).mean(axis=1) * scale
    truth = anything[:HELD].mean()
    assert estimates.mean() == pytest.approx(truth, abs=4 * estimates.std() / len(estimates) ** 0.5)
    assert anything[index].mean() > 1.2 * truth


def test_new_windows_get_the_largest_priority():
    priority = prioritised.add(jnp.zeros(6), jnp.int32(0), 2)
    np.testing.assert_allclose(priority, [1, 1, 0, 0, 0, 0])
    priority = prioritised.add(jnp.asarray([0.25, 0.5, 0, 0, 0, 0]), jnp.int32(2), 2)
    np.testing.assert_allclose(priority, [0.25, 0.5, 0.5, 0.5, 0, 0])
    priority = prioritised.add(jnp.asarray([1, 2, 3, 4, 5, 6.0]), jnp.int32(2), 2)
    np.testing.assert_allclose(priority, [1, 2, 6, 6, 5, 6])


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_a_windows_priority_is_r2d2s(rng, shape):
    """Errors where no transition leaves do not count."""
    error = rng.normal(size=shape).astype(np.float32)
    last = rng.random(shape[:2]) < 0.3
    last[0], last[-1] = False, True
    error[last] = 1e6
    found = surprise(jnp.asarray(error), jnp.asarray(~last))
    got = Prioritised().update(jnp.zeros(8), jnp.array([6, 2, 0, 7, 3]), found)
    np.testing.assert_allclose(got[jnp.array([6, 2, 0, 7, 3])], oracles.window_priority(error, last), rtol=1e-5)
    np.testing.assert_array_equal(got[jnp.array([1, 4, 5])], 0)


@pytest.mark.slow
def test_priorities_of_a_population_follow_what_it_learns():
    """An iteration gives new windows the largest priority, and changes that of no more windows than it drew."""
    small = {"agent.hidden": 8, "rollouts": 4, "replay.capacity": 16, "replay.batch": 4, "updates": 2}
    cfg = load_config(None, **small, **{"env.name": "chain_probe", "algo.mixer": "vdn", "replay.prioritised": True})
    program = make_program(cfg)
    members, shared = jax.vmap(program.init, out_axes=(0, None))(jnp.arange(3))
    step = jax.jit(jax.vmap(program.iteration, in_axes=(0, None), out_axes=(0, None)))
    for k in range(6):  # the last two write over the oldest windows
        written = np.arange(4 * k, 4 * (k + 1)) % 16
        before = np.array(members.buffer.priority)
        before[:, written] = before.max(axis=1, keepdims=True) if k else 1.0
        members, shared = step(members, shared)
        changed = (np.asarray(members.buffer.priority) != before).sum(axis=1)
        assert (changed >= 1).all() and (changed <= 8).all()
        np.testing.assert_array_equal((np.asarray(members.buffer.priority) > 0).sum(axis=1), min(4 * (k + 1), 16))
    assert not np.array_equal(members.buffer.priority[0], members.buffer.priority[1])


def test_beta_rises_to_one_at_total_steps():
    cfg = load_config(None, **{"env.name": "chain_probe", "replay.prioritised": True, "total_steps": 1000})
    program = make_program(cfg)
    member, _ = program.init(jnp.int32(0))
    for steps, beta in [(0, 0.4), (500, 0.7), (1000, 1.0), (3000, 1.0)]:
        now = program.now(member._replace(env_steps=count.from_int(steps)))
        assert float(now.replay.priority_beta) == pytest.approx(beta)


# The protocol


@pytest.mark.parametrize("is_prioritised", [False, True])
def test_a_buffer_keeps_to_the_protocol(is_prioritised, key):
    """What an algorithm does with one: empty, filled beyond its capacity, drawn from and told, all inside programs."""
    replay = ReplayConfig(capacity=12, batch=6, prioritised=is_prioritised)
    buffer = make_buffer(replay)
    assert isinstance(buffer, Buffer) and type(buffer) is (Prioritised if is_prioritised else Uniform)
    for name in ("init", "add", "sample", "update"):
        own, asked = (list(inspect.signature(getattr(x, name)).parameters) for x in (type(buffer), Buffer))
        assert own == asked
    add, sample = jax.jit(buffer.add), jax.jit(lambda *args: buffer.sample(*args, replay))
    stored = buffer.init(windows.empty(ENV, 7, 12, begins("gru")), replay)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), stored)
    for k in range(5):
        stored = add(stored, marked(k, start=begins("gru")), jnp.int32(4 * k % 12))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), stored) == shapes
        held = min(4 * (k + 1), 12)
        if held >= replay.batch:
            index, weight = sample(jax.random.fold_in(key, k), stored, jnp.int32(held))
            drawn = windows.take(stored.windows, index)
            newest = np.arange(max(0, 4 * (k + 1) - 12), 4 * (k + 1))
            assert np.isin(drawn.reward[0], newest).all()
            np.testing.assert_array_equal(drawn.start.last_action[:, 0], drawn.reward[0])
            np.testing.assert_array_equal(weight, 1)  # of equal priorities too
    assert index.shape == weight.shape == (6,) and index.dtype == jnp.int32
    after = jax.jit(buffer.update)(stored.priority, jnp.array([0, 5]), jnp.array([3.0, 0.0]))
    assert jax.tree.structure(after) == jax.tree.structure(stored.priority)
    index, weight = sample(key, stored._replace(priority=after), jnp.int32(12))
    lowest = float(weight[index == 0].min()) if is_prioritised else float(weight.min())
    assert float(weight.max()) == 1
    assert lowest == pytest.approx(3 ** -(0.6 * 0.4) if is_prioritised else 1)  # the window that surprised most


# Running statistics


def test_running_moments_are_those_of_all_rows(rng):
    rows = rng.normal(loc=[0, 5, -30, 2], scale=[1, 4, 9, 0], size=(600, 4)).astype(np.float32)
    moments = normalise.init(4)
    for part in np.split(rows, [10, 50, 51, 400]):
        moments = normalise.update(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.m2 / moments.rows, rows.var(0), rtol=1e-3, atol=1e-4)
    z = np.asarray(normalise.apply(moments, jnp.asarray(rows)))
    np.testing.assert_allclose(z[:, :3].std(0), 1, atol=0.02)
    np.testing.assert_array_equal(z[:, 3], 0)
    assert np.abs(z).max() <= 5


def test_running_moments_of_some_rows(rng):
    """The others are not read; without a clip, a constant reward is 0."""
    x, rows = rng.normal(3, 2, size=(40, 5, 1)).astype(np.float32), rng.random((40, 5)) < 0.6
    x[~rows] = 1e4
    moments = normalise.init(1)
    for part in np.split(np.arange(40), [1, 7, 30]):
        moments = normalise.update(moments, jnp.asarray(x[part]), jnp.asarray(rows[part]))
    counted = x[rows].astype(np.float64)
    assert float(moments.rows) == rows.sum()
    z = np.asarray(normalise.standardise(moments, jnp.asarray(x)))
    np.testing.assert_allclose(z, (x - counted.mean()) / counted.std(), rtol=1e-3, atol=1e-4)
    still = normalise.update(normalise.init(1), jnp.full((50, 1), -0.1))
    np.testing.assert_allclose(normalise.standardise(still, jnp.full((3, 1), -0.1)), 0, atol=1e-4)
