"""The JSON form of a column's value in SQL, as encoding.py has it in Python, and the types that the sidecar says.

A form is a piece of SQL that yields JSON text and never NULL. Values that have another type code than the usual one of
their column (a JSON null, an address with a mask) have it under a condition.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractSingleRange
from sqlalchemy.engine import Dialect

from .. import encoding
from .column import REDACTED, ColumnCodec, decimal_places

Sql = Callable[[str], str]
"""SQL of a value -> SQL of its form."""


@dataclass(frozen=True, eq=False)
class Form:
    """How one column gets into an event."""

    name: str
    text: Sql
    """JSON text of a value that is not NULL."""
    codes: Mapping[str, str]
    """Pointer below the value -> type code."""
    special: Mapping[str, Sql]
    """Type code -> whether a value has it instead."""

    def json(self, value: str) -> str:
        """JSON text, never NULL."""
        return f"coalesce({self.text(value)}, 'null')"

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Entries of the sidecar that hold for every row."""
        for pointer, code in self.codes.items():
            yield f"/payload/*/{encoding.escape(self.name)}{pointer}", code


def literal(text: str) -> str:
    """Text as a literal, where a backslash is a backslash."""
    return "'" + text.replace("'", "''") + "'"


def form_of(codec: ColumnCodec, dialect: Dialect) -> Form:
    """The form of a column; of a type that is not known, what the database itself makes of it in JSON."""
    if codec.redacted:
        return Form(codec.name, lambda v: f"CASE WHEN {v} IS NOT NULL THEN '\"{REDACTED}\"' END", {}, {})
    return open_form(codec, dialect)


def open_form(codec: ColumnCodec, dialect: Dialect) -> Form:
    """The same with the value of a column that is redacted, too."""
    make = _postgresql if dialect.name == "postgresql" else _sqlite
    text, codes, special = make(codec, dialect)
    return Form(codec.name, text, codes, special)


def key_form(codec: ColumnCodec, dialect: Dialect) -> Form:
    """The form of a column in the text of a key, where equal numbers have one."""
    form = open_form(codec, dialect)
    if codec.code != "decimal":
        return form
    make = _postgresql_decimal if dialect.name == "postgresql" else _sqlite_decimal
    return Form(codec.name, make(codec, shortest), form.codes, form.special)


Parts = Sequence[tuple[Form, str]]
"""Columns, each with SQL of its value."""


def object_of(parts: Parts) -> str:
    """SQL of a JSON object of columns."""
    members = [f"{literal(member(form, ',' if number else '{'))} || {form.json(value)}" for number, (form, value) in enumerate(parts)]
    return " || ".join([*members, "'}'"]) if members else "'{}'"


def member(form: Form, before: str) -> str:
    """What stands before a column's value in an object."""
    return before + encoding.dumps(form.name) + ":"


def special_types(sides: Mapping[str, Parts]) -> list[str]:
    """SQL of the entries of the sidecar that a row has or has not, each with a comma before it."""
    return [
        f"CASE WHEN {whether(value)} THEN {literal(f',{encoding.dumps(_pointer(side, form))}:{encoding.dumps(code)}')} ELSE '' END"
        for form in dict.fromkeys(form for parts in sides.values() for form, _ in parts)
        for code, whether in form.special.items()
        for side, parts in sides.items()
        for other, value in parts
        if other is form
    ]


def _pointer(side: str, form: Form) -> str:
    return f"/payload/{side}/{encoding.escape(form.name)}"


def unquoted(form: str) -> str:
    """PostgreSQL: the text in a JSON string; a number as it stands; Python's word for true; NULL of null."""
    return f"CASE {form} WHEN 'true' THEN 'True' WHEN 'false' THEN 'False' ELSE ({form})::json #>> '{{}}' END"


def shortest(number: str) -> str:
    """Text of a decimal number without the zeros that do not change it."""
    return f"(CASE WHEN {number} LIKE '%.%' THEN rtrim(rtrim({number}, '0'), '.') ELSE {number} END)"


def _as_it_is(number: str) -> str:
    return number


UUID7 = """(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid"""
"""PostgreSQL: a UUID of version 7: milliseconds, and the rest of a random one."""


_Made = tuple[Sql, dict[str, str], dict[str, Sql]]


def _member_names(codec: ColumnCodec) -> dict[str, str]:
    """Stored text -> member's name, where they differ (``values_callable``)."""
    found = {}
    for member in codec.enum or ():
        stored = codec.kind._db_value_for_elem(member)  # type: ignore[attr-defined]
        if isinstance(member, enum.Enum) and stored != member.name:
            found[str(stored)] = member.name
    return found


def _renamed(value: str, names: Mapping[str, str], otherwise: str) -> str:
    if not names:
        return otherwise
    cases = " ".join(f"WHEN {literal(stored)} THEN {literal(encoding.dumps(name))}" for stored, name in names.items())
    return f"CASE {value} {cases} ELSE {otherwise} END"


# PostgreSQL ---------------------------------------------------------------------------------------------------------


def _postgresql(codec: ColumnCodec, dialect: Dialect) -> _Made:
    kind = codec.kind
    if codec.is_json:
        return (lambda v: f"{v}::text"), {}, {"jsonnull": lambda v: f"btrim({v}::text) = 'null'"}
    if codec.enum is not None:
        names = _member_names(codec)
        return (lambda v: _renamed(f"{v}::text", names, f"to_json({v}::text)::text")), {"": str(codec.code)}, {}
    if codec.code == "decimal":
        return _postgresql_decimal(codec, _as_it_is), {"": "decimal"}, {}
    if codec.code is not None:
        zone = bool(getattr(kind, "timezone", False))
        return _POSTGRESQL[codec.code + (" zone" if zone else "")], {"": codec.code}, {}
    if isinstance(kind, sa.ARRAY):
        return _array(kind, dialect)
    if isinstance(kind, AbstractSingleRange):
        return _range(kind, dialect)
    if isinstance(kind, postgresql.CIDR):
        return _natural, {"": "ipnetwork"}, {}
    if isinstance(kind, postgresql.INET):
        return _natural, {}, {"ipinterface": _masked, "ipaddress": lambda v: f"NOT {_masked(v)}"}
    return _natural, _float_code(codec), {}


def _postgresql_decimal(codec: ColumnCodec, told: Sql) -> Sql:
    """A double has an exponent in its text, and more digits than a cast to numeric leaves of it."""
    is_double = isinstance(codec.kind, sa.Float)
    number = "(CASE WHEN {0}::text LIKE '%e%' THEN {0}::text::numeric::text ELSE {0}::text END)" if is_double else "{0}::text"
    return lambda v: plainly_quoted(told(number.format(v)))


def _masked(value: str) -> str:
    return f"masklen({value}) < CASE family({value}) WHEN 4 THEN 32 ELSE 128 END"


def _natural(value: str) -> str:
    return f"to_json({value})::text"


def _float_code(codec: ColumnCodec) -> dict[str, str]:
    """So that NaN and 1 are floats again."""
    return {"": "float"} if isinstance(codec.kind, sa.Float) or (codec.expected is None and _is_float(codec.kind)) else {}


def _is_float(kind: Any) -> bool:
    try:
        return kind.python_type is float
    except NotImplementedError:
        return False


def _array(kind: sa.ARRAY[Any], dialect: Dialect) -> _Made:
    item = ColumnCodec(sa.Column("item", kind.item_type), dialect)
    if item.code is None or item.code == "bytes" or item.is_json or (kind.dimensions or 1) > 1:
        return _natural, {}, {}
    return (lambda v: f"to_json({v}::text[])::text"), {"/*": item.code}, {}


def _range(kind: AbstractSingleRange[Any], dialect: Dialect) -> _Made:
    bound = ColumnCodec(sa.Column("bound", _BOUNDS.get(type(kind).__name__, sa.Text)()), dialect)
    text, codes, _ = _postgresql(bound, dialect)

    def side(v: str, end: str) -> str:
        return f"'\"{end}\":' || coalesce({text(f'{end}({v})')}, 'null')"

    def form(v: str) -> str:
        bounds = f"""CASE WHEN isempty({v}) THEN '[)' ELSE (CASE WHEN lower_inc({v}) THEN '[' ELSE '(' END) ||
            (CASE WHEN upper_inc({v}) THEN ']' ELSE ')' END) END"""
        return (
            f"CASE WHEN {v} IS NOT NULL THEN '{{' || {side(v, 'lower')} || ',' || {side(v, 'upper')} || ',\"bounds\":\"' || {bounds} || "
            f"'\",\"empty\":' || isempty({v})::text || '}}' END"
        )

    ends = {f"/{end}{pointer}": code for end in ("lower", "upper") for pointer, code in codes.items()}
    return form, {"": "range", **ends}, {}


_BOUNDS: dict[str, Any] = {
    "INT4RANGE": sa.Integer,
    "INT8RANGE": sa.BigInteger,
    "NUMRANGE": sa.Numeric,
    "DATERANGE": sa.Date,
    "TSRANGE": sa.DateTime,
    "TSTZRANGE": lambda: sa.DateTime(timezone=True),
}


def _quoted(expression: str) -> str:
    return f"to_json({expression})::text"


def plainly_quoted(expression: str) -> str:
    """Text in which nothing has to be escaped."""
    return f"'\"' || {expression} || '\"'"


def _moment(value: str, pattern: str, zone: str = "") -> str:
    """As Python's isoformat: without a fraction of zero."""
    return plainly_quoted(f"replace(to_char({value}, '{pattern}.US'), '.000000', ''){zone}")


def _interval(value: str) -> str:
    """Months and years have as many days as the drivers give them. Before PostgreSQL 14 extract gives a double."""
    seconds = (
        f"(extract(year FROM {value})::numeric * 365 + extract(month FROM {value})::numeric * 30 + extract(day FROM {value})::numeric) * 86400 "
        f"+ extract(hour FROM {value})::numeric * 3600 + extract(minute FROM {value})::numeric * 60 + extract(second FROM {value})::numeric"
    )
    rest = "CASE WHEN s = 0 THEN '0D' WHEN s % 86400 <> 0 THEN 'T' || trim_scale(s % 86400) || 'S' ELSE '' END"
    days = "CASE WHEN s >= 86400 THEN trunc(s / 86400) || 'D' ELSE '' END"
    return (
        f"(SELECT to_json(CASE WHEN n < 0 THEN '-' ELSE '' END || 'P' || {days} || {rest})::text "
        f"FROM (SELECT n, abs(n) AS s FROM (SELECT {seconds} AS n) AS a WHERE n IS NOT NULL) AS b)"
    )


_DAY = 'YYYY-MM-DD"T"HH24:MI:SS'
_POSTGRESQL: dict[str, Sql] = {
    "uuid": lambda v: plainly_quoted(f"{v}::text"),
    "date": lambda v: plainly_quoted(f"to_char({v}, 'YYYY-MM-DD')"),
    "time": lambda v: _moment(v, "HH24:MI:SS"),
    "time zone": lambda v: _quoted(f"{v}::text"),
    "datetime": lambda v: _moment(v, _DAY),
    "datetime zone": lambda v: _moment(v, _DAY, " || '+00:00'"),
    "timedelta": _interval,
    "bytes": lambda v: plainly_quoted(f"replace(encode({v}, 'base64'), chr(10), '')"),
}


# SQLite -------------------------------------------------------------------------------------------------------------


def _sqlite(codec: ColumnCodec, dialect: Dialect) -> _Made:
    kind = codec.kind
    if codec.is_json:
        text = lambda v: f"CASE WHEN json_valid({v}) THEN json({v}) ELSE {_stored(v)} END"  # noqa: E731
        return text, {}, {"jsonnull": lambda v: f"json_valid({v}) AND json({v}) = 'null'"}
    if codec.enum is not None:
        names = _member_names(codec)
        return (lambda v: _renamed(v, names, _stored(v))), {"": str(codec.code)}, {}
    if isinstance(kind, sa.Boolean):
        return (lambda v: f"CASE {v} WHEN 0 THEN 'false' WHEN 1 THEN 'true' ELSE {_stored(v)} END"), {}, {}
    if codec.code == "decimal":
        return _sqlite_decimal(codec, _as_it_is), {"": "decimal"}, {}
    if codec.code is not None:
        return _SQLITE[codec.code], {"": codec.code}, {}
    return _stored, _float_code(codec), {}


def _sqlite_decimal(codec: ColumnCodec, told: Sql) -> Sql:
    """With the column's places, as SQLAlchemy reads it."""
    places = decimal_places(codec)
    zeros = "." + "0" * places if places else ""

    def text(v: str) -> str:
        whole, double = plainly_quoted(told(f"({v} || '{zeros}')")), plainly_quoted(told(_digits(v, places)))
        return f"CASE typeof({v}) WHEN 'integer' THEN {whole} WHEN 'real' THEN {double} ELSE {_stored(v)} END"

    return text


def _digits(value: str, places: int) -> str:
    """A double without an exponent, and so that it is the same when it is read.

    printf has 16 digits, and cuts the others off. So where 15 digits have no room for the places, there are as many
    digits as the number needs.
    """
    usual, short = f"printf('%.{places}f', {value})", f"printf('%.15g', {value})"
    return (
        f"(CASE WHEN abs({value}) < 1e{max(15 - places, -4)} THEN {usual} "
        f"WHEN abs({value}) >= 1e16 THEN CASE CAST({usual} AS REAL) WHEN {value} THEN {usual} ELSE printf('%!.{places}f', {value}) END "
        f"WHEN CAST({short} AS REAL) = {value} THEN {short} ELSE printf('%!.17g', {value}) END)"
    )


def _stored(value: str) -> str:
    """What stands there, whatever the column's type: SQLite lets every value into every column."""
    return (
        f"CASE typeof({value}) WHEN 'null' THEN NULL WHEN 'blob' THEN json_quote(hex({value})) WHEN 'real' THEN "
        f"CASE WHEN abs({value}) > 1.7976931348623157e308 THEN CASE WHEN {value} > 0 THEN '\"Infinity\"' ELSE '\"-Infinity\"' END "
        f"ELSE printf('%!.17g', {value}) END ELSE json_quote({value}) END"
    )


def _text(expression: str, value: str) -> str:
    return f"CASE typeof({value}) WHEN 'text' THEN json_quote({expression}) ELSE {_stored(value)} END"


def _timedelta(value: str) -> str:
    """SQLAlchemy stores an interval as a moment after 1970."""
    micros = f"(CAST(strftime('%s', {value}) AS INTEGER) * 1000000 + CAST(substr({value} || '000000', 21, 6) AS INTEGER))"
    sign = f"CASE WHEN {micros} < 0 THEN '-' ELSE '' END"
    return _text(f"{sign} || printf('PT%d.%06dS', abs({micros}) / 1000000, abs({micros}) % 1000000)", value)


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _base64(value: str) -> str:
    """Without a function for it: three bytes, as many times as json_each counts, are four letters."""
    numbers = f"json_each('[' || substr(replace(hex(zeroblob((length({value}) + 2) / 3)), '00', ',0'), 2) || ']')"
    byte = "(instr('123456789ABCDEF', substr(h, 6 * key + {0}, 1)) * 16 + instr('123456789ABCDEF', substr(h, 6 * key + {1}, 1)))"
    bits = f"({byte.format(1, 2)} * 65536 + {byte.format(3, 4)} * 256 + {byte.format(5, 6)})"
    letter = "substr('" + _ALPHABET + "', (b >> {0} & 63) + 1, 1)"
    letters = (
        f"{letter.format(18)} || {letter.format(12)} || CASE WHEN length(h) < 6 * key + 4 THEN '=' ELSE {letter.format(6)} END"
        f" || CASE WHEN length(h) < 6 * key + 6 THEN '=' ELSE {letter.format(0)} END"
    )
    return (
        f"(SELECT coalesce(group_concat({letters}, ''), '') FROM (SELECT key, h, {bits} AS b FROM (SELECT hex({value}) AS h), {numbers}))"
    )


_SQLITE: dict[str, Sql] = {
    "uuid": lambda v: _text(
        f"lower(substr({v}, 1, 8) || '-' || substr({v}, 9, 4) || '-' || substr({v}, 13, 4) || '-' || substr({v}, 17, 4) || '-' || substr({v}, 21))",
        v,
    ),
    "date": lambda v: _text(v, v),
    "time": lambda v: _text(f"replace({v}, '.000000', '')", v),
    "datetime": lambda v: _text(f"replace(replace({v}, ' ', 'T'), '.000000', '')", v),
    "timedelta": _timedelta,
    "bytes": lambda v: f"CASE typeof({v}) WHEN 'blob' THEN '\"' || {_base64(v)} || '\"' ELSE {_stored(v)} END",
}
