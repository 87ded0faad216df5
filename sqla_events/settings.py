"""Settings: what kinds of them there are, how each is read and checked, and the sections that they come in.

A setting is a field of a frozen dataclass made by :func:`setting`, which holds everything about it: kind, default, what
it means, its unit, what is allowed. Reading, checking, error messages and the table in docs/configuration.md come from
there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import ConfigError

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a value of one kind is read: ``read`` returns it or raises ValueError; ``name`` says what is allowed."""

    name: str
    read: Callable[[Any], Any]


def setting(kind: Kind, default: Any, doc: str, *, least: float | None = None, secret: bool = False) -> Any:
    """A field: its kind, its default, what it means (with unit and special values), the least value allowed."""
    metadata = {"kind": kind, "doc": doc, "least": least, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def section(kind: type, doc: str) -> Any:
    """A field that holds a section of its own."""
    return dataclasses.field(default_factory=kind, metadata={"section": kind, "doc": doc})


# Kinds --------------------------------------------------------------------------------------------------------------


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|m|h|d)")


def read_duration(value: Any) -> float:
    """Seconds from a number of them or a text such as ``1s``, ``500ms``, ``1h30m``.

    :raises ValueError: where it is neither.
    """
    if isinstance(value, str) and _PART.sub("", value.strip().lower()) == "" and value.strip():
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value.strip().lower()))
    return _read_float(value)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _read_texts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    raise ValueError


_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)i?b?")


def _read_size(value: Any) -> int:
    match = _BYTES.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match:
        return int(float(match[1]) * 1024 ** " kmg".index(match[2] or " "))
    return _read_int(value)


def one_of(*choices: str) -> Kind:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return Kind(f"one of {', '.join(choices)}", read)


def optional(kind: Kind) -> Kind:
    """The kind, or nothing."""
    return Kind(f"{kind.name}, or null", lambda value: None if value is None else kind.read(value))


BOOL = Kind("true or false", _read_bool)
INT = Kind("a whole number", _read_int)
FLOAT = Kind("a number", _read_float)
DURATION = Kind("seconds as a number, or text such as '500ms', '1s', '1h30m'", read_duration)
SIZE = Kind("bytes as a number, or text such as '64KB', '1MB'", _read_size)
TEXT = Kind("text", _read_text)
TEXTS = Kind("a list of texts, or text with commas", _read_texts)


# Reading a section --------------------------------------------------------------------------------------------------


def read_section(kind: type[C], given: Any, path: str = "") -> C:
    """A section from a mapping.

    :raises ConfigError: naming the key, the value and what is allowed.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path or 'the configuration'} is {given!r}; it must be a mapping with the keys {', '.join(_names(kind))}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise ConfigError(_unknown(key, path, list(fields)))
    return kind(**{key: _read(fields[key], value, f"{path}.{key}" if path else key) for key, value in given.items()})


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _unknown(key: Any, path: str, names: list[str]) -> str:
    where = f"{path}.{key}" if path else str(key)
    close = difflib.get_close_matches(str(key), names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown setting {where!r}{meant} Known are: {', '.join(names)}" if meant else f"unknown setting {where!r}; known are: {', '.join(names)}"


def _read(field: dataclasses.Field[Any], value: Any, path: str) -> Any:
    about = field.metadata
    if "section" in about:
        return read_section(about["section"], value, path)
    return read_value(about["kind"], value, path, about["least"], about["secret"])


def read_value(kind: Kind, value: Any, path: str, least: float | None = None, secret: bool = False) -> Any:
    """One value of a kind, within its bounds.

    :raises ConfigError: naming path, value (unless secret) and what is allowed.
    """
    allowed = kind.name if least is None else f"{kind.name}, at least {least:g}"
    shown = "a secret of the wrong type" if secret else repr(value)
    try:
        read = kind.read(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{path} is {shown}; it must be {allowed}") from None
    if least is not None and read is not None and read < least:
        raise ConfigError(f"{path} is {shown}; it must be {allowed}")
    return read
