"""Processes that share a run, each with members of its own, and the wire between them. Imports no JAX.

No compiled program spans processes, since members are independent: what they tell one another is a few lines when a run
begins and ends, that it is to stop, and that they are alive. That is JSON over a connection of each process to the
first. JAX's own coordination service is not used: where the process that holds it dies, it ends all others with SIGABRT
before they could save or say anything.
"""

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jqmix.files import warn
from jqmix.inputs import ConfigError, one_line
from jqmix.interrupts import Interrupted, Stop
from jqmix.runs.run_dir import RunError

JOIN_S = 300.0  # in which all processes have to come
BEAT_S = 5.0  # between signs of life
SILENCE_S = 45.0  # after which a process that gave none is gone
LEAVE_S = 60.0  # in which a process has to save and end once another one is gone
END_S = 5.0  # in which a process answers that it has to answer at once
POLL_S = 0.2
LOCAL = ("localhost", "127.0.0.1", "::1")
MOST_BYTES = 64_000_000  # of a message

Message = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Which of ``count`` processes this is, and where the first of them (``index`` 0) listens."""

    count: int = 1
    index: int = 0
    address: tuple[str, int] = ("", 0)

    def share(self, seeds: int) -> range:
        """The members of a run that this process trains: as many as any other, or one more or less."""
        return range(self.index * seeds // self.count, (self.index + 1) * seeds // self.count)


class _Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket, index: int):
        connection.settimeout(SILENCE_S)
        self.socket, self.index = connection, index
        self.left = False
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """What cannot be sent is noticed where messages are read."""
        with contextlib.suppress(OSError), self._lock:
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self.socket.close()

    def receive(self) -> Message:
        """The next message. Raises ``OSError`` where the other end is gone, silent, or none of ours."""
        raw = self._file.readline(MOST_BYTES)
        if not raw.endswith(b"\n"):
            raise ConnectionResetError("its connection was closed")
        try:
            message = json.loads(raw)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise ConnectionError("it sent what is no message")
        return message


class Hosts:
    """The processes of a run, as one of them sees them. A process that is alone never waits here.

    Raises ``ConfigError`` where the first one can't listen, or what listens there is something else; ``RunError`` where
    others do not come within ``JOIN_S``.
    """

    def __init__(self, place: Place, stop: Stop, say: Callable[[str], None] = lambda text: None):
        self.count, self.index, self.place = place.count, place.index, place
        self.advice = "nothing was trained yet"  # what to do where a process is gone
        self._stop = stop
        self._values: dict[int, deque[Any]] = {i: deque() for i in range(place.count)}
        self._lines: deque[list[dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._gone: str | None = None
        self._announced = False
        self._peers: dict[int, _Peer] = {}
        if place.count > 1:
            self._peers = _gather(place, stop, say) if place.index == 0 else {0: _reach(place, stop, say)}
        self._listening = [threading.Thread(target=self._listen, args=(p,), daemon=True) for p in self._peers.values()]
        for thread in self._listening:
            thread.start()
        if self._peers:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    @property
    def is_first(self) -> bool:
        return self.index == 0

    # What a run says

    def exchange(self, value: Any = None) -> list[Any]:
        """Every process's value, in their order, once all have come here. Values are what JSON has.

        Raises ``RunError`` where one is gone or ended first, and what the process was asked to stop with.
        """
        if self.count == 1:
            return [value]
        if not self.is_first:
            self._peers[0].send({"kind": "value", "value": value})
            return self._next(0)
        values = [value, *(self._next(i) for i in range(1, self.count))]
        self._send({"kind": "value", "value": values})
        return values

    def _next(self, index: int) -> Any:
        with self._changed:
            while True:
                self._stop.raise_if_asked()  # also where the value is there: others may have stopped after they sent it
                if self._values[index]:
                    return self._values[index].popleft()
                if self._peers[index].left:
                    raise RunError(f"host {index} has ended")
                self._changed.wait(POLL_S)

    def tell(self, lines: list[dict[str, Any]]) -> None:
        """Gives the first process lines of metrics, for its trackers."""
        if not self.is_first:
            self._peers[0].send({"kind": "lines", "lines": lines})

    def told(self) -> Iterator[list[dict[str, Any]]]:
        """Lines that others gave since."""
        while self._lines:
            yield self._lines.popleft()

    # What goes on beside it

    def _send(self, message: Message, but: int | None = None) -> None:
        for peer in self._peers.values():
            if peer.index != but:
                peer.send(message)

    def _beat(self) -> None:
        """Signs of life; and a signal that came here is told to all."""
        last = time.monotonic()
        while not self._closed.wait(POLL_S):
            self.announce()
            if time.monotonic() - last > BEAT_S:
                last = time.monotonic()
                self._send({"kind": "beat"})

    def announce(self) -> None:
        """Tells the others of a signal that came here, once."""
        if self._stop.signum is not None and not self._announced:
            self._announced = True
            self._send({"kind": "stop", "signum": int(self._stop.signum)})

    def _listen(self, peer: _Peer) -> None:
        try:
            while not peer.left:
                self._take(peer, peer.receive())
        except TimeoutError:
            self._lose(f"host {peer.index} is gone (nothing was heard of it for {SILENCE_S:.0f} s)")
        except OSError as error:
            if not self._closed.is_set():
                self._lose(f"host {peer.index} is gone ({error.strerror or error})")

    def _take(self, peer: _Peer, message: Message) -> None:
        kind = message["kind"]
        if kind == "value":
            with self._changed:
                self._values[peer.index].append(message.get("value"))
                self._changed.notify_all()
        elif kind == "lines":
            self._lines.append(message.get("lines", []))
        elif kind == "stop":
            self._announced = True
            self._send(message, but=peer.index)
            self._stop.relay(int(message["signum"]))
        elif kind == "ended":
            self._lose(str(message.get("why")))
        elif kind == "left":
            with self._changed:
                peer.left = True
                self._changed.notify_all()
            if self.is_first:
                peer.send(message)  # so it knows that all it said was heard

    def _lose(self, why: str) -> None:
        """A process is gone: all others are to save and end."""
        with self._changed:
            if self._gone is not None or self._closed.is_set():
                return
            self._gone = why
            self._stop.ask(RunError(why))
            self._changed.notify_all()
        if self.is_first:
            self._send({"kind": "ended", "why": why})
        threading.Thread(target=self._end_late, args=(why,), name="end", daemon=True).start()

    def _end_late(self, why: str) -> None:
        """Ends a process that could not, as while XLA compiles."""
        if not self._closed.wait(LEAVE_S):
            warn(f"{why}; ended {LEAVE_S:.0f} s later without saving; {self.advice}")
            self._stop.end_process(1)

    def close(self, error: BaseException | None = None) -> None:
        """Ends the connections; where the run ended with an error, all others are told, and end, too."""
        with self._changed:
            if self._closed.is_set():
                return
            self._closed.set()
        self.announce()
        if error is not None and not isinstance(error, Interrupted) and self._gone is None:
            self._send({"kind": "ended", "why": f"host {self.index} ended: {one_line(str(error))}"})
        self._send({"kind": "left"})
        for thread in self._listening:
            thread.join(END_S)
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)  # a thread that still reads it is told
            peer.close()


@contextlib.contextmanager
def joined(place: Place, stop: Stop, say: Callable[[str], None]) -> Iterator[Hosts]:
    """The processes of a run, once all have come; within, what ends this one ends all. Raises as :class:`Hosts`."""
    hosts = Hosts(place, stop, say)
    with stop.undoing(hosts.announce):
        try:
            yield hosts
        except BaseException as error:
            hosts.close(error)
            raise
        hosts.close()


# How they come together


def _gather(place: Place, stop: Stop, say: Callable[[str], None]) -> dict[int, _Peer]:
    """All others, as the first process waits for them."""
    found: dict[int, _Peer] = {}
    with _listening_socket(place.address) as listening:
        listening.settimeout(POLL_S)

        def missing() -> str:
            return ", ".join(str(i) for i in range(1, place.count) if i not in found)

        for _ in _tries(
            stop, lambda: say(f"waiting for host {missing()} of {place.count} at {address_text(place.address)}")
        ):
            if len(found) == place.count - 1:
                return found
            with contextlib.suppress(TimeoutError):
                peer = _welcome(listening.accept()[0], place, found)
                if peer is not None:
                    found[peer.index] = peer
    raise RunError(
        f"host {missing()} of {place.count} did not come to {address_text(place.address)} within {JOIN_S:.0f} s"
    )


def _listening_socket(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        if host in LOCAL:
            return socket.create_server(address, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(f"coordinator: cannot listen at {address_text(address)}: {error.strerror or error}") from None


def _tries(stop: Stop, say: Callable[[], None]) -> Iterator[None]:
    """As often as there is time; ``say`` is called once, where it takes long."""
    begin, said = time.monotonic(), False
    while time.monotonic() < begin + JOIN_S:
        stop.raise_if_asked()
        if not said and time.monotonic() > begin + END_S:
            said = True
            say()
        yield


def _welcome(connection: socket.socket, place: Place, found: dict[int, _Peer]) -> _Peer | None:
    """Who connected; None where it is none of the processes that are waited for."""
    peer = _Peer(connection, -1)
    connection.settimeout(END_S)
    with contextlib.suppress(OSError, KeyError, TypeError):
        message = peer.receive()
        count, index = message["hosts"], message["host"]
        if count != place.count:
            why = f"hosts: {count} here, but {place.count} at host 0"
        elif index not in range(1, place.count) or index in found:
            why = f"host: another process is host {index} already"
        else:
            peer.index = index
            connection.settimeout(SILENCE_S)
            peer.send({"kind": "welcome"})
            return peer
        peer.send({"kind": "refused", "why": why})
    peer.close()
    return None


def _reach(place: Place, stop: Stop, say: Callable[[str], None]) -> _Peer:
    """The first process, once it listens."""
    error: OSError | None = None
    for _ in _tries(stop, lambda: say(f"waiting for host 0 at {address_text(place.address)}")):
        try:
            connection = socket.create_connection(place.address, timeout=END_S)
        except OSError as failed:  # nobody listens there yet, or its name is not known yet
            error = failed
            time.sleep(POLL_S)
            continue
        peer = _Peer(connection, 0)
        peer.send({"kind": "join", "hosts": place.count, "host": place.index})
        try:
            answer = peer.receive()
        except OSError:
            answer = {
                "kind": "",
                "why": f"coordinator: what listens at {address_text(place.address)} is no host 0 of a run",
            }
        if answer["kind"] != "welcome":
            peer.close()
            raise ConfigError(str(answer.get("why")))
        return peer
    raise RunError(f"host 0 did not come to {address_text(place.address)} within {JOIN_S:.0f} s ({error})")


def address_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
