"""Files of run directories: read with care, as they may be damaged or anybody's, and written whole. Imports no JAX."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jqmix.inputs import ConfigError, one_line, quoted, read_text, shown

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


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk. Where folders can't be opened, nothing."""
    with contextlib.suppress(PermissionError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
