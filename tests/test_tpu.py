"""What is written otherwise for a TPU: the same numbers as the plain form gives, and it lowers. No TPU is needed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Counting

from jqmix.buffers import make_buffer, windows
from jqmix.buffers.base import Stored
from jqmix.config import ConfigError, load_config
from jqmix.envs.base import Batched, TimeLimit
from jqmix.kernels import turns
from jqmix.kernels.platform import compiling_for, plain_forms
from jqmix.learning.state import Iterations
from jqmix.learning.train import make_program
from jqmix.networks.agent import Agent, AgentStart
from jqmix.runs import checkpoint

ENV = TimeLimit(Batched(Counting(), 4), 6, "bootstrap")
SLOTS, CAPACITY = 7, 12

SMALL = {"env.name": "chain_probe", "agent.hidden": 8, "replay.capacity": 64, "replay.batch": 16}
VARIANTS = {
    "dqn": {"replay.prioritised": True, "algo.mixer": "cw_qmix", "mixer.alpha": 0.3},  # that is traced
    "goes on": {"window_start": "continue", "replay.burn_in": 2, "agent.core": "lstm"},
    "pqn": {"algo.name": "pqn", "window": 4, "algo.epochs": 2, "algo.minibatches": 2, "algo.reward_norm": "running"},
}


def test_members_take_turns_on_a_tpu_where_each_has_many_rows():
    assert not turns.take_turns(10**6)
    with compiling_for("gpu"):
        assert not turns.take_turns(10**6)
    with compiling_for("tpu"):
        assert turns.take_turns(turns.ROWS) and not turns.take_turns(turns.ROWS - 1)
        with plain_forms("turns"):
            assert not turns.take_turns(10**6)


def test_turns_are_what_all_give_at_once(key):
    """Of what a member closes over, some differs between members, keys among it, and some does not."""

    def member(scale, key, x, common):
        def f(x):
            return {"a": x * scale + common, "b": jax.random.normal(key, (2,))}

        return turns.in_turns(f, turns.ROWS)(x)

    args = jnp.arange(3.0), jax.random.split(key, 3), jnp.ones((3, 4)), jnp.float32(2)
    every = jax.vmap(member, in_axes=(0, 0, 0, None))
    expected = every(*args)
    with compiling_for("tpu"):
        text = str(jax.make_jaxpr(every)(*args))
        assert "custom_vmap_call" in text and "length=3" in text  # one after another
        jax.tree.map(np.testing.assert_array_equal, every(*args), expected)
        alone = member(args[0][1], args[1][1], args[2][1], args[3])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y), expected, alone)


def filled(buffer, start, replay):
    """A buffer after five additions of four windows, so that its ring of twelve went round; and the last four."""
    stored = buffer.init(windows.empty(ENV, SLOTS, CAPACITY, start), replay)
    rng = np.random.default_rng(0)

    def some(x):
        return jnp.asarray(rng.integers(0, 2 if x.dtype == bool else 100, x.shape), x.dtype)

    new = windows.empty(ENV, SLOTS, 4, start)
    for k in range(5):
        new = jax.tree.map(some, new)
        stored = buffer.add(stored, new, jnp.int32(4 * k % CAPACITY))
    return stored, new


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize(
    "start", [None, AgentStart(jnp.zeros((4, 2, 3)), jnp.zeros((4, 2), jnp.int32))], ids=["reset", "goes on"]
)
@pytest.mark.parametrize("lanes", [windows.LANES, 2], ids=["short", "long"])
def test_a_ring_of_rows_gives_the_windows_of_one_in_order_of_time(monkeypatch, key, prioritised, start, lanes):
    monkeypatch.setattr(windows, "LANES", lanes)
    monkeypatch.setattr(windows, "LONGEST", 8 * lanes)
    replay = load_config(
        None, **{"replay.prioritised": prioritised, "replay.capacity": CAPACITY, "rollouts": 4, "replay.batch": 6}
    ).replay
    buffer = make_buffer(replay)

    def drawn():
        stored, new = filled(buffer, start, replay)
        index, weight = buffer.sample(key, stored, jnp.int32(CAPACITY), replay)
        return windows.draw(stored.windows, index, new), weight, stored

    *expected, _ = drawn()
    with compiling_for("tpu"):
        *got, stored = drawn()
        assert windows.capacity(stored.windows) == CAPACITY
    assert {x.ndim for x in jax.tree.leaves(stored.windows)} == {2}
    assert {len(x) for x in jax.tree.leaves(stored.windows)} == {CAPACITY}
    if lanes == 2:
        assert all(x.shape[1] % 2 == 0 for x in jax.tree.leaves(stored.windows))
        assert any(x.shape[1] > 8 * lanes for x in jax.tree.leaves(stored.windows))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_tpus_compiler_is_told_what_it_would_copy():
    """Rows that end with a tile stay rows, others are its own; the longest alone are drawn one by one."""

    def told(width):
        window = windows.empty(ENV, 1, 4)._replace(reward=jnp.zeros((width, 4)))
        ring = windows.as_ring(
            jax.tree.map(
                lambda axis, x: jax.tree.map(lambda x: jnp.concatenate([x, x], axis), x), windows.BATCH_AXIS, window
            )
        )
        write = jax.make_jaxpr(windows.write)(ring, window, jnp.int32(4))
        draw = jax.make_jaxpr(lambda ring, index: windows.draw(ring, index, window))(ring, jnp.arange(3))
        return "layout_constraint" in str(write), "custom_vmap_call" in str(draw)

    assert told(windows.LANES) == (False, False)  # of a platform that is no TPU
    with compiling_for("tpu"):
        assert told(windows.LANES // 4) == (False, False)
        assert told(windows.LANES - 1) == (True, False)
        assert told(windows.LONGEST) == (True, False)
        assert told(windows.LONGEST + 1) == (True, True)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_rows_are_drawn_one_by_one_for_all_members(rng, axes):
    rows, index = jnp.asarray(rng.normal(size=(3, 8, 5))), jnp.asarray(rng.integers(0, 8, (3, 4)))
    args = [x if axis == 0 else x[0] for x, axis in zip((rows, index), axes, strict=True)]
    got = jax.vmap(windows.row_by_row, in_axes=axes)(*args)
    np.testing.assert_array_equal(got, jax.vmap(lambda rows, index: rows[index], in_axes=axes)(*args))


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_a_window_is_unrolled_with_all_rows_on_one_axis(rng, key, core):
    agent = Agent(3, 5, 7, hidden=16, core=core)
    params = agent.init(key)
    obs = jnp.asarray(rng.normal(size=(6, 4, 3, 7)), jnp.float32)
    action, first = jnp.asarray(rng.integers(0, 5, (6, 4, 3)), jnp.int32), jnp.asarray(rng.random((6, 4)) < 0.3)
    start = AgentStart(jax.tree.map(lambda x: x + 0.5, agent.initial_state(4)), action[0])

    def loss(params):
        out = agent.unroll(params, obs, action, first, start)
        return jnp.mean(out.q**2), out

    gradient = jax.value_and_grad(loss, has_aux=True)
    expected = gradient(params)
    with compiling_for("tpu"):
        got = gradient(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def trained(fields):
    """Two members after six iterations; and the program that made them."""
    program = make_program(load_config(None, **{**SMALL, **fields}))
    members, shared = jax.jit(jax.vmap(program.init, out_axes=(0, None)))(jnp.arange(2))
    step = jax.jit(jax.vmap(lambda m, s: program.train(m, s, Iterations(6)), in_axes=(0, None), out_axes=(0, None, 0)))
    traced = step.trace(members, shared)
    return traced.lower().compile()(members, shared), traced


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_training_for_a_tpu_is_training_and_lowers(monkeypatch, fields):
    monkeypatch.setattr(turns, "ROWS", 1)
    (members, shared, _), _ = trained(fields)
    with compiling_for("tpu"):
        (turned, shared_turned, _), traced = trained(fields)
        assert "custom_vmap_call" in str(traced.jaxpr)
        assert "stablehlo.while" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert int(shared.updates.low) == int(shared_turned.updates.low) > 0
    for part in ("learner", "tally", "moments"):
        for a, b in zip(*(jax.tree.leaves(getattr(m, part)) for m in (members, turned)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "start", [None, AgentStart(jnp.zeros((4, 2, 3)), jnp.zeros((4, 2), jnp.int32))], ids=["reset", "goes on"]
)
@pytest.mark.parametrize("lanes", [windows.LANES, 8])
def test_a_replay_saved_on_one_kind_of_chip_is_read_on_another(monkeypatch, start, lanes):
    """Two members' windows, every number of which is told apart; a TPU's rows may go on to the end of a tile."""
    for module in (windows, checkpoint):
        monkeypatch.setattr(module, "LANES", lanes)
    rng = np.random.default_rng(0)
    shape = windows.empty(ENV, SLOTS, CAPACITY, start)
    members = jax.tree.map(lambda x: jnp.asarray(rng.integers(0, 2**7, (2, *x.shape))).astype(x.dtype), shape)
    forms = [members]
    for chip in ("gpu", "tpu"):
        with compiling_for(chip):
            forms.append(jax.vmap(windows.as_ring)(members))

    def named(tree):
        saved: dict = {}
        for path, x in jax.tree_util.tree_flatten_with_path({"buffer": Stored(tree, ())})[0]:
            checkpoint._put(saved, checkpoint._name(path), np.asarray(x))
        return saved

    for held, other in itertools.product(forms, repeat=2):
        got = checkpoint.fill({"buffer": Stored(held, ())}, named(other))
        jax.tree.map(np.testing.assert_array_equal, got["buffer"].windows, held)
    for held in forms:
        with pytest.raises(ConfigError, match="buffer.windows.reward is float32"):
            wrong = held._replace(reward=held.reward[:, :, :1])
            checkpoint.fill({"buffer": Stored(members, ())}, named(wrong))
