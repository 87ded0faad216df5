"""The event log, positions, batches, deliveries, and the view event_status.

Frozen: a later change is a later revision. Everything is plain SQL, made by :func:`create` and :func:`drop` from names
and dialect alone, so that an application's own migration can execute it (``op.create_event_tables()``), online or as a
script.
"""

from __future__ import annotations

from alembic import op

from sqla_events.schema import Names

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in create(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    for statement in drop(op.get_context().opts["event_names"], op.get_context().dialect.name):
        op.execute(statement)


def create(names: Names, dialect: str) -> list[str]:
    """The statements that create everything, in order."""
    make = {"postgresql": _create_on_postgresql, "sqlite": _create_on_sqlite}[dialect]
    return [*make(names), *_indexes(names, dialect), _view(names, dialect)]


def drop(names: Names, dialect: str) -> list[str]:  # noqa: ARG001 - every revision has the same two functions
    """The statements that remove everything. Events and positions are lost. The dialects agree."""
    tables = (names.deliveries, names.batches, names.positions, names.events)
    return [f"DROP VIEW {names.qualified(names.status)}", *(f"DROP TABLE {names.qualified(table)}" for table in tables)]


def _create_on_postgresql(names: Names) -> list[str]:
    sequence = names.qualified(names.sequence)
    return [
        # CACHE 1: with a larger cache a session would hand out numbers that are far below what others already wrote.
        f"CREATE SEQUENCE {sequence} AS bigint CACHE 1",
        # The default first makes sure that the transaction has an id, then takes a number: whoever holds a seq holds an
        # xid, which is what the reader's proof that a gap is dead rests on.
        f"""
CREATE TABLE {names.qualified(names.events)} (
    seq bigint DEFAULT CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('{sequence}') END PRIMARY KEY,
    id uuid NOT NULL,
    source text NOT NULL,
    type text NOT NULL,
    schema text,
    entity text,
    operation text,
    key text,
    payload json NOT NULL,
    types json,
    metadata json,
    user_id text,
    session_id text,
    instance_id text,
    schema_version integer DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)""",
        f"ALTER SEQUENCE {sequence} OWNED BY {names.qualified(names.events)}.seq",
        # Half-full pages: a position is updated in place (HOT) several times a second.
        f"""
CREATE TABLE {names.qualified(names.positions)} (
    "group" text,
    partition integer,
    partitions integer DEFAULT 1 NOT NULL,
    high bigint DEFAULT 0 NOT NULL,
    gaps text DEFAULT '[]' NOT NULL,
    owner text,
    lease_expires timestamp with time zone,
    epoch bigint DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone,
    PRIMARY KEY ("group", partition)
) WITH (fillfactor = 50)""",
        f"""
CREATE TABLE {names.qualified(names.batches)} (
    "group" text,
    partition integer,
    high bigint,
    epoch bigint,
    filled text DEFAULT '[]' NOT NULL,
    instance_id text,
    started_at timestamp with time zone NOT NULL,
    completed_at timestamp with time zone NOT NULL
)""",
        f"""
CREATE TABLE {names.qualified(names.deliveries)} (
    "group" text,
    seq bigint,
    subscription text,
    status text NOT NULL,
    attempts integer NOT NULL,
    next_attempt_at double precision,
    error text,
    traceback text,
    first_failed_at timestamp with time zone NOT NULL,
    last_failed_at timestamp with time zone NOT NULL,
    PRIMARY KEY ("group", seq, subscription)
)""",
    ]


def _create_on_sqlite(names: Names) -> list[str]:
    return [
        # AUTOINCREMENT: a number is never used twice, even after retention has deleted the newest event.
        f"""
CREATE TABLE {names.qualified(names.events)} (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id CHAR(32) NOT NULL,
    source TEXT NOT NULL,
    type TEXT NOT NULL,
    schema TEXT,
    entity TEXT,
    operation TEXT,
    "key" TEXT,
    payload TEXT NOT NULL,
    types TEXT,
    metadata TEXT,
    user_id TEXT,
    session_id TEXT,
    instance_id TEXT,
    schema_version INTEGER DEFAULT 1 NOT NULL,
    created_at DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%f', 'now') || '+00:00') NOT NULL
)""",
        f"""
CREATE TABLE {names.qualified(names.positions)} (
    "group" TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    partitions INTEGER DEFAULT 1 NOT NULL,
    high BIGINT DEFAULT 0 NOT NULL,
    gaps TEXT DEFAULT '[]' NOT NULL,
    owner TEXT,
    lease_expires DATETIME,
    epoch BIGINT DEFAULT 0 NOT NULL,
    updated_at DATETIME,
    PRIMARY KEY ("group", "partition")
)""",
        f"""
CREATE TABLE {names.qualified(names.batches)} (
    "group" TEXT,
    "partition" INTEGER,
    high BIGINT,
    epoch BIGINT,
    filled TEXT DEFAULT '[]' NOT NULL,
    instance_id TEXT,
    started_at DATETIME NOT NULL,
    completed_at DATETIME NOT NULL
)""",
        f"""
CREATE TABLE {names.qualified(names.deliveries)} (
    "group" TEXT NOT NULL,
    seq BIGINT NOT NULL,
    subscription TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_attempt_at DOUBLE,
    error TEXT,
    traceback TEXT,
    first_failed_at DATETIME NOT NULL,
    last_failed_at DATETIME NOT NULL,
    PRIMARY KEY ("group", seq, subscription)
)""",
    ]


def _indexes(names: Names, dialect: str) -> list[str]:
    """For the view's times. ``events`` has none beyond its key: each would be paid at every captured write.

    SQLite gets the whole text, not an expression: SQLAlchemy warns of those when an application reflects its database.
    """
    batches, table = names.batches, names.qualified(names.batches)
    first = f"({_FIRST[dialect].format(column='filled')})" if dialect == "postgresql" else "filled"
    return [
        f'CREATE INDEX "{batches}_high" ON {table} ("group", "partition", high, completed_at)',
        f'CREATE INDEX "{batches}_filled" ON {table} ("group", "partition", high, {first}) WHERE filled <> \'[]\'',
        # Readers ask every second which dead letters are to be delivered again: mostly none, among however many.
        f"""CREATE INDEX "{names.deliveries}_redriven" ON {names.qualified(names.deliveries)} ("group", seq) WHERE status = 'redriven'""",
    ]


# The view -----------------------------------------------------------------------------------------------------------
#
# One row per event and consumer group (one with no group while there is none). With several partitions an event counts
# as done when every partition is past it: the others skip foreign events as soon as they see them, so this is late by
# at most the slowest partition, and the view needs no hash of the key.
#
# The times are subqueries in the select list: they cost nothing when they are not selected (status counts). Everything
# is driven by events.seq, so a condition on seq reaches the primary keys.

_RANGES = {
    "postgresql": """SELECT 1 FROM json_array_elements({column}::json) AS r(value)
        WHERE {seq} BETWEEN (r.value ->> 0)::bigint AND (r.value ->> 1)::bigint""",
    "sqlite": """SELECT 1 FROM json_each({column}) AS r
        WHERE {seq} BETWEEN json_extract(r.value, '$[0]') AND json_extract(r.value, '$[1]')""",
}
# The lowest number in a list of ranges; NULL for an empty one. Immutable, for the index: a json cast is not.
_FIRST = {
    "postgresql": "substring({column} from '[0-9]+')::bigint",
    "sqlite": "json_extract({column}, '$[0][0]')",
}
_LAST_ERROR = {
    "postgresql": "(array_agg(error ORDER BY last_failed_at DESC))[1] AS error",
    "sqlite": "error, max(last_failed_at) AS last_failed_at",  # SQLite takes error from the row of the maximum
}


def _view(names: Names, dialect: str) -> str:
    filled = f"""b.filled <> '[]' AND {_FIRST[dialect].format(column="b.filled")} <= s.seq
            AND EXISTS ({_RANGES[dialect].format(column="b.filled", seq="s.seq")})"""
    return f"""
CREATE VIEW {names.qualified(names.status)} AS
SELECT s.seq, s.id, s.type, s."group",
    CASE
        WHEN s.low IS NULL THEN 'pending'
        WHEN s.in_gap OR s.retrying > 0 THEN 'processing'
        WHEN s.failed > 0 THEN 'failed'
        WHEN s.seq <= s.low THEN 'completed'
        ELSE 'pending'
    END AS status,
    CASE WHEN s.seq <= s.low AND NOT s.in_gap THEN ({_time("started_at", names, filled)}) END AS processed_at,
    CASE WHEN s.seq <= s.low AND NOT s.in_gap AND s.retrying = 0 AND s.failed = 0
        THEN ({_time("completed_at", names, filled)}) END AS completed_at,
    s.error,
    s.retry_count
FROM ({_states(names, dialect)}) AS s"""


def _states(names: Names, dialect: str) -> str:
    """Event and group with where the event stands: below every position, in a gap, in trouble."""
    in_gap = _RANGES[dialect].format(column="p.gaps", seq="e.seq")
    return f"""
    SELECT e.seq, e.id, e.type, g."group", g.low,
        CASE WHEN e.seq BETWEEN g.first_gap AND g.high THEN EXISTS (
            SELECT 1 FROM {names.qualified(names.positions)} AS p
            WHERE p."group" = g."group" AND p.gaps <> '[]' AND EXISTS ({in_gap})
        ) ELSE 1 = 0 END AS in_gap,
        coalesce(d.retrying, 0) AS retrying,
        coalesce(d.failed, 0) AS failed,
        d.error,
        CASE WHEN d.attempts > 1 THEN d.attempts - 1 ELSE 0 END AS retry_count
    FROM {names.qualified(names.events)} AS e
    LEFT JOIN (
        SELECT "group", min(high) AS low, max(high) AS high,
            min({_FIRST[dialect].format(column="gaps")}) AS first_gap
        FROM {names.qualified(names.positions)} GROUP BY "group"
    ) AS g ON 1 = 1
    LEFT JOIN (
        SELECT "group", seq, max(attempts) AS attempts,
            sum(CASE WHEN status <> 'failed' THEN 1 ELSE 0 END) AS retrying,
            sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
            {_LAST_ERROR[dialect]}
        FROM {names.qualified(names.deliveries)} GROUP BY "group", seq
    ) AS d ON d.seq = e.seq AND d."group" = g."group"
"""


def _time(column: str, names: Names, filled: str) -> str:
    """When the event was done: by the batch that filled its gap, else by the first whose position reached it.

    Of several partitions, the last.
    """
    batch = f"""SELECT b.{column} FROM {names.qualified(names.batches)} AS b
            WHERE b."group" = p."group" AND b."partition" = p."partition" AND b.high >= s.seq"""
    return f"""
        SELECT max(coalesce(
            ({batch} AND {filled} ORDER BY b.high LIMIT 1),
            ({batch} ORDER BY b.high, b.completed_at LIMIT 1)
        )) FROM {names.qualified(names.positions)} AS p WHERE p."group" = s."group"
    """
