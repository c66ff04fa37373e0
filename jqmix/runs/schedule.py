"""What the next call of the compiled program is to do. Imports no JAX.

A run is a row of iterations with an evaluation after every K, and one at its end. How it is cut into calls follows from
how long they take, so that a signal is answered within seconds; what comes out does not depend on it.
"""

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

CALL_S = 2.0  # how long a call should take


class Call(NamedTuple):
    """Iterations, and greedy turns that follow, the first of which has the number ``first`` in its evaluation."""

    iterations: int
    greedy: int
    first: int
    complete: bool  # an evaluation ends with it


@dataclass
class Pace:
    """How many turns a call is to have: as many as take about ``CALL_S``."""

    turns: int = 4
    _begin: float = 0.0

    def begin(self) -> None:
        self._begin = time.perf_counter()

    def ended(self, turns: int) -> None:
        """A call of so many turns ended."""
        seconds = (time.perf_counter() - self._begin) / turns
        wanted = int(CALL_S / max(seconds, 1e-9))
        self.turns = max(1, min(wanted, 2 * self.turns, 1 << 20))
        self.begin()


@dataclass
class Schedule:
    """Where members that train together stand.

    ``steps`` are those of the slowest, as of the last call that was waited for; the calls since may have made ``ahead``
    more, at most. An iteration is only begun where it is sure to be needed: so a run ends with the first in which the
    slowest has made ``total`` steps, however it is cut into calls.
    """

    total: int
    interval: int  # K
    evaluation: int  # greedy turns of an evaluation
    per_iteration: int  # the most steps of an iteration
    steps: int
    since: int  # iterations since the last evaluation
    ahead: int = 0
    played: int = 0  # greedy turns of the evaluation under way

    def next(self, turns: int) -> Call | None:
        """The next call, of ``turns`` turns at most. None: what the slowest has made must be known first; or, where
        nothing is ahead, training is over."""
        if self.played or self.since >= self.interval:
            return self._greedy(0, turns)
        left = self.total - self.steps - self.ahead
        if left <= 0:
            return None
        iterations = min(self.interval - self.since, math.ceil(left / self.per_iteration), turns)
        if self.since + iterations == self.interval and iterations < turns:
            return self._greedy(iterations, turns - iterations)
        return Call(iterations, 0, self.played + 1, False)

    def _greedy(self, iterations: int, turns: int) -> Call:
        greedy = min(turns, self.evaluation - self.played)
        return Call(iterations, greedy, self.played + 1, self.played + greedy == self.evaluation)

    def begun(self, call: Call) -> None:
        self.ahead += call.iterations * self.per_iteration
        self.since = 0 if call.complete else self.since + call.iterations
        self.played = 0 if call.complete else self.played + call.greedy

    def ended(self, call: Call, steps: int) -> None:
        """The oldest call that was begun has ended, and the slowest has made so many steps."""
        self.ahead -= call.iterations * self.per_iteration
        self.steps = steps

    def last_evaluation(self, turns: int) -> Call | None:
        """The next call of the evaluation that a run ends with; None where the last one follows its last iteration."""
        return self._greedy(0, turns) if self.since or self.played else None
