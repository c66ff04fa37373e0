"""The agent against PyTorch's conventions in NumPy; acting and unrolling are one function."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jqmix.networks.agent import Agent

AGENT = Agent(n_agents=3, n_actions=5, obs_size=7, hidden=8)


OPTIONS = [
    {},
    {"layer_norm": True},
    {"agent_id": False},
    {"last_action": False},
    {"share_parameters": False},
    {"share_parameters": False, "last_action": False, "layer_norm": True},
    {"layers": 3},
    {"layers": 2, "layer_norm": True, "share_parameters": False},
]
CORES = ["gru", "lstm", "none"]


def window(rng, T=11, B=4):
    obs = rng.normal(size=(T, B, 3, 7)).astype(np.float32)
    action = rng.integers(0, 5, (T, B, 3)).astype(np.int32)
    first = rng.random((T, B)) < 0.2
    first[0] = True
    return obs, action, first


def unroll(agent, params, *data):
    return agent.unroll(params, *(jnp.asarray(x) for x in data)).q


def shaken(rng, params):
    """Parameters away from where they begin (a norm's scale of one and offset of zero would hide mistakes)."""
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unroll_matches_pytorch_conventions(rng, key, options):
    agent = AGENT._replace(**options)
    params = shaken(rng, agent.init(key))
    assert ("norm" in params, "norm" in params["encoder"]) == (agent.layer_norm, agent.layer_norm)
    data = window(rng)
    reads = {"shared": agent.share_parameters, "agent_id": agent.agent_id, "last_action": agent.last_action}
    expected = oracles.agent_unroll(params, *data, **reads)
    np.testing.assert_allclose(unroll(agent, params, *data), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("options", [*OPTIONS, {"core": "none", "share_parameters": False}], ids=str)
def test_step_by_step_is_the_unroll(rng, key, options):
    agent = AGENT._replace(**options)
    params = shaken(rng, agent.init(key))
    obs, action, first = window(rng)
    h = agent.initial_state(4)
    last_action = jnp.zeros((4, 3), jnp.int32)
    steps = []
    for t in range(len(obs)):
        q, h = agent.step(params, h, jnp.asarray(obs[t]), last_action, jnp.asarray(first[t]))
        steps.append(q)
        last_action = jnp.asarray(action[t])
    np.testing.assert_allclose(jnp.stack(steps), unroll(agent, params, obs, action, first), rtol=1e-5, atol=1e-6)


def test_nothing_crosses_an_episode_start(rng, key):
    """Changing anything before a start leaves everything from it on unchanged."""
    params = AGENT.init(key)
    obs, action, first = window(rng)
    first[:] = False
    first[0] = first[6] = True
    before = unroll(AGENT, params, obs, action, first)
    obs[:6] += 1.0
    action[:6] = (action[:6] + 1) % 5
    after = unroll(AGENT, params, obs, action, first)
    np.testing.assert_array_equal(before[6:], after[6:])
    assert not np.allclose(before[:6], after[:6])


@pytest.mark.parametrize(("n", "o", "a", "h"), [(6, 140, 14, 64), (3, 75, 8, 64), (2, 4, 2, 16)])
def test_parameter_count(n, o, a, h, key):
    params = Agent(n, a, o, h).init(key)
    fan_in = o + a + n
    expected = fan_in * h + h + 6 * h * h + 6 * h + h * a + a
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("last_action", [True, False])
@pytest.mark.parametrize("agent_id", [True, False])
def test_parameter_count_of_every_input(share, last_action, agent_id, key):
    """Agents with parameters of their own have N networks, none of which reads an id."""
    n, o, a, h = 3, 7, 5, 8
    agent = AGENT._replace(share_parameters=share, last_action=last_action, agent_id=agent_id)
    fan_in = o + a * last_action + n * (agent_id and share)
    expected = fan_in * h + h + 6 * h * h + 6 * h + h * a + a
    assert sum(x.size for x in jax.tree.leaves(agent.init(key))) == expected * (1 if share else n)


def test_agents_of_their_own_begin_differently_and_learn_apart(rng, key):
    """Agent 0's Q-values depend on its parameters alone."""
    agent = AGENT._replace(share_parameters=False)
    params = agent.init(key)
    for x in jax.tree.leaves(params):
        assert not np.allclose(x[0], x[1])
    grads = jax.grad(lambda p: jnp.sum(unroll(agent, p, *window(rng))[:, :, 0] ** 2))(params)
    for g in jax.tree.leaves(grads):
        assert np.abs(g[0]).max() > 0
        np.testing.assert_array_equal(g[1:], 0)


@pytest.mark.parametrize("options", [{}, {"share_parameters": False}, {"core": "none"}], ids=str)
def test_orthogonal_initialisation(options, key):
    """Dense layers have orthonormal rows or columns, the Q head's times its gain, and no bias; the GRU is as ever."""
    agent = AGENT._replace(orthogonal=True, head_gain=0.3, **options)
    params, plain = agent.init(key), agent._replace(orthogonal=False).init(key)
    layers = [("encoder", 1.0), ("head", 0.3)] + [("core", 1.0)] * (agent.core == "none")
    for name, gain in layers:
        kernels = np.asarray(params[name]["kernel"]).reshape(-1, *params[name]["kernel"].shape[-2:])
        for w in kernels:
            small = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
            np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-5)
        np.testing.assert_array_equal(params[name]["bias"], 0)
    for name in params.keys() - {name for name, _ in layers}:
        jax.tree.map(np.testing.assert_array_equal, params[name], plain[name])


def test_initialisation_bounds(key):
    """Linear U(±1/√fan_in), GRU U(±1/√H): inside the bound, and reaching for it."""
    params = Agent(4, 6, 90, 64).init(key)
    bounds = {"encoder": 100**-0.5, "head": 64**-0.5}
    for name, leaf in params.items():
        for x in jax.tree.leaves(leaf):
            bound = bounds.get(name, 64**-0.5)
            assert 0.5 * bound < np.abs(x).max() <= bound


def test_feed_forward_has_no_memory(rng, key):
    agent = AGENT._replace(core="none")
    params = agent.init(key)
    obs, action, first = window(rng)
    q = unroll(agent, params, obs, action, first)
    obs[:4] += 1.0
    np.testing.assert_array_equal(unroll(agent, params, obs, action, first)[4:], q[4:])


@pytest.mark.parametrize("options", [*OPTIONS, {"core": "none"}], ids=str)
def test_every_parameter_receives_a_gradient(rng, key, options):
    agent = AGENT._replace(**options)
    params = agent.init(key)
    data = window(rng)
    grads = jax.grad(lambda p: jnp.sum(unroll(agent, p, *data) ** 2))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(g).max() > 0, path
