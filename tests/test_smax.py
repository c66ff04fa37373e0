"""Our SMAX against the installed JaxMARL's: the same environment, and the same in distribution when each draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from slow import slow

from jqmix.envs import smax
from jqmix.envs.jaxmarl import smax as jaxmarl_smax
from jqmix.envs.registry import SMAX_MAPS, make_env
from jqmix.envs.smax import MOVES, SIZE, SMAX, STOP, WORLD_STEPS, Noise, SMAXState
from jqmix.kernels.platform import compiling_for
from jqmix.learning.exploration import random_available

QUICK = ["2s3z", "smacv2_5_units"]
MAPS = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in SMAX_MAPS]


def converted(env: SMAX, state: Any, goal: jax.Array) -> SMAXState:
    """JaxMARL's batched state as ours; ``goal`` [E, M, 2] is where its enemies go, which it only notes as they act."""
    units = state.state
    return SMAXState(
        x=units.unit_positions[..., 0],
        y=units.unit_positions[..., 1],
        health=units.unit_health,
        cooldown=units.unit_weapon_cooldowns,
        action=jnp.full(units.unit_health.shape, STOP),  # what was done before shows no more after the next step
        goal_x=goal[..., 0],
        goal_y=goal[..., 1],
        focus=state.enemy_policy_state.last_attacked_enemy,
        types=units.unit_types.astype(jnp.int32) if env.scenario.random else None,
    )


def noise_of(key: jax.Array, n: int, m: int) -> tuple[jax.Array, jax.Array]:
    """What JaxMARL's step draws from its key: weapon deviations in [0, 1) ``[W, n]``, enemies' choices ``[M]``."""
    key, action_key = jax.random.split(key)
    enemy_keys = jax.vmap(lambda k: jax.random.split(k)[0])(jax.random.split(action_key, m))

    def world_step(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, step_key = jax.random.split(key)
        return key, jax.vmap(jax.random.uniform)(jax.random.split(step_key, n))

    _, cooldown = jax.lax.scan(world_step, key, None, length=WORLD_STEPS)
    return cooldown, jax.vmap(jax.random.uniform)(enemy_keys)


def biased(key: jax.Array, avail: jax.Array) -> jax.Array:
    """Random available actions that attack more often than not where they can."""
    weight = jnp.where(jnp.arange(avail.shape[-1]) >= MOVES, 3.0, 1.0)
    return jax.random.categorical(key, jnp.where(avail, jnp.log(weight), -jnp.inf))


def both_episodes(map_name: str, free: bool, size: int = 16, **kwargs: Any) -> Any:
    """The same actions and noise in both: time steps ``[T, E, …]``, JaxMARL's and ours, and where an episode runs.

    ``free``: ours goes on from its own states; otherwise every step starts from JaxMARL's state.
    """
    theirs, ours = jaxmarl_smax(map_name, **kwargs), SMAX(map_name, **kwargs)
    batched = ours.batched(size)
    n, m = ours.battle.allies + ours.battle.enemies, ours.battle.enemies

    def run(key: jax.Array) -> Any:
        key, reset_key = jax.random.split(key)
        state, first = jax.vmap(theirs.reset)(jax.random.split(reset_key, size))
        goal = 32.0 - state.state.unit_positions[:, ours.battle.allies :]
        start = converted(ours, state, goal)

        def step(carry: Any, key: jax.Array) -> Any:
            state, mine, seen, over = carry
            action_key, env_key = jax.random.split(key)
            actions = biased(action_key, seen.avail)
            keys = jax.random.split(env_key, size)
            cooldown, target = jax.vmap(lambda k: noise_of(k, n, m))(keys)
            noise = Noise(jnp.moveaxis(cooldown, 0, -1), target.T)
            mine, ours_now = batched.step_with(noise, mine if free else converted(ours, state, goal), actions)
            state, theirs_now = jax.vmap(theirs.step)(keys, state, actions)
            return (state, mine, theirs_now, over | theirs_now.last), (theirs_now, ours_now, ~over)

        keys = jax.random.split(key, ours.spec.episode_limit)
        _, (theirs_then, ours_then, running) = jax.lax.scan(step, (state, start, first, first.last), keys)
        ours_first = batched.timestep(jax.tree.map(lambda v: v.T, start), first.reward, first.last)
        return (first, ours_first), (theirs_then, ours_then), running

    return jax.device_get(jax.jit(run)(jax.random.key(0)))


def assert_same(theirs: Any, ours: Any, where: np.ndarray) -> None:
    n = theirs.state.shape[-1] // 12
    scale = np.ones(theirs.state.shape[-1])
    # Raw positions run to 32, and pushing a crowd apart amplifies rounding: they agree to 1e-5 of the map's size.
    scale[: 10 * n].reshape(n, 10)[:, 1:3] = SIZE
    for name, unit in (("obs", 1.0), ("state", scale), ("reward", 1.0)):
        a, b = getattr(ours, name)[where], getattr(theirs, name)[where]
        np.testing.assert_allclose(a / unit, b / unit, atol=1e-5, err_msg=name)
    for name in ("avail", "discount", "last"):
        np.testing.assert_array_equal(getattr(ours, name)[where], getattr(theirs, name)[where], err_msg=name)
    np.testing.assert_array_equal(ours.info["won"][where], theirs.info["won"][where])


def assert_episodes_agree(firsts: Any, steps: Any, running: np.ndarray) -> None:
    assert_same(*firsts, np.ones(firsts[0].last.shape, bool))
    assert_same(*steps, running)
    assert running.sum() > 10 * running.shape[1]  # whole episodes, not single steps
    assert steps[0].last.any()
    assert (steps[0].reward[running] > 0).any()


@pytest.mark.parametrize("map_name", MAPS)
def test_every_step_of_whole_episodes_is_jaxmarls(map_name: str) -> None:
    assert_episodes_agree(*both_episodes(map_name, free=False))


@pytest.mark.slow
@pytest.mark.parametrize("map_name", QUICK)
def test_whole_episodes_from_one_start_agree(map_name: str) -> None:
    """Small maps alone: in a crowd, pushing apart makes a rounding error grow until two runs part."""
    assert_episodes_agree(*both_episodes(map_name, free=True))


def test_the_form_for_many_units_is_jaxmarls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger maps, which have more than a few, are slow to test."""
    monkeypatch.setattr(smax, "FEW", 0)
    assert_episodes_agree(*both_episodes("2s3z", free=False))


def test_the_form_for_accelerators_is_jaxmarls_too() -> None:
    with compiling_for("tpu"):
        assert_episodes_agree(*both_episodes("2s3z", free=False))


@pytest.mark.parametrize("map_name", ["2s3z", "smacv2_5_units", pytest.param("10m_vs_11m", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [5, *slow([1])])
def test_a_turn_is_the_same_in_one_kernel(map_name: str, size: int, key: jax.Array) -> None:
    """In battles that are under way: units near one another, some of them dead, some about to shoot."""
    env = SMAX(map_name)
    battle, n = env.battle, env.battle.allies + env.battle.enemies
    s = jax.tree.map(lambda v: v.T, env.batched(size).reset(key)[0])
    keys = iter(jax.random.split(key, 8))
    uniform = lambda low, high: jax.random.uniform(next(keys), (n, size), minval=low, maxval=high)  # noqa: E731
    s = s._replace(x=uniform(10, 18), y=uniform(0, 6), cooldown=jnp.maximum(uniform(-0.5, 0.5), 0.0))
    s = s._replace(health=s.health * (uniform(0, 1) < 0.8))
    s = s._replace(focus=jax.random.randint(next(keys), s.focus.shape, smax.NOBODY, battle.allies))
    actions = jax.random.randint(next(keys), (battle.allies, size), 0, MOVES + battle.enemies)
    noise = env.batched(size).noise(next(keys))
    plain = battle.turn(battle.attributes(s), s, actions, noise)
    kernel = battle.turn_in_one_kernel(battle.attributes(s), s, actions, noise)
    with compiling_for("tpu"):  # of what is within, a GPU has the form for accelerators
        kernels = [kernel, battle.turn_in_one_kernel(battle.attributes(s), s, actions, noise)]
    assert size == 1 or np.sum(np.asarray(plain.health) < np.asarray(s.health)) > 0  # some were hit
    assert np.sum(np.asarray(s.health) == 0) > 0
    assert size == 1 or len(set(np.asarray(plain.focus).flat)) > 1
    for kernel in kernels:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), plain, kernel)


@pytest.mark.parametrize("option", ["see_enemy_actions", "walls_cause_death"])
def test_the_options_agree_too(option: str) -> None:
    assert_episodes_agree(*both_episodes("3m", free=False, **{option: False}))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_both_forms_push_and_number_alike(n: int, seed: int) -> None:
    """Units that overlap, dead ones among them, and numbers that nobody has."""
    rng = np.random.default_rng(seed)
    x, y, radius = (jnp.asarray(rng.uniform(0, 2, (n, 5)), jnp.float32) for _ in range(3))
    unit = jnp.asarray(rng.integers(-1, n + 1, (n, 5)))
    alive = jnp.asarray(rng.random((n, 5)) < 0.8)

    def all_of() -> Any:
        return smax.push_apart(x, y, alive, radius), smax._at_unit(x, unit), smax._received(x, unit)

    few = all_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smax, "FEW", 0)
        many = all_of()
    with compiling_for("tpu"):
        at_once = all_of()
    for other in (many, at_once):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), few, other)
    np.testing.assert_array_equal(few[1], np.take_along_axis(np.asarray(x), np.clip(unit, 0, n - 1), 0))


@pytest.mark.parametrize("map_name", ["2s3z", "smacv2_5_units"])
def test_an_accelerator_is_shown_the_same(map_name: str, key: jax.Array) -> None:
    """All viewers at once, where a CPU takes one after another."""
    env = SMAX(map_name).batched(8)
    packed = env.pack(*env.reset(key))
    packed = packed._replace(units=packed.units * jax.random.uniform(key, packed.units.shape))
    one_by_one = env.unpack(packed)
    for accelerator in ("tpu", "gpu"):
        with compiling_for(accelerator):
            jax.tree.map(np.testing.assert_array_equal, one_by_one, env.unpack(packed))


def random_episodes(name: str, size: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The states after reset, and the return, length and win of ``size`` episodes of random play."""
    env = make_env(name, batch=size)

    def run(key: jax.Array) -> Any:
        key, reset_key = jax.random.split(key)
        state, first = env.reset(reset_key)

        def step(carry: Any, key: jax.Array) -> Any:
            state, seen, totals = carry
            running = ~seen.last
            key_act, key_env = jax.random.split(key)
            actions = random_available(jax.random.uniform(key_act, (size, env.spec.n_agents)), seen.avail)
            state, now = env.step(key_env, state, actions)
            now = now._replace(last=now.last | seen.last)
            gained = jnp.stack([now.reward, jnp.ones(size), now.info["won"].astype(jnp.float32)])
            return (state, now, totals + jnp.where(running, gained, 0.0)), None

        keys = jax.random.split(key, env.spec.episode_limit)
        (_, _, totals), _ = jax.lax.scan(step, (state, first, jnp.zeros((3, size))), keys)
        return first.state, *totals

    return jax.device_get(jax.jit(run)(jax.random.key(7)))


@pytest.mark.parametrize("map_name", ["3m", *slow(name for name in SMAX_MAPS if name != "3m")])
def test_resets_and_random_play_agree_in_distribution(map_name: str) -> None:
    """Every feature of the state after a reset, and the episodes' statistics, when each draws its own noise."""
    size = 256 if SMAX_MAPS[map_name][0] > 20 else 1024
    ours, theirs = random_episodes(f"smax_{map_name}", size), random_episodes(f"jaxmarl/smax_{map_name}", size)
    features = [(a, b) for a, b in zip(ours[0].T, theirs[0].T, strict=True) if np.ptp(a) > 0 or np.ptp(b) > 0]
    assert len(features) >= 2 * sum(SMAX_MAPS[map_name])  # every unit's position
    assert min(ks_2samp(a, b, method="asymp").pvalue for a, b in features) > 0.01 / len(features)
    for name, a, b in zip(("return", "length", "won"), ours[1:], theirs[1:], strict=True):
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-3, name
    assert ks_2samp(ours[1], ours[1] + 0.05, method="asymp").pvalue < 1e-3  # a shift of that size would be seen


def test_an_unknown_map_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"env.kwargs.map_name: no map '2s4z'; did you mean 2s3z"):
        SMAX("2s4z")


def test_actions_are_called_alike() -> None:
    names = SMAX("5m_vs_6m").spec.action_names
    assert names == jaxmarl_smax("5m_vs_6m").spec.action_names
    assert names[MOVES - 1 : MOVES + 1] == ("stop", "attack enemy 0") and len(names) == MOVES + 6


def test_one_environment_is_a_batch_of_one(key: jax.Array) -> None:
    env = SMAX("2s3z")
    state, first = env.reset(key)
    batch, batched_first = env.batched(1).reset(key)
    _, after = env.step(key, state, jnp.full((5,), 4))
    _, batched_after = env.batched(1).step(key, batch, jnp.full((1, 5), 4))
    for single, many in [(first, batched_first), (after, batched_after)]:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), single, many)


@pytest.mark.slow
def test_an_action_out_of_range_hurts_nobody(key: jax.Array) -> None:
    """Nobody in particular is shot at; what moves is the enemy's own."""
    env = SMAX("3m").batched(4)
    state, _ = env.reset(key)
    close = state._replace(x=jnp.broadcast_to(10.0 + jnp.arange(6.0), (4, 6)), y=jnp.full((4, 6), 16.0))
    noise = env.noise(key)
    for action in (env.spec.n_actions, 99, -1):
        after, timestep = env.step_with(noise, close, jnp.full((4, 3), action))
        np.testing.assert_array_equal(after.health[:, 3:], close.health[:, 3:])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, timestep)))
    shot, _ = env.step_with(noise, close, jnp.full((4, 3), MOVES))
    assert (shot.health[:, 3] < close.health[:, 3]).all()
