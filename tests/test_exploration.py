import jax
import jax.numpy as jnp
import numpy as np

from jqmix.learning.exploration import epsilon_greedy, greedy, linear_schedule, random_available


def test_schedule_counts_environment_steps():
    steps = jnp.array([0, 25_000, 50_000, 100_000, 10**9])
    got = linear_schedule(steps, jnp.float32(1.0), jnp.float32(0.05), jnp.float32(100_000))
    np.testing.assert_allclose(got, [1.0, 0.7625, 0.525, 0.05, 0.05], rtol=1e-6)


def test_greedy_never_takes_what_is_unavailable():
    q = jnp.array([[5.0, 1.0, -2.0], [-3.0, -9.0, -1.0], [1e30, -jnp.inf, 0.0]])
    avail = jnp.array([[False, True, True], [True, True, False], [False, False, True]])
    np.testing.assert_array_equal(greedy(q, avail), [1, 0, 2])


def test_random_is_uniform_over_the_available(key):
    avail = jnp.array([False, True, False, True, True, False])
    u = jax.random.uniform(key, (30_000,))
    picks = random_available(u, jnp.broadcast_to(avail, (30_000, 6)))
    share = np.bincount(picks, minlength=6) / 30_000
    np.testing.assert_allclose(share, avail / 3, atol=0.01)


def test_random_at_the_ends_of_the_unit_interval():
    avail = jnp.array([[True, False, True]] * 2)
    np.testing.assert_array_equal(random_available(jnp.array([0.0, 1.0]), avail), [0, 2])


def test_epsilon_is_the_share_of_random_choices(key):
    q = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.5, 0.2]), (40_000, 4))
    avail = jnp.ones((40_000, 4), bool)
    u = jax.random.uniform(key, (2, 40_000))
    share = np.bincount(epsilon_greedy(u, q, avail, jnp.float32(0.4)), minlength=4) / 40_000
    np.testing.assert_allclose(share, [0.1, 0.7, 0.1, 0.1], atol=0.01)
    assert (epsilon_greedy(u, q, avail, jnp.float32(0.0)) == 1).all()
