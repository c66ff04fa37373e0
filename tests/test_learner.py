"""The loss, the update and the target copy, against NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jqmix.config import load_config
from jqmix.learning import normalise
from jqmix.learning.hyper import hyper_of
from jqmix.learning.learner import make_learner, make_optimizer, was_greedy
from jqmix.networks.mixers import mixer_names
from jqmix.networks.mixers.base import Joint
from jqmix.types import EnvSpec, Window

SPEC = EnvSpec("test", 2, 3, 4, 5, 6)


def config(**overrides):
    small = {"env.name": "two_step_game", "agent.hidden": 8, "mixer.embed": 4, "mixer.hypernet_hidden": 6}
    small |= {"algo.critic_hidden": 7, "algo.wqmix_alpha": 0.3}
    return load_config(None, **{**small, **overrides})


def random_window(rng, T1=9, B=3) -> Window:
    avail = rng.random((T1, B, 2, 3)) < 0.7
    avail[..., 0] |= ~avail.any(-1)
    last = rng.random((T1, B)) < 0.2
    last[-1] = True
    first = np.concatenate([np.ones((1, B), bool), last[:-1]])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Window(
        obs=draw(T1, B, 2, 4),
        state=draw(T1, B, 5),
        avail=avail,
        action=np.where(avail, rng.random(avail.shape), -1).argmax(-1).astype(np.int32),
        reward=draw(T1, B),
        discount=(rng.random((T1, B)) < 0.8).astype(np.float32),
        first=first,
        last=last,
    )


def numpy_joint(cfg, mixer, team, w: Window, action, n_actions=3):
    """Q(s, u) of every slot from the oracles alone, and each agent's greedy actions: [T1, B, agents], [T1, B, N]."""
    q, hidden = oracles.agent_unroll(team["agent"], w.obs, w.action, w.first, with_hidden=True)
    greedy = np.where(w.avail, q, -np.inf).argmax(-1)
    pick = lambda a: np.take_along_axis(q, a[..., None], -1)[..., 0]  # noqa: E731
    flat = lambda x: np.asarray(x, np.float64).reshape(-1, *x.shape[2:])  # noqa: E731
    chosen, best, state, u = flat(pick(action)), flat(pick(greedy)), flat(w.state), action.reshape(-1, 2)
    p = team["mixer"]
    if mixer == "iql":
        value = chosen
    elif mixer == "vdn":
        value = chosen.sum(-1)
    elif mixer == "qatten":
        value = oracles.qatten(p, chosen, state, flat(w.obs))
    elif mixer == "qplex":
        value = oracles.qplex(p, chosen, state, u, best, n_actions)
    elif mixer == "qtran":
        value = oracles.qtran(p, state, flat(hidden), u, n_actions)[0]
    elif mixer == "central":
        value = oracles.central(p, chosen, state)
    else:
        value = oracles.qmix(p, chosen, state)
    joint = Joint(u, greedy.reshape(-1, 2), best, flat(w.obs), flat(hidden))
    return value.reshape(*w.reward.shape, -1), greedy, (p, chosen, state, joint, n_actions)


def numpy_loss(cfg, params, target, w: Window):
    """The whole loss again, from the oracles alone."""
    mixer = cfg.algo.mixer
    q_tot, greedy, parts, returns, value = numpy_targets(cfg, params, target, w)
    losses = 0.5 * (q_tot - returns) ** 2
    if mixer in WEIGHTED:
        for at in np.ndindex(w.reward.shape):
            is_greedy = (w.action[at] == greedy[at]).all()
            losses[at] *= oracles.wqmix_weight(mixer, cfg.mixer.alpha, q_tot[at], returns[at], value[at], is_greedy)
        losses += 0.5 * (numpy_joint(cfg, "central", params["critic"], w, w.action)[0] - returns) ** 2
    if mixer == "qtran":
        losses += oracles.qtran_constraints(*parts).reshape(losses.shape)
    return losses[~w.last].mean()


def numpy_errors(cfg, params, target, w: Window):
    """Q_tot − G [T1, B], one for each that is learned: the team's, or every agent's (IQL)."""
    q_tot, _, _, returns, _ = numpy_targets(cfg, params, target, w)
    return list(np.moveaxis(q_tot - returns, -1, 0))


WEIGHTED = ("cw_qmix", "ow_qmix")


def numpy_targets(cfg, params, target, w: Window):
    """Q_tot, each agent's greedy actions, what constraints read, the returns and V_t: [T1, B, agents]."""
    mixer, lam = cfg.algo.mixer, cfg.algo.td_lambda
    q_tot, greedy, parts = numpy_joint(cfg, mixer, params, w, w.action)
    _, greedy_target, _ = numpy_joint(cfg, mixer, target, w, w.action)
    best = greedy if cfg.algo.double_q else greedy_target
    of, source = ("central", target["critic"]) if mixer in WEIGHTED else (mixer, target)
    value, taken = (numpy_joint(cfg, of, source, w, action)[0] for action in (best, w.action))
    was_greedy = best == w.action
    if mixer != "iql":
        was_greedy = was_greedy.all(-1, keepdims=True)
    reward, discount = w.reward * cfg.algo.reward_scale, w.discount * cfg.algo.gamma
    returns = []
    for k in range(value.shape[-1]):
        transitions = (reward, discount, value[..., k], w.last)
        g = {
            "peng": lambda: oracles.lambda_returns(*transitions, lam),  # noqa: B023
            "qstar": lambda: oracles.per_episode(oracles.q_star_lambda, (*transitions, taken[..., k]), lam),  # noqa: B023
            "watkins": lambda: oracles.per_episode(oracles.watkins, (*transitions, was_greedy[..., k]), lam),  # noqa: B023
            "nstep": lambda: oracles.per_episode(oracles.n_step, transitions, cfg.algo.n_step),  # noqa: B023
        }[cfg.algo.target]()
        returns.append(g)
    return q_tot, greedy, parts, np.stack(returns, axis=-1), value


def make(cfg, rng, key):
    learner = make_learner(cfg, SPEC)
    state = learner.init(key)
    other = learner.init(jax.random.fold_in(key, 1)).params
    return learner, state._replace(target=other), random_window(rng)


def mean_loss(learner, params, target, window, hyper, *weight):
    """The loss per slot that counts, and what comes beside the sum."""
    loss, summed = learner.loss(params, target, window, window.state, hyper, *weight)
    return loss / summed.slots, summed


@pytest.mark.parametrize("mixer", mixer_names())
@pytest.mark.parametrize("double_q", [True, False])
def test_loss_matches_numpy(rng, key, mixer, double_q):
    cfg = config(**{"algo.mixer": mixer, "algo.double_q": double_q, "algo.reward_scale": 2.0, "algo.td_lambda": 0.7})
    learner, state, w = make(cfg, rng, key)
    window = jax.tree.map(jnp.asarray, w)
    loss, summed = mean_loss(learner, state.params, state.target, window, hyper_of(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)
    assert float(summed.stats.loss / summed.slots) == float(loss)


@pytest.mark.parametrize("mixer", ["iql", "qmix", "qplex", "cw_qmix"])
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("target", ["qstar", "watkins", "nstep"])
def test_loss_of_every_target_matches_numpy(rng, key, mixer, double_q, target):
    cfg = config(
        **{
            "algo.mixer": mixer,
            "algo.double_q": double_q,
            "algo.target": target,
            "algo.td_lambda": 0.7,
            "algo.n_step": 2,
        }
    )
    learner, state, w = make(cfg, rng, key)
    window = jax.tree.map(jnp.asarray, w)
    loss, _ = mean_loss(learner, state.params, state.target, window, hyper_of(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)


@pytest.mark.parametrize("mixer", ["iql", "qmix"])
def test_windows_count_by_their_weights_and_get_new_priorities(rng, key, mixer):
    """Σ w m ½ δ² / Σ m; the priorities are those of the errors in this loss."""
    cfg = config(**{"algo.mixer": mixer})
    learner, state, w = make(cfg, rng, key)
    window, weight = jax.tree.map(jnp.asarray, w), rng.uniform(0.1, 1, w.reward.shape[1]).astype(np.float32)
    loss, (_, _, priority) = mean_loss(learner, state.params, state.target, window, hyper_of(cfg), jnp.asarray(weight))
    errors = np.stack(numpy_errors(cfg, state.params, state.target, w))
    expected = np.sum(weight * np.where(w.last, 0, 0.5 * np.square(errors))) / (len(errors) * (~w.last).sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    per_agent = np.moveaxis(errors, 0, -1)
    np.testing.assert_allclose(priority, oracles.window_priority(per_agent, w.last), rtol=1e-4)


def test_any_of_equally_good_actions_is_greedy():
    q, avail = jnp.array([[1.0, 2.0, 2.0, 3.0]] * 3), jnp.array([[True, True, True, False]] * 3)
    np.testing.assert_array_equal(was_greedy(q, avail, jnp.arange(3)), [False, True, True])


@pytest.mark.parametrize("mixer", mixer_names())
def test_every_parameter_learns_and_the_target_does_not(rng, key, mixer):
    cfg = config(**{"algo.mixer": mixer})
    learner, state, w = make(cfg, rng, key)
    window = jax.tree.map(jnp.asarray, w)
    grads, grads_target = jax.jit(
        jax.grad(lambda p, t: mean_loss(learner, p, t, window, hyper_of(cfg))[0], argnums=(0, 1))
    )(state.params, state.target)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        # A key's bias shifts all agents' attention alike, which a softmax does not see.
        assert np.abs(g).max() > 0 or "['key']['bias']" in jax.tree_util.keystr(path), path
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(grads_target))


@pytest.mark.parametrize("mixer", ["cw_qmix", "ow_qmix"])
def test_the_critic_learns_from_its_own_error_alone(rng, key, mixer):
    """Its gradient is that of ½ (Q̂* − G)², whatever Q_tot and its weights are; and α leaves it alone."""
    cfg = config(**{"algo.mixer": mixer})
    learner, state, w = make(cfg, rng, key)
    window = jax.tree.map(jnp.asarray, w)
    hyper = hyper_of(cfg)
    q = learner.values(state.params, window).q
    returns, _ = learner.targets(q, state.target, window, window.state, hyper)

    def critic_loss(critic):
        q_hat = learner.joint_value(learner.mixer.critic.mixer, critic, window, window.state)
        return jnp.sum(jnp.where(window.last, 0, 0.5 * (q_hat - returns) ** 2)) / jnp.sum(~window.last)

    def whole(params, alpha):
        return mean_loss(learner, params, state.target, window, hyper | {"mixer.alpha": alpha})[0]

    expected = jax.grad(critic_loss)(state.params["critic"])
    some, none = (jax.grad(whole)(state.params, jnp.float32(alpha)) for alpha in (0.3, 0.0))
    for grads in (some, none):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads["critic"], expected)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), some["agent"], none["agent"])
    assert max(jax.tree.leaves(changed)) > 1e-4


def test_slots_without_a_transition_do_not_count(rng, key):
    """Whatever action and reward stand where no transition leaves, the loss is the same."""
    cfg = config()
    learner, state, w = make(cfg, rng, key)

    def loss(w):
        window = jax.tree.map(jnp.asarray, w)
        return float(mean_loss(learner, state.params, state.target, window, hyper_of(cfg))[0])

    changed = w._replace(
        reward=np.where(w.last, 1e3, w.reward).astype(np.float32),
        action=np.where(w.last[..., None], (w.action + 1) % 3, w.action).astype(np.int32),
    )
    assert loss(changed) == loss(w)


def test_unavailable_actions_never_enter_a_target(rng, key):
    """Raising the Q-values of an unavailable action changes no target."""
    cfg = config(**{"algo.mixer": "vdn"})
    learner, state, w = make(cfg, rng, key)
    avail = w.avail.copy()
    avail[..., 2], avail[..., 0] = False, True
    w = w._replace(avail=avail, action=np.minimum(w.action, 1))
    window = jax.tree.map(jnp.asarray, w)

    def targets(params):
        q = learner.agent.unroll(params["agent"], window.obs, window.action, window.first).q
        return learner.targets(q, state.target, window, window.state, hyper_of(cfg))[0]

    raised = jax.tree.map(jnp.copy, state.params)
    raised["agent"]["head"]["bias"] = raised["agent"]["head"]["bias"].at[2].add(1e6)
    np.testing.assert_array_equal(targets(raised), targets(state.params))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_optimisers_are_pytorchs(rng, name):
    params = rng.normal(size=7).astype(np.float32)
    grads = [rng.normal(size=7).astype(np.float32) * 10.0**-k for k in range(6)]
    optimiser = make_optimizer(name)
    state, got = optimiser.init(jnp.asarray(params)), jnp.asarray(params)
    for g in grads:
        step, state = optimiser.update(jnp.asarray(g), state)
        got = got - 0.01 * step
    expected = {"adam": oracles.adam, "rmsprop": oracles.rmsprop}[name](params.astype(np.float64), grads, 0.01)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def one_update(cfg, rng, key):
    learner, state, w = make(cfg, rng, key)
    hyper = hyper_of(cfg)
    window = jax.tree.map(jnp.asarray, w)
    after, stats, _ = learner.update(state, window, normalise.init(5), hyper, hyper["optim.lr"])
    return state, after, stats


def test_the_gradient_norm_is_clipped(rng, key):
    """With RMSProp's first step ∝ g / (0.1 |g| + ε), a clip to almost nothing shows in the step."""
    cfg = config(**{"optim.name": "rmsprop", "optim.grad_clip": 1e-5})
    state, after, stats = one_update(cfg, rng, key)
    assert float(stats.grad_norm) > 1e-3
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    limit = 1e-3 * 1e-5 / 1e-5  # lr · g / ε, as every |g| ≤ 1e-5
    assert 0 < max(jax.tree.leaves(moved)) < limit


def test_soft_and_hard_targets(rng, key):
    state, after, _ = one_update(config(**{"algo.target_update": "soft", "algo.target_tau": 0.25}), rng, key)
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.target, after.params)
    for a, b in zip(jax.tree.leaves(after.target), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    state, after, _ = one_update(config(), rng, key)
    for a, b in zip(jax.tree.leaves(after.target), jax.tree.leaves(state.target), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_mixer_reads_the_normalised_state(rng, key):
    """A state a thousand times larger leaves the loss as it was, once the statistics know it; raw, it does not."""
    cfg, raw = config(), config(**{"algo.state_norm": "none"})
    learner, state, w = make(cfg, rng, key)
    large = w.state * 1000 + 300

    def seen(cfg, x):
        moments = normalise.update(normalise.init(5), jnp.asarray(x))
        return make_learner(cfg, SPEC).mixer_state(moments, jnp.asarray(x))

    np.testing.assert_allclose(seen(cfg, large), seen(cfg, w.state), atol=1e-3)
    np.testing.assert_array_equal(seen(raw, large), large)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_an_update_logs_and_clips_the_gradient_of_the_mean(rng, key, clip):
    """Not of the sum, which the loss is: Adam's first moment, a tenth of what it was given, says which it was."""
    learner, state, w = make(config(), rng, key)
    window, hyper = jax.tree.map(jnp.asarray, w), hyper_of(config()) | {"optim.grad_clip": jnp.float32(clip)}
    loss, grads = jax.value_and_grad(lambda p: mean_loss(learner, p, state.target, window, hyper)[0])(state.params)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    moments = normalise.init(window.state.shape[-1])
    learner = learner._replace(algo=replace(learner.algo, state_norm="none"))
    after, stats, _ = learner.update(state, window, moments, hyper, jnp.float32(0.0))
    np.testing.assert_allclose([stats.loss, stats.grad_norm], [loss, norm], rtol=1e-4)
    moment = 10 * np.linalg.norm(after.opt_state.mu)
    np.testing.assert_allclose(moment, min(norm, clip), rtol=1e-3)
