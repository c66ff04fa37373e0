"""The memory plan, made before anything is compiled: what one member takes, and how many are trained at once."""

import functools
import math
from typing import Any, NamedTuple

import jax

from jqmix.chips.catalogue import Chip
from jqmix.chips.traced import Held, array_bytes, peak, tiled_bytes
from jqmix.config import Config, ConfigError, flatten, to_dict
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.platform import platform
from jqmix.learning.rollout import fresh
from jqmix.learning.state import Member
from jqmix.learning.train import (
    build_env,
    divides,
    learning_batch,
    updates_per_iteration,
    window_slots,
)
from jqmix.runs import host_memory
from jqmix.runs.devices import divides_rollouts, members_take_turns, mesh_shape, shares
from jqmix.runs.programs import MemberPrograms
from jqmix.types import EnvSpec

# Of what is free, a plan may use so much: programs, constants and other processes take some, too.
USABLE = 0.85
# What compilers reserve for a program, over what its traced form holds at once (``chips/traced.py``). Fitted on a CPU,
# an H100 and a TPU v5e to a dozen configurations, from the two-step game to 27m_vs_30m of SMAX, with jax 0.10.2;
# ``benchmarks/memory.py`` fits it anew. What a TPU keeps beside its cores is not in the model: it reserves less for
# some small programs, PQN's among them.
RESERVED = {"cpu": 1.1, "gpu": 1.02, "tpu": 0.98}
# The same of evaluations, whose noise is held in more than one form.
RESERVED_PLAYING = 1.4
# What compiling and the libraries that save runs take of the host, measured from 3m to 27m_vs_30m of SMAX (bytes).
COMPILING = 600_000_000


class MemoryPlan(NamedTuple):
    """Bytes that one member takes, part by part, and that its device has; members in all and at once."""

    replay: int  # the buffer, and rollouts that go on
    parameters: int  # online and target networks, and the agents that played best
    optimiser: int
    working: int  # while it collects and learns: an estimate
    available: int  # for all members at once
    members: int
    group: int
    copies: int  # of a member's state: devices that share it hold one each
    divided: bool  # whether they share its replay, too, of which there is one then
    busy: int  # members of a group that are computed at the same time
    snapshot: int  # of a group's state, on the host, while a checkpoint is written
    one_memory: bool  # of host and device: a CPU
    memories: int  # that a group is divided over: one for each of its devices, or all of a CPU's cores' one

    @property
    def state(self) -> int:
        return self.replay + self.parameters + self.optimiser

    @property
    def need(self) -> int:
        """Of a group. Where its members take turns, those that are busy have a copy of their state besides."""
        states = self.group + (self.busy if self.busy < self.group else 0)
        replay = self.replay if self.divided else self.copies * self.replay
        state = replay + self.copies * (self.parameters + self.optimiser)
        on_device = states * state + self.busy * self.working
        return on_device + self.snapshot if self.one_memory else on_device

    def __str__(self) -> str:
        each = f"memory per member: {_mega(self.replay)} of replay, {_mega(self.parameters + self.optimiser)} of "
        each += f"parameters and optimiser, about {_mega(self.working)} of working space"
        at_once = "all" if self.group == self.members else f"{self.group} of {self.members}"
        return f"{each}; {at_once} at once: {_mega(self.need)} of {_mega(self.available)}"


def _mega(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.1f} GB"


def tree_bytes(tree: Any) -> int:
    return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Working(NamedTuple):
    """Arrays of one member that its programs hold at the same time besides its state, each where it holds the most."""

    collecting: list[Held]
    learning: list[Held]
    evaluating: list[Held]


def held_arrays(programs: MemberPrograms) -> Working:
    """Of what is traced, not compiled."""
    iteration, evaluation = programs.iteration, programs.evaluate.jaxpr
    collects = lambda step: "collecting" in step.scope  # noqa: E731
    working = Working(peak(iteration, collects), peak(iteration, lambda step: not collects(step)), peak(evaluation))
    if programs.cfg.precision != "float32":
        return working
    return Working(*([x._replace(multiplied=False) for x in held] for held in working))


def bytes_on_device(held: list[Held], members: int = 1) -> int:
    """Of so many members on one device, vmapped: on a TPU with what its tiles pad, and what products alone read in the
    bfloat16 in which it multiplies."""

    def size(x: Held) -> int:
        count = 1 if x.in_turns else members
        if platform() != "tpu":
            return count * array_bytes(x.shape)
        return tiled_bytes(x.shape, count) // (1 + x.multiplied)

    return sum(map(size, held))


def working_bytes(held: Working, members: int = 1) -> int:
    """Of so many members on one device: while they do what takes the most."""
    training = max(bytes_on_device(part, members) for part in (held.collecting, held.learning))
    playing = bytes_on_device(held.evaluating, members)
    return int(max(RESERVED[platform()] * training, RESERVED_PLAYING * playing))


def sending_bytes(cfg: Config, spec: EnvSpec) -> int:
    """What each of the devices that share a member's rollouts has of the windows that they send one another in an
    iteration: of all rollouts, and of the batches that come out of a replay, in 32 bits a number."""
    packed = jax.eval_shape(lambda key: fresh(build_env(cfg, 1), key)[1], jax.random.key(0))
    numbers = sum(int(x.size) for x in jax.tree.leaves(packed)) + spec.n_agents + 4
    drawn = learning_batch(cfg) * (1 if cfg.replay.prioritised else updates_per_iteration(cfg))
    windows = cfg.rollouts + (drawn if cfg.algo.name == "dqn" else 0)
    return 4 * numbers * window_slots(cfg, spec) * windows


def playing_bytes(env: BatchedDecPOMDP, hidden: int, steps: int, starts: int = 1) -> int:
    """About what it takes to play E environments for so many steps: the noise and the starts (so many for each), which
    are drawn ahead, and a step of environments and agents."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = tree_bytes(jax.eval_shape(env.noise, key)) + 2 * 4 * env.size * env.spec.n_agents
    start = tree_bytes(jax.eval_shape(lambda key: fresh(env, key), key))
    agents = 4 * env.size * env.spec.n_agents * (hidden + env.spec.obs_size)
    return steps * drawn + (starts + 8) * start + 8 * agents


def available_bytes() -> tuple[int, int]:
    """Usable memory, in all, and the number of devices that it is divided over. CPU cores have it in common."""
    devices = jax.local_devices()
    stats = [d.memory_stats() for d in devices]
    if all(s is not None and "bytes_limit" in s for s in stats):
        return int(USABLE * sum(s["bytes_limit"] for s in stats)), len(devices)
    return host_bytes(), 1


def host_bytes() -> int:
    """Usable memory of the host."""
    return int(USABLE * max(0, host_memory.free_bytes() - COMPILING))


def check_room(field: str, what: str, need: int) -> None:
    """Raises ``ConfigError``, which names ``field``, where one device does not have ``need`` bytes."""
    available, devices = available_bytes()
    if need > available // devices:
        raise ConfigError(f"{field}: {what} take about {_mega(need)}, and {_mega(available // devices)} is free")


def make_plan(
    cfg: Config,
    programs: MemberPrograms,
    checkpointing: bool = True,
    chip: Chip | None = None,
    devices: int = 1,
) -> MemoryPlan:
    """The plan for a population of members that do what ``programs`` do, here, or on so many devices of a ``chip`` that
    need not be here, while programs are written for its platform.

    Trains as many at once as fit, by the estimate, unless ``group`` says how many. ``checkpointing`` keeps room for a
    copy of a group's state. Raises ``ConfigError`` where a group of that size does not fit, or not even one member.
    """
    available, devices = available_bytes() if chip is None else (int(chip.usable * chip.memory * devices), devices)
    free, held, member = available // devices, held_arrays(programs), programs.member

    @functools.cache
    def plan_for(group: int) -> MemoryPlan:
        mesh = mesh_shape(
            group, learning_batch(cfg), None if chip is None else devices, functools.partial(divides, cfg)
        )
        plan = _plan_for(group, mesh, cfg.seeds, member, held, available, shares(group, devices), checkpointing)
        if not plan.divided:
            return plan
        return plan._replace(working=plan.working + plan.copies * sending_bytes(cfg, programs.spec))

    def fits(group: int) -> bool:
        plan = plan_for(group)
        on_host = plan.one_memory or chip is not None or plan.snapshot <= host_bytes()
        return on_host and plan.need // plan.memories <= free

    fitting = [group for group in _divisors(cfg.seeds) if fits(group)]
    if not fitting:
        raise ConfigError(_too_large(cfg, member, held, plan_for(1), free))
    group = cfg.group or max(fitting)
    if group not in fitting:
        raise ConfigError(
            f"group: {group} members at once take {_mega(plan_for(group).need)} of {_mega(available)} that is free; "
            f"at most {max(fitting)} of {cfg.seeds} fit"
        )
    return plan_for(group)


def _plan_for(
    group: int,
    mesh: tuple[int, int],
    members: int,
    member: Member,
    held: Working,
    available: int,
    memories: int,
    checkpointing: bool,
) -> MemoryPlan:
    """Of a group, laid out over a mesh whose devices have so many memories."""
    takes_turns, divided = members_take_turns(), mesh[1] > 1 and divides_rollouts()
    vmapped = 1 if takes_turns else group // memories

    def each(arrays: Any) -> int:
        """Bytes of a tree per member."""
        return bytes_on_device([Held(x) for x in jax.tree.leaves(arrays)], vmapped) // vmapped

    plan = MemoryPlan(
        replay=each((member.buffer, member.ongoing)),
        parameters=each((member.learner._replace(opt_state=None), member.best.params)),
        optimiser=each(member.learner.opt_state),
        working=working_bytes(held, vmapped) // vmapped,
        available=available,
        members=members,
        group=group,
        copies=mesh[1],
        divided=divided,
        busy=mesh[0] if takes_turns else group,
        snapshot=0,
        one_memory=takes_turns,
        memories=memories * (mesh[1] if divided else 1),
    )
    return plan._replace(snapshot=group * plan.state) if checkpointing else plan


def _divisors(count: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    return sorted({*small, *(count // d for d in small)})


def _widest(cfg: Config) -> str:
    """The field of the networks' greatest width: of the agent's, or among the mixer's settings."""
    widths = {path: x for path, x in flatten(to_dict(cfg)).items() if path.startswith("mixer.") and type(x) is int}
    widths["agent.hidden"] = cfg.agent.hidden
    return max(widths, key=lambda field: widths[field])


def _too_large(cfg: Config, member: Member, held: Working, alone: MemoryPlan, free: int) -> str:
    """What takes the most where not even one member fits."""
    collecting, learning, evaluating = map(bytes_on_device, held)
    drawing = 28 * updates_per_iteration(cfg)  # an update's key and what it tells, of each in an iteration
    learning -= min(learning, drawing + 3 * alone.parameters)  # gradients and steps are as wide as the networks
    batch = "rollouts" if member.buffer is None else "replay.batch"
    parts = {"replay.capacity": alone.replay, batch: learning, "eval.parallel": evaluating}
    parts |= {"rollouts": max(collecting, parts.get("rollouts", 0)), "updates": drawing}
    parts |= {_widest(cfg): alone.parameters + alone.optimiser}
    field = max(parts, key=lambda field: parts[field])
    value = flatten(to_dict(cfg))[field]
    return (
        f"{field}: {value} takes about {_mega(parts[field])}; to train one member at a time takes {_mega(alone.need)}, "
        f"and {_mega(free)} is free"
    )
