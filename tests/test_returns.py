"""All targets against NumPy, with episodes, terminations and cuts anywhere; and their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jqmix.kernels.platform import compiling_for
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


def test_a_wrong_shape_is_found():
    """By the checks that tests run with, before any operation."""
    reward, discount, value, last = sequences(0, 4, 3)
    with pytest.raises(TypeCheckError, match="value"):
        lambda_returns(reward, discount, np.concatenate([value, value[:1]]), last, 0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1))
def test_accelerators_double_the_steps_and_come_to_the_same(seed, T1, lam):
    """And what is not finite stays within its episode."""
    reward, discount, value, last = sequences(seed, T1, 3)
    expected = oracles.lambda_returns(reward, discount, value, last, lam)
    with compiling_for("tpu"):
        got = lambda_returns(reward, discount, value, last, lam)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
        reward[-1:] = value[-1:] = np.nan
        got = np.asarray(lambda_returns(reward, discount, value, last, lam))
    before_an_end = np.cumsum(last[::-1], axis=0)[::-1] > last[-1]  # an end follows, other than the window's own
    np.testing.assert_allclose(got[before_an_end], np.asarray(expected)[before_an_end], rtol=2e-5, atol=2e-5)


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


@jax.jit
def compiled_targets(transitions, taken, was_greedy, lam, n):
    value = transitions[2]
    return {
        "qstar": returns.corrected_returns(*transitions, taken, jnp.broadcast_to(lam, value.shape)),
        "watkins": returns.corrected_returns(*transitions, value, lam * was_greedy),
        "nstep": returns.n_step_returns(*transitions, n),
        "sarsa": returns.sarsa_returns(*transitions, taken, lam),
    }


def other_targets(transitions, taken, was_greedy, lam, n):
    """Q*(λ), Watkins' Q(λ) and the n-step return, as the learner calls them: λ and n traced."""
    arrays = [jnp.asarray(x) for x in transitions]
    return compiled_targets(arrays, jnp.asarray(taken), jnp.asarray(was_greedy), jnp.float32(lam), jnp.float32(n))


def behaviour(seed, shape):
    """Target values of the actions taken, and whether these were greedy."""
    rng = np.random.default_rng(seed + 1)
    return rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.6


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=5e-5, atol=5e-5)


SHAPES = st.sampled_from([(1, 1), (2, 3), (5, 2), (9, 4)])  # few, so that few programs are compiled


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SHAPES, st.floats(0, 1, width=32), st.integers(1, 12))
def test_other_targets_match_their_definitions(seed, shape, lam, n):
    transitions = sequences(seed, *shape)
    taken, was_greedy = behaviour(seed, shape)
    got = other_targets(transitions, taken, was_greedy, lam, n)
    assert_close(got["qstar"], oracles.per_episode(oracles.q_star_lambda, (*transitions, taken), lam))
    assert_close(got["watkins"], oracles.per_episode(oracles.watkins, (*transitions, was_greedy), lam))
    assert_close(got["nstep"], oracles.per_episode(oracles.n_step, transitions, n))
    assert_close(got["sarsa"], oracles.per_episode(oracles.sarsa, (*transitions, taken), lam))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), SHAPES)
def test_without_a_trace_all_targets_are_one_step(seed, shape):
    transitions, (taken, was_greedy) = sequences(seed, *shape), behaviour(seed, shape)
    for name, got in other_targets(transitions, taken, was_greedy, 0.0, 1).items():
        if name != "sarsa":  # whose step is to another value
            assert_close(got, lambda_returns(*transitions, 0.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), SHAPES, st.floats(0, 1, width=32))
def test_after_greedy_actions_alone_all_traces_are_pengs(seed, shape, lam):
    """A greedy action's value is the slot's value, so Q*(λ) corrects nothing, and Watkins cuts nothing."""
    transitions = sequences(seed, *shape)
    got = other_targets(transitions, transitions[2], np.ones(shape, bool), lam, 1)
    expected = lambda_returns(*transitions, lam)
    assert_close(got["watkins"], expected)
    assert_close(got["qstar"], expected)
    assert_close(got["sarsa"], expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), SHAPES, st.integers(0, 5))
def test_enough_steps_are_monte_carlo(seed, shape, more):
    """n of the window's length or any more."""
    transitions = sequences(seed, *shape)
    got = other_targets(transitions, *behaviour(seed, shape), 0.0, max(shape[0] - 1, 1) + more)
    assert_close(got["nstep"], lambda_returns(*transitions, 1.0))


def test_what_stands_where_no_action_is_taken_is_not_read():
    """The final observation of an episode, and of the window: actions there are whatever the policy said."""
    transitions = sequences(5, 9, 4)
    taken, was_greedy = behaviour(5, (9, 4))
    ends = transitions[3].copy()
    ends[-1] = True
    expected = other_targets(transitions, taken, was_greedy, 0.7, 3)
    got = other_targets(transitions, np.where(ends, np.nan, taken), was_greedy ^ ends, 0.7, 3)
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x)


def test_an_exploring_action_cuts_watkins_trace():
    """The action taken at slot 2 explores: slots 0 and 1 see no further than its value; slot 2 sees past itself."""
    reward, value = np.float32([[1], [2], [4], [8], [0]]), np.float32([[0], [10], [20], [40], [80]])
    discount, last = np.full((5, 1), 0.5, np.float32), np.arange(5)[:, None] == 4
    was_greedy = np.arange(5)[:, None] != 2
    got = other_targets((reward, discount, value, last), value, was_greedy, 1.0, 1)["watkins"][:, 0]
    np.testing.assert_allclose(
        got, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20, 4 + 0.5 * (8 + 0.5 * 80), 8 + 0.5 * 80, 80]
    )


def test_nothing_crosses_the_end_of_an_episode_not_even_what_is_not_finite():
    reward, value = np.float32([[1], [0], [np.inf], [0]]), np.float32([[0], [3], [0], [np.nan]])
    discount, last = np.full((4, 1), 0.5, np.float32), np.array([[False], [True], [False], [True]])
    transitions, no, yes = (reward, discount, value, last), np.float32(0), np.ones((4, 1), bool)
    for got in [lambda_returns(*transitions, 0.7), *other_targets(transitions, value + no, yes, 0.7, 3).values()]:
        np.testing.assert_allclose(got[:2, 0], [1 + 0.5 * 3, 3])
