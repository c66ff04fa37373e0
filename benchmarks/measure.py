"""What the benchmarks share: timing a function, a process that is timed in turns, and saying what was timed on what."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Contender:
    """A program in a process of its own, so that no other's memory or threads are in its way: it says what it cost to
    make, then answers every turn with a number."""

    def __init__(self, command: list[str], sources: Path | None = None):
        """``sources``: a checkout that is to be used in place of what is installed."""
        environment = os.environ | ({} if sources is None else {"PYTHONPATH": str(sources.resolve())})
        # Contenders live at the same time, and JAX would have each take three quarters of a GPU's memory at once.
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.command = command
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.costs: Any = self._answer()
        self.results: list[float] = []

    def turn(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.results.append(self._answer())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        """What it says next, whatever else is printed by what it imports."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        sys.exit(f"ended: {' '.join(self.command)}")


ANSWER = "answer "


def answer_turns(costs: Any, turn: Callable[[], float]) -> None:
    """The other end of a :class:`Contender`."""
    print(ANSWER + json.dumps(costs), flush=True)
    for _ in sys.stdin:
        print(ANSWER + json.dumps(turn()), flush=True)


def take_turns(contenders: list[Contender], repeats: int) -> list[float]:
    """The median answer of each."""
    for _ in range(repeats):
        for contender in contenders:
            contender.turn()
    for contender in contenders:
        contender.end()
    return [statistics.median(contender.results) for contender in contenders]


def median_ms(function: Callable[..., Any], *args: Any, repeats: int = 15) -> float:
    """Median milliseconds of a function, compiled as training is and warmed up, its arguments made ready before."""
    import jax

    from jqmix.runs.devices import compiler_options

    compiled = jax.jit(function).lower(*args).compile(compiler_options())
    jax.block_until_ready((args, compiled(*args)))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def write(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON, with the device, the versions and the commit that it holds for; nothing where no path is."""
    if path is not None:
        from jqmix.runs.experiment import provenance

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(provenance() | result, indent=1) + "\n", encoding="utf-8")
