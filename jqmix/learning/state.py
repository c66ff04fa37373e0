"""What training carries: a member's state, what members share, and what a call of the compiled program is to do."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from jqmix.learning import normalise
from jqmix.learning.count import Count
from jqmix.learning.health import Fault
from jqmix.learning.hyper import Hyper
from jqmix.learning.learner import LearnerState, UpdateStats
from jqmix.learning.rollout import Episodes
from jqmix.types import Packed


class Best(NamedTuple):
    """The agents' parameters that played best so far: by win rate, if there is one, and then by return."""

    params: Any
    win_rate: Float[Array, "*P"]
    return_mean: Float[Array, "*P"]
    env_steps: Count


class Tally(NamedTuple):
    """Sums for the log: of training since the last evaluation, and of the evaluation itself."""

    trained: Episodes
    learning: UpdateStats
    learned: Float[Array, "*P"]  # iterations with updates
    strange: Float[Array, "*P"]  # rewards outside the range that the environment declares
    greedy: Episodes


class Member(NamedTuple):
    """One independent run. All randomness is a function of ``seed`` and the shared counters."""

    seed: Int[Array, "*P"]
    hyper: Hyper
    learner: LearnerState
    moments: normalise.Moments  # of the global state
    reward_moments: normalise.Moments | None  # where rewards are standardised
    replay: Packed
    priority: Float[Array, "*P capacity"] | None  # of the windows in replay, where it is prioritised
    env_steps: Count  # transitions so far, over all rollouts
    fault: Fault
    best: Best
    tally: Tally


class Shared(NamedTuple):
    """What is equal for all members. Windows are counted by what follows from their number, which may pass 2³¹."""

    iteration: Count
    updates: Count
    position: Int[Array, ""]  # where in replay the next windows go
    held: Int[Array, ""]  # windows in replay
    since_copy: Int[Array, ""]  # windows collected since the last copy of the target was due
    since_evaluation: Int[Array, ""]  # iterations since the last evaluation


class Plan(NamedTuple):
    """What a call of ``chunk`` is to do. Its numbers are traced, so that one program does whatever is asked of it."""

    iterations: Int[Any, ""]
    greedy: Int[Any, ""]  # greedy turns that follow
    first: Int[Any, ""]  # the first one's number in its evaluation, from 1 on
    episodes: Int[Any, ""]  # how many an evaluation counts
    complete: Bool[Any, ""]  # an evaluation ends with this call: the best is kept, and the log's sums begin anew
    absolute: Bool[Any, ""]  # an evaluation of its own, with other random numbers, that changes nothing
