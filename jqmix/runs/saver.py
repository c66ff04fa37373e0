"""Saving in the background while a run goes on, no more often than it may cost."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jqmix.config import CheckpointConfig
from jqmix.learning.state import Member, Shared
from jqmix.runs import checkpoint
from jqmix.runs.checkpoint import Manifest


class Share(NamedTuple):
    """What of a program's members belongs to one run: where its checkpoints lie, which members, what to note."""

    folder: Path
    members: slice
    about: Manifest


class Saver:
    """Writes one checkpoint at a time. What a disk refuses is told, and the run goes on: older ones are still good."""

    def __init__(self, settings: CheckpointConfig, say: Callable[[str], None]):
        self._settings = settings
        self._say = say
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None
        self._next_steps = 0
        self._begin = self._took_s = 0.0  # of the last one, in the loop and in the background

    def begin(self, steps: int) -> None:
        """Members that made so many steps are trained from now on."""
        self._next_steps = steps + self._settings.every

    def due(self, steps: int) -> bool:
        busy = self._job is not None and not self._job.done()
        return (
            steps >= self._next_steps
            and not busy
            and time.perf_counter() - self._begin >= self._took_s / self._settings.share
        )

    def save(self, members: Member, shared: Shared, shares: list[Share], steps: int) -> None:
        """Copies the states to the host and writes the copies in the background."""
        error = self.wait()
        if error:
            self._tell(error)
        self._begin = time.perf_counter()
        kept = members if self._settings.replay else members._replace(buffer=None)
        copies = checkpoint.snapshot(kept, shared)
        self._took_s = time.perf_counter() - self._begin
        self._next_steps = steps + self._settings.every
        self._job = self._pool.submit(self._write, *copies, shares)

    def _write(self, members: Member, shared: Shared, shares: list[Share]) -> None:
        begin = time.perf_counter()
        written: list[Path] = []
        try:
            for share in shares:
                of_share = checkpoint.select_members(members, share.members)
                written.append(checkpoint.save(share.folder, of_share, shared, share.about))
        except OSError:
            for path in written:  # of no use without the others, and the disk may be full
                shutil.rmtree(path, ignore_errors=True)
            raise
        for share in shares:
            checkpoint.prune(share.folder, self._settings.keep, share.about.iteration)
        self._took_s += time.perf_counter() - begin

    def wait(self) -> OSError | None:
        """Until what is being written is on the disk; what kept it from that."""
        job, self._job = self._job, None
        error = job.exception() if job is not None else None
        if error is not None and not isinstance(error, OSError):
            raise error
        return error

    def _tell(self, error: OSError) -> None:
        self._say(
            f"a checkpoint could not be written ({error.strerror}); older ones are good, and the run goes on and tries "
            "again when the next is due"
        )

    def close(self) -> None:
        self._pool.shutdown(wait=True)
