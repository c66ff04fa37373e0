"""One hyperparameter: how it is declared, and how a value for it is read. Imports no JAX.

A class of settings is a frozen dataclass, every field of which is made by :func:`setting`. Flags, help, YAML, checks
and grids all follow from that declaration, for jqmix's own settings and for those of a mixer or core from outside.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jqmix.inputs import INT32, ConfigError, parse_scalar, parse_yaml, plain_data, quoted, unfit_number

Leaf = tuple[str, Any, dataclasses.Field]  # dotted path, type, field


def setting(
    default: Any,
    about: str,
    *,
    low: int | float = -math.inf,
    high: int | float = math.inf,
    above: int | float = -math.inf,
    traced: bool = False,
) -> Any:
    """A field with its help text and range: low ≤ value ≤ high, and value > above.

    Floats fit in 32 bits, and whole numbers do unless ``high`` says more. A ``traced`` number is an argument of the
    compiled program: a grid of it is more members, not more compilations. The program sees it as a float32 scalar.
    """
    meta = {"about": about, "low": low, "high": high, "above": above, "traced": traced}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class NoSettings:
    """Of a mixer or a core that has nothing to set."""


def settings_in(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Every setting of a class of settings, and of those that are its fields."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        path = prefix + f.name
        if "about" in f.metadata:
            yield path, hints[f.name], f
        elif dataclasses.is_dataclass(hints[f.name]):
            yield from settings_in(hints[f.name], path + ".")


# A class of settings from outside


def check_settings(cls: Any, whose: str) -> None:
    """Raises :class:`ConfigError` unless ``cls`` declares settings as a mixer or a core may have them."""
    wanted = f"{whose}: its settings must be a frozen dataclass of jqmix.setting(…)"
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{wanted}, not {quoted(cls)}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{wanted}; {cls.__name__} is not frozen")
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:  # a name that is not there, or whatever an annotation computes
        raise ConfigError(f"{wanted}; a type in {cls.__name__} cannot be read: {quoted(str(error))}") from None
    for f in dataclasses.fields(cls):
        name = f"{cls.__name__}.{f.name}"
        if "about" not in f.metadata:
            raise ConfigError(f"{wanted}; {name} is none")
        if not _is_simple(hints[f.name]):
            raise ConfigError(
                f"{wanted}; {name} must be bool, int, float, str, a Literal of texts, or one of them | None"
            )
        if f.metadata["traced"] and hints[f.name] not in (int, float):
            raise ConfigError(f"{wanted}; {name} is traced, so it must be int or float")


def _is_simple(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return len(inner) == 1 and len(typing.get_args(hint)) == 2 and _is_simple(inner[0])
    if typing.get_origin(hint) is Literal:
        return all(isinstance(a, str) for a in typing.get_args(hint))
    return hint in (bool, int, float, str)


def make_settings(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Settings of this class from values by field name; what is not given keeps its default. Everything is coerced and
    checked, defaults too: a class from outside may have any. ``prefix`` is for messages."""
    read = {}
    for name, hint, f in settings_in(cls):
        value = values.get(name, f.default)
        read[name] = read_value(prefix + name, hint, f, value)
    return cls(**read)


# Values


def read_value(path: str, hint: Any, f: dataclasses.Field, value: Any) -> Any:
    """``value`` as the field's type and in its range. Raises :class:`ConfigError`."""
    value = coerce(path, hint, value)
    check_range(path, f, value)
    return value


def describe_type(hint: Any) -> str:
    """What a field takes, for messages and help."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else describe_type(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def coerce(path: str, hint: Any, value: Any) -> Any:
    """``value`` as the field's type, or ConfigError. Text from the command line and YAML values alike."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    wrong = ConfigError(f"{path}: {quoted(value)} is not allowed; it takes {describe_type(hint)}")
    if origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(hint):
            raise wrong
        return value
    if origin is dict:
        return _mapping(path, value, wrong)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise wrong
    if hint is str:
        if not isinstance(value, str) or not value:
            raise wrong
        return value
    number = parse_scalar(value.strip()) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise wrong
    if isinstance(number, float) and not math.isfinite(number):
        raise wrong
    if hint is float:
        return _float(path, number)
    if number != int(number):
        raise wrong
    return int(number)


def _float(path: str, number: int | float) -> float:
    unfit = unfit_number(float(number) if abs(number) < 10**300 else 1e300)
    if unfit:
        raise ConfigError(f"{path}: {quoted(number)} {unfit}")
    return float(number)


def _mapping(path: str, value: Any, wrong: ConfigError) -> dict[str, Any]:
    """Plain data, by name; from the command line it is text."""
    if isinstance(value, str):
        try:
            value = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {quoted(value)} is not allowed; {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong
    return plain_data(path, value)


def check_range(path: str, f: dataclasses.Field, value: Any) -> None:
    """Raises :class:`ConfigError` for a number that is out of the field's range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high, above = f.metadata["low"], f.metadata["high"], f.metadata["above"]
    if isinstance(value, int):
        high = min(high, INT32) if high == math.inf else high
    if low <= value <= high and value > above:
        return
    allowed = [f"≥ {_spelled(low)}"] * (low > -math.inf) + [f"> {_spelled(above)}"] * (above > -math.inf)
    allowed += [f"≤ {_spelled(high)}"] * (high < math.inf)
    raise ConfigError(f"{path}: {quoted(value)} is out of range; it must be {' and '.join(allowed)}")


def _spelled(bound: int | float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
