"""A member's rollouts, buffer and batches divided among devices; ``vmap`` stands for them where it does."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from slow import slow

from jqmix.buffers import windows
from jqmix.config import load_config
from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.registry import make_env
from jqmix.kernels.platform import compiling_for
from jqmix.kernels.rows import to_rows
from jqmix.learning import split, train
from jqmix.learning.split import RolloutsShare, Split, noise_axes
from jqmix.networks.agent import AgentStart
from jqmix.runs import devices, memory
from jqmix.runs.memory import make_plan
from jqmix.runs.programs import MemberPrograms
from jqmix.types import Packed

SHARED = Split(4, rollouts=True)


def on_devices(f, *shares, **same):
    """What ``f`` gives on each of four devices, for its part of ``shares``."""
    numbers = jnp.arange(SHARED.parts)
    each = lambda _, *shares: f(*shares, **same)  # noqa: E731
    return jax.vmap(each, axis_name=split.AXIS, axis_size=SHARED.parts)(numbers, *shares)


def some_windows(numbers, slots=3):
    """Windows of every type of number, told apart by theirs."""
    at = jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), (slots, len(numbers)))
    at = at + 100 * jnp.arange(slots)[:, None]
    seen = {"half": at.astype(jnp.bfloat16), "byte": jnp.stack([at, at + 1], -1).astype(jnp.int8)}
    start = AgentStart(-at[0][:, None], at[0][:, None].astype(jnp.int32))
    return Packed(seen, at[..., None].astype(jnp.int32), at, 1 / (1 + at), at % 2 == 0, at % 3 == 0, start)


def over_windows(f, packed):
    """``f`` of every array and the axis that counts its windows."""
    return jax.tree.map(lambda axis, x: jax.tree.map(lambda y: f(y, axis), x), windows.BATCH_AXIS, packed)


def assert_same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_rows_keep_every_bit():
    odd = jnp.asarray([-0.0, jnp.nan, jnp.inf, 1e-42])
    bits = jax.lax.bitcast_convert_type(odd, jnp.uint32)
    tree = {"windows": some_windows(range(4)), "odd": odd, "bits": bits, "nothing": None}
    axes = {"windows": windows.BATCH_AXIS, "odd": 0, "bits": 0, "nothing": 0}
    rows, restored = to_rows(tree, axes)
    assert rows.dtype == jnp.uint32 and len(rows) == 4
    assert_same(restored(rows), tree)
    back = restored(rows[jnp.array([2, 2, 0, 1, 3])])  # more rows, and in another order
    np.testing.assert_array_equal(back["windows"].reward[0], [2, 2, 0, 1, 3])
    words = jax.lax.bitcast_convert_type(back["odd"], jnp.uint32)
    np.testing.assert_array_equal(words, bits[jnp.array([2, 2, 0, 1, 3])])


def test_what_devices_gather_is_what_was_divided():
    whole = some_windows(range(8)), jnp.arange(8.0)

    def gathered():
        mine = over_windows(SHARED.mine, whole[0]), SHARED.mine(whole[1])
        return SHARED.gather(mine, (windows.BATCH_AXIS, 0)), SHARED.total(SHARED.among_zeros(mine[1]))

    got, summed = jax.jit(lambda: on_devices(gathered))()
    for device in range(4):
        assert_same(jax.tree.map(lambda x, d=device: x[d], got), whole)
        np.testing.assert_array_equal(summed[device], whole[1])
    assert_same(Split().gather(whole), whole)


@pytest.mark.parametrize("chip", ["gpu", "tpu"])
@pytest.mark.parametrize("capacity", [20, *slow([16, 28])])
def test_a_buffer_in_sections_is_the_whole_one(capacity, chip):
    """Four windows at a time fall into one section or two, and those of many updates come to where they are needed."""
    with compiling_for(chip):
        whole = windows.as_ring(some_windows([0] * capacity))
        parts = lambda axis, part: jax.tree.map(lambda x: jnp.stack(jnp.split(x, SHARED.parts, axis)), part)  # noqa: E731
        sections = jax.tree.map(parts, windows.ring_axes(), whole)

        def write_mine(section, new, position):
            return windows.write(section, new, position, SHARED.first(capacity // SHARED.parts))

        write, write_all = jax.jit(windows.write), jax.jit(lambda own, **new: on_devices(write_mine, own, **new))
        for k in range(capacity // 4 + 2):  # the ring begins anew
            new, position = some_windows(range(4 * k, 4 * k + 4)), jnp.int32(4 * k % capacity)
            whole, sections = write(whole, new, position), write_all(sections, new=new, position=position)
        index = jnp.asarray(np.random.default_rng(0).integers(0, capacity, (2, 8)))
        draw = jax.jit(lambda i: windows.draw(whole, i, new))
        for drawn in (index, index[0]):
            got = jax.jit(lambda index: on_devices(SHARED.fetch, sections, index=index, like=new))(drawn)
            for device in range(SHARED.parts):
                mine = drawn[..., 2 * device : 2 * device + 2]
                wanted = jax.vmap(draw)(mine) if drawn.ndim == 2 else draw(mine)
                assert_same(jax.tree.map(lambda x, d=device: x[d], got), wanted)


@pytest.mark.parametrize("name", ["smax_3m", "mpe_simple_spread_v3", "memory_probe"])
def test_a_share_of_the_environments_is_what_all_of_them_are(name, key):
    """What is drawn for a reset and a step, whatever axis counts environments there, and what follows from it."""
    every, mine = make_env(name, batch=8), make_env(name, batch=2)
    share = RolloutsShare(every, mine, SHARED)
    actions = jnp.zeros((8, every.spec.n_agents), jnp.int32)
    assert (share.size, share.spec) == (2, every.spec)

    def play(env, actions):
        state, shown = env.reset(key)
        after, then = env.step(jax.random.fold_in(key, 1), state, actions)
        return env.unpack(env.pack(state, shown)), env.pack(after, then), then.reward

    got = jax.jit(lambda: on_devices(lambda: play(share, SHARED.mine(actions))))()
    wanted = jax.jit(lambda: play(every, actions))()
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, rtol=1e-6, atol=1e-6)


class Together:
    """Environments that draw within their steps, in a form for many: it tells no noise."""

    def __init__(self, size):
        form = Batched(worlds.Counting(), size)
        self.size, self.spec = size, form.spec
        self.reset, self.step, self.pack, self.unpack = form.reset, form.step, form.pack, form.unpack


def test_what_draws_within_its_steps_is_not_divided(monkeypatch):
    def together(size):
        return TimeLimit(Together(size), 5, "bootstrap")

    assert noise_axes(together(8), together(2)) == -1
    cfg = load_config(None, **worlds.SMALL_RUN | {"rollouts": 8})
    assert train.divides(cfg, 4)
    monkeypatch.setattr(train, "build_env", lambda cfg, batch: together(batch))
    assert train.divides(cfg, 1) and not train.divides(cfg, 4)


def dividing(**fields):
    cfg = load_config(None, **worlds.SMALL_RUN | fields)
    return [parts for parts in range(1, 17) if train.divides(cfg, parts)]


def test_into_how_many_parts_a_member_can_be_divided():
    """They divide rollouts and batches, and a section of the buffer has room for the windows of an iteration."""
    room = {"rollouts": 16, "replay.batch": 32, "replay.capacity": 64}
    assert dividing(**room) == [1, 2, 4]
    assert dividing(**room | {"replay.capacity": 16 * 16}) == [1, 2, 4, 8, 16]
    assert dividing(**room | {"replay.capacity": 16 * 16, "replay.batch": 12}) == [1, 2, 4]
    assert dividing(**room | {"replay.capacity": 18 * 16, "rollouts": 6}) == [1, 2]
    pqn = {"algo.name": "pqn", "window": 4, "rollouts": 48, "algo.minibatches": 4}
    assert dividing(**pqn) == [1, 2, 3, 4, 6, 12]


def test_accelerators_that_are_left_share_members():
    cfg = load_config(None, **worlds.SMALL_RUN | {"rollouts": 16, "replay.batch": 32, "replay.capacity": 256})

    def mesh(members, count):
        made = devices.make_mesh(members, 32, [*range(count)], lambda parts: train.divides(cfg, parts))
        return tuple(made.shape.values()), devices.split_over(made)

    with compiling_for("gpu"):
        assert mesh(1, 8) == ((1, 8), Split(8, rollouts=True))
        assert mesh(2, 8)[0] == (2, 4)
        assert mesh(3, 8)[0] == (3, 2)
        assert mesh(7, 4)[0] == (1, 4)  # all of them on each
        assert mesh(1, 7)[0] == (1, 4)
        assert mesh(8, 8) == ((8, 1), Split())
    assert mesh(1, 8) == ((1, 4), Split(4))  # cores share batches alone


def test_what_a_divided_member_takes(monkeypatch):
    """Its replay is there once, what it learns on every device, and what devices send one another beside it."""
    cfg = load_config(None, **worlds.SMALL_RUN | {"env.name": "smax_3m", "rollouts": 8, "replay.capacity": 512})
    with compiling_for("gpu"):
        programs, plans = MemberPrograms(cfg), []
        for count in (1, 2):
            monkeypatch.setattr(devices.jax, "local_devices", lambda n=count: jax.devices()[:n])
            plans.append(make_plan(cfg, programs))
    alone, shared = plans
    assert (alone.copies, alone.divided, shared.copies, shared.divided) == (1, False, 2, True)
    sent = memory.sending_bytes(cfg, programs.spec)
    window = memory.tree_bytes(programs.member.buffer.windows) / cfg.replay.capacity
    assert 24 * window < sent < 4 * 24 * window  # 8 that are collected, a batch of 16; all numbers in 32 bits
    assert shared.need - alone.need == shared.parameters + shared.optimiser + 2 * sent


def on_eight_devices(folder, *cases):
    program = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", program, folder, *cases], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_make_what_one_does(tmp_path):
    """In an iteration they send windows twice, as they are collected and as batches, and gradients once an update."""
    found = on_eight_devices(tmp_path, "uniform")["uniform"]
    assert found["updates"] > 3 and found["farthest"] < 1e-4
    assert found["collectives"] == {"all-gather": 1, "all-reduce": 1, "all-to-all": 1}


@pytest.mark.slow
def test_eight_devices_make_what_one_does_whatever_it_is(tmp_path):
    found = on_eight_devices(tmp_path, "many", "continue", "pqn", "smax", "tpu", "checkpoints")
    assert {"many", "continue", "pqn", "smax", "tpu", "checkpoints"} == set(found)
    for case in found.values():
        assert case["updates"] > 1 and case["farthest"] < 1e-4
    sent = {name: case["collectives"] for name, case in found.items() if "collectives" in case}
    assert sent["many"] == sent["continue"] == sent["smax"] == {"all-gather": 1, "all-reduce": 1, "all-to-all": 1}
    assert sent["pqn"] == {"all-gather": 1, "all-reduce": 1}
