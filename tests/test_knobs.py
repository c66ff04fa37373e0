"""Every option of the algorithm changes what is learned, and none of them what is reported of the environment."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from jqmix.buffers import windows
from jqmix.config import load_config
from jqmix.learning.algorithm import window_to_learn_from
from jqmix.learning.train import make_program

BASE = {
    "env.name": "two_step_game",
    "window": 6,
    "algo.mixer": "vdn",
    "agent.hidden": 8,
    "rollouts": 4,
    "replay.capacity": 16,
    "replay.batch": 4,
    "updates": 2,
}


@cache
def _learned(options):
    """A member after three iterations: its parameters, the rewards it holds, and the scores it was told."""
    program = make_program(load_config(None, **BASE | dict(options)))
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    scores = []
    for _ in range(3):
        member, shared = iteration(member, shared)
        scores.append(member.tally.trained.score)
    return jax.tree.leaves(member.learner.params), member, np.asarray(scores)


def learned(**options):
    return _learned(frozenset(options.items()))


def differ(a, b):
    return [x.shape for x in a] != [x.shape for x in b] or any(
        not np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(a, b, strict=True)
    )


OPTIONS = [
    ({}, {"algo.target": "sarsa"}),
    ({}, {"algo.reward_norm": "running"}),
    ({}, {"agent.share_parameters": False}),
    ({"replay.prioritised": True}, {"replay.priority_alpha": 0.1}),
]
OTHERS = [
    ({}, {"algo.target": "qstar"}),
    ({}, {"algo.target": "watkins"}),
    ({}, {"algo.target": "nstep"}),
    ({"algo.target": "nstep"}, {"algo.n_step": 2}),
    ({}, {"algo.init": "orthogonal"}),
    ({"algo.init": "orthogonal"}, {"algo.init_gain": 0.5}),
    ({"env.name": "mpe_simple_spread_v3", "window": 26}, {"replay.dtype": "bfloat16"}),
    ({}, {"agent.agent_id": False}),
    ({}, {"agent.last_action": False}),
    ({"env.name": "smax_3m", "window": 101}, {"agent.encoder": "entities"}),
    ({"env.name": "smax_3m", "window": 101, "agent.encoder": "entities"}, {"agent.entity_embed": 4}),
    ({}, {"replay.prioritised": True}),
    ({"replay.prioritised": True}, {"replay.priority_beta": 1.0}),
]


@pytest.mark.parametrize("options", [*OPTIONS, *slow(OTHERS)], ids=str)
def test_every_option_changes_what_is_learned(options):
    base, option = options
    assert differ(learned(**base)[0], learned(**base | option)[0])


def test_standardised_rewards_are_learned_from_and_not_reported():
    """The statistics are those of all transitions so far; the first window's scores, before any update, are as ever."""
    _, member, scores = learned(**{"algo.reward_norm": "running"})
    held = jax.tree.map(np.asarray, member.buffer.windows)
    rewards = held.reward[:, :12][~held.last[:, :12]]
    moments = member.reward_moments
    assert float(moments.rows) == rewards.size
    np.testing.assert_allclose(moments.mean[0], rewards.mean(), rtol=1e-5)
    np.testing.assert_allclose(moments.m2[0] / moments.rows, rewards.var(), rtol=1e-4)
    np.testing.assert_array_equal(scores[0], learned()[2][0])

    program = make_program(load_config(None, **BASE, **{"algo.reward_norm": "running"}))
    first = windows.take(member.buffer.windows, jnp.arange(12))
    window = window_to_learn_from(program.env, member, first)
    np.testing.assert_allclose(window.reward[~window.last], (rewards - rewards.mean()) / rewards.std(), atol=1e-3)
