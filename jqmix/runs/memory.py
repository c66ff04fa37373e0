"""The memory plan, made before anything is compiled: what one member takes, and how many are trained at once."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jqmix.config import Config, ConfigError
from jqmix.learning import split
from jqmix.learning.learner import make_learner, mixer_sizes
from jqmix.learning.state import Member
from jqmix.learning.train import window_length
from jqmix.networks.mixers import Joint, Mixer, MixerSizes
from jqmix.runs.devices import AXIS, make_mesh, members_take_turns, shares
from jqmix.types import EnvSpec

# Of a device's memory, what a plan may use: programs, constants and other processes take some, too.
USABLE = 0.85


class MemoryPlan(NamedTuple):
    """Bytes that one member takes, part by part, and that its device has; members in all and at once."""

    replay: int
    parameters: int  # online and target networks
    optimiser: int
    working: int  # while it collects and learns: an estimate
    available: int  # for all members at once
    members: int
    group: int
    copies: int  # of a member's state: CPU cores that split its batches hold one each
    busy: int  # members of a group that are computed at the same time

    @property
    def state(self) -> int:
        return self.replay + self.parameters + self.optimiser

    @property
    def need(self) -> int:
        """Of a group. Where its members take turns, those that are busy have a copy of their state besides."""
        states = self.group + (self.busy if self.busy < self.group else 0)
        return states * self.copies * self.state + self.busy * self.working

    def __str__(self) -> str:
        each = f"memory per member: {_mega(self.replay)} of replay, {_mega(self.parameters + self.optimiser)} of "
        each += f"parameters and optimiser, about {_mega(self.working)} of working space"
        at_once = "all" if self.group == self.members else f"{self.group} of {self.members}"
        return f"{each}; {at_once} at once: {_mega(self.need)} of {_mega(self.available)}"


def _mega(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.1f} GB"


def tree_bytes(tree: Any) -> int:
    return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def mixer_bytes(mixer: Mixer, sizes: MixerSizes) -> int:
    """What a mixer keeps of one slot for its backward pass, whatever its layers are: traced, not computed."""

    def kept(params: Any, joint: Joint, state: Array) -> Any:
        def run(params: Any, q: Array, best: Array, hidden: Array) -> Array:
            told = joint._replace(best=best, hidden=hidden)
            value = jnp.sum(mixer.apply(params, q, state, told))
            return value if mixer.constraint is None else value + jnp.sum(mixer.constraint(params, q, state, told))

        return jax.vjp(run, params, joint.best, joint.best, joint.hidden)[1]

    def of(slots: int) -> int:
        shapes = jax.eval_shape(lambda: (sizes.joint(), jnp.zeros((sizes.state_size,))))
        several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((slots, *x.shape), x.dtype), shapes)
        return tree_bytes(jax.eval_shape(kept, jax.eval_shape(mixer.init, jax.random.key(0)), *several))

    return of(2) - of(1)  # the weights, which are also kept, cancel


def working_bytes(cfg: Config, spec: EnvSpec) -> int:
    """About what an update keeps for its backward pass; collecting takes less, its arrays being shorter-lived.

    Counted per slot of a batch; the factors were fitted to compiled programs (``tests/test_memory.py``).
    """
    n, o, s = spec.n_agents, spec.obs_size, spec.state_size
    mixer, sizes = make_learner(cfg, spec).mixer, mixer_sizes(cfg, spec)
    seen = 3 * (n * (o + 2 * spec.n_actions) + s)
    numbers = seen + (14 if mixer.critic is None else 21) * n * cfg.agent.hidden
    mixing = mixer_bytes(mixer, sizes) + (0 if mixer.critic is None else mixer_bytes(mixer.critic.mixer, sizes))
    return int((window_length(cfg, spec) + 1) * cfg.replay.batch * (4 * numbers + 1.3 * mixing))


def available_bytes() -> tuple[int, int]:
    """Usable memory, in all, and the number of devices that it is divided over. CPU cores have it in common."""
    devices = jax.local_devices()
    stats = [d.memory_stats() for d in devices]
    if all(s is not None and "bytes_limit" in s for s in stats):
        return int(USABLE * sum(s["bytes_limit"] for s in stats)), len(devices)
    return int(USABLE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), 1


def make_plan(cfg: Config, spec: EnvSpec, member: Member) -> MemoryPlan:
    """The plan for a population of such members (their shapes are enough).

    Trains as many at once as fit, by the estimate, unless ``group`` says how many. Raises ``ConfigError`` where the
    state of one alone does not fit, which no grouping helps.
    """
    learner = member.learner
    available, devices = available_bytes()
    plan = MemoryPlan(
        replay=tree_bytes((member.replay, member.priority)),
        parameters=tree_bytes((learner.params, learner.target)),
        optimiser=tree_bytes(learner.opt_state),
        working=working_bytes(cfg, spec),
        available=available,
        members=cfg.seeds,
        group=1,
        copies=1,
        busy=1,
    )
    if plan.state > available // devices:
        raise ConfigError(
            f"replay.capacity: {cfg.replay.capacity} windows take {_mega(plan.replay)} per member; "
            f"a device has {_mega(available // devices)}"
        )

    def of(group: int) -> MemoryPlan:
        mesh = make_mesh(group, cfg.replay.batch)
        busy = mesh.shape[AXIS] if members_take_turns() else group
        return plan._replace(group=group, copies=mesh.shape[split.AXIS], busy=busy)

    def fits(group: int) -> bool:
        return of(group).need // shares(group, devices) <= available // devices

    groups = [g for g in range(1, cfg.seeds + 1) if cfg.seeds % g == 0 and (g == 1 or fits(g))]
    return of(cfg.group or max(groups))
