"""What the comparison with JaxMARL's programs puts in their place computes the same."""

import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import jaxmarl_work


@pytest.mark.parametrize("size", [(5, 5), (3, 3), (2, 4)])
def test_a_convolution_as_a_product_is_flaxs_own(size):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 6))
    theirs, ours = (conv(features=7, kernel_size=size) for conv in (nn.Conv, jaxmarl_work.Conv))
    params = theirs.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(params, ours.init(jax.random.key(1), x))

    def loss(params, net):
        y = net.apply(params, x)
        return (y**3).mean(), y

    (expected, y), slope = jax.value_and_grad(loss, has_aux=True)(params, theirs)
    (value, z), ascent = jax.value_and_grad(loss, has_aux=True)(params, ours)
    assert y.shape == (2, 3, 5, 4, 7)
    chex.assert_trees_all_close((value, z, ascent), (expected, y, slope), rtol=1e-4, atol=1e-5)
