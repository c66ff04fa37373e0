"""Mixers against NumPy, their monotonicity, their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jqmix.config import AlgoConfig, fields_of
from jqmix.networks.mixers import MIXERS, POSITIVITY, make_mixer

NUMPY_POSITIVITY = {
    "abs": np.abs,
    "softplus": lambda w: np.log1p(np.exp(w)),
    "square": lambda w: w * w / 2,
    "none": lambda w: w,
}


def batch(rng, n=4, s=9, rows=32):
    q, state = 3 * rng.normal(size=(rows, n)), rng.normal(size=(rows, s))
    return jnp.asarray(q, jnp.float32), jnp.asarray(state, jnp.float32)


@pytest.mark.parametrize("positivity", list(POSITIVITY))
def test_qmix_matches_the_formula(rng, key, positivity):
    mixer = make_mixer("qmix", 4, 9, embed=5, hypernet_hidden=6, positivity=positivity)
    params = mixer.init(key)
    q, s = batch(rng)
    expected = oracles.qmix(params, np.asarray(q), np.asarray(s), NUMPY_POSITIVITY[positivity])
    np.testing.assert_allclose(mixer.apply(params, q, s), expected, rtol=1e-4, atol=1e-4)


def test_qmix_gradient_matches_finite_differences(rng, key):
    mixer = make_mixer("qmix", 4, 9, embed=5, hypernet_hidden=6)
    params = mixer.init(key)
    q, s = batch(rng)
    grad = jax.grad(lambda q: jnp.sum(mixer.apply(params, q, s)))(q)
    q, s = np.asarray(q, np.float64), np.asarray(s, np.float64)
    for i in range(4):
        step = np.zeros(q.shape)
        step[:, i] = 1e-5
        numeric = (oracles.qmix(params, q + step, s) - oracles.qmix(params, q - step, s)) / 2e-5
        np.testing.assert_allclose(grad[:, i], numeric, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("positivity", ["abs", "softplus", "square"])
def test_qmix_is_monotonic(rng, key, positivity):
    mixer = make_mixer("qmix", 4, 9, positivity=positivity)
    q, s = batch(rng, rows=500)
    grad = jax.grad(lambda q: jnp.sum(mixer.apply(mixer.init(key), q, s)))(q)
    assert grad.min() >= 0
    assert grad.max() > 0


def test_the_unconstrained_control_is_not_monotonic(rng, key):
    mixer = make_mixer("qmix", 4, 9, positivity="none")
    q, s = batch(rng, rows=500)
    assert jax.grad(lambda q: jnp.sum(mixer.apply(mixer.init(key), q, s)))(q).min() < 0


def test_every_parameter_receives_a_gradient(rng, key):
    mixer = make_mixer("qmix", 4, 9)
    params = mixer.init(key)
    q, s = batch(rng)
    grads = jax.grad(lambda p: jnp.sum(mixer.apply(p, q, s) ** 2))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(g).max() > 0, path


def test_parameter_count(key):
    params = make_mixer("qmix", 6, 140, embed=32, hypernet_hidden=64).init(key)
    assert sum(x.size for x in jax.tree.leaves(params)) == 41_665
    assert jax.tree.leaves(make_mixer("vdn", 6, 140).init(key)) == []


def test_vdn_sums_and_iql_leaves_alone(rng, key):
    q, s = batch(rng)
    np.testing.assert_allclose(make_mixer("vdn", 4, 9).apply({}, q, s), q.sum(-1), rtol=1e-5)
    iql = make_mixer("iql", 4, 9)
    assert iql.per_agent
    np.testing.assert_array_equal(iql.apply({}, q, s), q)


def test_leading_axes_are_free(rng, key):
    mixer = make_mixer("qmix", 4, 9)
    params = mixer.init(key)
    q, s = batch(rng, rows=30)
    folded = mixer.apply(params, q.reshape(5, 6, 4), s.reshape(5, 6, 9))
    np.testing.assert_allclose(folded.reshape(30), mixer.apply(params, q, s), rtol=1e-5, atol=1e-6)


def test_unknown_mixer():
    with pytest.raises(ValueError, match="algo.mixer: 'nope' is not one of iql, vdn, qmix"):
        make_mixer("nope", 2, 2)


def test_config_offers_what_the_tables_hold():
    hints = {path: hint.__args__ for path, hint, _ in fields_of(AlgoConfig) if hasattr(hint, "__args__")}
    assert hints["mixer"] == tuple(MIXERS)
    assert hints["positivity"] == tuple(POSITIVITY)
