"""The data rules: what a window holds, at every slot of every episode in it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow
from worlds import Counting, Ragged, Rolling

from jqmix.buffers.windows import unpack
from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.probes import MemoryProbe
from jqmix.envs.registry import make_env
from jqmix.kernels.platform import compiling_for, plain_forms
from jqmix.learning.evaluation import evaluate
from jqmix.learning.rollout import begin_ongoing, collect, starts_at_once
from jqmix.networks.agent import Agent
from jqmix.types import EnvSpec, TimeStep

E = 3


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def chip(request):
    """What is collected does not depend on how accelerators draw starts and keep records."""
    with compiling_for(request.param), plain_forms("gru" if request.param == "gpu" else ""):  # a kernel can't run here
        yield request.param


def agent_for(env, **sizes):
    return Agent(env.spec.n_agents, env.spec.n_actions, env.spec.obs_size, hidden=8, **sizes)


def gather(one, limit, mode, slots, epsilon=1.0, seed=0):
    env = TimeLimit(Batched(one, E), limit, mode)
    agent = agent_for(env)
    params = agent.init(jax.random.key(9))
    packed, episodes, _ = collect(agent, params, env, jax.random.key(seed), jnp.float32(epsilon), slots - 1)
    return agent, params, unpack(env, packed), episodes


def test_slots_of_terminating_episodes(chip):
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
def test_a_time_limit_keeps_its_final_observation(mode, discount, chip):
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
    np.testing.assert_array_equal(chosen[:-1], w.action[:-1])

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
    assert means == {"return_mean": 3.0, "length_mean": 3.0, "episodes": 3.0 * E, "win_rate": 1.0}
    np.testing.assert_array_equal(episodes.length, np.full(E, 9.0))
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
    lengths = np.asarray(env.reset(jax.random.split(key)[0])[0].inner[1])  # as they were drawn
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
    first_cues = [np.asarray(env.reset(jax.random.split(k)[0])[1].obs).reshape(64, -1) for k in keys]
    assert not np.array_equal(*first_cues)
    for cue in np.unique(first_cues[0], axis=0):
        same = [np.all(c == cue, axis=1) for c in first_cues]
        scores = np.concatenate([np.asarray(w)[s] for w, s in zip(wins, same, strict=True)])
        assert len(np.unique(scores)) == 1


def test_the_mean_over_training_episodes_favours_no_length():
    """Lengths 1 to 4, all equally likely: 2.5. Of what ended in a window, short episodes would be too many."""
    env = TimeLimit(Batched(Ragged(), 2048), 4, "bootstrap")
    agent = agent_for(env)
    params = agent.init(jax.random.key(9))
    _, episodes, _ = collect(agent, params, env, jax.random.key(0), jnp.float32(1.0), transitions=34)
    means = {name: float(x) for name, x in episodes.means().items()}
    assert means["episodes"] > 8 * 2048
    assert means["length_mean"] == pytest.approx(2.5, abs=0.03)


# Starts of episodes


class Drawn:
    """Every reset draws a number, which is shown in all of its episode; that lasts a step, or 1 or ``longest``."""

    def __init__(self, longest: int):
        self.longest = longest
        self.spec = EnvSpec("drawn", 1, 2, 1, 1, max(longest, 2))

    def _show(self, number, ended):
        shown = number.astype(jnp.float32)
        seen = jnp.reshape(shown, (1, 1)), jnp.reshape(shown, (1,)), jnp.ones((1, 2), bool)
        return TimeStep(*seen, jnp.float32(1), 1.0 - ended.astype(jnp.float32), ended, {})

    def reset(self, key):
        number = jax.random.randint(key, (), 0, 2**24)
        return (number, jnp.int32(0)), self._show(number, jnp.bool_(False))

    def step(self, key, state, actions):
        number, t = state[0], state[1] + 1
        return (number, t), self._show(number, t >= jnp.where(number % 2 == 0, 1, self.longest))


def independent(longest, transitions, count):
    """What independent episodes fill windows with: the share of transitions in short ones, and starts per window."""
    rng, short, starts = np.random.default_rng(1), 0, 0
    for _ in range(count):
        left = transitions
        while left > 0:
            length = 1 if rng.random() < 0.5 else longest
            short += min(length, left) if length == 1 else 0
            starts, left = starts + 1, left - length - 1  # the slot of its final observation leaves no transition
    return short, starts / count


def windows_of(one, rollouts, transitions, iterations, goes_on):
    """Windows collected one after another, unpacked and side by side: [T1, iterations, E, …]."""
    env = TimeLimit(Batched(one, rollouts), one.spec.episode_limit, "bootstrap")
    agent = agent_for(env)
    params = agent.init(jax.random.key(9))
    ongoing = begin_ongoing(agent, env, 0) if goes_on else None

    @jax.jit
    def one_window(key, ongoing):
        window, episodes, ongoing = collect(agent, params, env, key, jnp.float32(1.0), transitions, ongoing)
        return unpack(env, window), episodes, ongoing

    found = []
    for key in jax.random.split(jax.random.key(0), iterations):
        window, episodes, ongoing = one_window(key, ongoing)
        found.append((window, episodes))
    return agent, params, found


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("longest", [1, 19])
def test_no_start_of_an_iteration_comes_twice_and_all_are_as_frequent_as_independent_ones(longest, goes_on, chip):
    """More than a thousand starts in every window; on a CPU from pools of far fewer."""
    rollouts, transitions = 64, 60
    _, _, found = windows_of(Drawn(longest), rollouts, transitions, 12, goes_on)
    short = total = starts = 0
    for window, _ in found:
        first, number = np.asarray(window.first)[:-1], np.asarray(window.obs)[:-1, :, 0, 0]
        begun = number[first]
        # Numbers below 2²⁴ meet by chance about n² / 2²⁵ times.
        assert len(begun) - len(np.unique(begun)) <= 3 + 2 * len(begun) ** 2 / 2**25
        assert first.sum(0).max() > starts_at_once(transitions) or chip != "cpu"
        valid = ~np.asarray(window.last)[:-1]
        short += ((number % 2 == 0) & valid).sum() if longest > 1 else 0
        total, starts = total + valid.sum(), starts + first.sum()
    if longest == 1:
        assert total == 12 * rollouts * transitions / 2 and starts == total
        return
    if goes_on:  # in the long run half of the episodes are short, and a slot of each leaves no transition
        expected, per_window = 1 / 20, transitions / 11
    else:
        in_short, per_window = independent(longest, transitions, 20_000)
        expected = in_short / 20_000 / (total / (12 * rollouts))
    assert short / total == pytest.approx(expected, rel=0.12)
    assert starts / (12 * rollouts) == pytest.approx(per_window, rel=0.05)


def test_random_play_on_switch_riddle_repeats_no_start():
    """Its starts show who is in the room: few kinds, drawn anew for every episode, as frequent as resets draw them."""
    env = make_env("switch_riddle", batch=32)
    agent = agent_for(env)
    params = agent.init(jax.random.key(9))
    collected = jax.jit(lambda key: collect(agent, params, env, key, jnp.float32(1.0), 200)[0])
    packed = collected(jax.random.key(0))
    window = unpack(env, packed)
    first = np.asarray(window.first)[:-1]
    assert first.sum(0).min() > starts_at_once(200)
    seen = np.asarray(window.obs)[:-1][first].reshape(first.sum(), -1)
    drawn = np.asarray(make_env("switch_riddle", batch=20_000).reset(jax.random.key(5))[1].obs).reshape(20_000, -1)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    for kind, count in zip(kinds, counts, strict=True):
        share = (seen == kind).all(axis=1).mean()
        assert share == pytest.approx(count / 20_000, abs=4 / np.sqrt(len(seen)))
    # A rollout's starts in a row are independent: the one that follows a start is of every kind as often.
    numbers = np.array([np.flatnonzero((kinds == x).all(axis=1))[0] for x in seen])
    of_rollout = [numbers[np.nonzero(first)[1] == e] for e in range(32)]
    k = starts_at_once(200)
    again = np.mean([np.mean(x[k:] == x[:-k]) for x in of_rollout])  # as a pool used once more would give them
    assert again == pytest.approx(np.sum((counts / 20_000) ** 2), abs=0.15)


# Rollouts that go on


def test_windows_that_go_on_are_one_long_rollout(chip):
    """Cut anywhere, episodes run on: observations, first slots, memory and sums are those of one window."""
    transitions, count = 5, 6
    agent, params, found = windows_of(Counting(7, limit=9), E, transitions, count, goes_on=True)
    slots = [jax.tree.map(lambda x: np.asarray(x)[:-1], w._replace(start=None)) for w, _ in found]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *slots)
    t = np.arange(transitions * count) % 8
    np.testing.assert_array_equal(joined.obs[:, 0, 0, 0], t + 1)
    np.testing.assert_array_equal(joined.first[:, 0], t == 0)
    np.testing.assert_array_equal(joined.last[:, 0], t == 7)
    np.testing.assert_array_equal(joined.reward[:, 0], np.where(t == 7, 0, t))
    ended = sum(float(episodes.ended.sum()) for _, episodes in found)
    length = sum(float(episodes.length.sum()) for _, episodes in found)
    score = sum(float(episodes.score.sum()) for _, episodes in found)
    assert (ended, length, score) == (3 * E, 3 * E * 7, 3 * E * 21)
    # Every window's values from what it starts with are those of the whole.
    whole = agent.unroll(params, *(jnp.asarray(x) for x in (joined.obs, joined.action, joined.first)))
    for k, (window, _) in enumerate(found):
        unrolled = agent.unroll(params, window.obs, window.action, window.first, window.start)
        expected = whole.q[k * transitions : (k + 1) * transitions]
        np.testing.assert_allclose(unrolled.q[:-1], expected, rtol=1e-4, atol=1e-5)


def test_a_window_ends_with_the_slot_at_which_the_next_one_begins():
    _, _, found = windows_of(Counting(3, limit=5), E, 6, 4, goes_on=True)
    for (window, _), (after, _) in itertools.pairwise(found):
        np.testing.assert_array_equal(window.first[-1], after.first[0])
        goes_on = ~np.asarray(window.first[-1])
        for name in ("obs", "state", "avail"):
            np.testing.assert_array_equal(getattr(window, name)[-1][goes_on], getattr(after, name)[0][goes_on])
        assert bool(jnp.all(window.last[-1]))


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
@pytest.mark.parametrize("transitions", [4, *slow([1, 7])])
def test_windows_share_the_slots_that_warm_up(core, transitions):
    """Each begins with the last ones of the window before it, and with the memory that was there."""
    burn_in = min(3, transitions)
    env = TimeLimit(Batched(Counting(4), E), 6, "bootstrap")
    agent = agent_for(env, core=core)
    params = agent.init(jax.random.key(9))
    ongoing = begin_ongoing(agent, env, burn_in)
    before = None
    for key in jax.random.split(jax.random.key(0), 5):
        packed, _, ongoing = collect(agent, params, env, key, jnp.float32(0.5), transitions, ongoing)
        window = unpack(env, packed)
        assert window.obs.shape[0] == burn_in + transitions + 1
        q = agent.unroll(params, window.obs, window.action, window.first, window.start).q
        if before is None:  # what is before the very first slot holds no transition
            assert bool(jnp.all(window.last[:burn_in])) and bool(jnp.all(window.first[burn_in]))
        else:
            shared = slice(transitions, transitions + burn_in)
            for name in ("obs", "action", "reward", "discount", "first", "last"):
                np.testing.assert_array_equal(getattr(window, name)[:burn_in], getattr(before[0], name)[shared])
            np.testing.assert_allclose(q[:burn_in], before[1][shared], rtol=1e-4, atol=1e-5)
        before = window, q
