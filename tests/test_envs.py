"""One conformance test over the whole registry, and what the adapters promise beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from jqmix.envs import registry
from jqmix.envs.base import Batched
from jqmix.envs.check import check_env
from jqmix.envs.registry import EnvError, make_env, register
from jqmix.learning.exploration import random_available
from jqmix.learning.rollout import collect
from jqmix.networks.agent import Agent

# A whole episode of each of these takes minutes to compile or run; `pytest -m slow` has them.
FAST = {
    "matrix_game",
    "two_step_game",
    "predator_prey",
    "chain_probe",
    "memory_probe",
    "smax_3m",
    "smax_smacv2_5_units",
    "mpe_simple_spread_v3",
    "mpe_simple_speaker_listener_v4",
    "overcooked_cramped_room",
    "hanabi",
    "switch_riddle",
}
EVERY = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in registry.names()]
BATCH = 3


@pytest.mark.parametrize("name", registry.names())
def test_sizes_are_those_of_the_registry(name):
    env = make_env(name)
    assert env.spec.name == name
    assert env.spec[1:6] == tuple(registry.entries()[name].sizes)


@pytest.mark.parametrize("name", EVERY)
def test_conformance(name):
    """The check that users' environments get, over whole episodes."""
    env = make_env(name, time_limit="bootstrap")
    check_env(env, steps=env.spec.episode_limit + 2)


@pytest.mark.parametrize("name", EVERY)
def test_ours_keep_more_than_is_asked(name, key):
    """Exact dtypes, nothing retraced by weak types, and no end but a termination or the limit."""
    env = make_env(name, batch=BATCH, time_limit="bootstrap")
    spec = env.spec
    traces = []

    @jax.jit
    def step(key, state, avail):
        traces.append(None)
        key_act, key_env = jax.random.split(key)
        u = jax.random.uniform(key_act, (BATCH, spec.n_agents))
        return env.step(key_env, state, random_available(u, avail))

    state, first = jax.jit(env.reset)(key)
    assert (first.discount == 1).all()
    assert (first.reward == 0).all()
    over, timestep = np.zeros(BATCH, bool), first
    for t in range(spec.episode_limit):
        state, timestep = step(jax.random.fold_in(key, t), state, timestep.avail)
        for field, x in timestep._asdict().items():
            if field != "info":
                assert x.dtype == (jnp.bool_ if field in ("avail", "last") else jnp.float32), field
                assert np.isfinite(x).all(), f"{field}, also after the end"
        ended = np.asarray(timestep.discount == 0)
        assert set(np.unique(timestep.discount)) <= {0.0, 1.0}
        cut = np.asarray(timestep.last) & ~ended & ~over
        assert not cut.any() or t + 1 == spec.episode_limit, "only the limit may cut"
        over |= np.asarray(timestep.last)
    assert over.all(), "every episode ends at the limit at the latest"
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["mpe_simple_spread_v3", "two_step_game", "smax_3m"])
def test_the_limit_can_terminate(name, key):
    env = make_env(name, time_limit="terminate", episode_limit=1)
    assert env.spec.episode_limit == 1
    state, timestep = env.reset(key)
    _, end = env.step(key, state, jnp.argmax(timestep.avail, -1).astype(jnp.int32))
    assert bool(end.last)
    assert float(end.discount) == 0


def test_the_riddles_last_day_ends_it(key):
    """It is a rule of the game; whoever wants it cut instead says so."""
    for mode, discount in (("default", 0.0), ("bootstrap", 1.0)):
        env = make_env("switch_riddle", time_limit=mode)
        state, timestep = env.reset(key)
        days = 0
        while not timestep.last:
            assert float(timestep.discount) == 1.0
            state, timestep = env.step(jax.random.fold_in(key, days), state, jnp.zeros(3, jnp.int32))
            days += 1
        assert (days, float(timestep.discount)) == (6, discount)


def test_agents_with_different_sizes_are_padded_and_masked(key):
    """Speaker: 3 observations and 3 actions of 11 and 5."""
    env = make_env("mpe_simple_speaker_listener_v4")
    _, ts = env.reset(key)
    assert ts.avail.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert (ts.obs[0, 3:] == 0).all()
    assert ts.state.shape == (14,)


def test_smax_is_jaxmarls_step_for_step(key):
    """The adapter changes nothing: state, observations, rewards, masks and ends of the original, over an episode."""
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    original = HeuristicEnemySMAX(scenario=map_name_to_scenario("3m"), attack_mode="closest")
    env = make_env("jaxmarl/smax_3m")
    step, original_step = jax.jit(env.step), jax.jit(original.step_env)
    state, ts = jax.jit(env.reset)(key)
    obs, theirs = original.reset(key)
    dead = 0
    for t in range(env.spec.episode_limit):
        k = jax.random.fold_in(key, t)
        action = random_available(jax.random.uniform(k, (3,)), ts.avail)
        state, ts = step(k, state, action)
        obs, theirs, rewards, dones, _ = original_step(k, theirs, {f"ally_{i}": action[i] for i in range(3)})
        np.testing.assert_array_equal(ts.state, obs["world_state"])
        np.testing.assert_array_equal(ts.obs[1], obs["ally_1"])
        masks = original.get_avail_actions(theirs)
        np.testing.assert_array_equal(ts.avail[2], masks["ally_2"])
        assert float(ts.reward) == float(rewards["ally_0"])
        for i in np.flatnonzero(~np.asarray(theirs.state.unit_alive[:3])):  # the dead see nothing and do nothing
            assert not ts.obs[i].any()
            assert np.flatnonzero(ts.avail[i]).tolist() == [4]
            dead += 1
        assert bool(ts.last) == bool(dones["__all__"])
        if ts.last:
            break
    assert dead > 0
    alive = theirs.state.unit_alive
    assert bool(ts.info["won"]) == bool(alive[:3].any() and not alive[3:].any())


def test_episodes_last_as_long_as_jaxmarls():
    """JaxMARL's MPE ends one step after its max_steps: the flag is computed before the counter."""
    import jaxmarl

    original = jaxmarl.make("MPE_simple_spread_v3")
    _, state = original.reset(jax.random.key(0))
    step = jax.jit(original.step_env)
    for t in range(1, 30):
        _, state, _, dones, _ = step(jax.random.key(t), state, {a: jnp.int32(0) for a in original.agents})
        if dones["__all__"]:
            break
    assert t == make_env("mpe_simple_spread_v3").spec.episode_limit


def test_shaping_is_learned_from_and_not_reported(key):
    env = make_env("overcooked_cramped_room", shaping=1.0)
    state, ts = jax.jit(env.reset)(key)
    step = jax.jit(env.step)
    shaped = score = 0.0
    for t in range(300):
        k = jax.random.fold_in(key, t)
        state, ts = step(k, state, jax.random.randint(k, (2,), 0, 6))
        shaped += float(ts.reward)
        score += float(ts.info["score"])
    assert shaped > score


# The registry


class Custom:
    """A user's environment: nothing of ours but the two types."""

    def __init__(self, pay=1.0):
        from jqmix import EnvSpec

        self.pay, self.spec = pay, EnvSpec("custom", 2, 3, 1, 1, 4)

    def _emit(self, reward):
        from jqmix import TimeStep

        ones = jnp.ones
        return TimeStep(
            ones((2, 1)), ones((1,)), ones((2, 3), bool), jnp.float32(reward), ones(()), jnp.zeros((), bool), {}
        )

    def reset(self, key):
        return jnp.zeros(()), self._emit(0.0)

    def step(self, key, state, actions):
        return state, self._emit(self.pay)


@pytest.mark.parametrize("name", ["predator_prey", "smax_smacv2_5_units", *slow(["memory_probe", "smax_3m"])])
def test_noise_drawn_for_many_steps_at_once_is_that_of_each(name, key):
    env = make_env(name, batch=BATCH)
    keys = jax.random.split(key, 3)
    state, seen = env.reset(key)
    action = random_available(jax.random.uniform(key, (BATCH, env.spec.n_agents)), seen.avail)
    noise = jax.vmap(env.noise)(keys)
    for t, each in enumerate(keys):
        by_key = env.step(each, state, action)
        by_noise = env.step_with(jax.tree.map(lambda x, t=t: x[t], noise), state, action)
        jax.tree.map(np.testing.assert_array_equal, by_key, by_noise)
        state = by_key[0]


class OwnForm(Custom):
    """A user's own form for many environments, of what the contract asks for alone."""

    def batched(self, size):
        inner, self.size = Batched(Custom(self.pay), size), size
        self.pack, self.unpack, self.reset, self.step = inner.pack, inner.unpack, inner.reset, inner.step
        return self


def test_a_users_own_batched_form_is_played(key):
    env = make_env(None, batch=2, factory="test_envs:OwnForm", pay=2.0)
    agent = Agent(2, 3, 1, hidden=8)
    window, _, _ = collect(agent, agent.init(key), env, key, jnp.float32(1.0), transitions=4)
    np.testing.assert_array_equal(window.reward[:-1], 2.0)


def test_a_users_environment(key):
    if "my_world" not in registry.names():
        register("my_world", Custom, pay=3.0)
    with pytest.raises(EnvError, match="already registered"):
        register("my_world", Custom)
    env = make_env("my_world", batch=2)
    _, ts = env.step(key, env.reset(key)[0], jnp.zeros((2, 2), jnp.int32))
    assert ts.reward.tolist() == [3, 3]
    assert make_env(None, factory="test_envs:Custom", pay=2.0).spec.name == "custom"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_env("smax_2s3x"), "env.name: no environment 'smax_2s3x'; did you mean smax_2s3z"),
        (lambda: make_env("matrix_game", payof=1), "env.kwargs: .*payof"),
        (lambda: make_env(None, factory="nothing"), "env.factory: 'nothing' must look like package.module:function"),
        (lambda: make_env(None, factory="no.such:thing"), "env.factory: cannot load"),
        (lambda: make_env("predator_prey", n_agents=1), "env.kwargs: needs n_agents ≥ 2"),
    ],
)
def test_what_cannot_be_had_is_one_line(call, says):
    with pytest.raises(EnvError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
