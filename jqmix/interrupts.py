"""SIGINT, SIGTERM and SIGHUP: where a signal may stop the program at once, and where it waits until nothing is lost.

An exception raised while a compiled program runs would lose what was donated to it, and one raised while XLA compiles
crashes the process. So nothing is raised: the command line has a thread that takes signals, whatever the main thread
does. Inside :func:`careful` a signal is only noted, to be looked at between calls; elsewhere it ends the process at
once. A second signal always does. Imports the standard library alone, to be there before anything slow is imported.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run, after saving. ``code`` is the exit code that shells expect: 128 and its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


class Stop:
    """Whether a signal came, or another reason to stop, and what is to be done if it ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.error: Exception | None = None
        self.careful = False
        self._relayed = False
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return self.signum is not None or self.error is not None

    def raise_if_asked(self) -> None:
        """Raises :class:`Interrupted` if a signal came, or what another thread asked for."""
        if self.signum is not None:
            raise Interrupted(self.signum)
        if self.error is not None:
            raise self.error

    def ask(self, error: Exception) -> None:
        """From another thread: the run is to save, and then this is raised. Only the first is."""
        self.error = self.error or error

    @contextlib.contextmanager
    def undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """While this holds, ``undo`` is called before the process is ended, or when anything is raised."""
        self._undo.append(undo)
        try:
            yield
        except BaseException:
            undo()
            raise
        finally:
            self._undo.remove(undo)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While this holds, a first signal is noted only."""
        with self._lock:
            before, self.careful = self.careful, True
        try:
            yield
        finally:
            self.careful = before

    def take(self, signum: int) -> bool:
        """Notes a signal; whether it has to end the process at once."""
        with self._lock:
            second = self.signum is not None and not self._relayed
            self.signum, self._relayed = signum, False
            if self.careful and not second:
                say("finishing this part and saving; a second signal stops at once")
                return False
            if not second:
                self.undo()
            return True

    def relay(self, signum: int) -> None:
        """A signal that another process of this run took. The same one may still come here, too, and is no second."""
        with self._lock:
            if self.signum is not None:
                return
            ends = self.take(signum)
            self._relayed = True
        if ends:
            _exit(128 + signum)

    def undo(self) -> None:
        """What is to be done before the process ends at once."""
        for undo in reversed(self._undo):
            with contextlib.suppress(Exception):  # whatever it meets, the process ends
                undo()

    def end_process(self, code: int) -> None:
        """Ends the process at once, whatever its main thread does."""
        self.undo()
        _exit(code)


_process: Stop | None = None


def take_over_process() -> None:
    """For the command line: from now on a thread takes the signals, but for those that are ignored (``nohup``)."""
    global _process
    stop = _process = Stop()
    read, write = os.pipe()
    os.set_blocking(write, False)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda signum, frame: None)  # the thread's business
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def listen() -> None:
        while taken := os.read(read, 1):
            if taken[0] in SIGNALS and stop.take(taken[0]):
                _exit(128 + taken[0])

    threading.Thread(target=listen, name="signals", daemon=True).start()


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """The process's :class:`Stop`; for a library's caller, one that holds for the time being, also within.

    There signals are always noted first: a second one does what it would have done without jqmix.
    """
    global _process
    if _process is not None:
        yield _process
        return
    stop = Stop()
    stop.careful = True
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    _process = stop
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def note(signum: int, frame: object) -> None:
        if stop.take(signum):
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    ours = [signum for signum, handler in before.items() if handler in usual]
    for signum in ours:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        _process = None
        for signum in ours:
            signal.signal(signum, before[signum])


_said = 0


def times_said() -> int:
    """How often :func:`say` wrote past everything else that shows things."""
    return _said


def say(text: str) -> None:
    """One line on stderr, straight to the file, as the main thread may hold the stream's lock."""
    global _said
    with contextlib.suppress(OSError):
        os.write(2, f"\njqmix: {text}\n".encode())
    _said += 1


def _exit(code: int) -> None:
    with contextlib.suppress(OSError):
        shown = next((fd for fd in (1, 2) if os.isatty(fd)), None)
        if shown is not None:
            os.write(shown, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(code)


def exit_code(error: KeyboardInterrupt) -> int:
    return error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT
