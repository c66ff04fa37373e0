"""Published facts about payoff A (1905.05408, 2006.10800, 2008.01062): who finds 8 under uniform exploration; and about
predator–prey (2102.03479, 2006.10800): who hunts.

Half a minute each game, a quarter of an hour each hunt: `pytest -m slow`.
"""

import numpy as np
import pytest

from jqmix.config import load_config
from jqmix.runs.experiment import train
from jqmix.runs.igm import joint_values

pytestmark = pytest.mark.slow

SEEDS = 4
# No monotonic table is nearer to payoff A than one that has 8 at its greatest and −6 everywhere else.
BEST_MONOTONIC_RMS = np.sqrt(8 * 6**2 / 9)


def played(tmp_path, mixer, **overrides):
    """(what the greedy agents earn, of every seed; the learned tables)."""
    cfg = load_config("matrix_game_a", seeds=SEEDS, run_dir=str(tmp_path / "run"), **{"algo.mixer": mixer, **overrides})
    result = train(cfg, quiet=True)
    return [line["eval/return_mean"] for line in result.metrics[-SEEDS:]], joint_values(result.run_dir)[0]


@pytest.mark.parametrize("mixer", ["cw_qmix", "ow_qmix", "qplex", "qtran"])
def test_finds_the_optimum_of_payoff_a(tmp_path, mixer):
    returns, values = played(tmp_path, mixer)
    assert returns == [8] * SEEDS
    assert values.igm.all()
    assert [values.payoff[tuple(u)] for u in values.greedy] == returns


@pytest.mark.parametrize(("mixer", "lr"), [("vdn", 2e-3), ("qmix", 2e-4)])
def test_a_monotonic_mixer_fails_on_payoff_a(tmp_path, mixer, lr):
    """Its agents avoid the 8, and its table is wrong.

    QMIX's error has two minima, and from a large step on, a seed in five or so falls into the other one: there its
    greatest value is that of the 8, and all others are −6. So its rate is small here.
    """
    returns, values = played(tmp_path, mixer, **{"optim.lr": lr})
    assert max(returns) <= 0
    assert values.igm.all()
    errors = values.tables["Q_tot"] - values.payoff
    assert np.sqrt(np.mean(errors**2, axis=(1, 2))).min() > 0.98 * BEST_MONOTONIC_RMS


def hunted(tmp_path, source, seeds, **overrides):
    """The last greedy return of every seed."""
    result = train(load_config(source, seeds=seeds, run_dir=str(tmp_path / "run"), **overrides), quiet=True)
    return [line["eval/return_mean"] for line in result.metrics[-seeds:]]


def test_qmix_hunts_where_catching_alone_is_free(tmp_path):
    """40 is the most; published: 40 at 0.96M steps."""
    overrides = {"eval.every": 100_000, "eval.episodes": 128}
    assert sum(hunted(tmp_path, "predator_prey", 2, **overrides)) / 2 >= 38


def test_where_catching_alone_costs_2_weighted_qmix_hunts(tmp_path):
    assert min(hunted(tmp_path, "predator_prey_punished", SEEDS)) > 30


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_where_catching_alone_costs_2_qmix_and_vdn_give_up(tmp_path, mixer):
    """In the setting in which weighted QMIX hunts, no seed earns anything."""
    assert max(hunted(tmp_path, "predator_prey_punished", SEEDS, **{"algo.mixer": mixer})) <= 0
