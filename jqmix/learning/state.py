"""What training carries: a member's state, what members share, and what a call of a compiled program is to do."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from jqmix.learning.count import Count
from jqmix.learning.health import Fault
from jqmix.learning.hyper import Hyper
from jqmix.learning.learner import Stats
from jqmix.learning.rollout import Episodes, Ongoing
from jqmix.networks import normalise


class Best(NamedTuple):
    """The agents' parameters that played best so far: by win rate, if there is one, then by return, and of those that
    are equal the latest, which have learned most."""

    params: Any
    win_rate: Float[Array, "*P"]
    return_mean: Float[Array, "*P"]
    env_steps: Count


class Tally(NamedTuple):
    """Sums for the log: of training since the last evaluation, and of the evaluation itself."""

    trained: Episodes
    learning: Stats
    learned: Float[Array, "*P"]  # iterations with updates
    updates: Float[Array, "*P"]
    strange: Float[Array, "*P"]  # rewards outside the range that the environment declares
    greedy: Episodes


class Member(NamedTuple):
    """One independent run. All randomness is a function of ``seed`` and the shared counters."""

    seed: Int[Array, "*P"]
    hyper: Hyper
    learner: Any  # what the algorithm learns: ``params``, and what else it needs
    buffer: Any  # what it keeps of the windows collected; None where it keeps none
    ongoing: Ongoing | None  # the rollouts, where windows go on where the last one ended
    moments: normalise.Moments  # of the global state
    reward_moments: normalise.Moments | None  # where rewards are standardised
    env_steps: Count  # transitions so far, over all rollouts
    fault: Fault
    best: Best
    tally: Tally


class Shared(NamedTuple):
    """What is equal for all members."""

    iteration: Count
    updates: Count
    since_evaluation: Int[Array, ""]  # iterations since the last evaluation
    counters: Any  # the algorithm's


class Iterations(NamedTuple):
    """What a call of ``train`` is to do. Its numbers are traced: one program does whatever is asked of it."""

    count: Int[Any, ""]
    total_steps: Float[Any, ""] | None = None  # where schedules end; None: where the configuration says, for ever


class Rounds(NamedTuple):
    """What a call of ``evaluate`` is to do, traced likewise."""

    count: Int[Any, ""]
    first: Int[Any, ""]  # the first one's number in its evaluation, from 0 on
    episodes: Int[Any, ""]  # how many an evaluation counts
    complete: Bool[Any, ""]  # an evaluation ends with this call: the best is kept, and the log's sums begin anew
    absolute: Bool[Any, ""]  # an evaluation of its own, with other random numbers, that changes nothing
    total_steps: Float[Any, ""] | None = None  # where schedules end, as in ``Iterations``
