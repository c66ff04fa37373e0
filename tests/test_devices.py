"""How members and batches are laid out over devices, and that it changes nothing but the speed."""

import re

import jax
import numpy as np
import pytest
import worlds
from slow import slow

from jqmix.config import load_config
from jqmix.learning.train import whole_evaluation
from jqmix.runs import devices
from jqmix.runs import population as population_module
from jqmix.runs.population import compile_population


@pytest.mark.parametrize(
    ("members", "batch", "layout"),
    [
        (1, 16, (1, 2)),
        (2, 16, (2, 1)),
        (3, 16, (1, 2)),
        (4, 16, (2, 1)),
        (1, 15, (1, 1)),
        (1, 6, (1, 1)),
        (1, 8, (1, 2)),
    ],
)
def test_layout_over_two_cores(members, batch, layout):
    assert jax.local_device_count() == 2  # tests/conftest.py
    assert tuple(devices.make_mesh(members, batch).shape.values()) == layout


def test_parts_of_a_batch():
    """They divide it, and leave each device enough."""
    assert [devices.parts(batch, 64) for batch in (1, 8, 12, 32, 34, 128)] == [1, 2, 3, 4, 2, 4]
    assert devices.parts(128, 3) == 2


PQN = {"algo.name": "pqn", "window": 4, "rollouts": 32, "algo.epochs": 2, "algo.minibatches": 2}


def trained(population, iterations=5):
    """(members, shared, metrics) after so many iterations and an evaluation."""
    members, shared, _ = population.train(population.members, population.shared, iterations)
    return population.evaluate(members, shared, whole_evaluation(population.cfg))


@pytest.mark.parametrize(
    ("mixer", "prioritised", "fields"),
    [
        ("qmix", False, {}),
        pytest.param("iql", True, {}, marks=pytest.mark.slow),
        pytest.param("qmix", False, PQN, marks=pytest.mark.slow),
    ],
)
def test_a_split_batch_teaches_the_same(monkeypatch, mixer, prioritised, fields):
    """Windows differ in how many of their slots count (the chain ends anywhere): the mean is over those of all.

    Prioritised, all devices that share a batch know the priorities of all of it.
    """
    cfg = load_config(
        None,
        **{
            "env.name": "chain_probe",
            "algo.mixer": mixer,
            "replay.prioritised": prioritised,
            "agent.hidden": 8,
            "replay.capacity": 64,
            "replay.batch": 16,
            "eval.episodes": 2,
        },
        **fields,
    )
    runs = []
    for most in (4, 1):
        monkeypatch.setattr(devices, "MOST_PARTS", most)
        population = compile_population(cfg)
        # The devices wait for one another once in an update.
        assert len(re.findall(r" all-reduce\(", population.training.as_text())) == (most > 1)
        runs.append(trained(population))
    (split, _, split_metrics), (whole, shared, whole_metrics) = runs
    assert int(shared.updates) > 1
    for a, b in zip(jax.tree.leaves(split.learner.params), jax.tree.leaves(whole.learner.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    if prioritised:
        np.testing.assert_allclose(split.buffer.priority, whole.buffer.priority, rtol=1e-3, atol=1e-5)
        here, there = (np.asarray(shard.data) for shard in split.buffer.priority.addressable_shards)
        np.testing.assert_array_equal(here, there)
    assert_close(split_metrics, whole_metrics)


@pytest.mark.parametrize("fields", slow([{}, PQN]), ids=["dqn", "pqn"])
def test_members_in_turn_are_those_at_once(monkeypatch, fields):
    """Two members on each core, one after the other as on a CPU, or batched as on an accelerator."""
    cfg = load_config(
        None,
        **{"env.name": "chain_probe", "agent.hidden": 8, "replay.capacity": 64, "replay.batch": 16, "seeds": 4},
        **{"eval.episodes": 2},
        **fields,
    )
    runs = []
    for in_turn in (True, False):
        monkeypatch.setattr(population_module, "members_take_turns", lambda in_turn=in_turn: in_turn)
        population = compile_population(cfg)
        runs.append(trained(population))
    (members, shared, metrics), (at_once, shared_at_once, metrics_at_once) = runs
    assert int(shared.updates) == int(shared_at_once.updates) > 1
    for a, b in zip(jax.tree.leaves(members.learner.params), jax.tree.leaves(at_once.learner.params), strict=True):
        assert not np.allclose(a[0], a[1])  # each its own
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert_close(metrics, metrics_at_once)
    assert {x.shape for x in jax.tree.leaves(metrics)} == {(4,)}


def assert_close(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_nothing_runs_on_devices_that_need_not_be_there(monkeypatch):
    """While a program is traced for chips that are not there, they are the default: what is computed then fails."""
    default = []

    def spying(name):
        function = getattr(population_module, name)

        def spy(*args):
            default.append(jax.config.values["jax_default_device"])
            return function(*args)

        monkeypatch.setattr(population_module, name, spy)

    spying("_placed")
    spying("_divided")
    cfg = load_config(None, **worlds.SMALL_RUN)
    population_module.lower_training(cfg, devices.make_mesh(1))
    assert default == [None, None]
