"""Where windows wait to be learned from: one small protocol (``base.Buffer``), a file for each way to draw them."""

from jqmix.buffers.base import Buffer
from jqmix.buffers.prioritised import Prioritised
from jqmix.buffers.uniform import Uniform
from jqmix.config import ReplayConfig


def make_buffer(replay: ReplayConfig) -> Buffer:
    return Prioritised() if replay.prioritised else Uniform()
