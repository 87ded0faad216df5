"""Columns whose JSON form PostgreSQL itself makes exactly as Python does: letter by letter, code by code.

For each kind of column together with what the database really stores there, since a Table may say something else. Values
that are none of Python's, or look different there (a date before Christ, a time long ago in an offset with seconds), are *in
doubt*: their row goes to Python, which says what it says. A column that is not here takes its whole statement there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .column import ColumnCodec
from .forms import Form, Sql, form_of, literal, open_form, plainly_quoted

TIMESTAMPTZ = "timestamptz"


@dataclass(frozen=True)
class Exact:
    """How one column gets into an event."""

    form: Form
    doubt: Sql | None = None
    """SQL of a value -> whether its row has to go to Python."""
    key: Sql | None = None
    """SQL of a value -> the text of a key of this column alone; None: that of the form, without quotes."""


def exact(codec: ColumnCodec, dialect: Any, stored: str, *, shown: bool = True) -> Exact | None:
    """The form of a column of which the database stores this type (``pg_type.typname``, or ``enum``); None: there is none.

    :param shown: as payloads show it; else as the text of the key does, where nothing is redacted.
    """
    if codec.redacted and shown:
        return Exact(form_of(codec, dialect))
    family = _family(codec) if type(codec.kind).__module__.startswith("sqlalchemy.") else None
    if family in ("json", "float") and not shown:
        return None  # the same to a reader, but not letter by letter
    if (family, stored) == ("datetime", TIMESTAMPTZ) and not shown:
        return _in_utc(codec, dialect)
    rule = _RULES.get(("decimal of a key" if family == "decimal" and not shown else family, stored))
    return None if rule is None else rule(codec, dialect)


def _family(codec: ColumnCodec) -> str | None:
    kind = codec.kind
    if codec.is_json:
        return "json"
    if codec.enum is not None:
        proper = issubclass(codec.enum, enum.Enum) and len(codec.enum.__members__) == len(codec.enum)  # no aliases
        return "members" if proper else None
    if isinstance(kind, sa.Float):
        return None if codec.code else "float"
    if codec.code is not None:
        return codec.code
    return next((family for one, family in _FAMILIES if isinstance(kind, one)), None)


_FAMILIES = ((sa.Uuid, "uuid"), (sa.Boolean, "bool"), (sa.Integer, "int"), (sa.Enum, "words"), (sa.String, "text"))


_Rule = Callable[[ColumnCodec, Any], "Exact | None"]


def _plain(
    text: Sql, special: Mapping[str, Sql] | None = None, doubt: Sql | None = None, key: Sql | None = None
) -> _Rule:
    return lambda codec, _: Exact(Form(codec.name, text, {}, special or {}), doubt, key)


def _quoted(text: str) -> str:
    return f"to_json({text})::text"


def _of_triggers(doubt: Sql | None = None) -> _Rule:
    """As the triggers have it."""
    return lambda codec, dialect: Exact(open_form(codec, dialect), doubt)


# JSON ---------------------------------------------------------------------------------------------------------------

_NULL = r"^\s*null\s*$"
_UNREADABLE = r"\\ud|e[+-]?[0-9]{3}|[0-9]{200}"


def _json_doubt(value: str) -> str:
    """Numbers beyond a float and halves of a character: no reader takes them, so Python says them in its own way."""
    return f"{value}::text ~* {literal(_UNREADABLE)}"


_json = _plain(lambda v: f"{v}::text", {"jsonnull": lambda v: f"{v}::text ~ {literal(_NULL)}"}, _json_doubt)


# Numbers ------------------------------------------------------------------------------------------------------------


def _float(value: str) -> str:
    return (
        f"CASE WHEN {value}::text ~ '^-?[0-9]+$' THEN {value}::text || '.0' WHEN {_beyond(value)} "
        f"THEN to_json({value}::text)::text ELSE {value}::text END"
    )


def _beyond(value: str) -> str:
    return f"{value} IN ('NaN', 'Infinity', '-Infinity')"


def _floats(codec: ColumnCodec, dialect: Any) -> Exact:
    """asyncpg has all digits whatever the session says; psycopg takes the text as it is."""
    special = {"float": _beyond}
    if dialect.driver == "asyncpg":
        return Exact(Form(codec.name, _float, {}, special), lambda _: "current_setting('extra_float_digits')::integer < 1")
    return Exact(Form(codec.name, _float, {}, special))


def _single(codec: ColumnCodec, dialect: Any) -> Exact | None:
    return None if dialect.driver == "asyncpg" else _floats(codec, dialect)  # which makes other doubles of them


def _shortest(value: str) -> str:
    return f"trim_scale({value})::text"


# Times --------------------------------------------------------------------------------------------------------------

_DAY = 'YYYY-MM-DD"T"HH24:MI:SS.US'


def _zoned(codec: ColumnCodec, dialect: Any) -> Exact | None:
    """asyncpg's are in UTC, psycopg's in the time zone of the session."""
    return (_in_utc if dialect.driver == "asyncpg" else _in_session)(codec, dialect)


def _zoned_text(moment: str, offset: str) -> str:
    return plainly_quoted(f"replace(to_char({moment}, '{_DAY}'), '.000000', '') || {offset}")


def _zoned_doubt(value: str) -> str:
    """Beyond Python's years, and a time long ago in an offset with seconds."""
    return f"{value} NOT BETWEEN '0001-01-03 00:00+00' AND '9999-12-30 00:00+00' OR extract(timezone FROM {value})::int % 60 <> 0"


_in_utc = _plain(lambda v: _zoned_text(f"({v} AT TIME ZONE 'UTC')", "'+00:00'"), doubt=_zoned_doubt)
_in_session = _plain(lambda v: _zoned_text(v, f"to_char({v}, 'TZH:TZM')"), doubt=_zoned_doubt)
_naive = _plain(
    lambda v: plainly_quoted(f"replace(to_char({v}, '{_DAY}'), '.000000', '')"),
    doubt=lambda v: f"{v} NOT BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'",
)

# All ----------------------------------------------------------------------------------------------------------------


def _as_text(value: str) -> str:
    return f"{value}::text"


_NUMBER = _plain(_as_text, key=_as_text)
_TEXT = _plain(_quoted, key=_as_text)

_RULES: dict[tuple[str | None, str], _Rule] = {
    ("json", "json"): _json,
    ("json", "jsonb"): _json,
    ("members", "enum"): _of_triggers(),
    ("members", "varchar"): _of_triggers(),
    ("members", "text"): _of_triggers(),
    ("words", "enum"): _TEXT,
    ("words", "varchar"): _TEXT,
    ("words", "text"): _TEXT,
    ("text", "varchar"): _TEXT,
    ("text", "text"): _TEXT,
    ("text", "bpchar"): _plain(_quoted),
    ("uuid", "uuid"): _TEXT,
    ("bool", "bool"): _plain(_as_text),
    ("int", "int2"): _NUMBER,
    ("int", "int4"): _NUMBER,
    ("int", "int8"): _NUMBER,
    ("float", "float8"): _floats,
    ("float", "float4"): _single,
    ("decimal", "numeric"): _of_triggers(),
    ("decimal of a key", "numeric"): _plain(lambda v: plainly_quoted(_shortest(v)), key=_shortest),
    ("bytes", "bytea"): _of_triggers(),
    ("date", "date"): _of_triggers(lambda v: f"{v} NOT BETWEEN '0001-01-01' AND '9999-12-31'"),
    ("time", "time"): _of_triggers(lambda v: f"{v} = '24:00'"),
    ("datetime", "timestamp"): _naive,
    ("datetime", TIMESTAMPTZ): _zoned,
    ("timedelta", "interval"): _of_triggers(lambda v: f"{v} NOT BETWEEN '-900000 days' AND '900000 days'"),
}
"""By family and type in the database."""
