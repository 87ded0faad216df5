"""Settings: what kinds of them there are, how each is read and checked, and the sections that they come in.

A setting is a field of a frozen dataclass made by :func:`setting`, which holds everything about it: kind, default, what
it means, its unit, what is allowed. Reading, checking, error messages and the table in docs/configuration.md come from
there. A section checks itself when it is made, so there is no way around: file, dict, environment, ``replace`` or call.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from .errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a value of one kind is read: ``read`` returns it or raises ValueError; ``name`` says what is allowed."""

    name: str
    read: Callable[[Any], Any]
    short: str = ""
    """What the table calls it, where that says enough."""


def setting(
    kind: Kind, default: Any, doc: str, *, least: float | None = None, most: float | None = None, secret: bool = False
) -> Any:
    """A field: its kind, its default, what it means (with unit and special values), its bounds; a secret is never shown."""
    metadata = {"rule": Rule(kind, least, most, secret), "doc": doc}
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata, repr=not secret, hash=False)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def section(kind: type[Section], doc: str) -> Any:
    """A field that holds a section of its own."""
    return dataclasses.field(default_factory=kind, metadata={"section": kind, "doc": doc})


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one setting accepts."""

    kind: Kind
    least: float | None = None
    most: float | None = None
    secret: bool = False

    @property
    def allowed(self) -> str:
        """In words."""
        return f"{self.kind.name}{self.bounds}"

    @property
    def bounds(self) -> str:
        """Behind what is allowed."""
        least = "" if self.least is None else f", at least {self.least:g}"
        return least + ("" if self.most is None else f", at most {self.most:g}")

    def read(self, value: Any, path: str) -> Any:
        """The value as the setting holds it.

        :raises ConfigError: naming path, value (unless secret) and what is allowed.
        """
        try:
            read = self.kind.read(value)
        except (ValueError, TypeError, OverflowError):
            read = _REFUSED
        if read is _REFUSED or not self._within(read):
            raise ConfigError(
                f"{path} is {'a secret of the wrong type' if self.secret else shown(value)}; it must be {self.allowed}"
            )
        return read

    def _within(self, value: Any) -> bool:
        return value is None or (
            (self.least is None or value >= self.least) and (self.most is None or value <= self.most)
        )


_REFUSED = object()
_CREDENTIALS = re.compile(r"(?<=//)[^\s'\"]*(?=@)|(?<=password=)[^&\s'\"]+|(?<=token=)[^&\s'\"]+")
_SECRETIVE = re.compile("pas+w|pwd|secret|token|credential", re.IGNORECASE)


def shown(value: Any, key: str = "") -> str:
    """A value as a message may show it: short, and without the user and password of a URL or what its key says is secret."""
    text = _CREDENTIALS.sub("***", repr(value))
    if _SECRETIVE.search(key) or (_SECRETIVE.search(text) and not isinstance(value, str)):
        return "***"
    return text if len(text) <= 80 else f"{text[:77]}…"


class Section:
    """A group of settings: the root of the frozen dataclasses that are made of :func:`setting` fields.

    :raises ConfigError: when made with a value that does not fit; names key, value and what is allowed.
    """

    path: ClassVar[str] = ""
    """Where the section stands in the configuration; empty at the top."""

    def __post_init__(self) -> None:
        for field in _fields(type(self)).values():
            object.__setattr__(self, field.name, _read(type(self), field, getattr(self, field.name)))

    @classmethod
    def read(cls, given: Any) -> Self:
        """The section that a mapping describes.

        :raises ConfigError: for an unknown key or a value that does not fit.
        """
        if isinstance(given, cls):
            return given
        names = list(_fields(cls))
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"{cls.path or 'the configuration'} is {shown(given)}; it must be a mapping with keys of {', '.join(names)}"
            )
        for key, value in given.items():
            if key not in names:
                raise ConfigError(
                    _unknown(_joined(cls.path, key), value, difflib.get_close_matches(str(key), names, n=1), names)
                )
        return cls(**given)


def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _read(kind: type[Section], field: dataclasses.Field[Any], value: Any) -> Any:
    inner = field.metadata.get("section")
    return inner.read(value) if inner else field.metadata["rule"].read(value, _joined(kind.path, field.name))


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _unknown(path: str, value: Any, close: list[str], names: list[str]) -> str:
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return (
        f"unknown setting {path!r} (value {shown(value, ' '.join([path, *close]))}){meant} known are {', '.join(names)}"
    )


def as_mapping(given: Section) -> dict[str, Any]:
    """A section as :meth:`Section.read` accepts it, inner sections as mappings too."""
    values = {name: getattr(given, name) for name in _fields(type(given))}
    return {name: as_mapping(value) if isinstance(value, Section) else value for name, value in values.items()}


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
        value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value.strip().lower()))
    return _read_float(value)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _read_texts(value: Any) -> tuple[Any, ...]:
    items = _read_items(value)
    if not all(isinstance(item, str) for item in items):
        raise ValueError
    return items


def _read_items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise ValueError


def _read_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    return dict(value)


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
    """The kind, or nothing; in the environment, where all is text, nothing is ``null`` or empty."""

    def read(value: Any) -> Any:
        return None if value is None or value in ("", "null") else kind.read(value)

    return Kind(f"{kind.name}, or null", read, f"{kind.short or kind.name}, or null")


BOOL = Kind("true or false", _read_bool)
INT = Kind("a whole number", _read_int)
FLOAT = Kind("a number", _read_float)
DURATION = Kind("seconds as a number, or text such as '500ms', '1s', '1h30m'", read_duration, "duration")
SIZE = Kind("bytes as a number, or text such as '64KB', '1MB'", _read_size, "size")
TEXT = Kind("text", _read_text)
TEXTS = Kind("a list of texts, or text with commas", _read_texts, "list")
TABLES = Kind("a list of patterns, mapped classes or Tables, or text with commas", _read_items, "list")

MAPPING = Kind("a mapping with texts as keys", _read_mapping, "mapping")


# The table in docs/configuration.md ---------------------------------------------------------------------------------


def reference(kind: type[Section]) -> str:
    """Every setting as Markdown, a table for each section."""
    inner = [field.metadata["section"] for field in _fields(kind).values() if "section" in field.metadata]
    rows = [_row(field) for field in _fields(kind).values() if "rule" in field.metadata]
    title = f"### `{kind.path}`\n\n{_first_line(kind)}\n\n" if kind.path else ""
    table = "\n".join(["| setting | default | meaning | allowed |", "|---|---|---|---|", *rows])
    return "\n\n".join([title + table, *(reference(one) for one in inner)])


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0].replace("``", "`")


def _row(field: dataclasses.Field[Any]) -> str:
    rule = field.metadata["rule"]
    allowed = f"{rule.kind.short or rule.kind.name}{rule.bounds}"
    default = "" if field.default is dataclasses.MISSING else field.default
    return f"| `{field.name}` | {_default(default)} | {field.metadata['doc']} | {allowed} |"


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value not in ("", ()) else "empty"
