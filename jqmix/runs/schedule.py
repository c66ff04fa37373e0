"""What the next call of a compiled program is to do. Imports no JAX.

A run is a row of iterations with an evaluation after every K, and one at its end. How it is cut into calls follows from
how long they take, so that a signal is answered within seconds; what comes out does not depend on it.
"""

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

CALL_S = 2.0  # how long a call should take


class Call(NamedTuple):
    """Iterations of training, or else rounds of an evaluation, the first of which has the number ``first`` in it."""

    iterations: int
    rounds: int
    first: int
    complete: bool  # an evaluation ends with it


@dataclass
class Pace:
    """How many iterations, or rounds of an evaluation, a call is to have: as many as take about ``CALL_S``."""

    iterations: int = 4
    rounds: int = 1
    _begin: float = 0.0

    def begin(self) -> None:
        self._begin = time.perf_counter()

    def ended(self, call: Call) -> None:
        seconds = time.perf_counter() - self._begin
        if call.iterations:
            self.iterations = _in_time(call.iterations, seconds, self.iterations)
        else:
            self.rounds = _in_time(call.rounds, seconds, self.rounds)
        self.begin()


def _in_time(made: int, seconds: float, before: int) -> int:
    """How many take about ``CALL_S`` where ``made`` of them took ``seconds``; at most twice as many as ``before``."""
    wanted = int(CALL_S * made / max(seconds, 1e-9))
    return max(1, min(wanted, 2 * before, 1 << 20))


@dataclass
class Schedule:
    """Where members that train together stand.

    ``steps`` are those of the slowest, as of the last call that was waited for; the calls since may have made ``ahead``
    more, at most. An iteration is only begun where it is sure to be needed: so a run ends with the first in which the
    slowest has made ``total`` steps, however it is cut into calls.
    """

    total: int
    interval: int  # K
    evaluation: int  # rounds of an evaluation
    per_iteration: int  # the most steps of an iteration
    steps: int
    since: int  # iterations since the last evaluation
    ahead: int = 0
    played: int = 0  # rounds of the evaluation under way

    def next(self, pace: Pace) -> Call | None:
        """The next call, no longer than ``pace`` says. None: what the slowest has made must be known first; or, where
        nothing is ahead, training is over."""
        if self.played or self.since >= self.interval:
            return self._evaluation(pace)
        left = self.total - self.steps - self.ahead
        if left <= 0:
            return None
        iterations = min(self.interval - self.since, math.ceil(left / self.per_iteration), pace.iterations)
        return Call(iterations, 0, 0, False)

    def _evaluation(self, pace: Pace) -> Call:
        rounds = min(pace.rounds, self.evaluation - self.played)
        return Call(0, rounds, self.played, self.played + rounds == self.evaluation)

    def begun(self, call: Call) -> None:
        self.ahead += call.iterations * self.per_iteration
        self.since = 0 if call.complete else self.since + call.iterations
        self.played = 0 if call.complete else self.played + call.rounds

    def ended(self, call: Call, steps: int) -> None:
        """The oldest call that was begun has ended, and the slowest has made so many steps."""
        self.ahead -= call.iterations * self.per_iteration
        self.steps = steps

    def last_evaluation(self, pace: Pace) -> Call | None:
        """The next call of the evaluation that a run ends with; None where the last one follows its last iteration."""
        return self._evaluation(pace) if self.since or self.played else None
