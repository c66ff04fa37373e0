"""PQN against NumPy: its targets, its loss, one whole update, its minibatches; and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from slow import slow
from windows import SPEC, random_start, random_window

from jqmix.buffers.windows import take
from jqmix.config import load_config
from jqmix.envs.registry import make_env
from jqmix.learning import count, train
from jqmix.learning.algorithm import window_to_learn_from
from jqmix.learning.hyper import bind
from jqmix.learning.learner import make_learner, make_optimizer, mixer_state, split_off
from jqmix.learning.pqn import FACTOR, PQN, minibatches
from jqmix.learning.train import make_program
from jqmix.networks import normalise
from jqmix.networks.agent import Agent, AgentStart
from jqmix.networks.mixers import mixer_names
from jqmix.runs.experiment import shape_of
from jqmix.types import Window

BURN_IN, T, B = 3, 6, 3
MIXERS = ["vdn", "qmix", "iql", "ow_qmix"]
NUMBERS = {"optim.lr": 1.0, "optim.grad_clip": 1e6}  # RAdam's first step is then the gradient itself


def config(**overrides):
    small = {"env.name": "two_step_game", "agent.hidden": 8, "agent.layers": 2, "agent.layer_norm": True}
    small |= {"mixer.embed": 4, "mixer.hypernet_hidden": 6, "mixer.critic_hidden": 7, "mixer.alpha": 0.3}
    small |= {"algo.name": "pqn", "rollouts": 4, "algo.minibatches": 2, "window": T, "replay.burn_in": BURN_IN}
    small |= {"algo.td_lambda": 0.85, "algo.reward_scale": 10.0, "optim.name": "radam"}
    return load_config(None, **{**small, **overrides})


def some_window(rng) -> Window:
    """One that goes on from some memory, with resets inside: in the warm-up, where it ends, and after it."""
    ends = (1, 0), (BURN_IN - 1, 1), (BURN_IN + 2, 2)
    return random_window(rng, BURN_IN + T + 1, B, first=False, ends=ends, start=random_start(rng, B))


def make(cfg, key) -> PQN:
    return PQN(make_env("two_step_game", batch=4), make_learner(cfg, SPEC))


def compiled(pqn, cfg):
    """An update, without the configuration."""
    return jax.jit(lambda state, window, moments: pqn.update(state, window, moments, cfg))


def with_arrays(w):
    return jax.tree.map(jnp.asarray, w)


def as_numpy(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


# The oracle: the published loss from the definitions, one slot after another, in double precision


def after_burn_in(w, burn_in):
    return jax.tree.map(lambda x: x[burn_in:], w._replace(start=None))


def numpy_memory(agent, w, burn_in):
    """(h, last action) before the first slot that counts, unrolled over those before it from what was stored."""
    if burn_in == 0:
        return w.start
    before = [x[:burn_in] for x in (w.obs, w.action, w.first)]
    _, hidden = oracles.agent_unroll(agent, *before, with_hidden=True, start=w.start)
    return hidden[-1], w.action[burn_in - 1]


def numpy_value(mixer, team, w, q, state, action):
    """What a mixer says of joint actions: [T1, B, agents]."""
    chosen = np.take_along_axis(q, action[..., None], -1)[..., 0]
    if mixer == "iql":
        return chosen
    if mixer == "vdn":
        return chosen.sum(-1, keepdims=True)
    mix = oracles.central if mixer == "central" else oracles.qmix
    rows = mix(team["mixer"], chosen.reshape(-1, 2), state.reshape(-1, 5))
    return rows.reshape(*w.reward.shape, 1)


def numpy_state(w, moments):
    rows = np.asarray(moments, np.float64).reshape(-1, 5)
    return np.clip((np.asarray(w.state, np.float64) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6), -5, 5)


class Oracle:
    """The loss of some parameters, with targets and memory from those that it was made with."""

    def __init__(self, cfg, params, w, rows):
        self.cfg, self.mixer = cfg, cfg.algo.mixer
        burn_in = cfg.replay.burn_in
        self.w, self.state = after_burn_in(w, burn_in), numpy_state(after_burn_in(w, burn_in), rows)
        self.teams = {"": params} | ({"critic": params["critic"]} if self.mixer == "ow_qmix" else {})
        self.memory = {name: numpy_memory(team["agent"], w, burn_in) for name, team in self.teams.items()}
        self.returns, self.next_value = self.targets(params)

    def q(self, name, team):
        w = self.w
        return oracles.agent_unroll(team["agent"], w.obs, w.action, w.first, start=self.memory[name])

    def targets(self, params):
        """λ-returns by recursion, from the learning network's values of its own greedy actions."""
        w, algo = self.w, self.cfg.algo
        greedy = np.where(w.avail, self.q("", params), -np.inf).argmax(-1)
        name, mixer = ("critic", "central") if self.mixer == "ow_qmix" else ("", self.mixer)
        team = self.teams[name]
        value = numpy_value(mixer, team, w, self.q(name, team), self.state, greedy)
        steps = [x.astype(np.float64) for x in (w.reward * algo.reward_scale, w.discount * algo.gamma)]
        each = [oracles.lambda_returns(*steps, v, w.last, algo.td_lambda) for v in np.moveaxis(value, -1, 0)]
        return np.stack(each, -1), value

    def loss(self, params):
        """The mean squared error, not halved, over the transitions after the burn-in."""
        w = self.w
        q_tot = numpy_value(self.mixer, params, w, self.q("", params), self.state, w.action)
        losses = (q_tot - self.returns) ** 2
        if self.mixer == "ow_qmix":
            losses *= np.where(q_tot < self.returns, 1.0, self.cfg.mixer.alpha)
            team = params["critic"]
            q_hat = numpy_value("central", team, w, self.q("critic", team), self.state, w.action)
            losses += (q_hat - self.returns) ** 2
        return losses[~w.last].mean()


def one_update(cfg, rng, key):
    """(PQN, its state, the window, the states that were seen, what an update gives)."""
    pqn, w = make(cfg, key), some_window(rng)
    state, rows = pqn.init(key), rng.normal(2, 3, size=(50, 5)).astype(np.float32)
    moments = normalise.update(normalise.init(5), jnp.asarray(rows))
    return pqn, state, w, rows, moments, compiled(pqn, cfg)(state, with_arrays(w), moments)


@pytest.mark.parametrize("mixer", [*slow(MIXERS[:-1]), MIXERS[-1]])
def test_targets_are_lambda_returns_over_the_learning_networks_values(rng, key, mixer):
    cfg = config(**{"algo.mixer": mixer})
    pqn, w = make(cfg, key), some_window(rng)
    params, rows = pqn.init(key).params, rng.normal(2, 3, size=(50, 5)).astype(np.float32)
    oracle = Oracle(cfg, as_numpy(params), w, rows)
    window = split_off(with_arrays(w), BURN_IN)
    state = mixer_state(cfg, normalise.update(normalise.init(5), jnp.asarray(rows)), window.state)
    aim = pqn.aim(params, pqn.learner.values(params, window), window, state, cfg)
    shape = (T + 1, B, 2) if mixer == "iql" else (T + 1, B)
    np.testing.assert_allclose(aim.returns, oracle.returns.reshape(shape), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(aim.value, oracle.next_value.reshape(shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixer", [*slow(MIXERS[:-1]), MIXERS[-1]])
def test_one_whole_update_matches_numpy(rng, key, mixer):
    """The loss; and, by finite differences with targets and memory held, two numbers of every array's gradient."""
    cfg = config(**{"algo.mixer": mixer}, **NUMBERS)
    _, state, w, rows, _, (updated, after) = one_update(cfg, rng, key)
    params = as_numpy(state.params)
    oracle = Oracle(cfg, params, w, rows)
    assert FACTOR * float(updated.stats["loss"]) == pytest.approx(oracle.loss(params), rel=1e-4)

    moved = jax.tree.map(lambda a, b: a - np.asarray(b, np.float64), params, after.params)
    total = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(moved)))
    assert float(updated.stats["grad_norm"]) == pytest.approx(total, rel=1e-3)
    tried = 0
    for x, gradient in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        for at in {tuple(rng.integers(0, n) for n in x.shape) for _ in range(2)}:
            kept, step, found = x[at], 1e-5, []
            for sign in (1, -1):
                x[at] = kept + sign * step
                found.append(oracle.loss(params))
            x[at] = kept
            expected = (found[0] - found[1]) / (2 * step)
            assert gradient[at] == pytest.approx(expected, rel=5e-3, abs=1e-5 * total)
            tried += abs(expected) > 1e-3 * total
    assert tried > 10


def test_without_a_burn_in_every_transition_counts(rng, key):
    cfg = config(**{"algo.mixer": "qmix", "replay.burn_in": 0})
    _, state, w, rows, _, (updated, _) = one_update(cfg, rng, key)
    params = as_numpy(state.params)
    assert FACTOR * float(updated.stats["loss"]) == pytest.approx(Oracle(cfg, params, w, rows).loss(params), rel=1e-4)


@pytest.mark.parametrize("mixer", ["qmix", "ow_qmix"])
def test_a_burn_in_is_the_same_slots_from_a_memory_computed_by_hand(rng, key, mixer):
    """Slot by slot, as agents act; the gradient does not reach into what they did to remember."""
    cfg = config(**{"algo.mixer": mixer}, **NUMBERS)
    pqn, state, w, _, moments, (updated, after) = one_update(cfg, rng, key)
    agent, w = pqn.learner.agent, with_arrays(w)

    def remembered(params):
        memory, last_action = w.start
        for t in range(BURN_IN):
            _, memory = agent.step(params, memory, w.obs[t], last_action, w.first[t])
            last_action = w.action[t]
        return AgentStart(memory, last_action)

    whole = config(**{"algo.mixer": mixer, "replay.burn_in": 0}, **NUMBERS)
    rest = jax.tree.map(lambda x: x[BURN_IN:], w._replace(start=None))
    if mixer == "qmix":
        begun = rest._replace(start=remembered(state.params["agent"]))
        got, expected = compiled(pqn, whole)(state, begun, moments)
        np.testing.assert_allclose(updated.stats["loss"], got.stats["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), after.params, expected.params)
    # What was seen and done before the memory's last reset, and what came of it, makes no difference.
    forgotten = w._replace(
        reward=w.reward.at[:BURN_IN].add(100.0), obs=w.obs.at[:BURN_IN, 1].add(9.0), state=w.state.at[:BURN_IN].add(9.0)
    )
    assert bool(w.first[BURN_IN, 1])
    got, _ = compiled(pqn, cfg)(state, forgotten, moments)
    np.testing.assert_allclose(got.stats["loss"], updated.stats["loss"], rtol=1e-6)


# Steps


def test_radam_is_pytorchs(rng):
    """Over the steps at which the second moment's variance is not tractable yet, and at which it is."""
    params = rng.normal(size=7).astype(np.float32)
    grads = [rng.normal(size=7).astype(np.float32) * 10.0 ** -(k % 3) for k in range(8)]
    optimiser = make_optimizer("radam")
    state, got = optimiser.init(jnp.asarray(params)), jnp.asarray(params)
    for k, g in enumerate(grads):
        step, state = optimiser.update(jnp.asarray(g), state)
        got = got - 0.01 * step
        expected = oracles.radam(params.astype(np.float64), grads[: k + 1], 0.01)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [0.1, 1e6])
def test_updates_are_clipped_steps_of_radam(rng, key, clip):
    """Eight updates, each with its own gradient: that of the mean squared error, its global norm clipped."""
    cfg = config(**{"algo.mixer": "qmix", "optim.grad_clip": clip, "optim.lr": 0.003})
    pqn, windows = make(cfg, key), [some_window(rng) for _ in range(8)]
    moments = normalise.update(normalise.init(5), jnp.asarray(windows[0].state))
    state, grads = pqn.init(key), []
    begin, update = np.asarray(ravel_pytree(state.params)[0], np.float64), compiled(pqn, cfg)

    @jax.jit
    def gradient(params, w):
        window = split_off(w, BURN_IN)

        def error(params):
            seen = mixer_state(cfg, moments, window.state)
            aim = lambda *given: pqn.aim(*given, cfg)  # noqa: E731
            loss, summed = pqn.learner.loss(params, aim, window, seen, cfg)
            return 2 * loss / summed.slots

        return ravel_pytree(jax.grad(error)(params))[0]

    for w in windows:
        g = np.asarray(gradient(state.params, with_arrays(w)), np.float64)
        grads.append(g * min(1.0, clip / np.linalg.norm(g)))
        updated, state = update(state, with_arrays(w), moments)
        assert float(updated.stats["grad_norm"]) == pytest.approx(np.linalg.norm(g), rel=1e-4)
    assert (min(np.linalg.norm(g) for g in grads) > 0.099) and (clip > 1 or np.linalg.norm(grads[-1]) < 0.101)
    got = ravel_pytree(state.params)[0]
    np.testing.assert_allclose(got, oracles.radam(begin, grads, 0.003), rtol=1e-3, atol=2e-5)
    assert np.abs(got - begin).max() > 1e-4


def test_the_learning_rate_falls_linearly(rng, key):
    cfg = config(**{"optim.lr": 0.01, "optim.lr_end_factor": 0.0, "total_steps": 1000})
    program = make_program(cfg)
    member, _ = jax.jit(program.init)(jnp.int32(0))
    for steps, lr in [(0, 0.01), (250, 0.0075), (500, 0.005), (1000, 0.0), (2000, 0.0)]:
        now = program.now(member._replace(env_steps=count.from_int(steps)))
        assert float(now.optim.lr) == pytest.approx(lr, abs=1e-9)
    pqn, state, w, _, moments, _ = one_update(config(), rng, key)
    _, after = compiled(pqn, bind(config(), {"optim.lr": jnp.float32(0.0)}))(state, with_arrays(w), moments)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_learning_rates_are_members_of_one_program():
    shapes = {shape_of(config(**{"optim.lr": lr, "algo.td_lambda": x})) for lr, x in [(1e-3, 0.5), (3e-3, 0.9)]}
    assert len(shapes) == 1
    assert shape_of(config(**{"algo.epochs": 2})) not in shapes


# Minibatches


@pytest.mark.parametrize(("rollouts", "epochs", "parts"), [(12, 3, 4), (128, 4, 16), (5, 2, 1), (6, 2, 6)])
def test_every_rollout_comes_once_in_an_epoch(key, rollouts, epochs, parts):
    drawn = np.asarray(minibatches(key, rollouts, epochs, parts))
    assert drawn.shape == (epochs * parts, rollouts // parts)
    orders = drawn.reshape(epochs, rollouts)
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(rollouts), orders.shape))
    assert len({tuple(order) for order in orders}) == epochs  # newly shuffled
    assert not np.array_equal(drawn, minibatches(jax.random.fold_in(key, 1), rollouts, epochs, parts))


def test_any_rollout_may_come_anywhere(key):
    """Every rollout is in every part of an epoch equally often."""
    drawn = jax.vmap(lambda key: minibatches(key, 8, 1, 4))(jax.random.split(key, 4000))
    share = np.stack([np.bincount(np.asarray(drawn[:, part]).ravel(), minlength=8) for part in range(4)]) / 4000
    np.testing.assert_allclose(share, 1 / 4, atol=0.03)


def test_an_iteration_learns_from_each_minibatch_in_turn(key):
    """What an iteration makes of its windows is what updates on its minibatches make, one after the other."""
    cfg = config(**{"agent.layers": 1, "algo.epochs": 3, "optim.lr": 0.01})
    program = make_program(cfg)
    member, shared = jax.jit(program.init)(jnp.int32(0))
    collected = jax.jit(
        lambda member: train.collect(
            program.algorithm.learner.agent,
            member.learner.params["agent"],
            program.env,
            key,
            jnp.float32(1),
            T,
            member.ongoing,
        )
    )
    for _ in range(2):
        windows, _, ongoing = collected(member)
        member = member._replace(ongoing=ongoing)
    learned = jax.jit(lambda *args: program.algorithm.learn(*args, cfg, key))(member, shared.counters, windows)
    assert int(learned.updates) == 3 * 2
    update, state, losses = compiled(program.algorithm, cfg), member.learner, []
    for index in minibatches(key, 4, 3, 2):
        window = window_to_learn_from(program.env, member, take(windows, index))
        updated, state = update(state, window, member.moments)
        losses.append(float(updated.stats["loss"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), learned.learner.params, state.params
    )
    assert float(learned.stats["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert learned.buffer is None and learned.counters == ()


# Observations standardised


@pytest.mark.parametrize(("algorithm", "starts"), [("pqn", "continue"), ("dqn", "continue"), ("dqn", "reset")])
def test_statistics_are_those_of_all_observations(algorithm, starts):
    """Each counted once, and every team has the same: the one that learns, the target, the critic."""
    options = {"agent.obs_norm": "running", "algo.mixer": "ow_qmix", "agent.hidden": 4, "eval.episodes": 2}
    options |= {"env.name": "mpe_simple_spread_v3", "env.episode_limit": 4, "rollouts": 4, "window": 7}
    own = {
        "pqn": {"algo.name": "pqn", "algo.minibatches": 2, "algo.epochs": 1},
        "dqn": {"replay.capacity": 8, "replay.batch": 4, "algo.target_period": 100},
    }[algorithm]
    burn_in = 0 if starts == "reset" else 3
    program = make_program(load_config(None, **options, **own, window_start=starts, **{"replay.burn_in": burn_in}))
    agent, seen = program.algorithm.learner.agent, []

    @jax.jit
    def collect(member, key):
        windows, _, ongoing = train.collect(
            agent, member.learner.params["agent"], program.env, key, jnp.float32(1), 7, member.ongoing
        )
        member, _ = program._remember(member._replace(ongoing=ongoing), windows)
        return member, program.env.unpack(windows.seen).obs[burn_in:]

    member, _ = jax.jit(program.init)(jnp.int32(0))
    for k in range(3):
        member, shown = collect(member, jax.random.key(k))
        seen.append(np.asarray(shown))
    rows = [x if starts == "reset" else x[:-1] for x in seen]
    if starts == "continue":
        np.testing.assert_array_equal(seen[0][-1], seen[1][0])  # a window goes on with this one's last slot
    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in rows]).astype(np.float64)
    state = member.learner
    teams = [state.params, state.params["critic"]]
    teams += [] if algorithm == "pqn" else [state.target, state.target["critic"]]
    for team in teams:
        moments = normalise.Moments(**team["agent"]["obs_norm"])
        assert float(moments.rows) == len(rows)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moments.m2 / moments.rows, rows.var(0), rtol=1e-3, atol=1e-4)


def test_no_gradient_changes_the_statistics(rng, key):
    """And with them unread no step does, whatever the optimiser."""
    for optimiser in ("radam", "rmsprop"):
        cfg = config(**{"agent.obs_norm": "running", "algo.mixer": "ow_qmix", "optim.name": optimiser})
        pqn, w = make(cfg, key), with_arrays(some_window(rng))
        state = pqn.init(key)
        known = normalise.update(normalise.init(4), 3 * w.obs + 1)._asdict()
        for team in (state.params, state.params["critic"]):
            team["agent"]["obs_norm"] = known
        moments = normalise.update(normalise.init(5), w.state)
        update = compiled(pqn, cfg)
        for _ in range(2):
            _, state = update(state, w, moments)
        for team in (state.params, state.params["critic"]):
            jax.tree.map(np.testing.assert_array_equal, team["agent"]["obs_norm"], known)


@pytest.mark.parametrize("share", [True, False])
def test_acting_and_learning_read_the_same(rng, key, share):
    """Observations by their statistics, in a step and over a window: what an agent without them says of z-scores."""
    plain = Agent(2, 3, 4, hidden=8, share_parameters=share)
    agent = plain._replace(obs_norm=True)
    w, rows = with_arrays(some_window(rng)), rng.normal(5, 3, size=(30, 4)).astype(np.float32)
    w = w._replace(obs=3 * w.obs + 5)
    params = plain.init(key)
    known = {**params, "obs_norm": normalise.update(normalise.init(4), jnp.asarray(rows))._asdict()}
    assert jax.tree.structure(agent.init(key)) == jax.tree.structure(known)
    z = np.clip((np.asarray(w.obs) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6), -5, 5)
    expected = jax.jit(plain.unroll)(params, jnp.asarray(z), w.action, w.first, w.start)
    got = jax.jit(agent.unroll)(known, w.obs, w.action, w.first, w.start)
    np.testing.assert_allclose(got.q, expected.q, rtol=1e-3, atol=1e-4)
    (memory, last_action), step = w.start, jax.jit(agent.step)
    for t in range(len(z)):
        q, memory = step(known, memory, w.obs[t], last_action, w.first[t])
        np.testing.assert_allclose(q, expected.q[t], rtol=1e-3, atol=1e-4)
        last_action = w.action[t]


# Whole training

TINY = {"agent.hidden": 4, "mixer.embed": 2, "mixer.hypernet_hidden": 4, "mixer.critic_hidden": 4, "mixer.heads": 2}


@pytest.mark.parametrize("mixer", ["qmix", *slow(name for name in mixer_names() if name != "qmix")])
def test_pqn_trains_with_every_mixer(mixer):
    """One iteration of a population: every array of every team moves, and nothing is anything but finite."""
    tiny = {**TINY, "env.name": "two_step_game", "rollouts": 4, "window": 3, "eval.episodes": 2, "optim.lr": 0.1}
    pqn = {"algo.name": "pqn", "algo.minibatches": 2, "algo.epochs": 2, "replay.burn_in": 1, "optim.name": "radam"}
    program = make_program(load_config(None, **tiny, **pqn, **{"algo.mixer": mixer, "agent.obs_norm": "running"}))
    members, shared = jax.vmap(program.init, out_axes=(0, None))(jnp.arange(2))
    after, shared = jax.jit(jax.vmap(program.iteration, in_axes=(0, None), out_axes=(0, None)))(members, shared)
    assert int(shared.updates.low) == 4 and not np.any(after.fault.code)
    np.testing.assert_array_equal(after.env_steps.low, np.asarray(members.env_steps.low) + 8)
    for group in members.learner.params:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *(m.learner.params[group] for m in (members, after)))
        assert not jax.tree.leaves(moved) or max(jax.tree.leaves(moved)) > 1e-4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.learner))


def test_chain_probe_reaches_q_star():
    """As with a replay and a target network: Q*(s, right) = γ^(3 − s), Q*(s, stop) = 0.1. All play is random."""
    chain = {"env.name": "chain_probe", "algo.mixer": "vdn", "algo.gamma": 0.8, "algo.td_lambda": 0.0}
    pqn = {"algo.name": "pqn", "rollouts": 16, "window": 8, "algo.minibatches": 4, "replay.burn_in": 2}
    rest = {"explore.eps_end": 1.0, "agent.layer_norm": True, "agent.hidden": 32, "eval.episodes": 2}
    optim = {"optim.name": "radam", "optim.lr": 2e-3, "optim.lr_end_factor": 0.0}
    steps = {"total_steps": 16_000, "eval.every": 16_000}
    program = make_program(load_config(None, **chain, **pqn, **rest, **optim, **steps))
    members, shared = jax.vmap(program.init, out_axes=(0, None))(jnp.arange(3))
    chunk = jax.jit(jax.vmap(program.chunk, in_axes=(0, None), out_axes=(0, None, 0)))
    members, shared, metrics = chunk(members, shared)
    obs, action = jnp.eye(4)[:, None, None], jnp.ones((4, 1, 1), jnp.int32)
    first, agent = (jnp.arange(4) == 0)[:, None], program.algorithm.learner.agent
    q = jax.vmap(lambda params: agent.unroll(params, obs, action, first).q)(members.learner.params["agent"])[:, :, 0, 0]
    np.testing.assert_allclose(q[:, :, 1], np.broadcast_to(0.8 ** np.arange(3, -1, -1), (3, 4)), atol=0.03)
    np.testing.assert_allclose(q[:, :, 0], 0.1, atol=0.03)
    np.testing.assert_allclose(metrics["eval/return_mean"], 1.0)
