"""λ-returns against a NumPy recursion, with episodes, terminations and cuts anywhere; and their identities."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqmix.learning import returns


def lambda_returns(*arrays_and_lambda):
    *arrays, lam = arrays_and_lambda
    return returns.lambda_returns(*(jnp.asarray(x) for x in arrays), lam)


def sequences(seed, T1, B):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, T1, B)).astype(np.float32)
    last = rng.random((T1, B)) < 0.25
    last[-1] = rng.random(B) < 0.5  # the final slot counts as last whatever is said
    discount = np.where(rng.random((T1, B)) < 0.2, 0.0, rng.uniform(0.5, 1.0)).astype(np.float32)
    return reward, discount, value, last


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4), st.floats(0, 1))
def test_matches_the_recursion(seed, T1, B, lam):
    args = sequences(seed, T1, B)
    np.testing.assert_allclose(lambda_returns(*args, lam), oracles.lambda_returns(*args, lam), rtol=2e-5, atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_zero_lambda_is_one_step(seed):
    reward, discount, value, last = sequences(seed, 8, 3)
    last[-1] = True
    one_step = np.where(last[:-1], value[:-1], reward[:-1] + discount[:-1] * value[1:])
    np.testing.assert_allclose(lambda_returns(reward, discount, value, last, 0.0)[:-1], one_step, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_lambda_one_is_monte_carlo(seed):
    """Between two ends no value but the last observation's is read."""
    reward, discount, value, last = sequences(seed, 10, 2)
    got = np.asarray(lambda_returns(reward, discount, value, last, 1.0))
    for b in range(2):
        for t in range(10):
            total, weight, k = 0.0, 1.0, t
            while not (last[k, b] or k == 9):
                total += weight * reward[k, b]
                weight *= discount[k, b]
                k += 1
            assert got[t, b] == pytest.approx(total + weight * value[k, b], rel=1e-4, abs=1e-4)


def test_stops_at_a_cut_inside_the_window():
    """Slot 2 is a final observation: what comes after must not reach slots 0 and 1."""
    reward = np.array([[1.0], [1.0], [9.0], [100.0], [0.0]], np.float32)
    discount = np.full((5, 1), 0.5, np.float32)
    value = np.array([[0.0], [0.0], [8.0], [50.0], [7.0]], np.float32)
    last = np.array([[False], [False], [True], [False], [True]])
    got = lambda_returns(reward, discount, value, last, 1.0)[:, 0]
    np.testing.assert_allclose(got, [1 + 0.5 * (1 + 0.5 * 8), 1 + 0.5 * 8, 8, 100 + 0.5 * 7, 7])


def test_takes_any_number_of_batch_axes():
    args = sequences(3, 6, 4)
    split = [x.reshape(6, 2, 2) for x in args]
    np.testing.assert_allclose(
        np.asarray(lambda_returns(*split, 0.7)).reshape(6, 4), lambda_returns(*args, 0.7), rtol=1e-6
    )
