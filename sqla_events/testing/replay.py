"""Replay equivalence: applying the captured events to a copy of the tables yields the tables.

This is the proof that capture is complete and exact, and it can be run on any application's data::

    apply(copy, metadata, events)              # events in the order of the log
    assert differences(source, copy, metadata) == []
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect

from ..capture.column import ColumnCodec
from ..errors import EventError
from ..event import Event


def apply(
    connection: Connection,
    metadata: sa.MetaData,
    events: Iterable[Event],
    default_schema: str = "public",
    *,
    check_before: bool = False,
) -> int:
    """Apply captured events to the tables of ``metadata``; returns how many were applied.

    :param check_before: the old values of each event must be those of the copy. A session that has not noticed what others have
        changed tells what it knows, though.

    The copy proves most without foreign keys that change rows by themselves: then nothing but the events has changed it.

    :raises EventError: for an event of a table that ``metadata`` does not have, or that matches no row, or that contradicts the copy.
    """
    dialect = connection.dialect
    tables = {(table.schema or default_schema, table.name): table for table in metadata.tables.values()}
    plain: dict[sa.Table, sa.Table] = {}
    count = 0
    for event in events:
        table = tables.get((event.schema or default_schema, event.entity or ""))
        if table is None:
            raise EventError(
                f"event {event.seq} is about {event.schema}.{event.entity}, which is no table of this metadata"
            )
        if event.operation != "read":
            if table not in plain:
                plain[table] = plain_table(table, dialect, {column.name for column in table.columns if column.computed})
            if check_before and (wrong := contradiction(connection, plain[table], event)):
                raise EventError(wrong)
            apply_event(connection, plain[table], event)
            count += 1
    return count


def plain_table(
    table: sa.Table,
    dialect: Dialect,
    computed: Iterable[str] = (),
    name: str | None = None,
    schema: str | None = None,
) -> sa.Table:
    """A table for replay: the same columns at the level of events, without defaults, which a replay must not run.

    :param computed: names of columns that the database sets itself there, so that events must not.
    :param name: another name, in ``schema``.
    """
    columns = (
        sa.Column(column.name, _plain(ColumnCodec(column, dialect).kind), primary_key=column.primary_key, autoincrement=False)
        for column in table.columns
    )
    schema = schema if name else table.schema
    return sa.Table(name or table.name, sa.MetaData(), *columns, schema=schema, info={_COMPUTED: frozenset(computed)})


def _plain(kind: Any) -> Any:
    """A type without SQL of its own on the way to the database: events have what is stored."""
    return sa.types.NullType() if kind._has_bind_expression else kind  # noqa: SLF001 - nothing else tells


_COMPUTED = "sqla_events_computed"


def apply_event(connection: Connection, table: sa.Table, event: Event) -> None:
    """Apply one captured event to a :func:`plain_table`.

    :raises EventError: if it is about a row that is not there.
    """
    key = event.payload["key"]
    if event.operation == "create":
        if event.payload.get("upsert"):
            connection.execute(sa.delete(table).where(*_where(table, key)))
        connection.execute(sa.insert(table).inline().values(_values(table, event.after)))
        return
    where = _where(table, key) if key else [_one_of_many(connection, table, _where(table, event.before))]
    statement = (
        sa.delete(table) if event.operation == "delete" else sa.update(table).values(_values(table, event.after))
    )
    if event.operation == "update" and not event.after:
        return
    matched = connection.execute(statement.where(*where)).rowcount
    if "cascaded_from" in event.payload:
        return  # the copy may have changed the row itself
    if matched != 1 and key:
        raise EventError(f"event {event.seq} ({event.type}, key {event.key}) matches {matched} rows of the copy")


def contradiction(connection: Connection, table: sa.Table, event: Event) -> str | None:
    """What an event says of its row before the write that is not so in a :func:`plain_table`; None if all of it is.

    Nothing of rows without a key, nor of what the database has changed itself: the copy may have done so too.
    """
    key = event.payload["key"]
    if not key or "cascaded_from" in event.payload:
        return None
    columns = [sa.type_coerce(column, column.type).label(f"c{number}") for number, column in enumerate(table.columns)]
    row = connection.execute(sa.select(*columns).where(*_where(table, key))).first()
    about = f"event {event.seq} ({event.type}, key {event.key})"
    if row is None:
        return None if event.operation == "create" else f"{about} is about a row that is not there"
    if event.operation == "create":
        return None if event.payload.get("upsert") else f"{about} makes a row that is there"
    there = dict(zip([column.name for column in table.columns], row, strict=True))
    for name, value in (event.before or {}).items():
        if value is not sa.JSON.NULL and there[name] != value and repr(there[name]) != repr(value):
            return f"{about} has {value!r} for the old {name}, which is {there[name]!r}"
    return None


def _one_of_many(connection: Connection, table: sa.Table, where: list[Any]) -> Any:
    """One of the rows that are alike, where no key tells them apart."""
    place: Any = sa.literal_column("ctid" if connection.dialect.name == "postgresql" else "rowid")
    return place == sa.select(place).select_from(table).where(*where).limit(1).correlate(None).scalar_subquery()


def _where(table: sa.Table, key: Mapping[str, Any]) -> list[Any]:
    return [
        table.columns[name].is_(None) if value is None else table.columns[name] == _bound(table, name, value)
        for name, value in key.items()
    ]


def _values(table: sa.Table, values: Mapping[str, Any]) -> dict[Any, Any]:
    computed = table.info[_COMPUTED]
    return {table.columns[name]: _bound(table, name, value) for name, value in values.items() if name not in computed}


def _bound(table: sa.Table, name: str, value: Any) -> Any:
    if value is None:
        return sa.null()
    return sa.bindparam(None, value, type_=table.columns[name].type)


def differences(source: Connection, copy: Connection, metadata: sa.MetaData) -> list[str]:
    """What differs between the tables of two databases, a line for each row; empty: they are the same."""
    found = []
    for table in metadata.sorted_tables:
        here, there = _rows(source, table), _rows(copy, table)
        found += [f"{table.fullname}: only in the source: {row}" for row in (here - there).elements()]
        found += [f"{table.fullname}: only in the copy: {row}" for row in (there - here).elements()]
    return found


def _rows(connection: Connection, table: sa.Table) -> Counter[str]:
    """Rows as the driver returns them, below every type of SQLAlchemy's."""
    raw = [
        sa.type_coerce(column, sa.types.NullType()).label(f"c{number}") for number, column in enumerate(table.columns)
    ]
    return Counter(repr(tuple(row)) for row in connection.execute(sa.select(*raw).select_from(table)))
