"""PostgreSQL: a set-based statement of which nobody wants rows writes its events itself, so that no row travels.

::

    WITH n AS (the statement RETURNING t.id AS c0, t.qty AS c1, t.at AS c2),
         e AS (INSERT INTO events (…) SELECT … FROM n WHERE NOT doubt)
    SELECT total, u.* FROM (SELECT count(*) AS total FROM n) AS c LEFT JOIN (SELECT true, n.* FROM n WHERE doubt) AS u ON true

The events are those that Python would make (``exact`` has the forms). A row that holds a value of which that is not certain,
or whose payload is too large, comes back and becomes an event in Python; so do all of them if a column's type has changed since
it was looked up. Measured, an UPDATE of 10,000 rows on PostgreSQL 18: the statement alone 35 ms, with the INSERT 128 and no
way back (its command tag would be the number of rows), 140 with it.

What is not covered exactly stays with RETURNING: a caller who wants rows, many sets of parameters, upserts, rows of others
that a foreign key reaches, keys that change where their old value is not told or where rows might come back out of order,
a type that ``exact`` does not know, temporary tables, tables with rules. So does a statement that wrote few rows last time.

What the statement was compiled into is not touched: the SQL string is put together anew on its way to the cursor, as for
RETURNING that rides along. What varies with the execution (who did it, metadata) is a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.engine import cursor as strategies

from .. import encoding
from ..errors import CaptureError
from ..event import new_id
from ..schema import Names
from . import ride
from .codec import Loaded, Stored
from .exact import TIMESTAMPTZ, Exact, exact
from .forms import Parts, literal, object_of, special_types, unquoted
from .kept import ByIdentity
from .outbox import OWN, SHARED, Head
from .plan import Plan
from .ride import OLD
from .rows import changed_keys

DRIVERS = ("psycopg", "asyncpg")

ROWS = "sqla_events_rows"
"""What the statement is called in its WITH."""

_PARAMETERS = (*SHARED, "types", "seed")

Shared = Callable[[Connection, Plan], tuple[Head, encoding.Types]]

FLOAT_LETTERS = 20
"""By how many a float that PostgreSQL writes may differ in length from Python's."""


MOST_PARAMETERS = 32_000
"""asyncpg takes 32,767, and ours come on top."""

FEW = 25
"""Rows below which Python is faster: to parse and plan what makes the events takes PostgreSQL half a millisecond."""


@dataclass
class Frame:
    """What stands around one compiled statement."""

    returning: str
    rest: str
    """With a place for each parameter: the columns that events share, the sidecar, and what their ids have in common."""
    ride: tuple[str, ...]
    special: bool
    """The sidecar depends on the row."""
    zoned: bool
    """It tells times in the time zone of the session."""
    rows: int | None = None
    """How many the statement wrote when it ran last, if it has. Of few, it goes the other way as long as they are few."""


@dataclass(frozen=True)
class Within:
    """One execution that writes its events itself."""

    sql: str
    parameters: Any
    type: str
    own_sql: str
    own_parameters: Any
    """As they were without."""


class Writer:
    """Lets statements of one engine write their events."""

    def __init__(self, names: Names, limit: int | None, old_values: str, shared: Shared, drain: Callable[[Connection], None]) -> None:
        self._names = names
        self._log = names.qualified(names.events)
        self._refused = re.compile(rf'relation "(?:[^"]*\.)?{(name := re.escape(names.events))}"|(?:table|sequence) {name}(?:_seq_seq)?\b')
        """What PostgreSQL says of the log itself, and not of something else that is called alike."""
        self._limit = limit
        self._before = old_values != "never"
        self._shared = shared
        self._drain = drain

    def may(self, plan: Plan, context: Any, executemany: bool) -> bool:
        """Whether a statement is of a kind that can."""
        dialect = context.dialect
        wants_old = plan.verb == "update" and (plan.want_old or ride.moves(plan))
        return bool(
            dialect.name == "postgresql"
            and dialect.driver in DRIVERS
            and dialect.paramstyle in ("pyformat", "numeric_dollar")
            and not dialect._backslash_escapes
            and plan.whole
            and not (executemany or plan.own or plan.shape.upsert or plan.reached or plan.codec.cascades)
            and plan.verb in plan.codec.operations
            and not context._is_server_side
            and not context.compiled.effective_returning
            and not context.compiled.ctes
            and not context.execution_options.get("no_parameters")  # then nobody halves what is doubled for parameters
            and (not wants_old or ride.old_rides(plan, dialect))
        )

    def within(self, connection: Connection, plan: Plan, sql: str, parameters: Any, context: Any) -> Within | None:
        """The statement with what writes its events around it; None where something is not covered.

        What was captured before it is written now, so that it comes before it in the log.
        """
        schema = plan.table.schema if plan.translate is None else plan.translate.get(plan.table.schema, plan.table.schema)
        stored = self._stored(connection, plan, schema)
        if stored is None:
            return None
        frames = plan.codec.frames.get(context.compiled, _no_frames)
        if stored not in frames:
            made = _Frame(plan, context, dict(stored), self._before)
            frames[stored] = made.frame(self._log, self._limit) if made.covered else None
        frame = plan.frame = frames[stored]
        if frame is None or (frame.rows is not None and frame.rows < FEW):
            return None
        if len(parameters) >= MOST_PARAMETERS or not _plain_literals(connection):
            return None
        if frame.zoned and not _zone_is_known(connection):
            return None
        self._drain(connection)
        plan.ride = frame.ride
        head, codes = self._shared(connection, plan)
        said = {**plan.codec.codes, **codes}
        types = "," + encoding.dumps(said)[1:-1] if said else ""
        extra = (*head.values, types if frame.special else f"{{{types[1:]}}}" if types else None, new_id().hex[12:19])
        places, given = _bound(context.dialect, parameters, extra)
        joint = "\n" if "--" in sql else " "
        text = f"WITH {ROWS} AS ({sql}{joint}{frame.returning}){frame.rest.format(*places)}"
        return Within(text, given, head.type, sql, parameters)

    # Frames ------------------------------------------------------------------------------------------------------

    def _stored(self, connection: Connection, plan: Plan, schema: str | None) -> Stored | None:
        """What the database stores in each column of the table; nothing of one that cannot be written in a WITH.

        None in a transaction that has failed: the statement will say so.
        """
        known = plan.codec.stored
        if schema in known:
            return known[schema]
        name = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, plan.table.name) if part)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_LOOK.format(table=literal(name), log=literal(self._log)))
            found = frozenset(tuple(row) for row in cursor.fetchall())
            known[schema] = next((one for one in list(known.values()) if one == found), found)
            return known[schema]
        except connection.dialect.loaded_dbapi.Error:
            return None
        finally:
            cursor.close()

    # Errors ------------------------------------------------------------------------------------------------------

    def failed(self, plan: Plan, context: Any) -> None:
        """The statement has failed: its error shows what the caller has written.

        :raises CaptureError: if it is the log that refuses.
        """
        error, shown = context.original_exception, context.sqlalchemy_exception
        if shown is not None:
            shown.statement, shown.params = plan.within.own_sql, plan.within.own_parameters
        code, name = str(getattr(error, "sqlstate", "")), self._names.events
        if code.startswith(("42", "0A")):  # perhaps a column's type has changed, or the table has a rule: look again
            plan.codec.frames = ByIdentity()
            plan.codec.stored.clear()
        if code.startswith(("42", "23514")) and self._refused.search(str(error)) and plan.table.name != name:
            raise CaptureError(
                f"events could not be written to {self._log}: {error}; "
                "if the table is missing or outdated, run: sqla-events migrate URL"
            ) from error


def _no_frames(_: Any) -> dict[Stored, Frame | None]:
    return {}


_LOOK = """SELECT a.attname, CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'b' THEN t.typname END
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE c.oid = pg_catalog.to_regclass({table}) AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relhasrules
AND a.attnum > 0 AND NOT a.attisdropped AND (t.typtype = 'e' OR t.typnamespace = 'pg_catalog'::regnamespace)
AND pg_catalog.has_table_privilege(pg_catalog.to_regclass({log}), 'INSERT')"""


def _plain_literals(connection: Connection) -> bool:
    """Whether a backslash in a literal is one: a session can change what the dialect has found."""
    raw: Any = connection.connection.driver_connection
    name = "standard_conforming_strings"
    said = raw.info.parameter_status(name) if hasattr(raw, "info") else getattr(raw.get_settings(), name, None)
    return str(said) == "on"


def _zone_is_known(connection: Connection) -> bool:
    """psycopg takes UTC for a time zone that Python does not know."""
    raw: Any = connection.connection.driver_connection
    info = getattr(raw, "info", None)
    return info is None or getattr(info.timezone, "key", "UTC") == info.parameter_status("TimeZone")


def _bound(dialect: Any, parameters: Any, extra: tuple[Any, ...]) -> tuple[list[str], Any]:
    """A place for each further parameter in the SQL, and all parameters."""
    kinds = [{"metadata": "text::json", "schema_version": "integer"}.get(name, "text") for name in _PARAMETERS]
    if dialect.paramstyle == "numeric_dollar":
        first = len(parameters) + 1
        return [f"${number}::{kind}" for number, kind in enumerate(kinds, first)], (*parameters, *extra)
    names = [f"sqla_events_{number}" for number in range(len(extra))]
    given = {**parameters, **dict(zip(names, extra, strict=True))}
    return [f"%({name})s::{kind}" for name, kind in zip(names, kinds, strict=True)], given


class _Frame:
    """Puts a frame together."""

    def __init__(self, plan: Plan, context: Any, stored: Mapping[str, str | None], before: bool) -> None:
        self._plan, self._context, self._codec = plan, context, plan.codec
        changed = changed_keys(plan) if plan.verb == "update" else frozenset()
        self._stored = stored
        self._double = context.dialect.identifier_preparer._double_percents
        keys = plan.codec.all_keys
        has_old = plan.verb == "update" and any(key.startswith(OLD) for key in ride.whole(plan, context.dialect))
        self.changed = [key for key in keys if key in changed]
        needed = [key for key in keys if plan.verb != "update" or key in changed or key in plan.codec.key]
        olds = [OLD + key for key in (keys if not plan.codec.key else needed)] if has_old else []
        self.ride = (*needed, *olds)
        self.places = {key: f"c{number}" for number, key in enumerate(self.ride)}
        self._exacts = self._exact(stored, shown=True)
        self._key_exacts = self._exact(stored, shown=False)
        self._sides = self._which(has_old, before)

    def _exact(self, stored: Mapping[str, str | None], *, shown: bool) -> dict[str, Exact | None]:
        dialect, columns = self._context.dialect, self._codec.columns if shown else self._codec.key_codecs
        return {key: exact(codec, dialect, stored.get(codec.name) or "", shown=shown) for key, codec in columns.items()}

    def _which(self, has_old: bool, before: bool) -> dict[str, list[str]]:
        """Side of the payload -> what of ``ride`` it shows."""
        verb, own = self._plan.verb, list(self._codec.all_keys)
        if verb == "create":
            sides = {"after": own}
        elif verb == "delete":
            sides = {"before": own}
        else:
            olds = self.changed if self._codec.key else own
            sides = {"before": [OLD + key for key in olds] if has_old else [], "after": self.changed}
        if not before:
            sides.pop("before", None)
        shown = self._codec.columns
        return {side: [key for key in keys if key.removeprefix(OLD) in shown] for side, keys in sides.items()}

    @property
    def _old_key(self) -> list[str]:
        """The key before the write, of what rides."""
        return [OLD + key if OLD + key in self.places else key for key in self._codec.key]

    @property
    def covered(self) -> bool:
        """Whether every value that events need has an exact form."""
        shown = {key.removeprefix(OLD) for keys in (self._shown_key(), *self._sides.values()) for key in keys}
        return all(self._exacts[key] for key in shown) and all(self._key_exacts.values())

    def _changed_types(self) -> str:
        """Whether a column has another type now than when it was looked up; one row tells."""
        kinds = ((place, self._stored.get(str(self._plan.table.columns[key.removeprefix(OLD)].name))) for key, place in self.places.items()
                 if not self._is_json(key))  # fmt: skip
        tests = " OR ".join(f"pg_typeof({place}) <> {literal(kind)}::regtype" for place, kind in kinds if kind not in (None, "enum"))
        return f"coalesce((SELECT {tests or 'false'} FROM {ROWS} LIMIT 1), false)"

    def _is_json(self, key: str) -> bool:
        codec = self._codec.columns.get(key.removeprefix(OLD))
        return codec is not None and codec.as_text

    def frame(self, log: str, limit: int | None) -> Frame | None:
        """All of it; None where rows might come back that have to keep their place in the order."""
        doubts = self._doubts()
        if not self.ride:
            return None
        if (doubts or limit is not None) and self._plan.verb == "update" and ride.moves(self._plan):
            return None
        columns = ride.columns(self._plan, self._context, ride.compiled_target(self._context), self.ride)
        returning = ", ".join(f"{column} AS {place}" for column, place in zip(columns, self.places.values(), strict=True))
        zoned = self._context.dialect.driver == "psycopg" and TIMESTAMPTZ in self._stored.values()
        return Frame(f"RETURNING {returning}", self._rest(log, limit, doubts), self.ride, bool(self._special_types()), zoned)

    def _doubts(self) -> list[str]:
        found: dict[str, None] = {}
        for key in dict.fromkeys((*self._old_key, *(key for keys in self._sides.values() for key in keys))):
            plain = key.removeprefix(OLD)
            for one in (self._exacts.get(plain), self._key_exacts.get(plain)):
                if one is not None and one.doubt is not None:
                    found[f"coalesce({one.doubt(self.places[key])}, false)"] = None
        return list(found)

    # SQL ---------------------------------------------------------------------------------------------------------

    def _parts(self, keys: Sequence[str]) -> Parts:
        return [(self._exacts[key.removeprefix(OLD)].form, self.places[key]) for key in keys]  # type: ignore[union-attr]

    def _payload(self) -> str:
        sides = "".join(f""" || ',"{side}":' || {object_of(self._parts(keys))}""" for side, keys in self._sides.items())
        return f"""'{{"key":' || {object_of(self._parts(self._shown_key()))}{sides} || '}}'"""

    def _key_text(self) -> str:
        if not self._codec.key:
            return "'*'"
        forms = [(self._key_exacts[one.removeprefix(OLD)].form, self.places[one]) for one in self._old_key]  # type: ignore[union-attr]
        if len(forms) > 1:
            return "'[' || " + " || ',' || ".join(form.text(value) for form, value in forms) + " || ']'"
        (one,) = (self._key_exacts[key] for key in self._codec.key)
        value = self.places[self._old_key[0]]
        return one.key(value) if one.key else unquoted(one.form.json(value))  # type: ignore[union-attr]

    def _special_types(self) -> list[str]:
        return special_types({side: self._parts(keys) for side, keys in {"key": self._shown_key(), **self._sides}.items()})

    def _shown_key(self) -> list[str]:
        return [one for one in self._old_key if one.removeprefix(OLD) in self._codec.columns]

    def _rest(self, log: str, limit: int | None, doubts: list[str]) -> str:
        """What follows the statement, to be formatted with the places of the parameters."""
        payload, source, doubt, between = self._payload(), ROWS, " OR ".join((self._changed_types(), *doubts)), ""
        if limit is not None:
            floats = [key for keys in self._sides.values() for key in keys if "float" in self._exacts[key.removeprefix(OLD)].form.special]  # type: ignore[union-attr]
            longest = limit - FLOAT_LETTERS * len(floats)
            doubt += f" OR octet_length(payload) > {longest}"
            between = f", {ROWS}_said AS (SELECT *, {payload} AS payload FROM {ROWS})"
            payload, source = "payload", f"{ROWS}_said"
        values = {
            **{name: _place(name) for name in SHARED},
            "id": _ID, "key": self._key_text(), "payload": f"({payload})::json", "types": f"{_place('types')}::json",
        }  # fmt: skip
        if special := self._special_types():
            values["types"] = f"nullif('{{' || substr({' || '.join((_place('types'), *special))}, 2) || '}}', '{{}}')::json"
        names = ", ".join(f'"{name}"' for name in (*OWN, *SHARED))
        insert = f"INSERT INTO {log} ({names}) SELECT {', '.join(values[name] for name in (*OWN, *SHARED))} FROM {source}"
        columns = ", ".join(self.places.values())
        return self._formattable(
            f"{between}, {ROWS}_written AS ({insert} WHERE NOT ({doubt})) "
            f"SELECT total, travels, {columns} FROM (SELECT count(*) AS total FROM {ROWS}) AS counted "
            f"LEFT JOIN (SELECT true AS travels, {columns} FROM {source} WHERE {doubt}) AS doubted ON true"
        )

    def _formattable(self, sql: str) -> str:
        if self._double:
            sql = sql.replace("%", "%%")
        sql = sql.replace("{", "{{").replace("}", "}}")
        for number, name in enumerate(_PARAMETERS):
            sql = sql.replace(_place(name), f"{{{number}}}")
        return sql


def _place(name: str) -> str:
    """Of a parameter, as long as nobody knows how the driver calls it; nothing in the database has such a character."""
    return f"\0{name}\0"


_ID = (
    "(lpad(to_hex((date_part('epoch', clock_timestamp()) * 1000)::bigint), 12, '0') || "
    f"{_place('seed')} || lpad(to_hex((random() * 4503599627370495)::bigint), 13, '0'))::uuid"
)
"""A UUID of version 7: milliseconds, random bits of Python's for the statement, 52 of PostgreSQL's for the row.

``gen_random_uuid()`` asks the kernel: 3 to 8 microseconds; this takes 0.6. Sessions that have called ``setseed`` alike differ
in Python's.
"""


# Taking off ---------------------------------------------------------------------------------------------------------


def take_off(plan: Plan, dbapi_cursor: Any, context: Any) -> Iterator[list[dict[str, Loaded]]]:
    """Rows that have to become events in Python, some at a time; the cursor is left to SQLAlchemy as if there were none.

    ``plan.carried`` is then the number of events that are written.
    """
    codes = [column[1] for column in dbapi_cursor.description[2:]]
    total = travelled = 0
    while rows := dbapi_cursor.fetchmany(ride.CHUNK):
        total = rows[0][0]
        rows = [row for row in rows if row[1]]
        travelled += len(rows)
        if rows:
            yield ride.loaded(plan, rows, 2, codes)
    plan.carried = total - travelled
    context.cursor_fetch_strategy = strategies._NO_CURSOR_DML
    asked = not context.isinsert or context.execution_options.get("preserve_rowcount")
    if asked or context.dialect.driver == "asyncpg":  # whose cursor tells of an INSERT too, where psycopg's is closed then
        context._rowcount = total
