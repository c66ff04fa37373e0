"""Files of a run directory that is damaged, or anybody's: read with care, and what is wrong said. Imports no JAX."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from jqmix.config import ConfigError
from jqmix.inputs import one_line, quoted, read_text, shown

# Of a file that is read whole, in bytes; a run's metadata takes two thousand.
MOST_BYTES = 16_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ``ConfigError``, one line that names the file, for anything else."""
    try:
        tree = json.loads(read_text(path, MOST_BYTES))
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
