"""Files of run directories: read with care, as they may be damaged or anybody's, and written whole. Imports no JAX."""

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jqmix.inputs import ConfigError, holds_anything, one_line, quoted, read_text, shown

MOST_JSON = 16_000_000  # bytes of a JSON file; a run's metadata takes two thousand


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ``ConfigError``, one line that names the file, for anything else."""
    try:
        tree = json.loads(read_text(path, MOST_JSON))
    except ConfigError:
        raise
    except (ValueError, RecursionError):  # not JSON, a number without end, nested without end
        raise ConfigError(f"{shown(path)}: not JSON") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{shown(path)}: must hold a JSON object, not {quoted(tree)}")
    return tree


def whole_number(path: Path, tree: Mapping[str, Any], name: str, most: int, group: str = "") -> int:
    """``tree[name]``, from 1 to ``most``. Raises ``ConfigError`` that names the file and the field (in ``group``)."""
    found = tree.get(name)
    if type(found) is not int or not 1 <= found <= most:
        raise ConfigError(f"{shown(path)}: {group}{name}: {quoted(found)} is not a whole number from 1 to {most}")
    return found


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """A file to read, if it is one: a pipe or a device would be read for ever. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        yield file


def checksum(path: Path) -> str:
    """The SHA-256 of a regular file. Raises ``OSError``."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def warn(text: str) -> None:
    """One line on stderr. That nobody may be there to read it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(f"jqmix: {one_line(text)}", file=sys.stderr)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """``write(temporary)``, then moved to ``path`` at once, so that ``path`` always holds all of it or what it held."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def metrics_parts(run_dir: Path) -> list[Path]:
    """Where processes that share a run keep the lines of their members until it ends: all but the first, in order."""
    found = {path.name.split(".")[1]: path for path in run_dir.glob("metrics.*.jsonl")}
    return [found[index] for index in sorted(filter(str.isdigit, found), key=int)]


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk. Where folders can't be opened, nothing."""
    with contextlib.suppress(PermissionError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raises ``ConfigError`` if ``folder`` can't be written, or holds anything, unless told to ``overwrite``. Writes
    nothing."""
    if holds_anything("out", folder) and not overwrite:
        raise ConfigError(
            f"out: {shown(folder)} already exists and is not empty; nothing was overwritten (see --overwrite)"
        )


@contextlib.contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, inside of ``folder``; what is in it goes there once all of it is written.

    Raises ``ConfigError`` if ``folder`` holds anything (unless told to ``overwrite``) or cannot be written.
    """
    check_replaceable(folder, overwrite)
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made: {_reason(error)}") from None
    try:
        with TemporaryDirectory(prefix=".new-", dir=folder) as new:
            yield Path(new)
            for file in sorted(Path(new).iterdir()):
                os.replace(file, folder / file.name)
    except BaseException as error:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"out: {folder} cannot be written: {_reason(error)}") from None
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
