"""Code by name: the mixers and cores that there are, and functions from outside the package. Imports no JAX.

Whatever code from outside does wrong is said in one line, with the file and line where it does.
"""

import difflib
import functools
import importlib
import inspect
import keyword
import os
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from jqmix.inputs import ConfigError, quoted, shown
from jqmix.settings import NoSettings, check_settings, make_settings, settings_in

# Code that users' mistakes surface in, but are not made in. The standard library is another.
LIBRARIES = {"jax", "jaxlib", "jqmix", "numpy", "chex", "flax", "jaxmarl", "jaxtyping", "beartype"}
LONGEST = 300  # characters of somebody else's message

Factory = str | Callable[..., Any]  # or where it is: "package.module:function"


# Loading


def is_path(text: str) -> bool:
    """Whether ``text`` is two dotted names with a colon between."""
    module, _, attribute = text.partition(":")
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in [*module.split("."), attribute])


def check_path(path: str, field: str, error: type[ValueError] = ConfigError) -> None:
    """Raises ``error``, which names ``field``, unless ``path`` has the right form; imports nothing."""
    if not is_path(path):
        raise error(f"{field}: {quoted(path)} must look like package.module:function")


def load_function(path: str, field: str, error: type[ValueError] = ConfigError) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules in the current folder are found, too."""
    check_path(path, field, error)
    module, _, attribute = path.partition(":")
    if "" not in sys.path:  # as for `python -m`; last, so that it hides nothing that is installed
        sys.path.append("")
    importlib.invalidate_caches()  # a file that was written a moment ago, as from a notebook
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as cause:
        raise error(f"{field}: cannot load {quoted(path)}: {raised(cause)}") from None
    function = getattr(loaded, attribute, None)
    if not callable(function):
        given = "missing" if function is None else f"a {type(function).__name__}, which cannot be called"
        place = getattr(loaded, "__file__", None) or "built in"
        raise error(f"{field}: cannot load {quoted(path)}: {attribute} is {given} ({place})")
    return function


# Registries


class Entry(NamedTuple):
    """A factory, and the class of its settings; None where that is read from the factory's signature."""

    factory: Factory
    settings: type | None = None


class Registry:
    """Factories of one kind by name. ``field`` is the configuration's field that names one, ``group`` that of its
    settings. The settings of those that come with jqmix are known without importing JAX."""

    def __init__(self, field: str, group: str, builtin: Mapping[str, Entry]):
        self.field = field
        self.group = group
        self.builtin = tuple(builtin)
        self._entries = dict(builtin)

    def register(self, name: str, factory: Factory) -> None:
        """Adds a factory under ``name``. Raises :class:`ConfigError` for a name that is taken or not a name."""
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise ConfigError(
                f"{self.field}: {quoted(name)} is not allowed as a name; it takes letters, digits, _ and -"
            )
        if name in self._entries:
            raise ConfigError(f"{self.field}: {name!r} is already registered")
        if isinstance(factory, str):
            check_path(factory, self.field)
        elif not callable(factory):
            raise ConfigError(f"{self.field}: {quoted(factory)} is not a function, nor package.module:function")
        self._entries[name] = Entry(factory)

    def names(self) -> list[str]:
        return list(self._entries)

    def describe(self) -> str:
        """What the field takes, for messages and help."""
        return f"one of {', '.join(self._entries)}, or package.module:function"

    def check(self, name: Any) -> str:
        """``name``, if it is a registered one or a path. Raises :class:`ConfigError`; imports nothing."""
        if isinstance(name, str) and (name in self._entries or is_path(name)):
            return name
        raise ConfigError(f"{self.field}: {quoted(name)} is not allowed; it takes {self.describe()}")

    def is_foreign(self, name: Any) -> bool:
        """Whether to build it runs code that only ``name`` says where to find."""
        return isinstance(name, str) and name not in self._entries and is_path(name)

    def factory(self, name: str) -> Callable[..., Any]:
        """What builds it. Loads code from outside if ``name`` says so."""
        entry = self._entries.get(self.check(name), Entry(name))
        return load_function(entry.factory, self.field) if isinstance(entry.factory, str) else entry.factory

    def settings(self, name: str) -> type:
        """The class of its settings. Loads code from outside if ``name`` says so."""
        entry = self._entries.get(self.check(name))
        if entry is not None and entry.settings is not None:
            return entry.settings
        return _declared_settings(self.factory(name), self.field) or NoSettings

    def known_settings(self) -> dict[str, type]:
        """The classes of settings of those that come with jqmix."""
        return {name: self._entries[name].settings or NoSettings for name in self.builtin}

    def with_setting(self, name: str) -> list[str]:
        """Those that come with jqmix and have a setting of this name."""
        return [key for key, cls in self.known_settings().items() if any(f == name for f, _, _ in settings_in(cls))]

    def read_settings(self, name: str, values: Mapping[str, Any]) -> Any:
        """Its settings from values by field name. Those that only others have are left out. Raises
        :class:`ConfigError` for what is unknown to all."""
        cls = self.settings(name)
        own = [field for field, _, _ in settings_in(cls)]
        for field in values:
            if field not in own and not self.with_setting(field):
                near = difflib.get_close_matches(shown(field), own, n=3, cutoff=0.5)
                known = f"did you mean {', '.join(f'{self.group}.{x}' for x in near or own)}?" if own else ""
                known = known or f"{self.field} {shown(name)} has none"
                raise ConfigError(f"{self.group}.{shown(field)}: no such field; {known}")
        return make_settings(cls, {k: v for k, v in values.items() if k in own}, f"{self.group}.")

    def build(self, name: str, sizes: Any, settings: Any = None) -> Any:
        """Calls the factory with the sizes and, where it takes them, the settings (its defaults unless given).

        What code from outside raises becomes a :class:`ConfigError` of one line.
        """
        factory = self.factory(name)
        if settings is None:
            settings = self.read_settings(name, {})
        if name in self.builtin:
            return factory(sizes) if isinstance(settings, NoSettings) else factory(sizes, settings)
        arguments = (sizes, settings) if _declared_settings(factory, self.field) else (sizes,)
        try:
            return factory(*arguments)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{self.field}: {called(factory)} raised {raised(error, where(factory))}") from None


def called(function: Any) -> str:
    """A function's name, for messages."""
    return getattr(function, "__name__", type(function).__name__)


def _declared_settings(factory: Callable[..., Any], field: str) -> type | None:
    """The annotation of a factory's second parameter: the class of its settings. None where it takes sizes alone."""
    whose = located(f"{field}: {called(factory)}", where(factory))
    try:
        parameters = [*inspect.signature(factory, eval_str=True).parameters.values()]
    except Exception as error:  # no signature, or annotations that cannot be read
        raise ConfigError(f"{whose}: its parameters cannot be read: {raised(error)}") from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not positional or any(p not in positional[:2] for p in required):
        raise ConfigError(f"{whose}: it must take (sizes) or (sizes, settings)")
    if len(positional) < 2 or (positional[1] not in required and positional[1].annotation is inspect.Parameter.empty):
        return None
    if positional[1].annotation is inspect.Parameter.empty:
        raise ConfigError(f"{whose}: its second parameter, {positional[1].name}, must be annotated with its settings")
    check_settings(positional[1].annotation, whose)
    return positional[1].annotation


# What is wrong with code from outside, and where


def first_line(text: str) -> str:
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
        text = first_line(str(error.msg if isinstance(error, SyntaxError) else error))
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
        if not _in_library(at):
            place = _place(at.tb_frame.f_code.co_filename, at.tb_lineno)
        at = at.tb_next
    return place


def _in_library(at: TracebackType) -> bool:
    package = str(at.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names


def _place(file: str, line: int) -> str:
    """Relative where it lies below the current directory."""
    here = os.path.join(os.path.abspath(os.curdir), "")
    return f"{file.removeprefix(here)}:{line}" if file else ""
