"""The memory plan, made before anything is compiled: what one member takes, and how many are trained at once."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jqmix.config import Config, ConfigError, flatten, to_dict
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.learner import Learner, make_learner
from jqmix.learning.rollout import fresh, starts_at_once
from jqmix.learning.state import Member
from jqmix.learning.train import (
    build_env,
    divides,
    episodes_at_once,
    learning_batch,
    updates_per_iteration,
    window_length,
    window_slots,
)
from jqmix.networks.mixers.base import Mixer, zero_batch
from jqmix.runs import host_memory
from jqmix.runs.devices import AXIS, make_mesh, members_take_turns, shares, split_over
from jqmix.types import EnvSpec

# Of what is free, a plan may use so much: programs, constants and other processes take some, too.
USABLE = 0.85
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


def mixer_bytes(learner: Learner, mixer: Mixer, settings: Any) -> int:
    """What a mixer keeps of one slot for its backward pass, whatever its layers are: traced, not computed."""

    def kept(params: Any, slots: int) -> Any:
        batch = zero_batch(learner.sizes, slots, 1, mixer.per_agent)

        def run(params: Any, q: Array, best: Array, hidden: Array) -> Array:
            joint = batch.joint._replace(best=best, hidden=hidden)
            q_tot = mixer.apply(params["mixer"], q, batch.state, joint)
            if mixer.auxiliary is None:
                return jnp.sum(q_tot)
            seen = batch._replace(q=q, joint=joint, q_tot=q_tot)
            return jnp.sum(q_tot) + jnp.sum(mixer.auxiliary(params, seen, settings, jax.random.key(0))[0])

        return jax.vjp(run, params, batch.q, batch.joint.best, batch.joint.hidden)[1]

    def count(slots: int) -> int:
        init = lambda key: {"agent": learner.agent.init(key), "mixer": mixer.init(key)}  # noqa: E731
        return tree_bytes(jax.eval_shape(partial(kept, slots=slots), jax.eval_shape(init, jax.random.key(0))))

    return count(2) - count(1)  # the weights, which are also kept, cancel


def learning_bytes(cfg: Config, spec: EnvSpec) -> int:
    """About what an update keeps for its backward pass.

    Counted per slot of a batch; the factors were fitted to compiled programs (``tests/test_memory.py``).
    """
    n, o, s = spec.n_agents, spec.obs_size, spec.state_size
    learner = make_learner(cfg, spec)
    critic = learner.mixer.critic
    seen = 3 * (n * (o + 2 * spec.n_actions) + s)
    layers = (14 if critic is None else 21) + 3 * (cfg.agent.layers - 1)
    mixing = mixer_bytes(learner, learner.mixer, cfg.mixer)
    mixing += 0 if critic is None else mixer_bytes(learner, critic.mixer, cfg.mixer)
    kept = 4 * layers * n * cfg.agent.hidden + 1.3 * mixing  # of slots that a gradient comes from: not of a warm-up
    slots = window_slots(cfg, spec)
    return int(learning_batch(cfg) * (slots * 4 * seen + (slots - cfg.replay.burn_in) * kept))


def playing_bytes(env: BatchedDecPOMDP, hidden: int, steps: int, starts: int = 1) -> int:
    """About what it takes to play E environments for so many steps: the noise and the starts (so many for each), which
    are drawn ahead, and a step of environments and agents."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = tree_bytes(jax.eval_shape(env.noise, key)) + 2 * 4 * env.size * env.spec.n_agents
    start = tree_bytes(jax.eval_shape(lambda key: fresh(env, key), key))
    agents = 4 * env.size * env.spec.n_agents * (hidden + env.spec.obs_size)
    return steps * drawn + (starts + 8) * start + 8 * agents


def collecting_bytes(cfg: Config, spec: EnvSpec) -> int:
    """About what collecting takes: playing, and a window of every rollout."""
    env, steps = build_env(cfg, cfg.rollouts), window_length(cfg, spec)
    packed = jax.eval_shape(lambda key: fresh(env, key)[1], jax.random.key(0))
    slot = tree_bytes(packed) + env.size * (4 * spec.n_agents + 10)
    window = (2 if cfg.replay.burn_in else 1) * window_slots(cfg, spec) * slot
    return playing_bytes(env, cfg.agent.hidden, steps, starts_at_once(steps)) + window


def sending_bytes(cfg: Config, spec: EnvSpec) -> int:
    """What each of the devices that share a member's rollouts has of the windows that they send one another in an
    iteration: of all rollouts, and of the batches that come out of a replay, in 32 bits a number."""
    packed = jax.eval_shape(lambda key: fresh(build_env(cfg, 1), key)[1], jax.random.key(0))
    numbers = sum(int(x.size) for x in jax.tree.leaves(packed)) + spec.n_agents + 4
    drawn = learning_batch(cfg) * (1 if cfg.replay.prioritised else updates_per_iteration(cfg))
    windows = cfg.rollouts + (drawn if cfg.algo.name == "dqn" else 0)
    return 4 * numbers * window_slots(cfg, spec) * windows


def evaluating_bytes(cfg: Config, spec: EnvSpec) -> int:
    """About what a round of an evaluation takes."""
    return playing_bytes(build_env(cfg, episodes_at_once(cfg)), cfg.agent.hidden, spec.episode_limit)


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


def make_plan(cfg: Config, spec: EnvSpec, member: Member, checkpointing: bool = True) -> MemoryPlan:
    """The plan for a population of such members (their shapes are enough).

    Trains as many at once as fit, by the estimate, unless ``group`` says how many. ``checkpointing`` keeps room for a
    copy of a group's state. Raises ``ConfigError`` where a group of that size does not fit, or not even one member.
    """
    learner = member.learner
    available, devices = available_bytes()
    learning, collecting, evaluating = (
        learning_bytes(cfg, spec),
        collecting_bytes(cfg, spec),
        evaluating_bytes(cfg, spec),
    )
    if member.buffer is None:  # what was collected is there while it is learned from
        learning += collecting
    drawing = 28 * updates_per_iteration(cfg)  # an update's key and what it tells, of each in an iteration
    optimiser = tree_bytes(learner.opt_state)
    parameters = tree_bytes((learner, member.best.params)) - optimiser
    alone = MemoryPlan(
        replay=tree_bytes((member.buffer, member.ongoing)),
        parameters=parameters,
        optimiser=optimiser,
        working=max(learning + drawing, collecting, evaluating),
        available=available,
        members=cfg.seeds,
        group=1,
        copies=1,
        divided=False,
        busy=1,
        snapshot=0,
        one_memory=members_take_turns(),
    )

    def plan_for(group: int) -> MemoryPlan:
        mesh = make_mesh(group, learning_batch(cfg), divides=partial(divides, cfg))
        split = split_over(mesh)
        return alone._replace(
            group=group,
            copies=split.parts,
            divided=split.rollouts,
            working=alone.working + (split.parts * sending_bytes(cfg, spec) if split.rollouts else 0),
            busy=mesh.shape[AXIS] if members_take_turns() else group,
            snapshot=group * alone.state if checkpointing else 0,
        )

    def fits(group: int) -> bool:
        plan = plan_for(group)
        used = shares(group, devices) * (plan.copies if plan.divided else 1)
        on_device = plan.need // used <= available // devices
        return on_device and (plan.one_memory or plan.snapshot <= host_bytes())

    fitting = [group for group in _divisors(cfg.seeds) if fits(group)]
    if not fitting:
        batch = "rollouts" if member.buffer is None else "replay.batch"
        parts = {"replay.capacity": alone.replay, batch: learning, "eval.parallel": evaluating}
        parts |= {"rollouts": max(collecting, parts.get("rollouts", 0)), "updates": drawing}
        parts |= {_widest(cfg): parameters + optimiser}
        raise ConfigError(_too_large(cfg, parts, plan_for(1).need, available // devices))
    group = cfg.group or max(fitting)
    if group not in fitting:
        raise ConfigError(
            f"group: {group} members at once take {_mega(plan_for(group).need)} of {_mega(available)} that is free; "
            f"at most {max(fitting)} of {cfg.seeds} fit"
        )
    return plan_for(group)


def _divisors(count: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    return sorted({*small, *(count // d for d in small)})


def _widest(cfg: Config) -> str:
    """The field of the networks' greatest width: of the agent's, or among the mixer's settings."""
    widths = {path: x for path, x in flatten(to_dict(cfg)).items() if path.startswith("mixer.") and type(x) is int}
    widths["agent.hidden"] = cfg.agent.hidden
    return max(widths, key=lambda field: widths[field])


def _too_large(cfg: Config, parts: dict[str, int], need: int, free: int) -> str:
    """What takes the most where not even one member fits."""
    field = max(parts, key=lambda field: parts[field])
    value = flatten(to_dict(cfg))[field]
    return (
        f"{field}: {value} takes about {_mega(parts[field])}; to train one member at a time takes {_mega(need)}, "
        f"and {_mega(free)} is free"
    )
