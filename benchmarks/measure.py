"""What the benchmarks share: processes that take turns, timing a function, and saying what was measured on what.

The last part holds what the benchmarks take from inside jqmix, where that is more than a public name: whoever changes
the inside changes it here, and no other script.
"""

import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ANSWER = "answer "


# Processes


class Ended(RuntimeError):
    """A process ended before it answered."""


class Contender:
    """A program in a process of its own, so that no other one's memory or threads are in its way.

    It says what it cost to make, then answers every turn. ``sources``: a checkout to use in place of the installed
    package. ``environment``: further variables.
    """

    def __init__(self, command: list[str], sources: Path | None = None, environment: dict[str, str] | None = None):
        variables = os.environ | ({} if sources is None else {"PYTHONPATH": str(sources.resolve())})
        # Contenders live at the same time, and JAX would have each take three quarters of a GPU's memory at once.
        variables.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.command = command
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=variables | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers: list[Any] = []
        self.costs: Any = self.next_answer()

    def turn(self) -> None:
        assert self.process.stdin is not None
        try:
            print(file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Ended(" ".join(self.command)) from None
        self.answers.append(self.next_answer())

    def end(self) -> None:
        """Lets it end; no harm where it has."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def next_answer(self) -> Any:
        """What it says next. What the modules that it imports print is left out."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise Ended(" ".join(self.command))


def answer(value: Any) -> None:
    """The other end of :meth:`Contender.next_answer`."""
    print(ANSWER + json.dumps(value), flush=True)


def answer_turns(costs: Any, turn: Callable[[], Any]) -> None:
    """The other end of a :class:`Contender`."""
    answer(costs)
    for _ in sys.stdin:
        answer(turn())


def take_turns(contenders: list[Contender], repeats: int) -> None:
    """Lets each answer ``repeats`` times, one after another."""
    for _ in range(repeats):
        for contender in contenders:
            contender.turn()


# Timing and results


def median_ms(function: Callable[..., Any], *args: Any, repeats: int = 15) -> float:
    """Median milliseconds of a function, compiled as training is, warmed up, its arguments ready before."""
    import jax

    compiled = jax.jit(function).lower(*args).compile(compiler_options())
    jax.block_until_ready((args, compiled(*args)))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def fields(words: list[str]) -> dict[str, str]:
    """``FIELD=VALUE`` words as a dictionary."""
    return dict(word.split("=", 1) for word in words)


def cases(grid: list[str]) -> Iterator[dict[str, str]]:
    """Every combination of ``FIELD=V1,V2…`` words; one empty combination where there are none."""
    lists = {name: values.split(",") for name, values in fields(grid).items()}
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def machine() -> str:
    """The accelerator's name, or the processor's with the number of its cores."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} × {jax.device_count()}"
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return f"{names[0] if names else platform.processor() or platform.machine()} × {os.cpu_count()}"


def device_platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``; asked in a process of its own, which holds the device no longer than it takes."""
    code = "import jax; print(jax.default_backend())"
    variables = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def write(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON, with machine, versions and commit. Nothing is written where there is no path."""
    if path is not None:
        from jqmix.runs.experiment import provenance

        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"machine": machine(), "date": time.strftime("%Y-%m-%d")} | provenance() | result
        path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


# From inside jqmix


def compiler_options() -> Any:
    """The compiler's options that training uses on this device."""
    from jqmix.runs import devices

    return devices.compiler_options()


def use_cpu_cores() -> None:
    """One JAX device for each core. To be called before anything is computed."""
    from jqmix.runs import devices

    devices.use_cpu_cores()


class Training:
    """Whole training, compiled: call by call, each of some iterations and an evaluation."""

    def __init__(self, cfg: Any):
        from jqmix.learning.train import iterations_per_chunk, whole_evaluation
        from jqmix.runs.population import compile_population

        self.population = compile_population(cfg)
        self.state: list[Any] = [self.population.members, self.population.shared]
        self.iterations = iterations_per_chunk(cfg, self.population.spec)  # of a call
        self.rounds = whole_evaluation(cfg)
        self.costs = {"trace_s": self.population.trace_s, "compile_s": self.population.compile_s}

    def call(self) -> float:
        """Seconds of a call."""
        import jax

        begin = time.perf_counter()
        members, shared = self.state
        members, shared, _ = self.population.train(members, shared, self.iterations)
        self.state[:] = jax.block_until_ready(self.population.evaluate(members, shared, self.rounds))[:2]
        return time.perf_counter() - begin

    def training_call(self) -> float:
        """Seconds of a call's iterations alone."""
        import jax

        begin = time.perf_counter()
        members, shared = self.state
        self.state[:] = jax.block_until_ready(self.population.train(members, shared, self.iterations))[:2]
        return time.perf_counter() - begin

    def until_learning(self) -> None:
        """Calls until updates are made."""
        while self.updates() == 0:
            self.call()

    def updates(self) -> int:
        return int(self.state[1].updates)

    def env_steps(self) -> int:
        """Of all members together."""
        from jqmix.learning.count import numbers

        return sum(numbers(self.state[0].env_steps))

    def replay_bytes(self) -> int:
        """Of all members together."""
        from jqmix.runs.memory import tree_bytes

        return tree_bytes(self.state[0].buffer)

    def text(self) -> str:
        """The compiled program."""
        return self.population.training.as_text()


def peak_bytes() -> int:
    """The most memory held so far: by the device, or by the process where the device is the CPU."""
    from jqmix.runs.bench import _peak_bytes

    return _peak_bytes()


def iteration(cfg: Any) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """A member's iteration as one of the devices that share its batch sees it: function, shapes, number of devices."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    from jqmix.learning.train import make_program
    from jqmix.runs.devices import make_mesh

    devices = make_mesh(cfg.seeds, cfg.replay.batch).shape["batch"]
    program = make_program(replace(cfg, replay=replace(cfg.replay, batch=cfg.replay.batch // devices)))
    return program.iteration, jax.eval_shape(program.init, jnp.int32(0)), devices


class Part(NamedTuple):
    """A part of an iteration, to be timed alone."""

    name: str
    calls: int  # per iteration
    function: Callable[..., Any]
    args: tuple[Any, ...]
    moved: Any = None  # arrays that must cross to memory or back, where that is less than all arguments and results


def parts_of(cfg: Any) -> list[Part]:
    """The parts of a member's iteration; the last one is the iteration itself."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jqmix.buffers import windows
    from jqmix.learning.learner import mixer_state
    from jqmix.learning.rollout import collect
    from jqmix.learning.train import make_program, window_length

    program = make_program(cfg)
    dqn: Any = program.algorithm
    env, learner, agent, steps = program.env, dqn.learner, dqn.learner.agent, window_length(cfg, program.env.spec)
    member, shared = jax.jit(program.init)(jnp.int32(cfg.seed))
    params, key, full = member.learner.params, jax.random.key(0), jnp.int32(cfg.replay.capacity)

    @jax.jit
    def play(params: Any, key: Any) -> Any:
        return collect(agent, params, env, key, jnp.float32(0.1), steps)[0]

    held = jax.jit(dqn.buffer.add)(member.buffer, play(params["agent"], key), jnp.int32(0))

    def take(stored: Any) -> Any:
        return windows.take(stored.windows, dqn.buffer.sample(key, stored, full, cfg.replay)[0])

    def sample(stored: Any) -> Any:
        return windows.unpack(env, take(stored))

    batch, drawn = jax.jit(sample)(held), jax.eval_shape(take, held)
    state, q_taken = mixer_state(cfg, member.moments, batch.state), jnp.ones(batch.action.shape)

    def unroll(p: Any, batch: Any) -> Any:
        return agent.unroll(p, batch.obs, batch.action, batch.first).q

    def mix(p: Any, q: Any, state: Any) -> Any:
        return learner.mixer.apply(p, q, state)

    def squared(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: jnp.sum(jnp.square(f(*args)))

    update = partial(dqn.update, cfg=program.now(member))
    whole = member._replace(buffer=held), shared._replace(counters=shared.counters._replace(held=full))
    seen, mixed, u = (params["agent"], batch), (params["mixer"], q_taken, state), cfg.updates
    return [
        Part("environment", 1, partial(_play_env, env, steps + 1), (key,)),
        Part("acting, environment included", 1, play, (params["agent"], key)),
        Part("replay: sample and unpack", u, sample, (held,), (drawn, batch)),
        Part("agent: unroll forward", u, unroll, seen),
        Part("agent: unroll gradient", u, jax.grad(squared(unroll)), seen),
        Part("mixer: forward", u, mix, mixed),
        Part("mixer: gradient", u, jax.grad(squared(mix), (0, 1)), mixed),
        Part("update", u, update, (member.learner, batch, member.moments)),
        Part("iteration", 1, program.iteration, whole, (member.learner, member.learner)),
    ]


def _play_env(env: Any, slots: int, key: Any) -> Any:
    """The environment's own share of collecting: as many slots, an action that is always the first."""
    import jax
    import jax.numpy as jnp

    action = jnp.zeros((env.size, env.spec.n_agents), jnp.int32)

    def step(carry: Any, key: Any) -> Any:
        state, seen = env.step(key, carry, action)
        return state, env.pack(state, seen)

    return jax.lax.scan(step, env.reset(key)[0], jax.random.split(key, slots))[1]


class GRU(NamedTuple):
    """A GRU over a window in its different forms, and what it is computed of."""

    forms: dict[str, Callable[..., Any]]  # (params, h [M, H], x [T, M, H], first [T, M]) -> [T, M, H]
    params: Any


def gru_forms(hidden: int) -> GRU:
    """The forms that this device can compute: plain (a scan, its gradient by automatic differentiation), the backward
    pass written by hand, and on a GPU the recurrence as one kernel."""
    import jax

    from jqmix.kernels import gru
    from jqmix.kernels.gru_step import Gates, GRUParams
    from jqmix.networks.cores.gru import unroll as plain

    forms: dict[str, Callable[..., Any]] = {"plain": plain, "fast": gru.unroll}
    if jax.default_backend() == "gpu":
        forms["one kernel"] = gru.unroll_in_kernel
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (hidden, hidden), (hidden,), (hidden, hidden), (hidden,)
    draws = (0.1 * jax.random.normal(k, (3, *shape)) for k, shape in zip(keys, shapes, strict=True))
    return GRU(forms, GRUParams(*(Gates(*draw) for draw in draws)))


def pool_steps() -> int:
    """Slots of a window for each start that is drawn in advance."""
    from jqmix.learning.rollout import SLOTS_PER_START

    return SLOTS_PER_START


def random_available(u: Any, avail: Any) -> Any:
    """Random available actions from uniform numbers."""
    from jqmix.learning import exploration

    return exploration.random_available(u, avail)


def random_play(env: Any, steps: int) -> Callable[[Any], Any]:
    """A function of a seed that plays so many steps with random available actions, resets left out."""
    from jqmix.runs import bench

    return bench.random_play(env, steps)


def random_episodes(env: Any) -> dict[str, float]:
    """What random available actions earn in a window of every rollout: length, return and, where there is one, win
    rate."""
    import jax
    import jax.numpy as jnp

    from jqmix.learning.rollout import collect
    from jqmix.networks.agent import Agent

    spec = env.spec
    agent = Agent(spec.n_agents, spec.n_actions, spec.obs_size, hidden=1)
    key, always = jax.random.key(1), jnp.float32(1.0)
    episodes = collect(agent, agent.init(jax.random.key(0)), env, key, always, spec.episode_limit + 1)[1]
    return {name: float(value) for name, value in episodes.means().items()}


def bench_target(cfg: Any, chip: str) -> dict[str, Any]:
    """What ``jqmix bench --target`` says of one chip."""
    from jqmix.runs import target

    return target.bench_target(cfg, chip)


def compiled_for(name: str, f: Callable[..., Any], iterations: int, *arguments: Any) -> dict[str, Any]:
    """The same of any function, compiled for one chip; of one of its iterations."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from jqmix.chips.catalogue import chip_named
    from jqmix.chips.compile_only import compile_only_devices
    from jqmix.runs import target

    chip = chip_named(name)
    where = NamedSharding(Mesh(np.array(compile_only_devices(chip)), ("x",)), PartitionSpec())
    jitted = jax.jit(f, in_shardings=where, out_shardings=where)
    return target.compiled_for(chip, lambda: jitted.lower(*arguments), iterations=iterations)


def compile_training(target: str, preset: str, changes: dict[str, Any]) -> dict[str, int]:
    """Bytes that the training program of all members reserves on one device: of this machine's CPU, or of a chip."""
    import jax

    from jqmix.chips.catalogue import chip_named
    from jqmix.config import load_config
    from jqmix.learning.train import learning_batch
    from jqmix.runs import target as targets
    from jqmix.runs.devices import compiler_options, make_mesh
    from jqmix.runs.population import lower_training

    cfg = load_config(preset, **changes)
    if target != "cpu":
        return targets.bench_target(cfg, target)["memory"]
    mesh = make_mesh(cfg.seeds, learning_batch(cfg), jax.local_devices()[:1])
    return targets.memory_of(lower_training(cfg, mesh).compile(compiler_options()), chip_named("h100"))


def plan_memory(target: str, preset: str, changes: dict[str, Any]) -> int:
    """Bytes that the memory plan says of the same, whether or not they are there."""
    from dataclasses import replace

    from jqmix.chips.catalogue import CHIPS
    from jqmix.config import load_config
    from jqmix.kernels.platform import compiling_for
    from jqmix.runs.memory import make_plan
    from jqmix.runs.programs import MemberPrograms

    cfg, chip = load_config(preset, **changes), replace(CHIPS.get(target, CHIPS["h100"]), memory=10**15)
    with compiling_for("cpu" if target == "cpu" else chip.platform):
        return make_plan(cfg, MemberPrograms(cfg), checkpointing=False, chip=chip).need


def forecast_of(text: str, chip: str) -> dict[str, Any]:
    """The forecast for one iteration of a compiled training program, with a chip's constants."""
    from jqmix.chips import hlo
    from jqmix.chips.catalogue import chip_named
    from jqmix.chips.forecast import forecast
    from jqmix.runs.target import PARTS

    return forecast(hlo.parse(text), chip_named(chip), PARTS).as_dict()


def kernel_proofs() -> dict[str, Callable[[], str | None]]:
    """What says of each kernel why it can't be relied on here; None where it can."""
    from functools import partial

    from jqmix.envs.smax import SMAX
    from jqmix.kernels import self_test, vectors
    from jqmix.learning.acting import acting_trouble
    from jqmix.networks.agent import Agent

    proofs: dict[str, Callable[[], str | None]] = {
        f"GRU of width {hidden}": partial(self_test.trouble, hidden) for hidden in (16, 32, 64, 128)
    }
    for hidden in (16, 64, 128):
        proofs[f"acting at width {hidden}"] = partial(acting_trouble, Agent(5, 10, 127, hidden, layer_norm=True))
    proofs["taking parameters apart"] = vectors.kernel_trouble
    return proofs | {f"SMAX {name}": SMAX(name).battle.kernel_trouble for name in ("3m", "2s3z", "27m_vs_30m")}
