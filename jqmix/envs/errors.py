"""What is wrong with an environment, and whose code it is: one line, with the file and line of the user's code."""

import functools
import inspect
import os
import sys
from types import TracebackType
from typing import Any

# Code that users' mistakes surface in, but are not made in. The standard library is another.
LIBRARIES = {"jax", "jaxlib", "jqmix", "numpy", "chex", "flax", "jaxmarl", "jaxtyping", "beartype"}
LONGEST = 300  # characters of somebody else's message


class EnvError(ValueError):
    """An environment that cannot be had: one line that names the field and what is allowed."""


def one_line(text: str) -> str:
    """The first line of a text that says anything, cut where it is endless."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def where(thing: Any) -> str:
    """``file.py:31``, where a function, a class or an object's class is written; empty where nobody knows."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "fget", thing)  # a property's
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    if hasattr(thing, "__code__"):
        return _place(thing.__code__.co_filename, thing.__code__.co_firstlineno)
    cls = thing if isinstance(thing, type) else type(thing)
    try:
        return _place(inspect.getsourcefile(cls) or "", inspect.getsourcelines(cls)[1])
    except (OSError, TypeError):  # built in, or its source is gone
        return ""


def located(text: str, place: str) -> str:
    return f"{text} ({place})" if place else text


def raised(error: BaseException, otherwise: str = "") -> str:
    """``ValueError: no such map (corridor.py:31)``, with the innermost line of the user's own, or ``otherwise``."""
    try:
        text = one_line(str(error.msg if isinstance(error, SyntaxError) else error))
    except Exception:  # its __str__ raises, too
        text = ""
    kind = type(error).__name__
    return located(f"{kind}: {text}" if text else kind, _users_line(error) or otherwise)


def _users_line(error: BaseException) -> str:
    """The innermost line that raised ``error`` and lies in no library."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _place(error.filename, error.lineno)
    place, at = "", error.__traceback__
    while at is not None:
        if not _of_library(at):
            place = _place(at.tb_frame.f_code.co_filename, at.tb_lineno)
        at = at.tb_next
    return place


def _of_library(at: TracebackType) -> bool:
    package = str(at.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names


def _place(file: str, line: int) -> str:
    """Relative where it lies below the current directory."""
    here = os.path.join(os.path.abspath(os.curdir), "")
    return f"{file.removeprefix(here)}:{line}" if file else ""
