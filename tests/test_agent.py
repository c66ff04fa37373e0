"""The agent against PyTorch's conventions in NumPy; acting and unrolling are one function."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jqmix.networks import gru
from jqmix.networks.agent import Agent

AGENT = Agent(n_agents=3, n_actions=5, obs_size=7, hidden=8)


OPTIONS = [
    {},
    {"layer_norm": True},
    {"agent_id": False},
    {"last_action": False},
    {"share_parameters": False},
    {"share_parameters": False, "last_action": False, "layer_norm": True},
]


def window(rng, T=11, B=4):
    obs = rng.normal(size=(T, B, 3, 7)).astype(np.float32)
    action = rng.integers(0, 5, (T, B, 3)).astype(np.int32)
    first = rng.random((T, B)) < 0.2
    first[0] = True
    return obs, action, first


def unroll(agent, params, *data):
    return agent.unroll(params, *(jnp.asarray(x) for x in data))


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


@pytest.mark.parametrize("options", [*OPTIONS, {"recurrent": False, "share_parameters": False}], ids=str)
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


@pytest.mark.parametrize("options", [{}, {"share_parameters": False}, {"recurrent": False}], ids=str)
def test_orthogonal_initialisation(options, key):
    """Dense layers have orthonormal rows or columns, the Q head's times its gain, and no bias; the GRU is as ever."""
    agent = AGENT._replace(orthogonal=True, head_gain=0.3, **options)
    params, plain = agent.init(key), agent._replace(orthogonal=False).init(key)
    layers = [("encoder", 1.0), ("head", 0.3)] + [("core", 1.0)] * (not agent.recurrent)
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
    agent = AGENT._replace(recurrent=False)
    params = agent.init(key)
    obs, action, first = window(rng)
    q = unroll(agent, params, obs, action, first)
    obs[:4] += 1.0
    np.testing.assert_array_equal(unroll(agent, params, obs, action, first)[4:], q[4:])


@pytest.mark.parametrize(("form", "inputs"), [("after", 4), ("after", 5), ("within", 5), ("kernel", 4), ("kernel", 5)])
def test_gru_gradients_are_those_of_the_plain_loop(rng, monkeypatch, form, inputs):
    """The hand-written backward pass, in all of its forms, against automatic differentiation of step after step."""
    monkeypatch.setattr(gru, "sums_within", lambda *_: form == "within")
    H, T, M = 5, 9, 6
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = gru.GRUParams(*(gru.Gates(*draw(3, *shape)) for shape in ((inputs, H), (H,), (H, H), (H,))))
    x, h, weight = draw(T, M, inputs), draw(M, H), draw(T, M, H)
    first = jnp.asarray(rng.random((T, M)) < 0.3)

    def plain(params, x, h):
        gates, total = gru.project(params, x), 0.0
        for t in range(T):
            h = gru.cell(params, gru.reset_where(first[t], h), jax.tree.map(lambda g, t=t: g[t], gates))
            total += jnp.sum(h * weight[t])
        return total

    def scanned(params, x, h):
        return jnp.sum(gru.unroll(params, h, x, first, form == "kernel") * weight)

    expected = jax.value_and_grad(plain, (0, 1, 2))(params, x, h)
    got = jax.value_and_grad(scanned, (0, 1, 2))(params, x, h)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def window_of_a_gru(rng, T, *batch, H):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = gru.GRUParams(*(gru.Gates(*draw(3, *shape)) for shape in ((H, H), (H,), (H, H), (H,))))
    return params, draw(*batch, H), draw(T, *batch, H), jnp.asarray(rng.random((T, *batch)) < 0.3)


@pytest.mark.parametrize("rows", [1, 15, 16, 35])
def test_the_kernel_is_the_scan(rng, rows):
    """However many rows its programs have to share, along whatever axes; for one member as under ``vmap``."""
    args = window_of_a_gru(rng, 7, rows, 2, H=16)
    weight = jnp.asarray(rng.normal(size=(7, rows, 2, 16)), jnp.float32)

    def both_passes(one_kernel, params, h, x, first):
        return jax.value_and_grad(lambda *p: jnp.sum(weight * gru.unroll(*p, first, one_kernel)), (0, 1, 2))(
            params, h, x
        )

    two = jax.tree.map(lambda v: jnp.stack([v, v[::-1]]), args)
    acting = [gru.unroll(*args, one_kernel) for one_kernel in (True, False)]  # with no backward pass to come
    np.testing.assert_allclose(*acting, rtol=1e-4, atol=1e-5)
    for mapped, given in ((lambda f: f, args), (jax.vmap, two)):
        kernel, scan = (mapped(lambda *a, k=k: both_passes(k, *a))(*given) for k in (True, False))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kernel, scan)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="from jax 0.11 on, lowering to Triton asks for a GPU")
@pytest.mark.parametrize("hidden", [16, 64, 128])
def test_a_gpu_is_given_two_kernels_and_no_loop(rng, monkeypatch, hidden):
    """Triton's own compiler needs a GPU; what it is given does not."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    args = window_of_a_gru(rng, 5, 24, H=hidden)
    agent = Agent(2, 3, 4, hidden=hidden, one_kernel=True)
    assert gru.fits_one_kernel(hidden)
    assert not gru.fits_one_kernel(hidden - 1)
    params, (obs, action, first) = agent.init(jax.random.key(0)), (args[2][..., :4], args[3].astype(int), args[3])
    obs, action = (jnp.stack([v, v], axis=2) for v in (obs, action))

    def loss(params):
        return jnp.sum(agent.unroll(params, obs, action, first))

    several = jax.tree.map(lambda v: jnp.stack([v] * 3), params)
    for gradient, given in ((jax.grad(loss), params), (jax.vmap(jax.grad(loss)), several)):
        program = jax.jit(gradient).trace(given).lower(lowering_platforms=("cuda",)).as_text()
        assert program.count("__gpu$xla.gpu.triton") == 2
        assert "stablehlo.while" not in program


def test_no_step_of_the_gru_copies_a_window():
    """Neither loop may: they write a window in place, which a read at the wrong moment turns into a copy per step."""
    T, M, H = 33, 40, 64
    gates = lambda *shape: gru.Gates(*jnp.ones((3, *shape)))  # noqa: E731
    params = gru.GRUParams(gates(H, H), gates(H), gates(H, H), gates(H))
    assert gru.sums_within(M, H, H)  # else another loop would be looked at

    def loss(params, x):
        return jnp.sum(gru.unroll(params, jnp.zeros((M, H)), x, jnp.zeros((T, M), bool)) ** 2)

    program = jax.jit(jax.grad(loss, (0, 1))).lower(params, jnp.ones((T, M, H))).compile().as_text()
    loops, entry = program.split("ENTRY")
    window = rf"= f32\[{T},{M},{H}\]\S* "
    assert re.search(window + r"\S+\(", loops)  # windows are in the loops
    assert not re.search(window + r"copy\(", loops)


@pytest.mark.parametrize("options", [*OPTIONS, {"recurrent": False}], ids=str)
def test_every_parameter_receives_a_gradient(rng, key, options):
    agent = AGENT._replace(**options)
    params = agent.init(key)
    data = window(rng)
    grads = jax.grad(lambda p: jnp.sum(unroll(agent, p, *data) ** 2))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(g).max() > 0, path
