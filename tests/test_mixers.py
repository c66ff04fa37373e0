"""Mixers against NumPy, IGM by enumeration, their sizes."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow

from jqmix.config import known_fields
from jqmix.networks.mixers import build_mixer, make_mixer, mixer_names
from jqmix.networks.mixers.base import Joint, MixerSizes, zero_batch
from jqmix.networks.mixers.qmix import POSITIVITY

NUMPY_POSITIVITY = {
    "abs": np.abs,
    "softplus": lambda w: np.log1p(np.exp(w)),
    "square": lambda w: w * w / 2,
    "none": lambda w: w,
}
S, A, OBS, H = 9, 3, 4, 5  # state, actions, observation, hidden state
SIZES = {"n_actions": A, "obs_size": OBS, "hidden": H, "embed": 5, "hypernet_hidden": 6, "critic_hidden": 7}
# The control: weights that may be negative.
VARIANTS = [(name, "abs") for name in mixer_names()] + [("qmix", p) for p in POSITIVITY if p != "abs"]


@functools.cache
def small(name, n=4, positivity="abs"):
    """A mixer of small layers, its functions compiled (once for all tests)."""
    mixer = make_mixer(name, n, S, positivity=positivity, **SIZES)
    return mixer._replace(init=jax.jit(mixer.init), apply=jax.jit(mixer.apply))


def batch(rng, n=4, rows=32):
    """Values, states and joints of random joint actions, with every agent's best among its actions."""
    table = 3 * rng.normal(size=(rows, n, A)).astype(np.float32)
    action = rng.integers(0, A, (rows, n)).astype(np.int32)
    q = np.take_along_axis(table, action[..., None], -1)[..., 0]
    joint = Joint(
        action=action,
        greedy=table.argmax(-1).astype(np.int32),
        best=table.max(-1),
        obs=rng.normal(size=(rows, n, OBS)).astype(np.float32),
        hidden=rng.normal(size=(rows, n, H)).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, (q, rng.normal(size=(rows, S)).astype(np.float32), joint))


def q_tot_by_oracle(name, params, q, state, joint, positivity="abs"):
    q, state, joint = jax.tree.map(np.asarray, (q, state, joint))
    if name == "iql":
        return q
    if name == "vdn":
        return q.sum(-1)
    if name == "qatten":
        return oracles.qatten(params, q, state, joint.obs)
    if name == "qplex":
        return oracles.qplex(params, q, state, joint.action, joint.best, A)
    if name == "qtran":
        return oracles.qtran(params, state, joint.hidden, joint.action, A)[0]
    return oracles.qmix(params, q, state, NUMPY_POSITIVITY[positivity])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), n=st.sampled_from([2, 4]))
@pytest.mark.parametrize("name", mixer_names())
def test_every_mixer_matches_its_formula(name, seed, n):
    mixer = small(name, n)
    params = mixer.init(jax.random.key(seed))
    q, s, joint = batch(np.random.default_rng(seed), n, rows=6)
    expected = q_tot_by_oracle(name, params, q, s, joint)
    np.testing.assert_allclose(mixer.apply(params, q, s, joint), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positivity", list(POSITIVITY))
def test_qmix_matches_the_formula(rng, key, positivity):
    mixer = small("qmix", positivity=positivity)
    params = mixer.init(key)
    q, s, joint = batch(rng)
    expected = q_tot_by_oracle("qmix", params, q, s, joint, positivity)
    np.testing.assert_allclose(mixer.apply(params, q, s), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cw_qmix", "ow_qmix"])
def test_the_critics_mixer_matches_its_formula(rng, key, name):
    mixer = small(name).critic.mixer
    params = mixer.init(key)
    q, s, joint = batch(rng)
    expected = oracles.central(params, np.asarray(q), np.asarray(s))
    np.testing.assert_allclose(mixer.apply(params, q, s, joint), expected, rtol=1e-4, atol=1e-4)
    assert not mixer.igm


def test_qmix_gradient_matches_finite_differences(rng, key):
    mixer = small("qmix")
    params = mixer.init(key)
    q, s, _ = batch(rng)
    grad = jax.grad(lambda q: jnp.sum(mixer.apply(params, q, s)))(q)
    q, s = np.asarray(q, np.float64), np.asarray(s, np.float64)
    for i in range(4):
        step = np.zeros(q.shape)
        step[:, i] = 1e-5
        numeric = (oracles.qmix(params, q + step, s) - oracles.qmix(params, q - step, s)) / 2e-5
        np.testing.assert_allclose(grad[:, i], numeric, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["vdn", "qmix", "qatten", "cw_qmix", "ow_qmix"])
@pytest.mark.parametrize("positivity", ["abs", "softplus", "square"])
def test_monotonic_mixers(rng, key, name, positivity):
    mixer = small(name, positivity=positivity)
    q, s, joint = batch(rng, rows=500)
    grad = jax.grad(lambda q: jnp.sum(mixer.apply(mixer.init(key), q, s, joint)))(q)
    assert grad.min() >= 0
    assert grad.max() > 0


# IGM


def tables(rng, n, games, n_available=A):
    """Of ``games`` random states: utilities [G, N, A], the Joint of every available joint action [G, A^N], and the
    states. The last actions, which are the best ones, are unavailable."""
    utilities = rng.normal(size=(games, n, A)).astype(np.float32) * 2
    utilities[..., n_available:] += 10
    actions = np.array(list(itertools.product(range(n_available), repeat=n)), np.int32)
    allowed = utilities[..., :n_available]
    over = lambda x: np.broadcast_to(x[:, None], (games, len(actions), *x.shape[1:]))  # noqa: E731
    joint = Joint(
        action=np.broadcast_to(actions, (games, *actions.shape)),
        greedy=over(allowed.argmax(-1).astype(np.int32)),
        best=over(allowed.max(-1)),
        obs=over(rng.normal(size=(games, n, OBS)).astype(np.float32)),
        hidden=over(rng.normal(size=(games, n, H)).astype(np.float32)),
    )
    q = np.stack([utilities[:, i, actions[:, i]] for i in range(n)], axis=-1)
    return jax.tree.map(jnp.asarray, (q, over(rng.normal(size=(games, S)).astype(np.float32)), joint)), actions


def share_consistent(name, positivity, n, n_available=A, games=60):
    """In how many games the joint argmax over all joint actions is the tuple of the agents' own."""
    (q, state, joint), actions = tables(np.random.default_rng(n), n, games, n_available)
    mixer = small(name, n, positivity=positivity)

    @jax.jit
    @jax.vmap  # every game has parameters of its own
    def mix(seed, q, state, joint):
        return mixer.apply(mixer.init(jax.random.key(seed)), q, state, joint)

    best = np.argmax(mix(jnp.arange(games), q, state, joint), axis=-1)
    return np.mean((actions[best] == joint.greedy[:, 0]).all(-1))


@pytest.mark.parametrize("n", [3, *slow([2, 4])])
@pytest.mark.parametrize(("name", "positivity"), [v for v in VARIANTS if v[0] != "iql"])
def test_igm(name, positivity, n):
    """Every mixer that claims IGM has it in every game. QTRAN only aims at it, the control breaks it."""
    share = share_consistent(name, positivity, n)
    if small(name, n, positivity=positivity).igm:
        assert share == 1
    else:
        assert share < 0.9


@pytest.mark.parametrize("name", ["vdn", "qmix", "qatten", "qplex"])
def test_igm_among_available_actions(name):
    assert share_consistent(name, "abs", 3, n_available=2) == 1


def test_who_claims_igm():
    assert [(name, p) for name, p in VARIANTS if not small(name, positivity=p).igm] == [
        ("qtran", "abs"),
        ("qmix", "none"),
    ]


# Gradients


@pytest.mark.parametrize("name", ["qmix", "qatten", "qplex"])
def test_every_parameter_receives_a_gradient(rng, key, name):
    mixer = small(name)
    params = mixer.init(key)
    q, s, joint = batch(rng)
    grads = jax.grad(lambda p: jnp.sum(mixer.apply(p, q, s, joint) ** 2))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(g).max() > 0, path


def test_qplex_agents_learn_from_q_not_from_the_advantage(rng, key):
    """∂Q_tot/∂Q_i = w_i, whatever λ is, and nothing flows through max_a Q_i."""
    mixer = small("qplex")
    params = mixer.init(key)
    q, s, joint = batch(rng)
    by_q, by_best = jax.grad(
        lambda q, best: jnp.sum(mixer.apply(params, q, s, joint._replace(best=best))), argnums=(0, 1)
    )(q, joint.best)
    expected = [np.abs(oracles.mlp(params["w"], x)) for x in np.asarray(s, np.float64)]
    np.testing.assert_allclose(by_q, expected, rtol=1e-4, atol=1e-5)
    assert not by_best.any()


def as_batch(q, state, joint):
    """One window of so many slots, as an auxiliary loss takes it."""
    q, state, joint = jax.tree.map(lambda x: x[:, None], (q, state, joint))
    zero = zero_batch(MixerSizes(q.shape[-1], S, A, OBS, H), q.shape[0], 1)
    return zero._replace(q=q, state=state, joint=joint)


def test_qtran_losses_match_numpy_and_leave_q_jt_alone(rng, key):
    mixer = small("qtran")
    params = mixer.init(key)
    q, s, joint = batch(rng)

    def loss(params, settings=mixer.settings):
        return mixer.auxiliary({"agent": None, "mixer": params}, as_batch(q, s, joint), settings, key)

    expected = oracles.qtran_constraints(params, *jax.tree.map(np.asarray, (q, s, joint)), A)
    np.testing.assert_allclose(loss(params)[0][:, 0], expected, rtol=1e-4, atol=1e-4)
    grads = jax.grad(lambda p: jnp.sum(loss(p)[0]))(params)
    moved = {name: any(np.abs(g).max() > 0 for g in jax.tree.leaves(tree)) for name, tree in grads.items()}
    assert moved == {"q": False, "encode": False, "v": True}
    # Its weights are settings, and its metrics the two losses without them.
    weighted, metrics = loss(params, replace(mixer.settings, opt=3.0, nopt=0.0))
    np.testing.assert_allclose(weighted, 1.5 * metrics["qtran_opt"], rtol=1e-5)
    parts = 0.5 * (metrics["qtran_opt"] + 0.1 * metrics["qtran_nopt"])
    np.testing.assert_allclose(parts[:, 0], expected, rtol=1e-4, atol=1e-4)


# Sizes and shapes


@pytest.mark.parametrize(
    ("name", "count"), [("iql", 0), ("vdn", 0), ("qmix", 41_665), ("qatten", 58_885), ("qplex", 152_000)]
)
def test_parameter_counts_are_the_published_ones(key, name, count):
    """n = 6, S = 140, |A| = 14 is 6h_vs_8z, whose units have 4 features of their own: Qatten's d."""
    mixer = make_mixer(name, 6, 140, n_actions=14, obs_size=4)
    assert sum(x.size for x in jax.tree.leaves(mixer.init(key))) == count


@pytest.mark.parametrize("name", ["cw_qmix", "ow_qmix"])
def test_parameter_count_of_weighted_qmix(key, name):
    """The published 247,491 are both mixers; the second agent comes on top."""
    mixer = make_mixer(name, 6, 140, n_actions=14)
    counts = [sum(x.size for x in jax.tree.leaves(m.init(key))) for m in (mixer, mixer.critic.mixer)]
    assert counts == [41_665, 205_826]
    assert sum(counts) == 247_491


@pytest.mark.parametrize("name", mixer_names())
def test_leading_axes_are_free(rng, key, name):
    mixer = small(name)
    params = mixer.init(key)
    args = batch(rng, rows=30)
    folded = mixer.apply(params, *jax.tree.map(lambda x: x.reshape(5, 6, *x.shape[1:]), args))
    flat = mixer.apply(params, *args)
    np.testing.assert_allclose(folded.reshape(flat.shape), flat, rtol=1e-5, atol=1e-6)
    assert mixer.per_agent == (flat.shape == (30, 4))


@pytest.mark.parametrize("name", mixer_names())
def test_a_joint_is_optional(rng, key, name):
    """Without one: greedy actions (QPLEX), equal attention (Qatten), Σ Q_i + V (QTRAN); nothing else needs it."""
    q, s, joint = batch(rng)
    mixer = small(name)
    params = mixer.init(key)
    alone = mixer.apply(params, q, s)
    if name == "qtran":
        expected = np.asarray(q).sum(-1) + oracles.qtran(params, np.asarray(s), joint.hidden, joint.action, A)[1]
    else:
        unknown = joint._replace(best=q, obs=jnp.zeros_like(joint.obs))
        expected = q_tot_by_oracle(name, params, q, s, unknown)
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
    bare = make_mixer(name, 4, S)
    assert bare.apply(bare.init(key), q, s).shape == alone.shape


def test_unknown_mixer():
    with pytest.raises(ValueError, match="algo.mixer: 'nope' is not allowed; it takes one of iql, vdn, qmix"):
        make_mixer("nope", 2, 2)
    with pytest.raises(ValueError, match="mixer.embd: no such field; did you mean mixer.embed"):
        make_mixer("qmix", 2, 2, embd=3)
    with pytest.raises(ValueError, match="mixer.embed: 0 is out of range"):
        make_mixer("qmix", 2, 2, embed=0)


def test_settings_are_the_mixers_own():
    assert make_mixer("qmix", 2, 2, embed=8, heads=2).settings.embed == 8  # heads are for others
    assert build_mixer("cw_qmix", MixerSizes(2, 2)).settings.alpha == 0.5
    positivity = known_fields()["mixer.positivity"][1]
    assert positivity.__args__ == tuple(POSITIVITY)
