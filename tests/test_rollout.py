"""The data rules: what a window holds, at every slot of every episode in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Counting, Ragged, Rolling

from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.probes import MemoryProbe
from jqmix.learning.replay import unpack
from jqmix.learning.rollout import collect, evaluate
from jqmix.networks.agent import Agent

E = 3


def agent_for(env, **sizes):
    return Agent(env.spec.n_agents, env.spec.n_actions, env.spec.obs_size, hidden=8, **sizes)


def gather(one, limit, mode, slots, epsilon=1.0, seed=0, only_first=False):
    env = TimeLimit(Batched(one, E), limit, mode)
    agent = agent_for(env)
    params = agent.init(jax.random.key(9))
    packed, episodes = collect(agent, params, env, jax.random.key(seed), jnp.float32(epsilon), slots, only_first)
    return agent, params, unpack(env, packed), episodes


def test_slots_of_terminating_episodes():
    """Two whole episodes of 3 steps and the start of a third: every field of every slot."""
    _, _, w, _ = gather(Counting(3), 5, "bootstrap", slots=10)
    column = lambda x: np.asarray(x)[:, 0].tolist()  # noqa: E731
    assert column(w.obs[..., 0, 0]) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert column(w.state[..., 0]) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert column(w.first) == [True, False, False, False] * 2 + [True, False]
    assert column(w.last) == [False, False, False, True] * 2 + [False, True]
    valid = ~np.asarray(w.last)
    assert np.asarray(w.reward)[:, 0].tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 0, 0]
    assert np.asarray(w.discount)[valid[:, 0], 0].tolist() == [1, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(("mode", "discount"), [("bootstrap", 1.0), ("terminate", 0.0)])
def test_a_time_limit_keeps_its_final_observation(mode, discount):
    """Rule 2: at the limit the value goes on (or not), from the observation that was really reached."""
    _, _, w, _ = gather(Counting(99), 2, mode, slots=5)
    assert np.asarray(w.obs[:, 0, 0, 0]).tolist() == [1, 2, 3, 1, 2]
    assert np.asarray(w.last[:, 0]).tolist() == [False, False, True, False, True]
    assert float(w.discount[0, 0]) == 1.0
    assert float(w.discount[1, 0]) == discount


def test_every_step_of_every_rollout_draws_anew_however_it_is_told():
    """Drawn before the window or in its steps, the numbers are the same, and no two of them."""
    told, drawn = (np.asarray(gather(Rolling(t), 99, "bootstrap", slots=20)[2].reward)[:-1] for t in (True, False))
    np.testing.assert_array_equal(told, drawn)
    assert len(np.unique(told)) == told.size == 19 * E


def test_a_termination_at_the_limit_is_a_termination():
    _, _, w, _ = gather(Counting(2), 2, "bootstrap", slots=3)
    assert float(w.discount[1, 0]) == 0.0


def test_a_replayed_unroll_gives_the_values_seen_while_acting():
    """Greedy actions recomputed from the stored window are the ones taken, across episode boundaries inside it."""
    agent, params, w, _ = gather(MemoryProbe(2), 3, "bootstrap", slots=12, epsilon=0.0)
    assert np.asarray(w.first).sum(0).min() >= 3
    q = agent.unroll(params, w.obs, w.action, w.first).q
    chosen = np.argmax(np.where(w.avail, q, -np.inf), axis=-1)
    np.testing.assert_array_equal(chosen, w.action)

    # And the values themselves, by acting once more along the stored window.
    h, last_action = agent.initial_state(E), jnp.zeros((E, 2), jnp.int32)
    for t in range(12):
        seen, h = agent.step(params, h, w.obs[t], last_action, w.first[t])
        np.testing.assert_allclose(seen, q[t], rtol=1e-5, atol=1e-6)
        last_action = w.action[t]


def test_random_actions_are_available_ones():
    _, _, w, _ = gather(Counting(3), 5, "bootstrap", slots=40)
    taken = jnp.take_along_axis(w.avail, w.action[..., None], axis=-1)
    assert bool(jnp.all(taken))
    assert len(np.unique(w.action)) == 3


def test_episode_statistics_count_whole_episodes_only():
    _, _, w, episodes = gather(Counting(3), 5, "bootstrap", slots=17)
    means = {k: float(v) for k, v in episodes.means().items()}
    assert means == {"return_mean": 3.0, "length_mean": 3.0, "episodes": 2.0 * E, "win_rate": 1.0}
    np.testing.assert_array_equal(episodes.length, np.full(E, 6.0))
    first = gather(Counting(3), 5, "bootstrap", slots=10, only_first=True)[3]
    np.testing.assert_array_equal(first.length, np.full(E, 3.0))
    np.testing.assert_array_equal(first.ended, np.ones(E))
    assert int(jnp.sum(~w.last)) == 12 * E


@pytest.mark.parametrize("length", [1, 2, 4])
def test_evaluation_plays_exactly_n_whole_episodes(length, key):
    """Rule 7: each counted once, however short."""
    env = TimeLimit(Batched(Counting(length), 6), 4, "bootstrap")
    agent = agent_for(env)
    episodes = evaluate(agent, agent.init(key), env, key)
    np.testing.assert_array_equal(episodes.ended, np.ones(6))
    np.testing.assert_array_equal(episodes.length, np.full(6, length))
    np.testing.assert_array_equal(episodes.score, np.full(6, sum(range(length))))


def test_a_short_episode_is_not_played_again_while_others_go_on(key):
    env = TimeLimit(Batched(Ragged(), 64), 9, "bootstrap")
    agent = agent_for(env)
    params = agent.init(key)
    episodes = evaluate(agent, params, env, key)
    window, _ = collect(agent, params, env, key, jnp.float32(0.0), slots=10)
    assert np.asarray(window.last).sum(0).max() > 2
    lengths = np.argmax(np.asarray(window.last), axis=0)  # of each one's first episode
    assert set(lengths) == {1, 2, 3, 4}
    np.testing.assert_array_equal(episodes.ended, np.ones(64))
    np.testing.assert_array_equal(episodes.length, lengths)
    np.testing.assert_array_equal(episodes.score, lengths)


def test_evaluation_is_greedy(key):
    """Two evaluations of a deterministic world agree whatever the key."""
    env = TimeLimit(Batched(MemoryProbe(1), 64), 2, "bootstrap")
    agent = agent_for(env)
    params = agent.init(key)
    keys = [jax.random.key(k) for k in (1, 2)]
    wins = [evaluate(agent, params, env, k).score for k in keys]
    assert 0 <= float(jnp.mean(wins[0])) <= 1
    windows = [collect(agent, params, env, k, jnp.float32(0.0), slots=3)[0] for k in keys]
    first_cues = [np.asarray(unpack(env, w).obs[0]).reshape(64, -1) for w in windows]
    assert not np.array_equal(*first_cues)
    for cue in np.unique(first_cues[0], axis=0):
        same = [np.all(c == cue, axis=1) for c in first_cues]
        scores = np.concatenate([np.asarray(w)[s] for w, s in zip(wins, same, strict=True)])
        assert len(np.unique(scores)) == 1


def test_the_mean_over_training_episodes_favours_no_length():
    """Lengths 1 to 4, all equally likely: 2.5. Of what ended in a window, short episodes would be too many."""
    env = TimeLimit(Batched(Ragged(), 2048), 4, "bootstrap")
    agent = agent_for(env)
    _, episodes = collect(agent, agent.init(jax.random.key(9)), env, jax.random.key(0), jnp.float32(1.0), slots=35)
    means = {name: float(x) for name, x in episodes.means().items()}
    assert means["episodes"] == 3 * 2048  # as many as the starts that were drawn
    assert means["length_mean"] == pytest.approx(2.5, abs=0.06)
