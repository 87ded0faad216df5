"""Range partitions of ``events`` on PostgreSQL: made ahead, and dropped whole when they are done and old.

A dropped partition leaves no dead rows and costs no vacuum, and a transaction that holds vacuum back does not matter. What
it costs: each read looks for the partitions it needs, and a dead letter's event is copied away when its partition goes.

Why there is a default partition, ``events_rest``: if nobody makes partitions ahead (every process that runs upkeep is
down), writers go on, into that one. Why not ``DETACH CONCURRENTLY``: it cannot be used with a default partition. Locks are
asked for with a time limit instead (:data:`LOCK_MILLISECONDS`), so a writer never waits longer than that; while a long
transaction has written to the log, an old partition simply stays.

``id`` is unique because it is made so (version 7); there was never a constraint on it, so partitions give up nothing. ``seq``
stays the primary key: it is the column that partitions are cut by.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..event import now
from ..schema import Names, Tables
from .retention import alone, bound_of, forget_batches

SIZE = 1_000_000
"""Numbers of a partition."""
AHEAD = 4
"""Partitions that are ready above the newest number."""
LOCK_MILLISECONDS = 100


@dataclass(frozen=True)
class Part:
    """A partition that is not the default one: numbers from ``first`` to below ``end``."""

    name: str
    first: int
    end: int


def is_partitioned(connection: Connection, names: Names) -> bool:
    """Whether the log is cut into ranges."""
    if connection.dialect.name != "postgresql":
        return False
    query = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:events)"
    return bool(connection.scalar(sa.text(query), {"events": names.qualified(names.events)}))


def parts(connection: Connection, names: Names) -> list[Part]:
    """The partitions that there are, without the default one, lowest first."""
    query = """SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass(:events)"""
    rows = connection.execute(sa.text(query), {"events": names.qualified(names.events)})
    found = [(name, re.findall(r"MINVALUE|-?\d+", bounds)) for name, bounds in rows if bounds != "DEFAULT"]
    return sorted((Part(name, int(_zero(ends[0])), int(ends[1])) for name, ends in found), key=lambda part: part.first)


def _zero(text: str) -> str:
    return "0" if text == "MINVALUE" else text


def extend(connection: Connection, tables: Tables, size: int) -> list[str]:
    """Make partitions of ``size`` numbers until so many are ready; returns the names of the new ones.

    :raises sqlalchemy.exc.OperationalError: if a lock is not to be had at once; try again later.
    """
    if not alone(connection):
        return []
    names = tables.names
    newest = connection.scalar(sa.text(f"SELECT last_value FROM {names.qualified(names.sequence)}")) or 0
    end = max((part.end for part in parts(connection, names)), default=0)
    if end <= newest:  # nobody made any for long: writers are in the default partition
        end = (newest // size + 2) * size
    made = []
    while end < newest + AHEAD * size:
        made.append(_make(connection, names, end, end + size))
        end += size
    return made


def _make(connection: Connection, names: Names, first: int, end: int) -> str:
    """Attached, not created as a partition: that locks out nobody who writes to other partitions."""
    name, events = f"{names.events}_p{first}", names.qualified(names.events)
    part = names.qualified(name)
    _limit_waiting(connection)
    connection.execute(sa.text(f"CREATE TABLE {part} (LIKE {events} INCLUDING DEFAULTS)"))
    connection.execute(sa.text(f"ALTER TABLE {events} ATTACH PARTITION {part} FOR VALUES FROM ({first}) TO ({end})"))
    return name


def _limit_waiting(connection: Connection) -> None:
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))


def drop_oldest(connection: Connection, tables: Tables, seconds: float) -> str | None:
    """Drop the lowest partition if every group is through with it and its last event is older than ``seconds``.

    Events that a delivery still needs go into the default partition. Returns the partition's name, None if it stays.

    :raises sqlalchemy.exc.OperationalError: if a lock is not to be had at once; try again later.
    """
    bound, found = bound_of(connection, tables), parts(connection, tables.names)
    if bound is None or not found or found[0].end - 1 > bound or not alone(connection):
        return None
    names, part = tables.names, tables.names.qualified(found[0].name)
    newest = connection.scalar(sa.text(f"SELECT created_at FROM {part} ORDER BY seq DESC LIMIT 1"))
    if newest is not None and newest >= now() - dt.timedelta(seconds=seconds):
        return None
    events, deliveries = names.qualified(names.events), names.qualified(names.deliveries)
    _limit_waiting(connection)
    connection.execute(sa.text(f"ALTER TABLE {events} DETACH PARTITION {part}"))
    needed = f"SELECT 1 FROM {deliveries} AS d WHERE d.seq = p.seq"
    connection.execute(sa.text(f"INSERT INTO {events} SELECT p.* FROM {part} AS p WHERE EXISTS ({needed})"))
    connection.execute(sa.text(f"DROP TABLE {part}"))
    forget_batches(connection, tables, found[0].end - 1)
    return found[0].name


def rest(tables: Tables) -> sa.Table:
    """The default partition."""
    return Tables(Names(f"{tables.names.events}_rest", tables.names.schema)).events


def partition_sql(names: Names, size: int) -> str:
    """What turns the log into a partitioned table, with what it holds as the first partition; nothing if it is one.

    One statement, without a per cent sign, which scripts would double. It locks the log and reads it once; grants on log and
    view, and the owner, are kept.
    """
    events, part, status = (names.qualified(name) for name in (names.events, f"{names.events}_p0", names.status))
    return _PARTITION.format(
        events=events,
        part=part,
        default=names.qualified(f"{names.events}_rest"),
        status=status,
        sequence=names.qualified(names.sequence),
        part_name=f'"{names.events}_p0"',
        id_index=names.qualified(f"{names.events}_id"),
        id_name=f'"{names.events}_id"',
        part_id_name=f'"{names.events}_p0_id"',
        prefix=names.qualified(f"{names.events}_p").removesuffix('"'),
        size=size,
        ahead=AHEAD,
    )


_PARTITION = """
DO $partition$
DECLARE
    definition text; owner text; grants text[]; statement text; first bigint;
BEGIN
    LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE;
    IF (SELECT relkind FROM pg_class WHERE oid = '{events}'::regclass) = 'p' THEN RETURN; END IF;
    SELECT (last_value / {size} + 1) * {size} INTO first FROM {sequence};
    definition := pg_get_viewdef('{status}'::regclass);
    SELECT quote_ident(pg_get_userbyid(relowner)) INTO owner FROM pg_class WHERE oid = '{events}'::regclass;
    SELECT array_agg('GRANT ' || a.privilege_type || ' ON ' || t.name || ' TO ' ||
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        INTO grants
        FROM (VALUES ('{events}'), ('{status}')) AS t(name), pg_class AS c, aclexplode(c.relacl) AS a
        WHERE c.oid = t.name::regclass AND a.grantee <> c.relowner;
    DROP VIEW {status};
    ALTER TABLE {events} RENAME TO {part_name};
    ALTER INDEX {id_index} RENAME TO {part_id_name};
    CREATE TABLE {events} (LIKE {part} INCLUDING DEFAULTS, PRIMARY KEY (seq)) PARTITION BY RANGE (seq);
    CREATE INDEX {id_name} ON {events} USING brin (id) WITH (autosummarize = on);
    EXECUTE 'ALTER TABLE {events} ATTACH PARTITION {part} FOR VALUES FROM (MINVALUE) TO (' || first || ')';
    CREATE TABLE {default} PARTITION OF {events} DEFAULT;
    FOR n IN 1 .. {ahead} LOOP
        EXECUTE 'CREATE TABLE {prefix}' || first || '" PARTITION OF {events} FOR VALUES FROM (' || first
            || ') TO (' || first + {size} || ')';
        first := first + {size};
    END LOOP;
    ALTER SEQUENCE {sequence} OWNED BY {events}.seq;
    EXECUTE 'CREATE VIEW {status} AS ' || definition;
    EXECUTE 'ALTER TABLE {events} OWNER TO ' || owner;
    EXECUTE 'ALTER VIEW {status} OWNER TO ' || owner;
    FOREACH statement IN ARRAY coalesce(grants, '{{}}') LOOP EXECUTE statement; END LOOP;
END $partition$
"""
