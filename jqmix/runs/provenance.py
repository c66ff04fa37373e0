"""Which commit of jqmix a run was made with."""

import functools
import os
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
SECONDS = 5  # that git may take


@functools.cache
def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout of jqmix in ``root``.

    None where there is none: an installed package, inside somebody's repository or not. None, too, where git is
    missing or slow, or fails.
    """
    if not _is_jqmix(root / "pyproject.toml"):
        return None
    asked = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    # What a caller such as a hook says of its own repository is not about this one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        # A file and no pipe: what a slow git has started may hold a pipe open for as long as it likes.
        with tempfile.TemporaryFile() as answer:
            subprocess.run(
                asked, env=env, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.DEVNULL, timeout=SECONDS
            )
            answer.seek(0)
            said = os.fsdecode(answer.read()).splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    if len(said) != 2 or Path(said[0]).resolve() != root or not re.fullmatch("[0-9a-f]{40,64}", said[1]):
        return None
    return said[1]


def _is_jqmix(pyproject: Path) -> bool:
    try:
        return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["name"] == "jqmix"
    except (OSError, ValueError, LookupError, TypeError):
        return False
