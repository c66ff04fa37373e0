"""The words every other module uses: what an environment is made of, and what a window of data holds.

Axes stand in this order everywhere: P member, T time, B batch (or E rollouts), N agent, A action.
O is the observation size, S the state size; T1 = T + 1 is the number of slots in a window.
"""

import itertools
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Bool, Float, Int

TimeLimitMode = Literal["bootstrap", "terminate"]


class Entities(NamedTuple):
    """How an observation lists entities: groups of so many with so many numbers each, one group after another, and then
    what the agent sees of itself. As many of the last actions as group ``targets`` has entities are aimed at these, in
    their order."""

    groups: tuple[tuple[int, int], ...]
    targets: int

    def fit(self, obs_size: int, n_actions: int) -> bool:
        """Whether these are such groups, and the sizes have room for them."""
        groups, whole = self.groups, lambda x: isinstance(x, int) and not isinstance(x, bool)
        if not isinstance(groups, tuple) or not groups or not whole(self.targets):
            return False
        if not all(isinstance(g, tuple) and len(g) == 2 and all(whole(x) and x >= 1 for x in g) for g in groups):
            return False
        return 0 <= self.targets < len(groups) and self.ends[-1] < obs_size and self.aimed < n_actions

    @property
    def ends(self) -> list[int]:
        """Where in an observation the groups end."""
        return list(itertools.accumulate(count * numbers for count, numbers in self.groups))

    @property
    def aimed(self) -> int:
        """How many actions are aimed at somebody."""
        return self.groups[self.targets][0]


class EnvSpec(NamedTuple):
    """The static sizes and rules of a Dec-POMDP.

    ``episode_limit`` is in environment steps. ``time_limit`` says what reaching it means: ``bootstrap`` (the
    episode is cut and its value goes on) or ``terminate`` (the value there is zero).
    ``reward_range`` bounds one step's reward; infinite where nobody knows. ``action_names`` says what each action
    means, for people to read; empty where nobody says. ``entities`` says how the observations list entities, for agents
    that read them so; None where they do not.
    """

    name: str
    n_agents: int
    n_actions: int
    obs_size: int
    state_size: int
    episode_limit: int
    time_limit: TimeLimitMode = "bootstrap"
    reward_range: tuple[float, float] = (-float("inf"), float("inf"))
    action_names: tuple[str, ...] = ()
    entities: Entities | None = None


class TimeStep(NamedTuple):
    """What the environment tells after a reset or a step. It is never overwritten by a reset.

    ``reward``, ``discount`` and ``last`` belong to the transition that led here. ``discount`` is 0 after a true
    termination and 1 otherwise, also at a time limit that bootstraps. ``info`` may hold ``won`` (read where the
    episode ends) and ``score`` (what to report in place of ``reward``, where that is shaped).
    """

    obs: Float[Array, "*batch N O"]
    state: Float[Array, "*batch S"]
    avail: Bool[Array, "*batch N A"]
    reward: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]
    last: Bool[Array, "*batch"]
    info: dict[str, Any]


class Seen(NamedTuple):
    """What a time step shows: to the agents, and to the mixer."""

    obs: Float[Array, "*batch N O"]
    state: Float[Array, "*batch S"]
    avail: Bool[Array, "*batch N A"]


class Packed(NamedTuple):
    """A window as it is collected and stored: ``seen`` is whatever the environment needs to show it again.

    ``start``: what the agents remember where the window begins (an ``AgentStart``, leaves [B, …]); None where every
    window begins at a reset.
    """

    seen: Any
    action: Int[Array, "T1 B N"]
    reward: Float[Array, "T1 B"]
    discount: Float[Array, "T1 B"]
    first: Bool[Array, "T1 B"]
    last: Bool[Array, "T1 B"]
    start: Any = None


class Window(NamedTuple):
    """T1 consecutive slots of B rollouts, the unit that is collected and learned from.

    ``action``, ``reward`` and ``discount`` at slot t belong to the transition that leaves it. Where ``last`` is
    true no transition leaves (an episode's final observation, or the end of the window) and they mean nothing.
    ``first`` is true where an episode starts: there the hidden state and the last action are zero. ``start``: what the
    agents remember at the first slot; None: it begins at a reset. ``warm_up``: slots that come before, for the agents'
    memory alone; ``start`` is then at their beginning.
    """

    obs: Float[Array, "T1 B N O"]
    state: Float[Array, "T1 B S"]
    avail: Bool[Array, "T1 B N A"]
    action: Int[Array, "T1 B N"]
    reward: Float[Array, "T1 B"]
    discount: Float[Array, "T1 B"]
    first: Bool[Array, "T1 B"]
    last: Bool[Array, "T1 B"]
    start: Any = None
    warm_up: "Window | None" = None
