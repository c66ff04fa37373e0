"""The loss, the update and the target copy, against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from slow import slow
from windows import SPEC, random_window

from jqmix.buffers import make_buffer
from jqmix.config import load_config
from jqmix.learning.dqn import DQN, DQNState
from jqmix.learning.hyper import bind, hyper_of
from jqmix.learning.learner import (
    Aim,
    empty_stats,
    make_learner,
    make_optimizer,
    mixer_state,
    split_off,
    was_greedy,
)
from jqmix.learning.pqn import PQN, PQNState, minibatches
from jqmix.networks import normalise
from jqmix.networks.agent import AgentStart
from jqmix.networks.mixers import mixer_names
from jqmix.networks.mixers.base import Joint
from jqmix.types import Window

ENV: Any = None  # nothing here plays


def config(**overrides):
    small = {"env.name": "two_step_game", "agent.hidden": 8, "mixer.embed": 4, "mixer.hypernet_hidden": 6}
    small |= {"mixer.critic_hidden": 7, "mixer.alpha": 0.3}
    return load_config(None, **{**small, **overrides})


def traced(cfg, **changes):
    """As the program has it: traced fields are arrays, some of them others than the configuration's."""
    return bind(cfg, hyper_of(cfg) | {path: jnp.float32(x) for path, x in changes.items()})


def numpy_unroll(agent, w: Window):
    """The agents' values and hidden states, the window's warm-up gone through before."""
    before = w.warm_up
    whole = w if before is None else jax.tree.map(lambda x, y: np.concatenate([x, y]), before, steps_of(w))
    start = None if w.start is None else tuple(map(np.asarray, w.start))
    both = oracles.agent_unroll(agent, whole.obs, whole.action, whole.first, with_hidden=True, start=start)
    return tuple(x[0 if before is None else len(before.reward) :] for x in both)


def steps_of(w: Window) -> Window:
    return w._replace(start=None, warm_up=None)


def numpy_joint(cfg, mixer, team, w: Window, action, n_actions=3):
    """Q(s, u) of every slot from the oracles alone, and each agent's greedy actions: [T1, B, agents], [T1, B, N]."""
    q, hidden = numpy_unroll(team["agent"], w)
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
        opt, nopt = (x.reshape(losses.shape) for x in oracles.qtran_errors(*parts))
        losses += 0.5 * (cfg.mixer.opt * opt + cfg.mixer.nopt * nopt)
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
            "sarsa": lambda: oracles.per_episode(oracles.sarsa, (*transitions, taken[..., k]), lam),  # noqa: B023
            "nstep": lambda: oracles.per_episode(oracles.n_step, transitions, cfg.algo.n_step),  # noqa: B023
        }[cfg.algo.target]()
        returns.append(g)
    return q_tot, greedy, parts, np.stack(returns, axis=-1), value


def make(cfg, rng, key):
    """DQN without environments, its state with a target network of its own, and a window."""
    learner = make_learner(cfg, SPEC)
    params, opt_state = learner.init(key)
    target, _ = learner.init(jax.random.fold_in(key, 1))
    return DQN(cfg, ENV, learner, make_buffer(cfg.replay), 9), DQNState(params, target, opt_state), random_window(rng)


def on_device(w: Window) -> Window:
    return jax.tree.map(jnp.asarray, w)


def mean_loss(dqn, params, target, window, cfg, *weight):
    """The loss per slot that counts, and what comes beside the sum."""

    def aim(_, online, window, state):
        return dqn.aim(target, online, window, state, cfg)

    loss, summed = dqn.learner.loss(params, aim, window, window.state, cfg, *weight)
    return loss / summed.slots, summed


@pytest.mark.parametrize("mixer", mixer_names())
@pytest.mark.parametrize("double_q", [True, False])
def test_loss_matches_numpy(rng, key, mixer, double_q):
    cfg = config(**{"algo.mixer": mixer, "algo.double_q": double_q, "algo.reward_scale": 2.0, "algo.td_lambda": 0.7})
    dqn, state, w = make(cfg, rng, key)
    loss, summed = mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)
    assert float(summed.stats["loss"] / summed.slots) == float(loss)


@pytest.mark.parametrize("mixer", ["iql", "qmix", "qplex", "cw_qmix"])
@pytest.mark.parametrize("double_q", [True, *slow([False])])
@pytest.mark.parametrize("target", ["qstar", "watkins", "nstep", "sarsa"])
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
    dqn, state, w = make(cfg, rng, key)
    loss, _ = mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)


@pytest.mark.parametrize("mixer", mixer_names())
@pytest.mark.parametrize("target", ["peng", *slow(["watkins", "sarsa"])])
def test_loss_without_a_target_network_matches_numpy(rng, key, mixer, target):
    """PQN's targets come from the parameters that learn."""
    cfg = config(**PQN_FIELDS, **{"algo.mixer": mixer, "algo.target": target, "algo.td_lambda": 0.7})
    pqn, state, w = make_pqn(cfg, rng, key)
    loss, _ = pqn_loss(pqn, state.params, on_device(w), traced(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.params, w), rtol=1e-4)


@pytest.mark.parametrize("mixer", ["qmix", "qtran", "ow_qmix"])
@pytest.mark.parametrize("burn_in", [0, 3])
def test_loss_of_windows_that_go_on_matches_numpy(rng, key, mixer, burn_in):
    """Memory and last actions at their start are given; the first slots warm the memory up and do not count."""
    cfg = config(**{"algo.mixer": mixer, "window_start": "continue", "window": 4})
    dqn, state, w = make(cfg, rng, key)
    window = split_off(on_device(going_on(rng, w)), burn_in)
    loss, summed = mean_loss(dqn, state.params, state.target, window, traced(cfg))
    w = jax.tree.map(np.asarray, window)
    assert float(summed.slots) == (~w.last).sum() and len(w.reward) == 9 - burn_in
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)
    forgetful = mean_loss(dqn, state.params, state.target, window._replace(start=None), traced(cfg))[0]
    assert abs(float(forgetful - loss)) > 1e-4


def test_no_gradient_flows_through_the_warm_up(rng, key):
    """It is that of windows which begin, with this memory, where the warm-up ends."""
    cfg = config(window_start="continue", window=4)
    dqn, state, w = make(cfg, rng, key)
    window, team = split_off(on_device(going_on(rng, w)), 3), state.params
    before = window.warm_up

    def warm(team):
        memory = dqn.learner.agent.unroll(team["agent"], before.obs, before.action, before.first, window.start).state
        return AgentStart(memory, before.action[-1])

    def loss(params, window):
        return mean_loss(dqn, params, state.params, window, traced(cfg))[0]

    grads = jax.grad(loss)(team, window)
    expected = jax.grad(loss)(team, window._replace(start=warm(team), warm_up=None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, expected)


def going_on(rng, w: Window) -> Window:
    """A window that goes on in the middle of an episode in all rollouts but the last."""
    first = w.first.copy()
    first[0], first[3] = [False, False, True], False
    start = AgentStart(rng.normal(size=(3, 2, 8)).astype(np.float32), rng.integers(0, 3, (3, 2)).astype(np.int32))
    return w._replace(first=first, start=start)


def test_qtrans_losses_are_weighed_and_told(rng, key):
    cfg = config(**{"algo.mixer": "qtran", "mixer.opt": 0.3, "mixer.nopt": 2.0})
    dqn, state, w = make(cfg, rng, key)
    loss, summed = mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg))
    np.testing.assert_allclose(loss, numpy_loss(cfg, state.params, state.target, w), rtol=1e-4)
    _, _, parts, _, _ = numpy_targets(cfg, state.params, state.target, w)
    for name, errors in zip(("qtran_opt", "qtran_nopt"), oracles.qtran_errors(*parts), strict=True):
        expected = errors.reshape(w.reward.shape)[~w.last].mean()
        np.testing.assert_allclose(summed.stats[name] / summed.slots, expected, rtol=1e-4)
    assert set(empty_stats(dqn.learner, cfg)) == {*summed.stats, "grad_norm"}


def test_an_auxiliary_loss_gets_its_key_and_counts_like_the_errors(rng, key):
    """Over the slots that a transition leaves, by the windows' weights; of IQL once for each slot, too."""
    for mixer in ("vdn", "iql"):
        cfg = config(**{"algo.mixer": mixer})
        dqn, state, w = make(cfg, rng, key)

        def noise(params, batch, settings, key):
            drawn = jax.random.uniform(key, batch.window.reward.shape)
            return drawn, {"noise": drawn}

        with_noise = dqn._replace(learner=dqn.learner._replace(mixer=dqn.learner.mixer._replace(auxiliary=noise)))
        weight = jnp.asarray(rng.uniform(0.1, 1, 3).astype(np.float32))
        plain, _ = mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg), weight)
        loss, summed = mean_loss(with_noise, state.params, state.target, on_device(w), traced(cfg), weight, key)
        drawn = np.where(w.last, 0, jax.random.uniform(key, w.reward.shape))
        np.testing.assert_allclose(loss - plain, np.sum(weight * drawn) / (~w.last).sum(), rtol=1e-4)
        np.testing.assert_allclose(summed.stats["noise"] / summed.slots, drawn.sum() / (~w.last).sum(), rtol=1e-5)


@pytest.mark.parametrize("mixer", ["iql", "qmix"])
def test_windows_count_by_their_weights_and_tell_their_surprise(rng, key, mixer):
    """Σ w m ½ δ² / Σ m; the surprises are those of the errors in this loss."""
    cfg = config(**{"algo.mixer": mixer})
    dqn, state, w = make(cfg, rng, key)
    weight = rng.uniform(0.1, 1, w.reward.shape[1]).astype(np.float32)
    loss, summed = mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg), jnp.asarray(weight))
    errors = np.stack(numpy_errors(cfg, state.params, state.target, w))
    expected = np.sum(weight * np.where(w.last, 0, 0.5 * np.square(errors))) / (len(errors) * (~w.last).sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    per_agent = np.moveaxis(errors, 0, -1)
    np.testing.assert_allclose(summed.surprise, oracles.window_priority(per_agent, w.last), rtol=1e-4)


def test_any_of_equally_good_actions_is_greedy():
    q, avail = jnp.array([[1.0, 2.0, 2.0, 3.0]] * 3), jnp.array([[True, True, True, False]] * 3)
    np.testing.assert_array_equal(was_greedy(q, avail, jnp.arange(3)), [False, True, True])


@pytest.mark.parametrize("mixer", mixer_names())
def test_every_parameter_learns_and_the_target_does_not(rng, key, mixer):
    cfg = config(**{"algo.mixer": mixer})
    dqn, state, w = make(cfg, rng, key)
    window = on_device(w)
    grads, grads_target = jax.jit(jax.grad(lambda p, t: mean_loss(dqn, p, t, window, traced(cfg))[0], argnums=(0, 1)))(
        state.params, state.target
    )
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        # A key's bias shifts all agents' attention alike, which a softmax does not see.
        assert np.abs(g).max() > 0 or "['key']['bias']" in jax.tree_util.keystr(path), path
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(grads_target))


@pytest.mark.parametrize("mixer", ["cw_qmix", "ow_qmix"])
def test_the_critic_learns_from_its_own_error_alone(rng, key, mixer):
    """Its gradient is that of ½ (Q̂* − G)², whatever Q_tot and its weights are; and α leaves it alone."""
    cfg = config(**{"algo.mixer": mixer})
    dqn, state, w = make(cfg, rng, key)
    window, learner = on_device(w), dqn.learner
    returns, _ = dqn.aim(state.target, learner.values(state.params, window), window, window.state, traced(cfg))

    def critic_loss(critic):
        q_hat = learner.joint_value(learner.mixer.critic.mixer, critic, window, window.state)
        return jnp.sum(jnp.where(window.last, 0, 0.5 * (q_hat - returns) ** 2)) / jnp.sum(~window.last)

    def whole(params, alpha):
        return mean_loss(dqn, params, state.target, window, traced(cfg, **{"mixer.alpha": alpha}))[0]

    expected = jax.grad(critic_loss)(state.params["critic"])
    some, none = (jax.grad(whole)(state.params, alpha) for alpha in (0.3, 0.0))
    for grads in (some, none):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads["critic"], expected)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), some["agent"], none["agent"])
    assert max(jax.tree.leaves(changed)) > 1e-4


def test_slots_without_a_transition_do_not_count(rng, key):
    """Whatever action and reward stand where no transition leaves, the loss is the same."""
    cfg = config()
    dqn, state, w = make(cfg, rng, key)

    def loss(w):
        return float(mean_loss(dqn, state.params, state.target, on_device(w), traced(cfg))[0])

    changed = w._replace(
        reward=np.where(w.last, 1e3, w.reward).astype(np.float32),
        action=np.where(w.last[..., None], (w.action + 1) % 3, w.action).astype(np.int32),
    )
    assert loss(changed) == loss(w)


def test_unavailable_actions_never_enter_a_target(rng, key):
    """Raising the Q-values of an unavailable action changes no target."""
    cfg = config(**{"algo.mixer": "vdn"})
    dqn, state, w = make(cfg, rng, key)
    avail = w.avail.copy()
    avail[..., 2], avail[..., 0] = False, True
    window = on_device(w._replace(avail=avail, action=np.minimum(w.action, 1)))

    def targets(params):
        online = dqn.learner.values(params, window)
        return dqn.aim(state.target, online, window, window.state, traced(cfg)).returns

    raised = jax.tree.map(jnp.copy, state.params)
    raised["agent"]["head"]["bias"] = raised["agent"]["head"]["bias"].at[2].add(1e6)
    np.testing.assert_array_equal(targets(raised), targets(state.params))


@pytest.mark.parametrize("name", ["adam", "rmsprop", "radam"])
def test_optimisers_are_pytorchs(rng, name):
    params = rng.normal(size=7).astype(np.float32)
    # RAdam has a rate of its own for each element from its sixth step on.
    grads = [rng.normal(size=7).astype(np.float32) * 10.0 ** -(k % 6) for k in range(9 if name == "radam" else 6)]
    optimiser = make_optimizer(name)
    state, got = optimiser.init(jnp.asarray(params)), jnp.asarray(params)
    for g in grads:
        step, state = optimiser.update(jnp.asarray(g), state)
        got = got - 0.01 * step
    expected = getattr(oracles, name)(params.astype(np.float64), grads, 0.01)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def one_update(cfg, rng, key):
    dqn, state, w = make(cfg, rng, key)
    updated, after = dqn.update(state, on_device(w), normalise.init(5), traced(cfg))
    return state, after, updated.stats


def test_the_gradient_norm_is_clipped(rng, key):
    """With RMSProp's first step ∝ g / (0.1 |g| + ε), a clip to almost nothing shows in the step."""
    cfg = config(**{"optim.name": "rmsprop", "optim.grad_clip": 1e-5})
    state, after, stats = one_update(cfg, rng, key)
    assert float(stats["grad_norm"]) > 1e-3
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


def test_the_mixer_reads_the_normalised_state(rng):
    """A state a thousand times larger leaves the loss as it was, once the statistics know it; raw, it does not."""
    cfg, raw, w = config(), config(**{"algo.state_norm": "none"}), random_window(rng)
    large = w.state * 1000 + 300

    def seen(cfg, x):
        return mixer_state(cfg, normalise.update(normalise.init(5), jnp.asarray(x)), jnp.asarray(x))

    np.testing.assert_allclose(seen(cfg, large), seen(cfg, w.state), atol=1e-3)
    np.testing.assert_array_equal(seen(raw, large), large)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_an_update_logs_and_clips_the_gradient_of_the_mean(rng, key, clip):
    """Not of the sum, which the loss is: Adam's first moment, a tenth of what it was given, says which it was."""
    plain = config(**{"algo.state_norm": "none"})
    cfg = traced(plain, **{"optim.grad_clip": clip, "optim.lr": 0.0})
    dqn, state, w = make(plain, rng, key)
    window = on_device(w)
    loss, grads = jax.value_and_grad(lambda p: mean_loss(dqn, p, state.target, window, cfg)[0])(state.params)
    updated, _ = dqn.update(state, window, normalise.init(5), cfg)
    check_step(updated, loss, grads, clip)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "radam"])
def test_an_update_is_the_optimisers_step_down_the_loss(rng, key, name):
    """Every parameter keeps its place: they step as one vector."""
    cfg = traced(
        config(**{"algo.state_norm": "none", "optim.name": name}), **{"optim.grad_clip": 0.5, "optim.lr": 0.03}
    )
    dqn, state, w = make(cfg, rng, key)
    window = on_device(w)
    grads = jax.grad(lambda p: mean_loss(dqn, p, state.target, window, cfg)[0])(state.params)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    _, after = dqn.update(state, window, normalise.init(5), cfg)
    for p, g, new in zip(*map(jax.tree.leaves, (state.params, grads, after.params)), strict=True):
        clipped = np.asarray(g, np.float64).ravel() * min(1.0, 0.5 / norm)
        expected = getattr(oracles, name)(np.asarray(p, np.float64).ravel(), [clipped], 0.03)
        np.testing.assert_allclose(np.ravel(new), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_pqn_descends_the_squared_error_and_tells_half_of_it(rng, key, clip):
    """With targets of the parameters that learn, through which no gradient flows."""
    plain = config(**PQN_FIELDS, **{"algo.state_norm": "none"})
    cfg = traced(plain, **{"optim.grad_clip": clip, "optim.lr": 0.0})
    pqn, state, w = make_pqn(plain, rng, key)
    window = on_device(w)
    aims = jax.tree.map(np.asarray, pqn.aim(state.params, pqn.learner.values(state.params, window), *two(window), cfg))

    def squared(params):
        loss, summed = pqn.learner.loss(params, lambda *_: Aim(*map(jnp.asarray, aims)), *two(window), cfg)
        return 2 * loss / summed.slots

    loss, grads = jax.value_and_grad(squared)(state.params)
    updated, after = pqn.update(state, window, normalise.init(5), cfg)
    check_step(updated, loss / 2, grads, clip)
    assert after._fields == ("params", "opt_state")


def two(window):
    return window, window.state


def check_step(updated, loss, grads, clip):
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose([updated.stats["loss"], updated.stats["grad_norm"]], [loss, norm], rtol=1e-4)
    moment = 10 * np.linalg.norm(updated.opt_state.mu)
    np.testing.assert_allclose(moment, min(norm, clip), rtol=1e-3)


PQN_FIELDS = {"algo.name": "pqn", "algo.minibatches": 2, "window": 4}


def make_pqn(cfg, rng, key):
    learner = make_learner(cfg, SPEC)
    return PQN(ENV, learner), PQNState(*learner.init(key)), random_window(rng)


def pqn_loss(pqn, params, window, cfg):
    def aim(params, online, window, state):
        return pqn.aim(params, online, window, state, cfg)

    loss, summed = pqn.learner.loss(params, aim, window, window.state, cfg)
    return loss / summed.slots, summed


def test_minibatches_hold_every_rollout_once_in_an_epoch(key):
    parts = np.asarray(minibatches(key, 12, 5, 3))
    assert parts.shape == (15, 4)
    epochs = parts.reshape(5, 12)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(12), (5, 12)))
    assert len({epoch.tobytes() for epoch in epochs}) == 5
