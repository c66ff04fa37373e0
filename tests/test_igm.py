"""`jqmix igm`: the joint values that a matrix-game run learned."""

import json

import jax
import matplotlib.image
import numpy as np
import pytest

import jqmix
from jqmix.analysis.joint_values import ValueTables
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.envs.games import MatrixGame, TwoStepGame
from jqmix.runs.experiment import train
from jqmix.runs.igm import joint_values

pytestmark = pytest.mark.usefixtures("shared_programs")
PAYOFF = np.arange(8.0).reshape(2, 2, 2) % 5  # three agents
SMALL = {
    "env.name": "matrix_game",
    "env.kwargs": {"payoff": PAYOFF.tolist()},
    "replay.capacity": 32,
    "replay.batch": 8,
    "total_steps": 64,
    "eval.every": 64,
    "eval.episodes": 2,
}


@pytest.fixture(scope="module")
def vdn_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("igm") / "run"
    train(load_config(None, seeds=2, run_dir=str(run_dir), **SMALL, **{"algo.mixer": "vdn"}), quiet=True)
    return run_dir


@pytest.mark.slow
def test_vdn_s_table_is_the_sum_of_what_its_agents_act_on(vdn_run):
    (values,) = joint_values(vdn_run)
    np.testing.assert_array_equal(values.payoff, PAYOFF)
    each = values.utilities
    sums = each[:, 0, :, None, None] + each[:, 1, None, :, None] + each[:, 2, None, None, :]
    np.testing.assert_allclose(values.tables["Q_tot"], sums, rtol=1e-5, atol=1e-6)
    assert values.igm.all()
    np.testing.assert_array_equal(values.best, values.greedy)

    _, seen = MatrixGame(PAYOFF.tolist()).reset(jax.random.key(0))
    for member in range(2):
        policy = jqmix.load_policy(vdn_run, member=member)
        played, _ = policy.act(policy.initial_state(1), seen.obs[None], seen.avail[None])
        np.testing.assert_array_equal(np.asarray(played)[0], values.greedy[member])


def made_up(q_tot, utilities):
    table = np.array([q_tot], float)
    return ValueTables(
        "made up", "", [7], np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([utilities], float), {"Q_tot": table}
    )


def test_igm_is_told_from_its_violation():
    holds = made_up([[0, 1], [2, 3]], [[0, 1], [0, 1]])
    assert holds.igm.tolist() == [True]
    violated = made_up([[0, 9], [2, 3]], [[0, 1], [0, 1]])
    assert violated.igm.tolist() == [False]
    equal = made_up([[3, 1], [2, 3]], [[0, 1], [0, 1]])  # the first of the greatest is another one
    assert equal.igm.tolist() == [True]
    row = violated.rows()[0]
    assert row["greedy"] == [1, 1]
    assert row["argmax_q_tot"] == [0, 1]
    assert (row["greedy_payoff"], row["best_payoff"]) == (3, 5)
    assert (
        "seed 7: the agents play (1, 1), worth 3 of 5; Q_tot is greatest at (0, 1): IGM is violated" in violated.text()
    )


def test_the_command_prints_and_draws(vdn_run, tmp_path, capsys):
    picture = tmp_path / "tables.png"
    assert main(["igm", str(vdn_run), "--json", "--out", str(picture)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["payoff"] == PAYOFF.tolist()
    assert matplotlib.image.imread(picture).std() > 0
    assert main(["igm", str(vdn_run)]) == 0
    assert "IGM holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"algo.mixer": "iql"}, "iql mixes nothing"),
        pytest.param({"env.name": "chain_probe", "env.kwargs": {}}, "two_step_game alone", marks=pytest.mark.slow),
    ],
)
def test_what_has_no_table_is_refused(tmp_path, overrides, said):
    train(load_config(None, run_dir=str(tmp_path / "run"), **SMALL | overrides), quiet=True)
    with pytest.raises(ConfigError, match=said):
        joint_values(tmp_path / "run")


@pytest.mark.slow
def test_the_two_step_game_has_three_tables(tmp_path):
    """Each is what the network says at that state, after what led there: found by playing."""
    cfg = load_config("two_step_game", run_dir=str(tmp_path / "run"), total_steps=4000, **{"eval.every": 4000})
    train(cfg, quiet=True)
    first, game_a, game_b = joint_values(tmp_path / "run")
    assert [values.situation for values in (first, game_a, game_b)] == ["step 1", "2A", "2B"]
    np.testing.assert_allclose(first.payoff, 0.99 * np.array([[7, 7], [8, 8]]))
    np.testing.assert_array_equal(game_b.payoff, [[0, 1], [1, 8]])
    np.testing.assert_allclose(game_a.tables["Q_tot"][0], 7, atol=1.5)  # it has begun to learn

    policy, game = jqmix.load_policy(tmp_path / "run"), TwoStepGame()
    state, seen = game.reset(jax.random.key(0))
    memory = policy.initial_state(1)
    played, memory = policy.act(memory, seen.obs[None], seen.avail[None])
    np.testing.assert_array_equal(played[0], first.greedy[0])
    for k, values in enumerate((game_a, game_b)):
        action = jax.numpy.array([k, 0])
        _, then = game.step(jax.random.key(0), state, action)
        played, _ = policy.act(memory._replace(last_action=action[None]), then.obs[None], then.avail[None])
        np.testing.assert_array_equal(played[0], values.greedy[0])
