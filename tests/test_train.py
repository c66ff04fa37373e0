"""The compiled step as a whole: determinism, members, counters, compilation, memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from jax.flatten_util import ravel_pytree
from slow import slow

from jqmix.config import load_config
from jqmix.envs import registry
from jqmix.kernels.platform import compiling_for
from jqmix.learning import count
from jqmix.learning.state import Rounds
from jqmix.learning.train import Program, make_program, make_train, whole_evaluation
from jqmix.runs.experiment import train
from jqmix.runs.memory import tree_bytes
from jqmix.runs.population import compile_population, starts_of
from jqmix.runs.programs import MemberPrograms

SMALL = {
    "env.name": "two_step_game",
    "agent.hidden": 16,
    "mixer.embed": 8,
    "mixer.hypernet_hidden": 16,
    "replay.capacity": 64,
    "replay.batch": 16,
    "explore.eps_steps": 400,
    "algo.target_period": 24,
    "eval.every": 64,
    "eval.episodes": 4,
    "total_steps": 256,
}


PQN = {"algo.name": "pqn", "window": 4, "algo.epochs": 3, "algo.minibatches": 2}


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


@pytest.mark.slow
def test_one_compilation_for_the_whole_run(tmp_path):
    """Eight intervals compile what two do: nothing compiles while a run goes on."""
    few = compilations(tmp_path, 128)
    assert few > 0
    assert compilations(tmp_path, 512) == few


@pytest.fixture
def traces(monkeypatch):
    """The names of a program's functions, each time that it is traced."""
    names = []

    def counted(name):
        original = getattr(Program, name)
        return lambda *args: (names.append(name), original(*args))[1]

    for name in ("train", "evaluate", "chunk"):
        monkeypatch.setattr(Program, name, counted(name))
    return names


def test_the_chunk_is_traced_once(traces):
    init, chunk = make_train(config())
    member, shared = jax.vmap(init, out_axes=(0, None))(jnp.arange(2))
    step = jax.jit(jax.vmap(chunk, in_axes=(0, None), out_axes=(0, None, 0)))
    for _ in range(3):
        member, shared, _ = step(member, shared)
    assert sorted(traces) == ["chunk", "evaluate", "train"]


@pytest.mark.parametrize("fields", [{}, *slow([PQN])], ids=["dqn", "pqn"])
def test_what_is_written_for_an_accelerator_learns_the_same(fields):
    """Where a loop carries the parameters as one vector, returns are computed in few turns, products as they stand."""
    init, chunk = make_train(config(**fields))
    begin, chunk = init(jnp.int32(3)), jax.jit(chunk)
    here, *_ = chunk(*begin)
    with compiling_for("tpu"):  # where the replay has another form
        there, *_ = chunk(*init(jnp.int32(3)))
    assert jax.tree.structure(here) == jax.tree.structure(there)
    start, a, b = (ravel_pytree(member.learner)[0] for member in (begin[0], here, there))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(a - start)) > 0.01


@pytest.mark.parametrize("fields", [{}, *slow([PQN])], ids=["dqn", "pqn"])
def test_both_programs_of_a_run_are_traced_once(tmp_path, traces, fields):
    """Whatever they are asked to do: training, evaluations, and the absolute one; for the memory plan, too."""
    result = train(config(seeds=2, run_dir=str(tmp_path / "run"), **fields), quiet=True)
    assert sorted(traces) == ["evaluate", "train"]
    assert result.metrics[-1]["absolute/episodes"] == 40


@pytest.mark.slow
def test_counters_are_shared_and_branches_stay_branches():
    """out_axes=None refuses batched counters; the update and the target copy are real conditionals under vmap."""
    population = compile_population(config(seeds=3))
    counters = population.shared.iteration.low, population.shared.since_evaluation, *population.shared.counters
    assert {x.shape for x in counters} == {()}
    text = population.training.as_text()
    assert text.count(" conditional(") >= 2


def test_counters_and_targets():
    """Updates wait for a batch; the hard copy comes every target_period windows, after the optimiser's step."""
    cfg = config(**{"algo.target_period": 24, "replay.batch": 16})
    program = make_program(cfg)
    member, shared = program.init(jnp.int32(0))
    iteration = jax.jit(program.iteration)
    start = member.learner
    for k in range(1, 7):
        before = member.learner
        member, shared = iteration(member, shared)
        assert int(shared.iteration) == int(shared.since_evaluation) == k
        assert int(shared.updates) == max(0, k - 1)  # 8 windows an iteration, 16 to a batch
        assert float(member.tally.learned) == float(member.tally.updates) == max(0, k - 1)
        assert tuple(map(int, shared.counters)) == (8 * k % 64, 8 * k, 8 * k % 24)
        if k % 3 == 0:
            assert_equal(member.learner.target, member.learner.params)
        else:
            assert_equal(member.learner.target, before.target)
    assert not np.array_equal(*(x.params["agent"]["head"]["bias"] for x in (start, member.learner)))
    assert int(member.env_steps) == 6 * 8 * 2


def test_pqn_learns_from_each_iteration_at_once():
    """Epochs × minibatches updates, and nothing kept but the parameters, the optimiser and the rollouts."""
    program = make_program(config(**PQN))
    member, shared = program.init(jnp.int32(0))
    assert member.buffer is None and shared.counters == () and member.learner._fields == ("params", "opt_state")
    iteration = jax.jit(program.iteration)
    for k in range(1, 4):
        before = member.learner
        member, shared = iteration(member, shared)
        assert int(shared.updates) == int(member.tally.updates) == k * 3 * 2
        assert float(member.tally.learned) == k
        assert not np.array_equal(*(x.params["agent"]["head"]["bias"] for x in (before, member.learner)))
    assert int(member.env_steps) == 3 * 8 * 4 * 2 / 3  # of three slots, one holds an episode's end


OPTIONS = [{}, {"replay.prioritised": True, "algo.reward_norm": "running"}, {**PQN, "agent.obs_norm": "running"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("before", [2, *slow([3])])  # after 2, a copy of the target is due
def test_an_evaluation_changes_nothing_that_is_learned_from(options, before):
    """Learning goes on as if it had not been. Complete, it begins the log's sums anew; the absolute one not even that.

    It is played with neither the buffer nor the rollouts."""
    program = make_program(config(**options))
    member, shared = program.init(jnp.int32(0))
    iteration, evaluate = jax.jit(program.iteration), jax.jit(program.evaluate)
    for _ in range(before):
        member, shared = iteration(member, shared)
    kept = {"buffer": member.buffer, "ongoing": member.ongoing}
    after = iteration(member, shared)
    for complete, absolute in [(False, False), (True, False), (True, True)]:
        rounds = Rounds(1, 0, 4, complete, absolute)
        played, same, metrics = evaluate(member._replace(buffer=None, ongoing=None), shared, rounds)
        done = complete and not absolute
        assert int(same.since_evaluation) == (0 if done else before)
        assert_equal(same._replace(since_evaluation=shared.since_evaluation), shared)
        logged = {"tally": member.tally} | ({"best": member.best} if done else {})
        assert_equal(played._replace(**logged), member._replace(buffer=None, ongoing=None))
        assert int(played.best.env_steps) == (int(member.env_steps) if done else 0)
        assert played.tally.greedy.ended == metrics["eval/episodes"] == 4
        rest = program._empty_tally() if done else member.tally
        assert_equal(played.tally._replace(greedy=rest.greedy), rest)
        later = iteration(played._replace(**kept), shared)
        assert_equal(without_log(later[0]), without_log(after[0]))
        assert_equal(later[1], after[1])


def test_of_those_that_play_equally_well_the_latest_is_kept():
    program = make_program(config())
    member, shared = jax.jit(program.iteration)(*program.init(jnp.int32(0)))
    played, _, _ = jax.jit(program.evaluate)(member, shared, Rounds(1, 0, 4, True, False))
    earlier = played.best._replace(env_steps=jax.tree.map(jnp.zeros_like, played.best.env_steps))

    def kept(more):
        known = earlier._replace(return_mean=earlier.return_mean + more)
        return int(program._best(played._replace(best=known), jnp.array(True)).env_steps)

    assert [kept(-1), kept(0), kept(1)] == [int(member.env_steps), int(member.env_steps), 0]


def without_log(member):
    return member._replace(tally=None, best=None)


@pytest.fixture
def rolling(monkeypatch):
    """An environment whose returns tell which random numbers it was played with."""
    monkeypatch.setitem(registry._ENTRIES, "rolling", registry.EnvEntry(worlds.Rolling, {"told": True}, None))
    return config(**{"env.name": "rolling", "eval.episodes": 11, "eval.parallel": 4})


def test_rounds_of_an_evaluation_differ(rolling):
    program = make_program(rolling)
    assert whole_evaluation(program.cfg).count == 3
    member, shared = program.init(jnp.int32(0))
    evaluate = jax.jit(program.evaluate)

    def played(seed, shared, number, absolute):
        rounds = Rounds(1, number, 100, True, absolute)
        return float(evaluate(member._replace(seed=jnp.int32(seed)), shared, rounds)[2]["eval/return_mean"])

    later = shared._replace(iteration=count.add(shared.iteration, 1))
    later_still = shared._replace(iteration=count.from_int(2**31))
    told = [
        played(seed, at, number, absolute)
        for seed in (0, 1)
        for at in (shared, later, later_still)
        for number in (0, 1, 2)
        for absolute in (False, True)
    ]
    assert len(set(told)) == 36
    assert played(1, later, 2, True) in told


def test_an_evaluation_in_several_calls_is_that_in_one(rolling):
    """The same episodes, each counted once, whoever is asked for the first of them."""
    program = make_program(rolling)
    member, shared = program.init(jnp.int32(0))
    evaluate = jax.jit(program.evaluate)
    whole, shared_after, metrics = evaluate(member, shared, whole_evaluation(program.cfg))
    part, between, some = evaluate(member, shared, Rounds(2, 0, 11, False, False))
    assert float(some["eval/episodes"]) == 8 and int(between.since_evaluation) == 0
    parts, after, last = evaluate(part, between, Rounds(1, 2, 11, True, False))
    assert float(metrics["eval/episodes"]) == float(last["eval/episodes"]) == 11
    for a, b in zip(jax.tree.leaves((whole, shared_after)), jax.tree.leaves((parts, after)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    again, _, _ = evaluate(part, shared, Rounds(3, 0, 11, True, False))
    assert_equal(again.tally.greedy, whole.tally.greedy)


@pytest.mark.parametrize("sizes", [(3, 128), (11, 4), *slow([(8, 8), (11, 8), (11, 1)])], ids=str)
def test_exactly_so_many_greedy_episodes(sizes):
    """Fewer than are played at once, as many, and a number that these do not divide."""
    episodes, parallel = sizes
    init, chunk = make_train(config(**{"eval.episodes": episodes, "eval.parallel": parallel}))
    _, _, metrics = jax.jit(chunk)(*init(jnp.int32(0)))
    assert float(metrics["eval/episodes"]) == episodes
    assert float(metrics["eval/length_mean"]) == 2


def test_an_evaluation_counts_first_episodes_and_training_all_of_its_own():
    """Windows of six episodes: while training all of them count; of greedy ones 11, one in each of 8 environments and
    again in three of them."""
    init, chunk = make_train(config(window=17, **{"eval.episodes": 11, "eval.parallel": 8}))
    member, shared, metrics = jax.jit(chunk)(*init(jnp.int32(0)))
    assert int(shared.iteration) == 1
    assert float(metrics["eval/episodes"]) == 11
    assert float(metrics["train/episodes"]) == 8 * 6


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_environment_steps_are_transitions():
    """The chain ends anywhere in a window: final observations and ends of windows are not steps."""
    program = make_program(config(**{"env.name": "chain_probe"}))
    member, shared = program.init(jnp.int32(3))
    member, shared = jax.jit(program.iteration)(member, shared)
    held = jax.tree.map(lambda x: np.asarray(x)[:, :8], member.buffer.windows)
    assert int(member.env_steps) == (~held.last).sum() < 8 * 4
    np.testing.assert_array_equal(held.first[1:], held.last[:-1])
    assert held.last[-1].all()


def test_the_replay_is_updated_in_place():
    """A replay that dwarfs everything else: the compiled programs' temporaries must not hold a copy of it. An
    evaluation is not even given it."""
    cfg = config(**{"replay.capacity": 40_000, "seeds": 2})
    population = compile_population(cfg)
    replay = tree_bytes(population.members.buffer) // 2  # one member on each of two devices
    memory = population.training.memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * replay
    assert memory.alias_size_in_bytes >= replay
    evaluation = population.evaluation.result().memory_analysis()
    assert evaluation.temp_size_in_bytes + evaluation.argument_size_in_bytes < 0.25 * replay


@pytest.mark.slow
def test_many_members_start():
    """Initialisation of a large population, several times over, comes to an end."""
    population = compile_population(config(seeds=16))
    for k in range(5):
        members, _ = population.init(starts_of(config(seed=k, seeds=16)))
        assert members.seed.tolist() == list(range(k, k + 16))


def test_learning_rate_and_epsilon_follow_environment_steps():
    cfg = config(
        **{"optim.lr_end_factor": 0.1, "total_steps": 1000, "explore.eps_steps": 500, "explore.eps_end": 0.2},
        **{"replay.prioritised": True, "replay.priority_beta": 0.4},
    )
    program = make_program(cfg)
    member, _ = program.init(jnp.int32(0))
    for steps, lr, eps in [
        (0, 1e-3, 1.0),
        (250, 7.75e-4, 0.6),
        (500, 5.5e-4, 0.2),
        (1000, 1e-4, 0.2),
        (5000, 1e-4, 0.2),
    ]:
        now = member._replace(env_steps=count.from_int(steps))
        assert float(program.now(now).optim.lr) == pytest.approx(lr, rel=1e-5)
        beta = 0.4 + 0.6 * min(steps, 1000) / 1000
        assert float(program.now(now).replay.priority_beta) == pytest.approx(beta, rel=1e-5)
        assert float(program.epsilon(now)) == pytest.approx(eps, rel=1e-5)
        longer = program.now(now, jnp.float32(2000))
        assert float(longer.optim.lr) == pytest.approx(1e-3 - 0.9e-3 * min(steps, 2000) / 2000, rel=1e-5)


def test_a_run_of_more_steps_is_the_same_program():
    """So that the cache of compiled programs has it; what it has of the configuration's steps, it is told."""
    fields = {"optim.lr_end_factor": 0.1, "replay.prioritised": True}
    few, many = (MemberPrograms(config(total_steps=steps, **fields)) for steps in (256, 512))
    for name in ("init", "train", "evaluate"):
        texts = [re.sub(r"0x[0-9a-f]+", "", str(getattr(programs, name).jaxpr)) for programs in (few, many)]
        assert texts[0] == texts[1]
