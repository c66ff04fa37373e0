import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Counting

from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.registry import make_env
from jqmix.learning import normalise, replay
from jqmix.learning.exploration import random_available
from jqmix.types import Packed

ENV = TimeLimit(Batched(Counting(), 4), 6, "bootstrap")


def windows(mark: int, e: int = 4, slots: int = 7) -> Packed:
    """E windows that carry their number, mark·E + e, in every array."""
    number = mark * e + jnp.arange(e)
    return jax.tree.map(
        lambda x: jnp.broadcast_to(number.reshape((1, e) + (1,) * (x.ndim - 2)), (slots, e, *x.shape[2:])).astype(
            x.dtype
        ),
        replay.init(ENV, slots, e),
    )


def filled(times: int, capacity: int = 12):
    ring = replay.init(ENV, 7, capacity)
    for k in range(times):
        ring = replay.add(ring, windows(k), jnp.int32(4 * k % capacity))
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


def test_samples_are_different_windows_and_only_added_ones(key):
    ring = filled(2)
    for k in jax.random.split(key, 20):
        drawn = replay.sample(k, ring, jnp.int32(8), 6)
        numbers = np.asarray(drawn.reward[0]).astype(int)
        assert len(set(numbers)) == 6
        assert set(numbers) <= set(range(8))


def test_samples_are_uniform(key):
    ring = filled(3)
    drawn = jax.vmap(lambda k: replay.sample(k, ring, jnp.int32(12), 3).reward[0])(jax.random.split(key, 4000))
    share = np.bincount(np.asarray(drawn).astype(int).ravel(), minlength=12) / 12_000
    np.testing.assert_allclose(share, 1 / 12, atol=0.01)


@pytest.mark.parametrize(("n_actions", "dtype"), [(5, jnp.int8), (127, jnp.int8), (128, jnp.int16)])
def test_actions_take_the_smallest_integer_that_holds_them(n_actions, dtype):
    assert replay.action_dtype(n_actions) == dtype


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


@pytest.mark.parametrize(
    "name",
    [
        "smax_2s3z",
        "smax_smacv2_5_units",
        "predator_prey",
        "mpe_simple_spread_v3",
        "jaxmarl/mpe_simple_spread_v3",
        "mpe_simple_reference_v3",
        "mpe_simple_speaker_listener_v4",
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
    window = replay.unpack(ENV, replay.sample(key, filled(2), jnp.int32(8), 6))
    assert window.action.dtype == jnp.int32
    assert window.obs.shape == (7, 6, 2, 1)


def test_floats_kept_in_half_the_bits():
    """They come back rounded to 8 significant bits; nothing else changes."""
    rounded, exact = replay.init(ENV, 7, 4, "bfloat16"), replay.init(ENV, 7, 4)
    marks = jax.tree.map(lambda x: (x + 1.00390625).astype(x.dtype), windows(1))  # 1 + 2⁻⁸ takes nine bits
    kept, whole = (replay.unpack(ENV, replay.add(ring, marks, jnp.int32(0))) for ring in (rounded, exact))
    assert whole.obs.dtype == kept.obs.dtype == jnp.float32
    np.testing.assert_array_equal(kept.obs, whole.obs.astype(jnp.bfloat16).astype(jnp.float32))
    assert not np.array_equal(kept.obs, whole.obs)
    for name in ("action", "reward", "discount", "first", "last", "avail"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(whole, name))
    floats = [x for x in jax.tree.leaves(exact.seen) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sum(x.nbytes for x in jax.tree.leaves(rounded)) == sum(x.nbytes for x in jax.tree.leaves(exact)) - sum(
        x.nbytes // 2 for x in floats
    )
