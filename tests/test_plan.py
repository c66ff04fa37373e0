"""`jqmix plan`, and what it goes by: programs that are traced and not compiled."""

import json

import jax
import jax.numpy as jnp
import pytest

from jqmix.chips.catalogue import H100
from jqmix.chips.speed import estimate
from jqmix.chips.traced import array_bytes, operations, peak, tiled_bytes
from jqmix.cli import main
from jqmix.config import load_config
from jqmix.runs.plan import traced_iteration
from jqmix.runs.programs import MemberPrograms

SMALL = ["two_step_game", "--replay.capacity", "128"]


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def jaxpr(f, *shapes):
    return jax.make_jaxpr(f)(*shapes).jaxpr


# Traced programs


@pytest.mark.parametrize(
    ("of_one", "members", "size"),
    [
        # As XLA lays out a TPU's arrays: f32[64,32]{0,1:T(8,128)}, f32[64,64,2]{1,2,0:T(2,128)} and so on.
        (shape(32), 64, 32 * 128 * 4),
        (shape(64, 2), 64, 64 * 2 * 128 * 4),
        (shape(32899), 64, 64 * 258 * 128 * 4),
        (shape(64), 1, 128 * 4),
        (shape(3, 512, 2, dtype=jnp.int8), 64, 3 * 2 * 64 * 512),
        (shape(0, 5), 3, 0),
    ],
)
def test_tiles(of_one, members, size):
    assert tiled_bytes(of_one, members) == pytest.approx(size, rel=0.002)


def test_what_is_held_at_once():
    """Two products' results and no more: what lies between products has no place of its own."""

    def f(x, w):
        h = jax.nn.relu(x @ w) * 2 + 1
        return jnp.tanh(h @ w) @ w

    held = peak(jaxpr(f, shape(100, 8), shape(8, 8)))
    assert sum(array_bytes(x.shape) for x in held) == pytest.approx(2 * 100 * 8 * 4, abs=100 * 8 * 4)


def test_a_loop_keeps_its_carry_in_place():
    def f(x):
        def step(carry, t):
            return jax.lax.dynamic_update_index_in_dim(carry, jnp.sin(carry[0]), t, 0), None

        return jax.lax.scan(step, x * 2, jnp.arange(50))[0]

    held = peak(jaxpr(f, shape(50, 1000)))
    assert sum(array_bytes(x.shape) for x in held) < 1.1 * 50 * 1000 * 4


@pytest.mark.parametrize(
    ("alone", "rest"),
    [
        (True, lambda both: 0.0),
        (False, lambda both: both),  # a result, too
        (False, lambda both: jnp.sin(both)),
        (False, lambda both: jnp.cumsum(both, axis=1)),
    ],
)
def test_what_products_alone_read_is_told(alone, rest):
    """It may be put together from others, which then are, too."""

    def f(x, y, w):
        both = jnp.concatenate([y @ w, jnp.sin(x)])
        return both @ w[:, :2], rest(both)

    held = peak(jaxpr(f, shape(100, 8), shape(50, 8), shape(8, 8)))
    assert {x.multiplied for x in held if x.shape.shape == (150, 8)} >= {alone}
    assert all(x.multiplied == alone for x in held if x.shape.shape == (50, 8))


def test_operations_are_counted_as_often_as_loops_turn():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

    made = [op for op in operations(jaxpr(f, shape(10, 8), shape(8, 8)), array_bytes) if op.name == "dot_general"]
    assert [(op.times, op.flops) for op in made] == [(7, 2 * 10 * 8 * 8)]
    assert made[0].moved == 4 * (10 * 8 + 8 * 8 + 10 * 8)


def test_reading_a_slot_is_not_reading_all():
    f = lambda x, t: jax.lax.dynamic_index_in_dim(x, t, keepdims=False) @ jnp.eye(8)  # noqa: E731
    moved = sum(op.moved for op in operations(jaxpr(f, shape(10_000, 8, 8), shape(dtype=jnp.int32)), array_bytes))
    assert moved < 4 * 6 * 64


def test_devices_that_share_a_member_sum_its_gradients_once_an_update():
    cfg = load_config("two_step_game", updates=3)
    assert estimate(traced_iteration(MemberPrograms(cfg), 1), H100, 1).collectives == {}
    found = estimate(traced_iteration(MemberPrograms(cfg), 2), H100, 1)
    assert sum(found.collectives.values()) >= cfg.updates
    assert found.collective_bytes > 3 * 4 * 32_000


# The command


def said(capsys, *args):
    assert main(["plan", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_members_on_devices(capsys):
    eight = said(capsys, *SMALL, "--target", "h100", "--devices", "8", "--seeds", "64", "--price", "2")
    assert (eight["members_per_device"], eight["devices_used"], eight["groups"]) == (8, 8, 1)
    assert 0 < eight["memory"]["needed"] < eight["memory"]["available"] < 85e9
    assert eight["steps_per_s"] == pytest.approx(8 * eight["steps_per_s_of_a_device"])
    assert eight["dollars"] == pytest.approx(2 * 8 * eight["run_s"] / 3600)
    million = eight["dollars"] / (64 * 20_000) * 1e6
    assert eight["dollars_per_million_steps"] == pytest.approx(million)
    one = said(capsys, *SMALL, "--target", "h100", "--seeds", "8")
    assert one["steps_per_s"] == pytest.approx(eight["steps_per_s_of_a_device"])
    assert "dollars" not in one


@pytest.mark.slow
def test_members_that_do_not_fit_are_grouped(capsys):
    large = said(capsys, "two_step_game", "--replay.capacity", "2000000", "--target", "v5e", "--seeds", "64")
    assert large["groups"] > 1
    assert large["groups"] * large["members_at_once"] == 64
    assert large["memory"]["needed"] <= large["memory"]["available"]


def test_the_machine_at_hand(capsys):
    assert main(["plan", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "this machine" in out and "not predicted" in out


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--target", "h200"], "target: 'h200' is not allowed; one of h100, a100, v5e, v6e"),
        (["--devices", "2"], "devices: has no effect without --target"),
        (["--compile"], "compile: has no effect without --target"),
        (["--target", "h100", "--price", "0"], "price: 0 is not allowed; it takes a number > 0"),
        (["--target", "h100", "--devices", "257"], "it takes a whole number ≥ 1 and ≤ 256"),
        (["--run-dir", "x"], "run_dir: has no effect; plan writes nothing"),
        (["--target", "v5e", "--replay.capacity", "400000000"], "replay.capacity: 400000000 takes about"),
    ],
)
def test_what_is_refused(capsys, args, error):
    try:
        code = main(["plan", "two_step_game", *args])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert error in captured.err and captured.err.count("\n") == 1
