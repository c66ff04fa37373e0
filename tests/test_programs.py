"""A member's functions, traced once: what is traced is what the functions do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from jqmix.config import load_config
from jqmix.learning.hyper import hyper_of
from jqmix.learning.state import Iterations
from jqmix.learning.train import make_program, whole_evaluation
from jqmix.runs.programs import MemberPrograms, TracedFunction, on_host, without_rollouts


def double(x, more):
    return {"sum": 2 * x + more["y"], "none": None}, jax.lax.fori_loop(0, 3, lambda i, s: s + x * i, x)


EXAMPLES = jnp.zeros(()), {"y": jnp.zeros((2,))}


@pytest.mark.parametrize(
    ("through", "x"),
    [(lambda f: f, jnp.float32(3)), (jax.jit, jnp.float32(3)), (lambda f: jax.vmap(f, (0, None)), jnp.arange(3.0))],
    ids=["called", "jit", "vmap"],
)
def test_a_traced_function_is_the_function(through, x):
    arguments = x, {"y": jnp.array([1.0, 5.0])}
    wanted, found = through(double)(*arguments), through(TracedFunction(double, *EXAMPLES))(*arguments)
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)


def test_it_is_traced_once():
    calls = []

    def counted(x):
        calls.append(x)
        return x + 1

    traced = TracedFunction(counted, jnp.float32(0))
    for x in (1.0, 2.0):
        assert jax.jit(traced)(jnp.float32(x)) == x + 1
    assert len(calls) == 1


def test_other_arguments_than_it_was_traced_for_are_refused():
    with pytest.raises(ValueError, match="it was traced for"):
        TracedFunction(double, *EXAMPLES)(jnp.zeros(()), {"z": jnp.zeros((2,))})


def test_programs_do_what_the_functions_do():
    """Training and an evaluation of a member, bit for bit."""
    cfg = load_config(None, **worlds.SMALL_RUN)
    plain, programs = make_program(cfg), MemberPrograms(cfg)
    ends = []
    for program in (plain, programs):
        member, shared = jax.jit(program.init)(jnp.int32(5), hyper_of(cfg))
        member, shared, _ = jax.jit(program.train)(member, shared, on_host(Iterations(6), cfg))
        evaluated = jax.jit(program.evaluate)(without_rollouts(member), shared, on_host(whole_evaluation(cfg), cfg))
        ends.append((member, evaluated))
    assert int(ends[0][1][1].updates) > 0
    for (path, a), b in zip(jax.tree.leaves_with_path(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert jax.tree.map(jnp.shape, ends[0][0]) == jax.tree.map(lambda x: x.shape, programs.member)
