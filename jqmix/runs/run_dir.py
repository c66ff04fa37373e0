"""A run's directory: made, locked while a process trains into it, and written so that no kill leaves half a file.

Imports no JAX.
"""

import contextlib
import datetime
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jqmix.config import Config, ConfigError, dump
from jqmix.files import metrics_parts, write_text

try:
    import fcntl
except ImportError:  # not on Windows: there nothing tells that a directory is in use
    fcntl = None


MARK = ".host-"  # what the name of a file begins with by which processes know a run's directory


class RunError(RuntimeError):
    """A run that can't go on, in one line: what happened, what is safe, and how to go on."""


class RunDir:
    """A run's directory, ours alone until ``close``."""

    def __init__(self, path: Path, made: bool, lock: bool = True):
        """Locks it, unless another process of the run did. Raises ``ConfigError`` where another run trains into it."""
        self.path = path
        self._made = made
        self._fd = os.open(path, os.O_RDONLY)
        if fcntl is None or not lock:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(f"run_dir: {path} is in use: another process trains into it") from None
        except OSError:  # a file system without locks
            pass

    @staticmethod
    def create(where: str | None, name: str, field: str = "run_dir") -> "RunDir":
        """A new one: ``where``, or one in runs/ with this name and the time.

        Raises ``ConfigError``, naming the field, where it can't be made, and rather than write into one that holds
        anything.
        """
        path = Path(where) if where is not None else None
        try:
            made = path is None or not path.exists()
            path = path or _make_named(name)
            path.mkdir(parents=True, exist_ok=True)
            run = RunDir(path, made)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{field}: {where or 'runs'} cannot be made: {reason}") from None
        run.clear()
        if any(path.iterdir()):
            run.close()
            raise ConfigError(f"{field}: {path} already exists and is not empty; nothing was overwritten")
        return run

    def clear(self) -> None:
        """Takes away what a start left that was killed before it had written its configuration."""
        names = (self.path / name for name in (".config.yaml.tmp", ".metadata.json.tmp"))
        for path in (*names, *self.path.glob(f"{MARK}*")):
            path.unlink(missing_ok=True)

    def begin(self, cfg: Config, info: dict[str, Any]) -> None:
        """Writes what is known before training. The configuration comes first: with it, a run can be resumed."""
        try:
            write_text(self.path / "config.yaml", dump(cfg))
            self.describe(info)
        except OSError as error:
            self.discard()
            raise ConfigError(f"run_dir: {self.path} cannot be written: {error.strerror}") from None

    def describe(self, info: dict[str, Any]) -> None:
        write_text(self.path / "metadata.json", json.dumps(info, indent=2) + "\n")

    def update(self, cfg: Config, info: dict[str, Any]) -> None:
        """Writes the configuration with which a run goes on; what it was made with, where that was not written yet."""
        try:
            write_text(self.path / "config.yaml", dump(cfg))
            if not (self.path / "metadata.json").is_file():
                self.describe(info)
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be written: {error.strerror}") from None

    def discard(self) -> None:
        """Takes back a directory in which nothing was trained, so that the same command can be given again."""
        if (self.path / "checkpoints").exists():
            return
        with contextlib.suppress(OSError):
            self.clear()
            names = (self.path / name for name in ("config.yaml", "metadata.json", "metrics.jsonl"))
            for path in (*names, *metrics_parts(self.path)):
                path.unlink(missing_ok=True)
            if self._made:
                self.path.rmdir()

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        """While this holds, the directory has a file of this name, by which other processes know it."""
        try:
            file = tempfile.NamedTemporaryFile(prefix=MARK, dir=self.path)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be written: {error.strerror}") from None
        with file:
            yield Path(file.name).name

    @staticmethod
    def join(path: Path, mark: str) -> "RunDir":
        """The directory that the first process of a run made and marked; other machines may see that seconds later.

        Raises ``ConfigError`` where it is not to be seen here.
        """
        for _ in range(50):
            with contextlib.suppress(OSError):
                if mark in os.listdir(path):
                    return RunDir(path, made=False, lock=False)
            time.sleep(0.2)
        raise ConfigError(f"run_dir: {path} is not that of host 0; hosts need it on a file system that they share")

    def check_there(self) -> None:
        """Raises ``RunError`` if its path no longer leads to it."""
        try:
            here, there = os.fstat(self._fd), os.stat(self.path)
        except OSError:
            here = there = None
        if here is None or there is None or (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
            raise RunError(
                f"run_dir: {self.path} was deleted or renamed while the run went on; nothing can be saved there"
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _make_named(name: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{name.replace('/', '_')}_{stamp}"
    for path in _numbered(base):
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise ConfigError(f"run_dir: {base} and a thousand after it are taken")


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for n in range(1, 1000):
        yield base.with_name(f"{base.name}_{n}")
