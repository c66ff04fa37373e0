"""The agent against PyTorch's conventions in NumPy; acting and unrolling are one function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqmix.inputs import ConfigError
from jqmix.networks.agent import Agent, AgentStart
from jqmix.networks.cores import base, build_core
from jqmix.networks.cores.base import CoreSizes
from jqmix.networks.cores.check import check_core
from jqmix.types import Entities

AGENT = Agent(n_agents=3, n_actions=5, obs_size=7, hidden=8)
ENTITIES = Entities(((1, 2), (2, 2)), targets=1)

OPTIONS = [
    {},
    {"layer_norm": True},
    {"agent_id": False},
    {"last_action": False},
    {"share_parameters": False},
    {"share_parameters": False, "last_action": False, "layer_norm": True},
    {"layers": 3},
    {"layers": 2, "layer_norm": True, "share_parameters": False},
    {"entities": ENTITIES, "entity_embed": 6},
    {"entities": ENTITIES, "layers": 2, "layer_norm": True, "share_parameters": False},
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
    expected = oracles.agent_unroll(params, *data, **reads, entities=agent.entities)
    np.testing.assert_allclose(unroll(agent, params, *data), expected, rtol=2e-4, atol=2e-5)


def test_what_is_learned_of_an_entity_holds_for_all_of_its_kind(rng, key):
    """Without biases of places, entities that change places change the values of aiming at them, and nothing else."""
    agent = AGENT._replace(entities=ENTITIES)
    params = agent.init(key)
    obs, action, first = window(rng)
    swapped = obs[..., [0, 1, 4, 5, 2, 3, 6]]
    action = np.minimum(action, 2)  # whom one aimed at is told by number
    places = params["entities"]["embeddings_1"]["bias"]
    alike = {**params["entities"], "embeddings_1": params["entities"]["embeddings_1"] | {"bias": 0 * places}}
    q, other = (unroll(agent, params | {"entities": alike}, x, action, first) for x in (obs, swapped))
    assert_same(other[..., [0, 1, 2, 4, 3]], q)
    assert np.abs(other - q).max() > 1e-3
    q, other = (unroll(agent, params, x, action, first) for x in (obs, swapped))
    assert np.abs(other[..., :3] - q[..., :3]).max() > 1e-4  # with biases they are told apart


EACH_CORE = [{"core": core, "share_parameters": share} for core in CORES for share in (True, False)]


def step_by_step(agent, params, data, state, last_action):
    """(Q-values, last state) of T calls of ``step``."""
    steps = []
    for obs, action, first in zip(*(jnp.asarray(x) for x in data), strict=True):
        q, state = agent.step(params, state, obs, last_action, first)
        steps.append(q)
        last_action = action
    return jnp.stack(steps), state


def assert_same(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("options", [*OPTIONS, *EACH_CORE[1:]], ids=str)
def test_step_by_step_is_the_unroll(rng, key, options):
    """With episodes that start inside the window; the last state is the one after the last slot."""
    agent = AGENT._replace(**options)
    params = shaken(rng, agent.init(key))
    data = window(rng)
    q, state = step_by_step(agent, params, data, agent.initial_state(4), jnp.zeros((4, 3), jnp.int32))
    unrolled = agent.unroll(params, *(jnp.asarray(x) for x in data))
    assert_same((unrolled.q, unrolled.state), (q, state))
    assert unrolled.hidden.shape == (11, 4, 3, 8)


@pytest.mark.parametrize("options", [*EACH_CORE, {"last_action": False}], ids=str)
def test_a_window_goes_on_where_another_one_ended(rng, key, options):
    """Two halves are the whole, wherever it is cut; and so is a start state from elsewhere, by steps."""
    agent = AGENT._replace(**options)
    params = shaken(rng, agent.init(key))
    data = [jnp.asarray(x) for x in window(rng)]
    data[2] = data[2].at[5].set(jnp.asarray([True, False, True, False]))  # starts, and none, at the cut
    whole = agent.unroll(params, *data)
    before = agent.unroll(params, *(x[:5] for x in data))
    after = agent.unroll(params, *(x[5:] for x in data), AgentStart(before.state, data[1][4]))
    assert_same(jnp.concatenate([before.q, after.q]), whole.q)
    assert_same(jnp.concatenate([before.hidden, after.hidden]), whole.hidden)
    assert_same(after.state, whole.state)

    other = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), before.state)
    start, later = AgentStart(other, data[1][4]), [x[5:] for x in data]
    unrolled = agent.unroll(params, *later, start)
    assert_same((unrolled.q, unrolled.state), step_by_step(agent, params, later, *start))
    if jax.tree.leaves(other):
        assert not np.allclose(unrolled.q[0], after.q[0])
        np.testing.assert_array_equal(unrolled.q[0, ::2], after.q[0, ::2])  # where an episode starts, nothing of it


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_gradients_reach_the_start_unless_an_episode_starts(rng, key, core):
    agent = AGENT._replace(core=core)
    params = agent.init(key)
    obs, action, first = (jnp.asarray(x) for x in window(rng))
    first = first.at[0].set(jnp.asarray([True, False, True, False]))

    def loss(state):
        return jnp.sum(agent.unroll(params, obs, action, first, AgentStart(state, action[0])).q ** 2)

    for g in jax.tree.leaves(jax.grad(loss)(agent.initial_state(4))):
        np.testing.assert_array_equal(g[::2], 0)
        assert np.abs(g[1::2]).max() > 0


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.sampled_from([(1, 1), (5, 3), (3, 8)]),
    batch=st.sampled_from([(), (4,), (2, 3)]),
    steps=st.sampled_from([1, 7]),
    seed=st.integers(0, 10**6),
)
def test_lstm_is_pytorchs(sizes, batch, steps, seed):
    """Step after step in NumPy, from any state, with resets inside; outputs and the last state."""
    (inputs, hidden), rng = sizes, np.random.default_rng(seed)
    core = build_core("lstm", CoreSizes(inputs, hidden))
    params = core.init(jax.random.key(seed))
    x = rng.normal(size=(steps, *batch, inputs)).astype(np.float32)
    first = rng.random((steps, *batch)) < 0.3
    state = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), core.initial_state(*batch))
    outputs, last = base.unroll_core(core, params, jax.tree.map(jnp.asarray, state), jnp.asarray(x), jnp.asarray(first))

    w_ih, w_hh = (np.concatenate([np.asarray(params[k][gate]).T for gate in "ifgo"]) for k in ("w_i", "w_h"))
    b_ih, b_hh = (np.concatenate([np.asarray(params[k][gate]) for gate in "ifgo"]) for k in ("b_i", "b_h"))
    h, c = state
    for t in range(steps):
        h, c = (np.where(first[t][..., None], 0, v) for v in (h, c))
        h, c = oracles.torch_lstm_cell(x[t], h, c, w_ih, w_hh, b_ih, b_hh)
        np.testing.assert_allclose(outputs[t], h, rtol=1e-4, atol=1e-5)
    for a, b in zip(last, (h, c), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CORES)
def test_a_core_without_an_unroll_is_scanned(rng, name):
    core = build_core(name, CoreSizes(5, 8))
    params, state = core.init(jax.random.key(1)), core.initial_state(6)
    x, first = jnp.asarray(rng.normal(size=(7, 6, 5)), jnp.float32), jnp.asarray(rng.random((7, 6)) < 0.3)
    scanned = base.unroll_core(core._replace(unroll=None), params, state, x, first)
    assert_same(base.unroll_core(core, params, state, x, first), scanned)


@pytest.mark.parametrize("name", CORES)
def test_the_cores_that_there_are_keep_to_the_protocol(name):
    sizes = CoreSizes(5, 8)
    check_core(name, build_core(name, sizes), sizes)
    check_core(name, build_core(name, sizes)._replace(unroll=None), sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "agent.core: mine returned a NoneType; it must return a Core"),
        ({"init": lambda key, more: key}, "mine: init raised TypeError: "),
        (
            {"initial_state": lambda *batch: jnp.zeros((8, *batch))},
            "has a leaf of shape (8, 2, 3), which must begin so",
        ),
        ({"step": lambda params, state, x, first: x}, "mine: step must return (output, state)"),
        ({"step": lambda params, state, x, first: (x, state)}, "shape float32[2, 3, 5]; it must be (2, 3, 8)"),
        (
            {"step": lambda params, state, x, first: (state, ())},
            "step gives the state (); it must be like float32[2, 3, 8]",
        ),
        ({"unroll": lambda params, state, x, first: (state, state)}, "unroll gives an output of shape"),
        ({"unroll": lambda params, state, x, first: 1 / 0}, "unroll raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_core_that_breaks_the_protocol_is_told_in_one_line(change, message):
    sizes = CoreSizes(5, 8)
    core = None if change is None else build_core("gru", sizes)._replace(**change)
    with pytest.raises(ConfigError) as error:
        check_core("mine", core, sizes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_core_may_begin_with_something_else_than_zeros():
    """Leaves of any rank, and an initial state of one's own."""
    state = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 3))}
    first = jnp.asarray([[True, False, False], [False, True, False]])
    initial = {"a": jnp.full((2, 3, 4), 5.0), "b": jnp.full((2, 3), 7.0)}
    for start, a, b in ((None, 0.0, 0.0), (initial, 5.0, 7.0)):
        out = base.reset_where(first, state, start)
        np.testing.assert_array_equal(out["b"], np.where(first, b, 1.0))
        np.testing.assert_array_equal(out["a"], np.where(first[..., None], a, np.ones((2, 3, 4))))


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
    lstm = Agent(n, a, o, h, core="lstm", layers=3).init(key)
    expected += 2 * (h * h + h) + 2 * h * h + 2 * h
    assert sum(x.size for x in jax.tree.leaves(lstm)) == expected


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


@pytest.mark.parametrize(
    "options", [{}, {"share_parameters": False}, {"core": "none"}, {"core": "lstm", "layers": 2}], ids=str
)
def test_orthogonal_initialisation(options, key):
    """Dense layers have orthonormal rows or columns, the Q head's times its gain, no bias; gated cores are as ever."""
    agent = AGENT._replace(orthogonal=True, head_gain=0.3, **options)
    params, plain = agent.init(key), agent._replace(orthogonal=False).init(key)
    layers = [("encoder", 1.0), ("head", 0.3)] + [("core", 1.0)] * (agent.core == "none")
    dense = [(params[name], gain) for name, gain in layers]
    dense += [(params["encoder"][f"layer{i}"], 1.0) for i in range(2, agent.layers + 1)]
    for layer, gain in dense:
        kernels = np.asarray(layer["kernel"]).reshape(-1, *layer["kernel"].shape[-2:])
        for w in kernels:
            small = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
            np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0)
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


@pytest.mark.parametrize("options", [*OPTIONS, {"core": "none"}, {"core": "lstm"}], ids=str)
def test_every_parameter_receives_a_gradient(rng, key, options):
    agent = AGENT._replace(**options)
    params = agent.init(key)
    data = window(rng)
    grads = jax.grad(lambda p: jnp.sum(unroll(agent, p, *data) ** 2))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(g).max() > 0, path
