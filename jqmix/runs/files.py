"""How files of unknown origin are read: nothing in them is trusted, nothing of them is executed. Imports no JAX."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from jqmix.config import ConfigError

# Of a file that is read whole, in bytes; a run's metadata takes two thousand.
FILE_LIMIT = 16_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ``ConfigError``, one line that names the file, for anything else."""
    try:
        if not path.is_file():  # a pipe would never end
            raise ConfigError(f"{path}: cannot be read: not a file")
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > FILE_LIMIT:
        raise ConfigError(f"{path}: is larger than {FILE_LIMIT // 1_000_000} MB")
    try:
        tree = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number without end, nested without end
        raise ConfigError(f"{path}: not JSON") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not {describe(tree)}")
    return tree


def describe(value: Any) -> str:
    """A value for a message: short, on one line."""
    return one_line(repr(value), 60)


def one_line(text: str, limit: int = 400) -> str:
    """``text`` with a space for whatever is no printable character, cut to ``limit``."""
    plain = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def warn(text: str) -> None:
    """One line on stderr. That nobody may be there to read it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(f"jqmix: {one_line(text)}", file=sys.stderr)
