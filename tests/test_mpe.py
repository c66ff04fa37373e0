"""Our simple_spread against the installed JaxMARL's: the same environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jqmix.envs.jaxmarl import mpe
from jqmix.envs.mpe import SimpleSpread, SpreadState

SIZE = 64


def crowded(original, key, n):
    """JaxMARL's state after a reset, agents brought so near to one another that most of them touch, and moving."""
    _, state = original.reset(key)
    velocity = 0.5 * jax.random.normal(key, (n, 2))
    return state.replace(p_pos=state.p_pos.at[:n].multiply(0.2), p_vel=state.p_vel.at[:n].set(velocity))


@pytest.mark.parametrize("kwargs", [{}, {"num_agents": 5, "num_landmarks": 2, "local_ratio": 0.2}])
def test_every_step_of_whole_episodes_is_jaxmarls(kwargs, key):
    """States, observations, the global state, masks and rewards, from starts where agents collide and where not."""
    theirs, ours = mpe("simple_spread_v3", **kwargs), SimpleSpread(**kwargs)
    n = ours.spec.n_agents
    assert ours.spec[1:6] == theirs.spec[1:6]

    def converted(state):
        return SpreadState(state.p_pos[:n], state.p_vel[:n], state.p_pos[n:])

    def episode(key):
        state = jax.lax.cond(
            jax.random.bernoulli(key), lambda: theirs.env.reset(key)[1], lambda: crowded(theirs.env, key, n)
        )

        def step(carry, key):
            state, mine = carry
            actions = jax.random.randint(key, (n,), 0, 5)
            state, their_step = theirs.step(key, state, actions)
            mine, our_step = ours.step(key, mine, actions)
            return (state, mine), (converted(state), their_step, mine, our_step)

        return jax.lax.scan(step, (state, converted(state)), jax.random.split(key, ours.spec.episode_limit))[1]

    their_state, their_step, our_state, our_step = jax.jit(jax.vmap(episode))(jax.random.split(key, SIZE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), our_state, their_state)
    np.testing.assert_allclose(our_step.reward, their_step.reward, atol=1e-4, rtol=1e-4)
    for field in ("obs", "state"):
        np.testing.assert_allclose(getattr(our_step, field), getattr(their_step, field), atol=1e-4, rtol=1e-4)
    for field in ("avail", "discount", "last"):
        np.testing.assert_array_equal(getattr(our_step, field), getattr(their_step, field))


def test_agents_touch_in_the_episodes_compared(key):
    """Else nothing would be said of contacts."""
    theirs = mpe("simple_spread_v3")
    states = jax.vmap(lambda k: crowded(theirs.env, k, 3))(jax.random.split(key, SIZE))
    near = jax.vmap(lambda s: jnp.linalg.norm(s.p_pos[0] - s.p_pos[1]) < 0.3)(states)
    assert 0.3 < float(jnp.mean(near)) < 1.0


def test_a_reset_places_everything_uniformly_and_at_rest(key):
    env = SimpleSpread()
    state, seen = jax.vmap(env.reset)(jax.random.split(key, 2000))
    assert not state.velocity.any()
    assert not seen.reward.any()
    for place in (state.position, state.landmark):
        for column in place.reshape(2000, -1).T:
            assert kstest(column, "uniform", args=(-1, 2)).pvalue > 1e-4


def test_agents_on_one_another_stay_finite(key):
    env = SimpleSpread()
    state = SpreadState(jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.ones((3, 2)))
    state, seen = env.step(key, state, jnp.zeros((3,), jnp.int32))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, seen)))
    assert float(seen.reward) == pytest.approx(-0.5 * 6 - 0.5 * 3 * 3 * np.sqrt(2))


@pytest.mark.parametrize(
    "kwargs", [{"num_agents": 0}, {"num_landmarks": -1}, {"local_ratio": 2}, {"local_ratio": -0.5}, {"max_steps": 0}]
)
def test_options_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=f"env.kwargs.{next(iter(kwargs))}: .* must be"):
        SimpleSpread(**kwargs)
