"""An episode as it was played, in NumPy arrays: what scenes and charts are drawn from."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Episode(NamedTuple):
    """One episode of T steps. ``score`` is the return so far, after each step; Q-values are those of the same step.

    ``q_tot`` is None where nothing mixes the agents' values, ``won`` where the environment has no notion of it.
    """

    states: Any  # the environment's own, leaves [T + 1, …]
    avail: Bool[np.ndarray, "T N A"]
    q: Float[np.ndarray, "T N A"]
    action: Int[np.ndarray, "T N"]
    score: Float[np.ndarray, " T"]
    q_tot: Float[np.ndarray, " T"] | None
    won: bool | None

    @property
    def length(self) -> int:
        """T, in environment steps."""
        return len(self.score)

    @property
    def q_taken(self) -> Float[np.ndarray, "T N"]:
        """Each agent's value of the action that it took."""
        return np.take_along_axis(self.q, self.action[..., None], axis=-1)[..., 0]

    def score_at(self, step: int) -> float:
        """The return of the first ``step`` steps."""
        return float(self.score[step - 1]) if step else 0.0
