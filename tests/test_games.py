"""Our own environments, rule by rule."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jqmix.envs.games import PAYOFFS, MatrixGame, TwoStepGame
from jqmix.envs.predator_prey import CATCH, STAY, PredatorPrey, PredatorPreyState
from jqmix.envs.probes import MemoryProbe

RIGHT, DOWN, LEFT, UP = range(4)


@pytest.mark.parametrize("name", list(PAYOFFS))
def test_matrix_game_pays_the_table(name, key):
    game = MatrixGame(name)
    state, start = game.reset(key)
    assert not start.last
    for a in range(3):
        for b in range(3):
            _, end = game.step(key, state, jnp.array([a, b]))
            assert float(end.reward) == pytest.approx(PAYOFFS[name][a][b])
            assert bool(end.last)
            assert float(end.discount) == 0


def test_matrix_game_takes_any_number_of_agents(key):
    payoff = np.arange(8.0).reshape(2, 2, 2)
    game = MatrixGame(payoff.tolist())
    assert (game.spec.n_agents, game.spec.n_actions) == (3, 2)
    assert float(game.step(key, game.reset(key)[0], jnp.array([1, 0, 1]))[1].reward) == 5


@pytest.mark.parametrize("payoff", ["z", [[1, float("nan")], [3, 4]], [[1, 2], [3]], [[1, 2, 3], [4, 5, 6]], [["a"]]])
def test_matrix_game_refuses(payoff):
    with pytest.raises(ValueError, match="payoff"):
        MatrixGame(payoff)


def test_two_step_game(key):
    game = TwoStepGame()
    for first in (0, 1):
        for a in (0, 1):
            for b in (0, 1):
                state, _ = game.reset(key)
                state, middle = game.step(key, state, jnp.array([first, 1 - b]))
                assert float(middle.reward) == 0
                assert not middle.last
                _, end = game.step(key, state, jnp.array([a, b]))
                assert float(end.reward) == (7 if first == 0 else [[0, 1], [1, 8]][a][b])
                assert bool(end.last)
                assert float(end.discount) == 0


def test_memory_probe_pays_only_both_cues(key):
    probe = MemoryProbe(2)
    state, start = probe.reset(key)
    cue = np.asarray(state[0])
    for i in range(2):
        assert int(np.argmax(start.obs[i, :2])) == cue[i]
    for answer in ([0, 0], [0, 1], [1, 0], [1, 1]):
        s, ts = probe.reset(key)
        for _ in range(2):
            assert ts.avail.tolist() == [[True, False]] * 2
            s, ts = probe.step(key, s, jnp.array([0, 0]))
            assert float(jnp.abs(ts.obs[:, :2]).sum()) == 0
        assert bool(ts.avail.all())
        _, ts = probe.step(key, s, jnp.array(answer))
        assert float(ts.reward) == float(answer == cue.tolist())
        assert bool(ts.last)


# Predator–prey


def hunt(agents, prey, frozen=None, alive=None, **options):
    world = PredatorPrey(size=5, n_agents=len(agents), n_prey=len(prey), **options)
    state = PredatorPreyState(
        jnp.array(agents, jnp.int32),
        jnp.array(frozen or [False] * len(agents)),
        jnp.array(prey, jnp.int32),
        jnp.array(alive or [True] * len(prey)),
    )
    return world, state


def test_two_that_catch_freeze_and_are_paid(key):
    world, state = hunt([(2, 1), (2, 3), (0, 0)], [(2, 2), (4, 4)])
    state, ts = world.step(key, state, jnp.array([CATCH, CATCH, STAY]))
    assert float(ts.reward) == 10
    assert state.frozen.tolist() == [True, True, False]
    assert state.alive.tolist() == [False, True]
    assert ts.avail[0].tolist() == [False] * 4 + [True, False]
    assert float(jnp.abs(ts.obs[:2]).sum()) == 0
    grid = ts.state.reshape(5, 5, 2)
    assert float(grid[..., 0].sum()) == 1  # the frozen have left the grid
    assert float(grid[..., 1].sum()) == 1


@pytest.mark.parametrize("punishment", [0.0, -2.0])
def test_one_alone_pays_the_punishment(key, punishment):
    world, state = hunt([(2, 1), (4, 4)], [(2, 2)], miscapture_punishment=punishment)
    state, ts = world.step(key, state, jnp.array([CATCH, STAY]))
    assert float(ts.reward) == punishment
    assert bool(state.alive[0])
    assert not state.frozen.any()


def test_three_that_catch_all_freeze_and_pay_once(key):
    world, state = hunt([(2, 1), (2, 3), (1, 2)], [(2, 2)])
    state, ts = world.step(key, state, jnp.array([CATCH] * 3))
    assert float(ts.reward) == 10
    assert state.frozen.all()
    assert bool(ts.last)
    assert float(ts.discount) == 0


def test_a_catcher_frozen_by_one_prey_does_not_catch_another(key):
    """Both prey stand between the same two agents: one is caught, the other is not."""
    world, state = hunt([(1, 1), (2, 2)], [(1, 2), (2, 1)])
    for k in jax.random.split(key, 5):
        after, ts = world.step(k, state, jnp.array([CATCH, CATCH]))
        assert float(ts.reward) == 10
        assert int(after.alive.sum()) == 1


def test_moves_and_walls(key):
    world, state = hunt([(0, 0), (4, 4)], [(2, 2)])
    after, _ = world.step(key, state, jnp.array([RIGHT, UP]))
    assert after.agent.tolist() == [[0, 1], [3, 4]]
    _, ts = world.reset(key)
    avail = world._available(state)
    assert avail[0].tolist() == [True, True, False, False, True, False]
    assert avail[1].tolist() == [False, False, True, True, True, False]
    assert ts.avail.any(-1).all()


def test_a_move_into_an_occupied_cell_does_nothing(key):
    world, state = hunt([(0, 0), (0, 1)], [(1, 0)], alive=[True])
    for k in jax.random.split(key, 5):
        after, _ = world.step(k, state, jnp.array([RIGHT, STAY]))
        assert after.agent[0].tolist() == [0, 0]
        after, _ = world.step(k, state, jnp.array([DOWN, STAY]))
        assert after.agent[0].tolist() == [0, 0]


def test_frozen_agents_neither_move_nor_block(key):
    world, state = hunt([(0, 0), (0, 1)], [(4, 4)], frozen=[False, True])
    after, _ = world.step(key, state, jnp.array([RIGHT, DOWN]))
    assert after.agent.tolist() == [[0, 1], [0, 1]]


def places(world, state, key, times):
    """Where prey 0 goes while both agents stay."""
    step = jax.vmap(lambda k: world.step(k, state, jnp.array([STAY, STAY]))[0].prey[0])
    return [tuple(cell) for cell in step(jax.random.split(key, times)).tolist()]


def test_prey_move_to_a_free_neighbour_and_stay_only_when_there_is_none(key):
    world, state = hunt([(0, 1), (4, 4)], [(0, 0)])
    assert set(places(world, state, key, 20)) == {(1, 0)}
    world, state = hunt([(0, 1), (1, 0)], [(0, 0)])
    assert world.step(key, state, jnp.array([STAY, STAY]))[0].prey[0].tolist() == [0, 0]
    world, state = hunt([(4, 4), (4, 3)], [(2, 2)])
    seen = places(world, state, key, 200)
    share = [seen.count(c) / 200 for c in [(1, 2), (3, 2), (2, 1), (2, 3)]]
    np.testing.assert_allclose(share, 0.25, atol=0.1)


def test_observation_is_the_centred_patch(key):
    world, state = hunt([(0, 0), (1, 2)], [(2, 1)])
    patch = np.asarray(world._observe(state, jnp.float32(0)).obs[0]).reshape(5, 5, 2)
    expected = np.zeros((5, 5, 2))
    expected[2, 2, 0] = expected[3, 4, 0] = expected[4, 3, 1] = 1
    np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize("punishment", [0, -2])
@pytest.mark.parametrize("seed", range(3))
def test_whole_episodes_agree_with_plain_python(seed, punishment):
    """A crowded grid and agents that mostly catch where they can: every field at every step, ends included."""
    world = PredatorPrey(size=4, n_agents=6, n_prey=3, miscapture_punishment=punishment)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    step, noise_of = jax.jit(world.step_with), jax.jit(world.noise)
    state, ts = world.reset(key)
    happened = {"caught": 0, "alone": 0, "ended": 0}
    for t in range(250):
        avail = np.asarray(ts.avail)
        choices = [5 if a[5] and rng.random() < 0.7 else rng.choice(np.flatnonzero(a)) for a in avail]
        noise = noise_of(jax.random.fold_in(key, t))
        before = [[tuple(c) for c in np.asarray(cells).tolist()] for cells in (state.agent, state.prey)]
        expected = oracles.predator_prey_step(
            4,
            punishment,
            before[0],
            state.frozen.tolist(),
            before[1],
            state.alive.tolist(),
            choices,
            *(np.asarray(x).tolist() for x in noise),
        )
        alive_before = int(state.alive.sum())
        state, ts = step(noise, state, jnp.array(choices, jnp.int32))
        agents, frozen, prey, alive, reward = expected
        assert state.frozen.tolist() == frozen and state.alive.tolist() == alive and float(ts.reward) == reward
        assert [tuple(c) for c in state.agent.tolist()] == agents and [tuple(c) for c in state.prey.tolist()] == prey
        obs, grid, available = oracles.predator_prey_seen(4, 2, agents, frozen, prey, alive)
        np.testing.assert_array_equal(ts.obs, obs)
        np.testing.assert_array_equal(ts.state, grid)
        assert ts.avail.tolist() == available
        over = all(frozen) or not any(alive)
        assert (bool(ts.last), float(ts.discount)) == (over, 1.0 - over)
        happened["caught"] += alive_before - sum(alive)
        happened["alone"] += punishment < 0 and reward < 0
        happened["ended"] += over
        if over:
            state, ts = world.reset(jax.random.fold_in(key, 1000 + t))
    assert happened["caught"] > 3 and happened["ended"] > 0
    assert punishment == 0 or happened["alone"] > 5


def test_its_time_limit_is_no_end():
    spec = PredatorPrey().spec
    assert (spec.episode_limit, spec.time_limit) == (200, "bootstrap")


def test_a_lone_catcher_beside_two_prey_pays_for_both(key):
    world, state = hunt([(2, 2), (4, 4)], [(2, 1), (2, 3)], miscapture_punishment=-2.0)
    assert world._available(state)[:, CATCH].tolist() == [True, False]
    assert float(world.step(key, state, jnp.array([CATCH, STAY]))[1].reward) == -4


def test_catching_takes_a_prey_beside_not_across(key):
    world, state = hunt([(1, 1), (2, 3)], [(2, 2)])
    assert world._available(state)[:, CATCH].tolist() == [False, True]


@pytest.mark.parametrize("options", [{"sight": -1}, {"miscapture_punishment": 1}, {"n_agents": 1}])
def test_predator_prey_refuses(options):
    with pytest.raises(ValueError, match=rf"env\.kwargs.*{next(iter(options))}"):
        PredatorPrey(**options)


def test_entities_never_share_a_cell(key):
    world = PredatorPrey()
    state, ts = world.reset(key)

    def step(carry, k):
        state, ts = carry
        act, move = jax.random.split(k)
        action = jax.random.categorical(act, jnp.where(ts.avail, 0.0, -jnp.inf))
        state, ts = world.step(move, state, action)
        cells = jnp.concatenate([state.agent, state.prey]) @ jnp.array([10, 1])
        live = jnp.concatenate([~state.frozen, state.alive])
        clash = (cells[:, None] == cells[None]) & live[:, None] & live[None] & ~jnp.eye(16, dtype=bool)
        return (state, ts), (clash.any(), ts.reward)

    _, (clash, reward) = jax.lax.scan(step, (state, ts), jax.random.split(key, 300))
    assert not clash.any()
    assert set(np.unique(reward)) <= {0.0, 10.0, 20.0}
