"""What comes from outside: text to show, files, YAML, folders to be made. Imports nothing of jqmix, and no JAX.

Everything here takes the worst for granted: a value of any length with any character in it, a file that is a device,
YAML that would build objects or grow without end. Whatever is unfit raises :class:`ConfigError`.
"""

import os
import re
import reprlib
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 200_000  # of a file or a text of YAML: a preset has a thousand
MOST_NODES = 10_000  # values, keys, lists and mappings of a document
MOST_DEPTH = 20  # of lists and mappings in one another
MOST_SHOWN = 60  # characters of a value in a message
MOST_SAID = 390  # characters of a message

INT32 = 2**31 - 1
FLOAT32_TINY = 2.0**-126  # below, XLA takes a float32 for 0


class ConfigError(ValueError):
    """One line: the field, what was given, what is allowed."""


# Text to show


class _Repr(reprlib.Repr):
    """Short for any value: what is deep or long is left out before it is spelled."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = MOST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 10**300 else "a number of hundreds of digits"


_REPR = _Repr()


def shorten(text: str, most: int) -> str:
    """``text`` with its middle left out where it is longer than ``most`` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def quoted(value: Any) -> str:
    """``value`` as a message shows it: on one line, at most 60 characters, control characters escaped."""
    return shorten(_REPR.repr(value), MOST_SHOWN)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as a message shows it: as it is, but for what is long or would not print."""
    return shorten(one_line(os.fspath(path)), 120)


def one_line(text: str) -> str:
    """Any text as one line of at most 390 characters that can be printed."""
    line = " ".join(shorten(text, 100 * MOST_SAID).split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return shorten(plain, MOST_SAID)


# Numbers and plain data

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None} | {
    spelled: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelled in (word, word.title(), word.upper())
}
_WORDS |= {sign + word: float(sign + "inf") for sign in ("", "-", "+") for word in (".inf", ".Inf", ".INF")}
_WORDS |= dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))


def parse_scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means in YAML 1.2: ``1e3`` is a number, ``yes`` and ``1:30`` are text. Also ``1_000``."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 300 else float(text)  # int() refuses thousands of digits
    if _FLOAT.fullmatch(text):
        return float(text)
    for pattern, base in ((_HEX, 16), (_OCTAL, 8)):
        if pattern.fullmatch(text):
            return int(text, base)
    return text


def unfit_number(value: int | float) -> str | None:
    """What keeps a number from 32 bits, as words for a message; None where it fits."""
    if isinstance(value, int):
        return None if -INT32 - 1 <= value <= INT32 else "does not fit in 32 bits"
    try:
        struct.pack("<f", value)  # the native form does not check
    except OverflowError:
        return "is beyond what a 32-bit float holds"
    if value - value != 0:
        return "is not finite"
    return "is so small that it is 0 as a 32-bit float" if 0 < abs(value) < FLOAT32_TINY else None


def plain_data(path: str, value: Any, depth: int = 0) -> Any:
    """A copy of ``value`` if it is plain data: text, 32-bit numbers, true, false, null, and lists and mappings (with
    text for keys) of these. ``path`` is what messages call it."""
    if depth > MOST_DEPTH:
        raise ConfigError(f"{shorten(path, MOST_SHOWN)}: more than {MOST_DEPTH} levels deep")
    if isinstance(value, str):
        return _plain_text(path, value)
    if value is None or isinstance(value, bool):
        return value
    if type(value) in (int, float):
        wrong = unfit_number(value)
        if wrong:
            raise ConfigError(f"{shown(path)}: {quoted(value)} {wrong}")
        return value
    if isinstance(value, list | tuple):
        return [plain_data(f"{path}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{shown(path)}: {quoted(key)} is not allowed as a key; keys are text")
            _plain_text(path, key)
        return {key: plain_data(f"{path}.{key}", item, depth + 1) for key, item in value.items()}
    raise ConfigError(
        f"{shown(path)}: {quoted(value)} is not plain data (numbers, text, true, false, null, lists and mappings)"
    )


def _plain_text(path: str, text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{shown(path)}: {quoted(text)} is not UTF-8")
    return text


# YAML


class _Composer:
    """Plain data from the events of one document. Nothing is resolved by tags, and nothing is built that they name."""

    def __init__(self, text: str):
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._nodes = 0

    def document(self) -> Any:
        """The only document's value; None where there is none."""
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        if not isinstance(next(self._events), yaml.StreamEndEvent):
            raise ConfigError("not plain data: several documents")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        self._nodes += 1
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ConfigError(f"not plain data: {where} has an anchor or an alias (& or *; quote what is text)")
        if event.tag is not None:
            raise ConfigError(f"not plain data: {where} has a tag, {quoted(event.tag)} (quote what is text)")
        if depth > MOST_DEPTH:
            raise ConfigError(f"{where}: more than {MOST_DEPTH} levels deep")
        if self._nodes > MOST_NODES:
            raise ConfigError(f"{where}: more than {MOST_NODES:,} values")
        if isinstance(event, yaml.ScalarEvent):
            return parse_scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return [self._value(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]
        mapping: dict[str, Any] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            line = event.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: {quoted(key)} is not allowed as a key; keys are text")
            if key == "<<" and event.implicit[0]:
                raise ConfigError(f"not plain data: line {line} merges another mapping (<<)")
            if key in mapping:
                raise ConfigError(f"line {line}: {quoted(key)} is given twice")
            mapping[key] = self._value(next(self._events), depth + 1)
        return mapping

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event


def parse_yaml(text: str) -> Any:
    """The plain data that a text of YAML holds; None if it is empty.

    Raises :class:`ConfigError` for what is not YAML, and for tags, anchors, aliases, merged or repeated keys, keys that
    are no text, several documents, and what is longer, deeper or larger than a configuration has reason to be.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"more than {MOST_BYTES:,} characters")
    try:
        return _Composer(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f" (line {mark.line + 1})"
        raise ConfigError(f"not YAML: {one_line(error.problem or error.context or '')}{where}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {one_line(str(error))}") from None
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # PyYAML's own, of numbers: %YAML 1.99…9, "\UFFFFFFFF"
        raise ConfigError(f"not YAML: {one_line(str(error))}") from None


class _Dumper(yaml.SafeDumper):
    """Quotes text that :func:`parse_scalar` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _pattern in (_FLOAT, _INT, _HEX, _OCTAL):
    _Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_pattern.pattern})$"), None)


def dump_yaml(tree: Any) -> str:
    """YAML of plain data that :func:`parse_yaml` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# Files


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file of at most ``most`` bytes. Raises :class:`ConfigError` for any other."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device or a pipe would not end
            raise ConfigError(f"{shown(path)}: cannot be read: not a regular file")
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {_reason(error)}") from None
    if len(data) > most:
        raise ConfigError(f"{shown(path)}: larger than {most:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)}: not UTF-8 (byte {error.start})") from None


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file. Raises :class:`ConfigError` with the path in front."""
    text = read_text(path)
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None


def check_path_text(field: str, path: str) -> None:
    """A path must be text that can be shown and stored. Raises :class:`ConfigError`."""
    if not path or not path.isprintable():
        raise ConfigError(f"{field}: {quoted(path)} is not allowed; it takes a path, without control characters")
    if path.startswith("~"):  # --run-dir=~/x: the shell has not replaced it
        raise ConfigError(f"{field}: {quoted(path)} is not allowed; ~ is not replaced here, give the whole path")


def check_new_folder(field: str, path: str | os.PathLike[str]) -> None:
    """A folder that is to be made, or is there and empty, can be used. Raises :class:`ConfigError`; writes nothing.

    Another program may come between: whoever makes it still has to look.
    """
    check_path_text(field, os.fspath(path))
    if holds_anything(field, path):
        raise ConfigError(f"{field}: {shown(path)} already exists and is not empty; nothing was overwritten")


def holds_anything(field: str, path: str | os.PathLike[str]) -> bool:
    """Whether a folder that is to be written does. Raises :class:`ConfigError` if it is none, or can neither be made
    nor written to; writes nothing."""
    folder = Path(path)
    try:
        if not _is_there(folder):
            _check_parents(field, folder)
            return False
        if not folder.is_dir():
            raise ConfigError(f"{field}: {shown(folder)} already exists and is not a folder")
        _check_writable(field, folder, folder)
        return any(folder.iterdir())
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ConfigError(f"{field}: {shown(folder)} cannot be made: {_reason(error)}") from None


def check_parent(field: str, folder: str | os.PathLike[str]) -> None:
    """New folders can be made in ``folder``, and it itself if need be. Raises :class:`ConfigError`; writes nothing."""
    try:
        _check_parents(field, Path(folder) / "run")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{field}: no folder can be made in {shown(folder)}: {_reason(error)}") from None


def check_new_file(field: str, path: str | os.PathLike[str]) -> None:
    """A file can be written in a folder that is there. Raises :class:`ConfigError`; writes nothing."""
    check_path_text(field, os.fspath(path))
    file = Path(path)
    try:
        if _is_there(file) and not file.is_file():
            raise ConfigError(f"{field}: {shown(file)} already exists and is not a file")
        _check_writable(field, file, file.parent)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{field}: {shown(file)} cannot be written: {_reason(error)}") from None


def check_readable_path(field: str, path: str) -> None:
    """The system can be asked about a path, whether or not something is there. Raises :class:`ConfigError`."""
    try:
        _is_there(Path(path) / "config.yaml")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}: {shown(path)} cannot be read: {_reason(error)}") from None


def _is_there(path: Path) -> bool:
    """Like ``os.path.lexists``, which takes a name that is too long for one that is free."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_parents(field: str, folder: Path) -> None:
    """The nearest folder that is there can be written to, and takes the names of those below it."""
    missing, parent = [folder.name], folder.parent
    while not _is_there(parent):
        missing.append(parent.name)
        parent = parent.parent
    _check_writable(field, folder, parent)
    for name in missing:
        _is_there(parent / name)  # raises where the name is too long


def _check_writable(field: str, path: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{field}: {shown(path)} cannot be made: {shown(folder)} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{field}: {shown(path)} cannot be made: {shown(folder)} cannot be written to")


def _reason(error: Exception) -> str:
    return one_line(error.strerror or str(error)) if isinstance(error, OSError) else one_line(str(error))
