"""Parameters from one vector: what one kernel takes apart is what XLA's operations do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jqmix.config import build
from jqmix.envs.registry import make_env
from jqmix.kernels import pieces, self_test, vectors
from jqmix.kernels.platform import compiling_for, plain_forms
from jqmix.runs.jax_settings import check_kernels

SHAPES = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_one_kernel_takes_a_vector_apart(shapes):
    arrays = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)]
    vector = jnp.concatenate([x.ravel() for x in arrays])
    for got, wanted in zip(pieces.take_apart(vector, tuple(shapes)), arrays, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_of_several_members(rng):
    shapes = ((pieces.BLOCK, 2), (), (3, 5))
    x = jnp.asarray(rng.normal(size=(3, 2 * pieces.BLOCK + 16)), jnp.float32)
    got = jax.vmap(lambda vector: pieces.take_apart(vector, shapes))(x)
    np.testing.assert_array_equal(got[0], x[:, :-16].reshape(3, *shapes[0]))
    np.testing.assert_array_equal(got[1], x[:, -16])
    np.testing.assert_array_equal(got[2], x[:, -15:].reshape(3, 3, 5))


def test_a_tree_comes_back_by_the_kernel_on_a_gpu(rng, monkeypatch):
    tree = {"b": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "a": [jnp.float32(2.0), jnp.zeros(5)]}
    asked = []
    real = vectors._in_one_kernel
    monkeypatch.setattr(vectors, "_in_one_kernel", lambda *given: asked.append(given) or real(*given))
    vector = ravel_pytree(tree)[0]
    jax.tree.map(np.testing.assert_array_equal, vectors.restorer(tree)(vector), tree)
    assert not asked  # on a CPU
    with compiling_for("gpu"):
        restore = vectors.restorer(tree)
        with plain_forms("pieces"):
            jax.tree.map(np.testing.assert_array_equal, vectors.restorer(tree)(vector), tree)
        assert not asked
    jax.tree.map(np.testing.assert_array_equal, restore(vector), tree)
    assert len(asked) == 1


@pytest.mark.parametrize("odd", [jnp.int32(3), jnp.zeros(0), jnp.zeros(2, jnp.bfloat16)])
def test_what_the_kernel_does_not_take(odd):
    with compiling_for("gpu"):
        assert vectors.asks_to_take_apart([jnp.zeros(3)]) and not vectors.asks_to_take_apart([jnp.zeros(3), odd])


def test_a_kernel_that_is_wrong_is_found_out_and_told(monkeypatch):
    """Off a GPU the proof runs the interpreted kernel."""
    env = make_env("two_step_game", batch=1)
    assert self_test.mismatch(vectors._both_forms, vectors._vectors) is None
    real = vectors._in_one_kernel
    monkeypatch.setattr(vectors, "_in_one_kernel", lambda vector, shapes: real(jnp.roll(vector, 1), shapes))
    assert "off by" in str(self_test.mismatch(vectors._both_forms, vectors._vectors))
    monkeypatch.setattr(vectors, "kernel_trouble", lambda: "the kernel's results are off")
    told = []
    with compiling_for("gpu"):
        check_kernels(build({"agent.share_parameters": False}), env, told.append)
        assert ravel_pytree(vectors.restorer({"a": jnp.ones(3)})(jnp.arange(3.0)))[0].tolist() == [0, 1, 2]
    (line,) = told
    assert line.startswith("parameters: operations one by one take") and "the kernel's results are off" in line
