"""Windows of random numbers, of two agents with three actions, to learn from."""

import numpy as np

from jqmix.networks.agent import AgentStart
from jqmix.types import EnvSpec, Window

SPEC = EnvSpec("test", 2, 3, 4, 5, 6)


def random_window(rng, slots=9, rollouts=3, first=True, ends=(), start=None) -> Window:
    """Episodes end at random slots, at those of ``ends`` (slot, rollout), and at the last one.

    ``first``: it begins at a reset.
    """
    avail = rng.random((slots, rollouts, 2, 3)) < 0.7
    avail[..., 0] |= ~avail.any(-1)
    last = rng.random((slots, rollouts)) < 0.2
    for slot, rollout in ends:
        last[slot, rollout] = True
    last[-1] = True
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Window(
        obs=draw(slots, rollouts, 2, 4),
        state=draw(slots, rollouts, 5),
        avail=avail,
        action=np.where(avail, rng.random(avail.shape), -1).argmax(-1).astype(np.int32),
        reward=draw(slots, rollouts),
        discount=(rng.random((slots, rollouts)) < 0.8).astype(np.float32),
        first=np.concatenate([np.full((1, rollouts), first), last[:-1]]),
        last=last,
        start=start,
    )


def random_start(rng, rollouts=3, hidden=8) -> AgentStart:
    """Some memory, and some last action."""
    memory = np.tanh(rng.normal(size=(rollouts, 2, hidden))).astype(np.float32)
    return AgentStart(memory, rng.integers(0, 3, (rollouts, 2)).astype(np.int32))
