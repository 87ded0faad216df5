"""Values as JSON that other languages can read, and back to the same Python values.

Why not tags inside the values (``{"$decimal": "1.10"}``): SQL over the payload and consumers in other languages want
``"price": "1.10"``. So the JSON stays natural and a sidecar, *types*, says what JSON cannot: a map from JSON pointers
(RFC 6901) to type codes. A segment ``*`` stands for any key or index, so one constant sidecar serves every row of a
table: ``{"/payload/*/price": "decimal"}``. A literal ``*`` in a key is written ``~2``.

=============  ==========================================  =============================================
code           JSON form                                   Python value
=============  ==========================================  =============================================
decimal        "1.10", "NaN": as PostgreSQL's numeric,     decimal.Decimal
               without an exponent
float          "NaN", "Infinity", "-Infinity"              float (finite floats are plain numbers)
uuid           "0190…"                                     uuid.UUID
date, time,    ISO 8601                                    datetime.date, time, datetime (offset kept)
datetime
timedelta      ISO 8601 duration, "P1DT0.5S"               datetime.timedelta
bytes          base64                                      bytes
ipaddress,     "10.0.0.1", "10.0.0.1/8", "10.0.0.0/8"      ipaddress objects
ipinterface,
ipnetwork
range          {"lower", "upper", "bounds", "empty"}       sqlalchemy.dialects.postgresql.Range
tuple, set,    list                                        tuple, set, frozenset
frozenset
enum:NAME      the member's name; of several flags the     the member, where the class is known here,
               number                                      else what stands there
jsonnull       null                                        sqlalchemy.JSON.NULL (a JSON null in a
                                                           JSON column, as opposed to SQL NULL)
=============  ==========================================  =============================================
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import ipaddress
import math
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import JSON
from sqlalchemy.dialects.postgresql import Range

from .errors import EventError

Types = dict[str, str]
"""JSON pointer -> type code."""

Path = tuple[str | None, ...]
"""The segments of a pointer, unescaped; None is the wildcard."""

_json = msgspec.json.Encoder()
_enums: dict[str, type[enum.Enum]] = {}


def dumps(value: Any) -> str:
    """JSON text of a value that :func:`lower` returned."""
    try:
        return _json.encode(value).decode()
    except UnicodeEncodeError as error:
        raise EventError(f"text with a lone surrogate cannot be stored as UTF-8: {error}") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise EventError(f"a value cannot be written as JSON: {error}") from error


def lower(value: Any, pointer: str, types: Types) -> Any:
    """Return ``value`` in JSON terms; what JSON cannot say is added to ``types`` under ``pointer``.

    :raises EventError: for a value of a type that is not in the table above, naming pointer and type.
    """
    plain = type(value)
    if plain in _NATIVE or value is None:
        return value
    if value is JSON.NULL:
        types[pointer] = "jsonnull"
        return None
    if plain is float:
        return _lower_float(value, pointer, types)
    rule = _LOWER.get(plain)
    if rule is None:
        return _lower_other(value, pointer, types)
    code, form = rule
    types[pointer] = code
    return form(value)


def lift(value: Any, types: str) -> Any:
    """Turn decoded JSON back into Python values in place, as the sidecar text ``types`` says, and return it.

    :raises EventError: where sidecar and value do not fit each other.
    """
    box = {"": value}
    try:
        for segments, convert in _plan(types):
            _lift_at(box, segments, convert)
    except EventError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise EventError(f"a value does not fit its type in {types[:200]}: {error!r}") from error
    return box[""]


def escape(segment: str) -> str:
    """A key as one segment of a pointer."""
    return segment.replace("~", "~0").replace("/", "~1").replace("*", "~2")


def code_of(kind: type) -> str | None:
    """The type code of values of exactly this class; None where JSON holds them as they are or the class is unknown."""
    rule = _LOWER.get(kind)
    return rule[0] if rule else None


def enum_code(kind: type[enum.Enum]) -> str:
    """The type code of an enum class, which this process can from now on also decode."""
    code = f"enum:{kind.__module__}.{kind.__qualname__}"
    _enums[code] = kind
    return code


def json_float(value: float) -> float | str:
    """A float as JSON has it: a number, or the name of what JSON has no number for."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def duration(value: dt.timedelta) -> str:
    """A timedelta as an ISO 8601 duration."""
    return str(msgspec.to_builtins(value))


def decimal_text(value: Decimal) -> str:
    """A Decimal as PostgreSQL prints it: all its digits, and no exponent.

    Except for numbers that no database has room for, which would be a text of any length.
    """
    text = Decimal.__str__(value)  # of the class itself: a subclass may print itself in another way
    _, exponent, places = text.partition("E")
    return Decimal.__format__(value, "f") if exponent and abs(int(places)) <= _MOST_PLACES else text


_MOST_PLACES = 131_072
"""Before the point, in PostgreSQL's numeric; behind it are fewer."""


# Lowering -----------------------------------------------------------------------------------------------------------

_NATIVE = frozenset({str, int, bool, msgspec.Raw})
_BASES: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__}
"""The native value in a subclass, whatever its own ``__str__`` and ``__int__`` say."""


def base64_text(value: Any) -> str:
    """Bytes, or anything with the buffer protocol, as base64 text."""
    return base64.b64encode(value).decode("ascii")


_LOWER: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Decimal: ("decimal", decimal_text),
    uuid.UUID: ("uuid", uuid.UUID.__str__),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.datetime: ("datetime", dt.datetime.isoformat),
    dt.timedelta: ("timedelta", duration),
    bytes: ("bytes", base64_text),
    bytearray: ("bytes", base64_text),
    memoryview: ("bytes", base64_text),
    ipaddress.IPv4Address: ("ipaddress", str),
    ipaddress.IPv6Address: ("ipaddress", str),
    ipaddress.IPv4Interface: ("ipinterface", str),
    ipaddress.IPv6Interface: ("ipinterface", str),
    ipaddress.IPv4Network: ("ipnetwork", str),
    ipaddress.IPv6Network: ("ipnetwork", str),
}


def _lower_float(value: float, pointer: str, types: Types) -> float | str:
    form = json_float(value)
    if isinstance(form, str):
        types[pointer] = "float"
    return form


def _lower_other(value: Any, pointer: str, types: Types) -> Any:
    if isinstance(value, enum.Enum):
        types[pointer] = enum_code(type(value))
        return (
            value.name if value.name in type(value).__members__ else value.value
        )  # flags: several members have no name
    if isinstance(value, Mapping):
        return _lower_mapping(value, pointer, types)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _lower_items(value, pointer, types)
    if isinstance(value, Range):
        return _lower_range(value, pointer, types)
    for base in type(value).__mro__[1:]:  # a subclass travels as its base: pendulum.DateTime, Markup, numpy.float64
        if base in _BASES:
            return _BASES[base](value)
        if base is float:
            return _lower_float(float.__float__(value), pointer, types)
        if base in _LOWER:
            types[pointer], form = _LOWER[base]
            return form(value)
    raise EventError(
        f"{pointer or 'the value'} is a {type(value).__module__}.{type(value).__qualname__}, which has no JSON form here; "
        "convert it to str, a number, Decimal, UUID, date, time, timedelta, bytes, enum, list or dict first"
    )


def _lower_mapping(value: Mapping[Any, Any], pointer: str, types: Types) -> dict[str, Any]:
    lowered = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise EventError(
                f"{pointer or 'the value'} has the key {key!r} of type {type(key).__name__}; JSON keys are strings"
            )
        lowered[key] = lower(item, f"{pointer}/{escape(key)}", types)
    return lowered


def _lower_items(value: Any, pointer: str, types: Types) -> list[Any]:
    if not isinstance(value, list):
        types[pointer] = next(kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind))
    found: Types = {}
    lowered = [lower(item, f"{pointer}/{index}", found) for index, item in enumerate(value)]
    codes = set(found.values())
    if len(codes) == 1 and len(found) == len(lowered) and all(_leaf(p, pointer) for p in found):
        types[f"{pointer}/*"] = codes.pop()  # a thousand Decimals cost one entry
    else:
        types.update(found)
    return lowered


def _leaf(pointer: str, parent: str) -> bool:
    return "/" not in pointer[len(parent) + 1 :]


def _lower_range(value: Range[Any], pointer: str, types: Types) -> dict[str, Any]:
    types[pointer] = "range"
    return {
        "lower": lower(value.lower, f"{pointer}/lower", types),
        "upper": lower(value.upper, f"{pointer}/upper", types),
        "bounds": value.bounds,
        "empty": value.empty,
    }


# Lifting ------------------------------------------------------------------------------------------------------------


def _lift_range(form: Mapping[str, Any]) -> Range[Any]:
    return Range(form["lower"], form["upper"], bounds=form["bounds"], empty=form["empty"])


def _json_null(_: None) -> Any:
    return JSON.NULL


_LIFT: dict[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "float": float,
    "uuid": uuid.UUID,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "datetime": dt.datetime.fromisoformat,
    "timedelta": lambda text: msgspec.convert(text, dt.timedelta),
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "ipaddress": ipaddress.ip_address,
    "ipinterface": ipaddress.ip_interface,
    "ipnetwork": ipaddress.ip_network,
    "range": _lift_range,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "jsonnull": _json_null,
}


def _lift_enum(code: str) -> Callable[[Any], Any]:
    def convert(form: Any) -> Any:
        kind = _enums.get(code)
        if kind is None:
            return form
        if isinstance(form, str):
            return kind.__members__.get(form, form)
        return kind(form)

    return convert


def _converter(code: str) -> Callable[[Any], Any]:
    if code.startswith("enum:"):
        return _lift_enum(code)
    try:
        return _LIFT[code]
    except KeyError:
        raise EventError(f"unknown type code {code!r}; this library knows {', '.join(_LIFT)} and enum:…") from None


@lru_cache(maxsize=4096)
def _plan(types: str) -> list[tuple[Path, Callable[[Any], Any]]]:
    """Pointers split and sorted deepest first, so that what is inside a range or a tuple is there before it is made."""
    entries: Types = msgspec.json.decode(types, type=dict[str, str]) if types else {}
    steps = [(_split(pointer), _converter(code)) for pointer, code in entries.items()]
    return sorted(steps, key=lambda step: -len(step[0]))


def _split(pointer: str) -> Path:
    return tuple(
        None if part == "*" else part.replace("~2", "*").replace("~1", "/").replace("~0", "~")
        for part in pointer.split("/")
    )


def _lift_at(holder: Any, path: Path, convert: Callable[[Any], Any]) -> None:
    for slot in _slots(holder, path[0]):
        value = holder[slot]
        if len(path) == 1 and (value is not None or convert is _json_null):
            holder[slot] = convert(value)
        elif isinstance(value, (dict, list)):
            _lift_at(value, path[1:], convert)


def _slots(holder: Any, segment: str | None) -> Any:
    if isinstance(holder, list):
        if segment is None:
            return range(len(holder))
        return (int(segment),) if segment.isdigit() and int(segment) < len(holder) else ()
    if segment is None:
        return list(holder)
    return (segment,) if segment in holder else ()
