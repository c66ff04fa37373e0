"""Linear layers: values and gradients against plain products, whichever order the operands come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqmix.networks import linear

SIZES = st.sampled_from([1, 3, 8, 64, 128])


@settings(deadline=None, max_examples=60)
@given(batch=st.lists(st.integers(0, 4), max_size=3), inputs=SIZES, outputs=SIZES, seed=st.integers(0, 99))
def test_product_and_its_gradients(batch, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, w, d = (rng.normal(size=s).astype(np.float32) for s in ((*batch, inputs), (inputs, outputs), (*batch, outputs)))
    out, pull = jax.vjp(linear.product, jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(out, x @ w, rtol=1e-4, atol=1e-4)
    d_x, d_w = pull(jnp.asarray(d))
    np.testing.assert_allclose(d_x, d @ w.T, rtol=1e-4, atol=1e-4)
    expected = x.reshape(int(np.prod(batch)), inputs).T @ d.reshape(int(np.prod(batch)), outputs)
    np.testing.assert_allclose(d_w, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "outputs", "d_first"),
    [
        *((64, 10, True), (128, 96, True), (256, 64, True), (64, 1, True), (10, 64, False), (127, 64, False)),
        *((54, 256, False), (256, 320, False), (64, 64, False), (54, 32, False)),
    ],
)
def test_the_order_is_the_one_measured_as_faster(monkeypatch, inputs, outputs, d_first):
    """And the compiled program has it: XLA does not exchange the operands again."""
    assert linear.d_first(inputs, outputs) == d_first
    x, d = jnp.ones((40, inputs)), jnp.ones((40, outputs))
    program = jax.jit(linear.gradient_of_weights).lower(x, d).compile().as_text()
    assert (f"f32[{outputs},{inputs}]" in program) == (d_first or inputs == outputs)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not linear.d_first(inputs, outputs)


def test_a_layer_multiplies_by_it(rng, key):
    """Flax's layer with its leading axes, a bias, and the gradients of both."""
    layer, x = linear.linear(64, 10), jnp.asarray(rng.normal(size=(5, 4, 64)).astype(np.float32))
    params = layer.init(key, x)["params"]
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-5
    )
    grads = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) ** 2))(params)
    plain = jax.grad(lambda p: jnp.sum((x @ p["kernel"] + p["bias"]) ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), grads, plain)
