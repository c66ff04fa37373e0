"""What an algorithm may ask of a buffer of windows. Neither it nor the training step knows which buffer it is."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from jqmix.config import ReplayConfig
from jqmix.types import Packed


class Stored(NamedTuple):
    """A buffer's state. ``priority`` is what the buffer knows of its windows: nothing (``()``), or an array of them.

    Where devices share a buffer, each has a section of the windows, and knows of all.
    """

    windows: Packed  # with B = capacity, or a share of it
    priority: Any


@runtime_checkable
class Buffer(Protocol):
    """Pure functions of a buffer's state, for one member.

    ``held`` is how many windows it holds; ``replay`` are its settings, whose traced fields are arrays. ``ahead``: what
    is drawn does not follow from what was learned, so that the batches of many updates may be drawn before the first.
    """

    ahead: bool

    def init(self, windows: Packed, replay: ReplayConfig) -> Stored:
        """A buffer of ``replay.capacity`` windows, none of them held yet, with room for those of ``windows``."""
        ...

    def add(
        self, stored: Stored, windows: Packed, position: Int[Array, ""], first: Int[Array, ""] | None = None
    ) -> Stored:
        """With E windows written at ``position``; ``first``: the number of the first window that there is room for,
        where the room is not for all."""
        ...

    def sample(
        self, key: Array, stored: Stored, held: Int[Array, ""], replay: ReplayConfig
    ) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """Where ``replay.batch`` windows are, and how much each one's loss counts."""
        ...

    def update(self, priority: Any, index: Int[Array, " B"], surprise: Float[Array, " B"]) -> Any:
        """The priorities, once the windows at ``index`` were learned from. ``surprise``: how wrong their values were
        (:func:`jqmix.learning.learner.surprise`)."""
        ...
