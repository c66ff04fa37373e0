"""Functions of columns as one kernel, against the functions themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqmix.kernels import columns
from jqmix.kernels.columns import over_columns, power_of_two


@pytest.mark.parametrize("n, count", [(1, 1), (5, 1), (5, 16), (8, 37), (19, 300)])
def test_a_kernel_of_columns_is_the_function_itself(n, count, rng):
    """Sums over a column, which must not see what is beyond the array's end; loops; arrays that all columns share."""

    def f(changing, given):
        x, k = (v[...] for v in changing)
        table, steps, present = given

        def step(i, x):
            x = x + steps[i] - 2.0 * jnp.sum(x[:, None] * (x[:, None] > x), axis=0)
            return jnp.where(present[...] > 0, jnp.where(x > table[...], x / 4, x), 0.0)

        return jax.lax.fori_loop(0, 3, step, x), k + 1

    changing = (
        jnp.asarray(rng.normal(size=(n, count)), jnp.float32),
        jnp.asarray(rng.integers(0, 5, (n, count)), jnp.int32),
    )
    table, steps = (
        jnp.asarray(rng.normal(size=(n, 1)), jnp.float32),
        jnp.asarray(rng.random((3, n, count)), jnp.float32),
    )
    given = table, steps, jnp.ones((n, 1))  # which is zero, where a kernel adds rows
    found = over_columns(f, changing, given, power_of_two(n) ** 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, f(changing, given))
    each = jax.vmap(lambda x: over_columns(f, (x, changing[1]), given, power_of_two(n) ** 2)[0])(changing[0][None])
    np.testing.assert_allclose(each[0], found[0], rtol=1e-5)


def test_wide_columns_are_divided_among_more_programs(monkeypatch):
    """What a program holds stays bounded."""
    blocks = []
    monkeypatch.setattr(columns, "_call", lambda f, changing, given, block: blocks.append(block) or changing)
    for n in (4, 64, 128):
        over_columns(lambda changing, given: changing, jnp.ones((n, 64)), (), n * n)
    assert blocks == [64, 1, 1]
    assert [power_of_two(n) for n in (1, 2, 3, 57, 64)] == [1, 2, 4, 64, 64]
