"""PostgreSQL: a statement of one row takes its event along, so that capture costs no round trip.

::

    WITH rows AS (UPDATE items SET … WHERE id = … RETURNING 1)
    INSERT INTO events (…) SELECT … FROM rows

What is looked at afterwards stays as it is: the command tag of this INSERT has the number of rows that the UPDATE matched,
and of none there is no event. An INSERT of which the database makes the key returns that still; in the payload, which is made
before, a number stands for it::

    WITH rows AS (INSERT INTO items … RETURNING items.id),
         log AS (INSERT INTO events (…) SELECT …, replace(payload, number, to_json(new.key)) FROM rows AS new (key))
    SELECT * FROM rows

Microseconds for a transaction of one UPDATE through psycopg, prepared and on the same machine: alone 179, with the event in
a statement of its own 262, carried 195. Where statements cannot be prepared (behind some poolers): 112, 185, 181.

That is for statements whose parameters tell the row, as those of the unit of work do. Others are written after them, as
are those that come while events wait for their COMMIT (``executemany``), so that the log keeps the order of the writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress, count
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import CaptureError
from .buffer import ATTRIBUTE, Buffer
from .catalog import Catalog
from .codec import Stored, TableCodec
from .forms import literal
from .frame import ROWS
from .make import a_number
from .outbox import ABOUT, COLUMNS, KINDS, NUMBERED_KINDS, OWN, SHARED, Captured
from .plan import Plan, Program, Row, Shape
from .rows import deleted_row, foretold, inserted_row, lacks_key, sets_of, updated_row
from .within import DRIVERS

MakeEvent = Callable[[Connection, Plan, Row], Captured | None]

MOST_PARAMETERS = 1000
"""A row that has more is an import's."""

VARYING = (*OWN, *SHARED[ABOUT])
"""Columns of the log that are parameters."""
FIXED = (*SHARED[: ABOUT.start], *SHARED[ABOUT.stop :])
"""Those that are literals."""

_PLACES = tuple(f"sqla_events {number}" for number in range(len(VARYING) + 1))
"""Names of parameters that no bind of the caller's has: SQLAlchemy writes none with a space."""

WHOLE_NUMBERS = ("int2", "int4", "int8")


class Carried(msgspec.Struct, eq=False):
    """One execution that writes its event."""

    event: Captured
    sql: str
    parameters: Any
    """As they were without."""


class Carrier:
    """Lets statements of one engine take their events along."""

    def __init__(self, catalog: Catalog, event: MakeEvent, with_ids: bool, limited: bool) -> None:
        """:param limited: payloads have a limit, which those with a number in place of their key might miss."""
        self._catalog = catalog
        self._event = event
        self._with_ids = with_ids
        self._limited = limited

    def carried(self, connection: Connection, plan: Plan, sql: str, parameters: Any, context: Any) -> tuple[str, Any]:
        """The statement with its event, of which ``plan.carry`` knows then; as it is where that cannot be."""
        buffer: Buffer = connection.__dict__[ATTRIBUTE]
        if buffer.rows or sql.startswith("WITH") or not self._may(connection, plan, parameters, context):
            return sql, parameters  # so that it comes after what waits; as somebody has put it into a WITH
        number = a_number() if plan.program.makes_key else None
        row = _row(plan, buffer, context, number)
        try:
            event = self._event(connection, plan, row)
        except CaptureError:  # afterwards again, if the statement writes the row at all
            plan.foretold = [row]
            return sql, parameters
        assert event is not None  # or it would not carry
        plan.carry = Carried(event, sql, parameters)
        new_id, key, payload, types, head = event
        has_key, usual = key is not None and number is None, types is plan.codec.usual_types
        given: list[Any] = [new_id, key, payload] if has_key else [new_id, payload]
        if not usual:
            given.append(types)
        given += head.said
        if number is not None:
            given.append(str(number))
        numbered = context.dialect.paramstyle == "numeric_dollar"
        first = len(parameters) + 1 if numbered else 0
        literal_types = types if usual else None
        sql = _with_event(sql, self._catalog.log, head.fixed, head.says, literal_types, has_key, usual, first, number is not None)
        return sql, (*parameters, *given) if numbered else {**parameters, **dict(zip(_PLACES, given, strict=False))}

    def _may(self, connection: Connection, plan: Plan, parameters: Any, context: Any) -> bool:
        makes_key = plan.program.makes_key
        if (
            plan.codec.apart
            or plan.reached is not None
            or len(parameters) >= MOST_PARAMETERS
            or context._is_server_side
            or context.execution_options.get("no_parameters")  # then nobody halves what is doubled for parameters
        ):
            return False
        if makes_key:
            return not self._limited and _key_is_whole(plan, self._catalog.stored(connection, plan))
        if plan.shape.verb == "create" and lacks_key(context.compiled_parameters, plan.codec.key):
            return False
        return bool(self._catalog.stored(connection, plan))

    def ran(self, buffer: Buffer, plan: Plan, matched: int) -> None:
        """The statement has run, and matched so many rows; below 0: the driver does not know yet."""
        if matched:
            buffer.written.add_event(plan.carry.event, with_id=self._with_ids)

    def failed(self, plan: Plan, context: Any) -> None:
        """The statement has failed: its error shows what the caller has written. If it is one of those that tables make which
        cannot be written in a WITH (rules, some extensions), events of this table go in statements of their own from now on.

        :raises CaptureError: if it is the log that refuses.
        """
        if str(getattr(context.original_exception, "sqlstate", "")).startswith("0A"):
            plan.codec.apart = True
        self._catalog.failed(plan, context, plan.carry.sql, plan.carry.parameters)


def _key_is_whole(plan: Plan, stored: Stored | None) -> bool:
    """Whether the key is a whole number in the database, too."""
    (key,) = plan.codec.key_codecs.values()
    return stored is not None and any((key.name, kind) in stored for kind in WHOLE_NUMBERS)


def _row(plan: Plan, buffer: Buffer, context: Any, key: int | None) -> Row:
    given, verb = sets_of(plan, context)[0], plan.shape.verb
    if verb == "update":
        return updated_row(plan, buffer, given)
    if verb == "delete":
        return deleted_row(plan, buffer, given)
    return inserted_row(plan, given, None, plan.program.common) if key is None else foretold(plan, given, key)


@lru_cache(maxsize=1024)
def _with_event(
    sql: str,
    log: str,
    fixed: tuple[Any, ...],
    says: tuple[bool, ...],
    types: str | None,
    has_key: bool,
    usual: bool,
    first: int,
    makes_key: bool,
) -> str:
    """The statement with its event around it. Columns that are the same at each of its executions stand there as literals,
    those that are NULL not at all.

    :param says: what of ``ABOUT`` there is.
    :param types: the table's usual ones, if these are (``usual``).
    :param first: the number of our first parameter; 0 where they have names.
    """
    kinds = dict(zip(COLUMNS, NUMBERED_KINDS if first else KINDS, strict=True))
    marks = (f"${number}" for number in count(first)) if first else (f"%({name})s" for name in _PLACES)
    there = (True, has_key, True, not usual, *says)  # of VARYING
    values = {name: f"{next(marks)}::{kinds[name]}" for name in compress(VARYING, there)}
    values.update((name, _literal(value, double=not first)) for name, value in zip(FIXED, fixed, strict=True) if value is not None)
    if types is not None:
        values["types"] = f"{_literal(types, double=not first)}::{kinds['types']}"
    if makes_key:
        values["key"] = "made.key::text"
        values["payload"] = f"replace({values['payload'].partition(':')[0]}::text, {next(marks)}::text, to_json(made.key)::text)::json"
    insert = f"INSERT INTO {log} ({', '.join(map(_name, values))}) SELECT {', '.join(values.values())} FROM {ROWS}"
    end = "\n" if "--" in sql else ""
    if makes_key:
        return f"WITH {ROWS} AS ({sql}{end}), sqla_events_log AS ({insert} AS made (key)) SELECT * FROM {ROWS}"
    return f"WITH {ROWS} AS ({sql}{end} RETURNING 1) {insert}"


def _name(column: str) -> str:
    return f'"{column}"'


def _literal(value: str | int, *, double: bool) -> str:
    """A constant in SQL, whatever the server takes a backslash for; drivers that look for % want it doubled."""
    if isinstance(value, int):
        return str(value)
    text = f"E{literal(value.replace(BACKSLASH, 2 * BACKSLASH))}" if BACKSLASH in value else literal(value)
    return text.replace("%", "%%") if double else text


BACKSLASH = "\\"


def carrying(told: Program, compiled: Any, shape: Shape, codec: TableCodec) -> Program:
    """What a compiled statement tells, and whether its executions can take their events along."""
    dialect = compiled.dialect
    driver = dialect.driver in DRIVERS and dialect.paramstyle in ("pyformat", "numeric_dollar")
    if not driver or told.unsaid or compiled.ctes or shape.verb not in codec.operations:
        return told
    returning = compiled.effective_returning or getattr(compiled.statement, "_returning", ())
    if shape.verb == "create":
        makes_key = _makes_key(told, returning, codec)
        carries = shape.given and (makes_key or not (told.answered or returning))
    else:
        makes_key = False
        carries = bool(shape.by_key) and not returning and codec.key == tuple(column.key for column in shape.table.primary_key)
    return msgspec.structs.replace(told, carries=carries, makes_key=makes_key)


def _makes_key(told: Program, returning: Sequence[Any], table: TableCodec) -> bool:
    """Whether an INSERT returns nothing but a key that is a number, and gets nothing else from the database."""
    if len(returning) != 1 or len(table.key) != 1 or not isinstance(returning[0], sa.Column):
        return False
    (key,) = table.key
    codec = table.key_codecs[key]
    return returning[0].key == key and told.moved == {key} and codec.expected is int and codec.plain_key
