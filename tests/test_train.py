"""The compiled step as a whole: determinism, members, counters, compilation, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqmix.config import load_config
from jqmix.learning import count
from jqmix.learning.train import make_program, make_train
from jqmix.runs.experiment import train
from jqmix.runs.memory import tree_bytes
from jqmix.runs.population import compile_population, starts_of

SMALL = {
    "env.name": "two_step_game",
    "agent.hidden": 16,
    "algo.embed": 8,
    "algo.hypernet_hidden": 16,
    "replay.capacity": 64,
    "replay.batch": 16,
    "explore.eps_steps": 400,
    "algo.target_period": 24,
    "eval.every": 64,
    "eval.episodes": 4,
    "total_steps": 256,
}


def config(**overrides):
    return load_config(None, **{**SMALL, **overrides})


def curves(result):
    """Every number of the run but the wall clock, per seed."""
    rows = {}
    for line in result.metrics:
        line = {k: v for k, v in line.items() if k not in ("wall_s", "member")}
        rows.setdefault(line.pop("seed"), []).append(line)
    return rows


def test_the_same_command_twice_gives_identical_metrics(tmp_path):
    runs = [train(config(seeds=2, run_dir=str(tmp_path / d)), quiet=True) for d in "ab"]
    assert curves(runs[0]) == curves(runs[1])
    assert len(curves(runs[0])[0]) == 4 + 1  # an evaluation after each chunk, and the best one's own


def test_a_seed_is_the_same_alone_and_among_others(tmp_path):
    alone = train(config(seed=2, seeds=1, run_dir=str(tmp_path / "alone")), quiet=True)
    among = train(config(seed=0, seeds=4, run_dir=str(tmp_path / "among")), quiet=True)
    for a, b in zip(curves(alone)[2], curves(among)[2], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name
    assert curves(among)[0] != curves(among)[1]


def test_members_in_groups_learn_what_they_learn_at_once(tmp_path):
    """One program serves both groups; every member is logged under its own number, and all are saved."""
    whole = train(config(seeds=4, run_dir=str(tmp_path / "whole")), quiet=True)
    parts = train(config(seeds=4, group=2, run_dir=str(tmp_path / "parts")), quiet=True)
    for seed, lines in curves(whole).items():
        for a, b in zip(lines, curves(parts)[seed], strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    assert {(line["member"], line["seed"]) for line in parts.metrics} == {(k, k) for k in range(4)}
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def compilations(tmp_path, steps):
    """How many programs XLA compiles during a whole run of so many steps, chunks of 64."""
    events = []

    def listener(event, duration, **kwargs):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        train(config(total_steps=steps, run_dir=str(tmp_path / str(steps))), quiet=True)
    finally:
        jax.monitoring.clear_event_listeners()
    return len(events)


def test_one_compilation_for_the_whole_run(tmp_path):
    """Eight chunks compile what two do: nothing compiles while chunks run."""
    few = compilations(tmp_path, 128)
    assert few > 0
    assert compilations(tmp_path, 512) == few


def test_the_chunk_is_traced_once(monkeypatch):
    from jqmix.learning import train as module

    traces = []
    original = module._Program.chunk
    monkeypatch.setattr(module._Program, "chunk", lambda *a: (traces.append(None), original(*a))[1])
    init, chunk = make_train(config())
    member, shared = jax.vmap(init, out_axes=(0, None))(jnp.arange(2))
    step = jax.jit(jax.vmap(chunk, in_axes=(0, None), out_axes=(0, None, 0)))
    for _ in range(3):
        member, shared, _ = step(member, shared)
    assert len(traces) == 1


def test_counters_are_shared_and_branches_stay_branches():
    """out_axes=None refuses batched counters; the update and the target copy are real conditionals under vmap."""
    population = compile_population(config(seeds=3))
    assert population.shared.iteration.low.shape == ()
    text = population.compiled.as_text()
    assert text.count(" conditional(") >= 2


def test_counters_and_targets(key):
    """Updates wait for a batch; the hard copy comes every target_period windows, after the optimiser's step."""
    cfg = config(**{"algo.target_period": 24, "replay.batch": 16})
    program = make_program(cfg)
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    start = member.learner
    for k in range(1, 7):
        before = member.learner
        member, shared, stats = iteration(member, shared)
        assert int(shared.iteration) == k
        assert int(shared.updates) == max(0, k - 1)  # 8 windows an iteration, 16 to a batch
        assert float(stats.learned) == (k >= 2)
        if k % 3 == 0:
            assert_equal(member.learner.target, member.learner.params)
        else:
            assert_equal(member.learner.target, before.target)
    assert not np.array_equal(*(x.params["agent"]["head"]["bias"] for x in (start, member.learner)))
    assert int(member.env_steps) == 6 * 8 * 2


@pytest.mark.parametrize("options", [{}, {"replay.prioritised": True, "algo.reward_norm": "running"}])
@pytest.mark.parametrize("before", [2, 3])  # after 2, a copy of the target is due
def test_an_evaluation_changes_nothing_that_is_learned_from(options, before):
    """What it plays lies in replay where the next windows will: learning goes on as if it had not been."""
    program = make_program(config(**options))
    member, shared = program.init(jnp.int32(0))
    turn = jax.jit(program.turn)
    for _ in range(before):
        member, shared, _ = turn(member, shared, jnp.int32(0))
    played, same, stats = turn(member, shared, jnp.int32(1))
    assert_equal(same, shared)
    assert_equal(played._replace(replay=None), member._replace(replay=None))
    changed = [
        np.any(np.asarray(a != b), axis=(0, *range(2, a.ndim)))
        for a, b in zip(*map(jax.tree.leaves, (played.replay, member.replay)), strict=True)
    ]
    assert np.flatnonzero(np.any(changed, axis=0)).tolist() == list(range(8 * before, 8 * before + 8))
    assert stats.episodes.ended.tolist() == [1.0] * 8 and float(stats.learned) == 0
    assert_equal(turn(played, shared, jnp.int32(0)), turn(member, shared, jnp.int32(0)))


def test_turns_of_an_evaluation_differ():
    program = make_program(config(**{"env.name": "memory_probe", "eval.episodes": 16}))
    assert program.evaluation_turns == 2
    member, shared = program.init(jnp.int32(0))
    turn = jax.jit(program.turn)

    def played(shared, number):
        held = turn(member, shared, jnp.int32(number))[0].replay
        first = int(shared.position)
        return np.asarray(held.seen.obs[:, first : first + 8]).tobytes()

    later = shared._replace(iteration=count.add(shared.iteration, 1))
    later_still = shared._replace(iteration=count.of(2**31))
    assert len({played(at, number) for at in (shared, later, later_still) for number in (0, 1, 2)}) == 9


@pytest.mark.parametrize("episodes", [3, 8, 11])
def test_exactly_so_many_greedy_episodes(episodes):
    """Fewer than the rollouts, as many, and a number that they do not divide."""
    init, chunk = make_train(config(**{"eval.episodes": episodes}))
    _, _, metrics = jax.jit(chunk)(*init(jnp.int32(0)))
    assert float(metrics["eval/episodes"]) == episodes
    assert float(metrics["eval/length_mean"]) == 2


def test_an_evaluation_counts_first_episodes_and_training_all_of_its_own():
    """Windows of six episodes: 8 rollouts play 11 of them greedily, in two turns. While training they count two each,
    as many as the starts that were drawn."""
    init, chunk = make_train(config(window=17, **{"eval.episodes": 11}))
    _, _, metrics = jax.jit(chunk)(*init(jnp.int32(0)))
    assert float(metrics["eval/episodes"]) == 11
    assert float(metrics["train/episodes"]) == 16


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_environment_steps_are_transitions():
    """The chain ends anywhere in a window: final observations and ends of windows are not steps."""
    program = make_program(config(**{"env.name": "chain_probe"}))
    member, shared = program.init(jnp.int32(3))
    member, shared, _ = jax.jit(program.iteration)(member, shared)
    held = jax.tree.map(lambda x: np.asarray(x)[:, :8], member.replay)
    assert int(member.env_steps) == (~held.last).sum() < 8 * 4
    np.testing.assert_array_equal(held.first[1:], held.last[:-1])
    assert held.last[-1].all()


def test_the_replay_is_updated_in_place():
    """A replay that dwarfs everything else: the compiled chunk's temporaries must not hold a copy of it."""
    cfg = config(**{"replay.capacity": 40_000, "seeds": 2})
    population = compile_population(cfg)
    replay = tree_bytes(population.members.replay) // 2  # one member on each of two devices
    memory = population.compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * replay
    assert memory.alias_size_in_bytes >= replay


def test_many_members_start():
    """Initialisation of a large population, several times over, comes to an end."""
    population = compile_population(config(seeds=16))
    for k in range(5):
        members, _ = population.init(starts_of(config(seed=k, seeds=16)))
        assert members.seed.tolist() == list(range(k, k + 16))


def test_learning_rate_and_epsilon_follow_environment_steps():
    cfg = config(**{"optim.lr_end": 0.1, "total_steps": 1000, "explore.eps_steps": 500, "explore.eps_end": 0.2})
    program = make_program(cfg)
    member, _ = program.init(jnp.int32(0))
    for steps, lr, eps in [
        (0, 1e-3, 1.0),
        (250, 7.75e-4, 0.6),
        (500, 5.5e-4, 0.2),
        (1000, 1e-4, 0.2),
        (5000, 1e-4, 0.2),
    ]:
        now = member._replace(env_steps=count.of(steps))
        assert float(program.learning_rate(now, now.hyper)) == pytest.approx(lr, rel=1e-5)
        assert float(program.epsilon(now)) == pytest.approx(eps, rel=1e-5)
