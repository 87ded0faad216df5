"""Event triggers: what SQLAlchemy does not see (SQL as text, other programs) is written into the log by the database itself.

A trigger writes the same events as capture does: type, key, payload by column name, sidecar of types, schema version. It
knows the whole row before and after, so its updates hold exactly the columns that differ, and it sees every row that a
foreign key changes. TRUNCATE writes a delete for each row.

No double capture
    Where hooks and triggers are both on, whoever sees the statement first writes it: capture tells the trigger to leave a
    statement to it. On PostgreSQL by a comment at the end of the statement that names the table, which the trigger looks
    for in ``current_query()``: exact for each statement, no round trip, nothing to undo after an error, and it goes
    through PgBouncer. A session setting would hold for the text SQL of the same transaction, too, or cost a round trip a
    statement. What a marked statement makes other triggers do (``pg_trigger_depth() > 1``) is not left to capture, which
    cannot see it. On SQLite, which does not show the statement, a table of one row says it: set before and unset after a
    captured statement, in the same transaction, in process.

    Which tables have triggers is read when a connection is new. Until then a process that was running when a trigger was
    made writes its own events beside the trigger's: create triggers before the processes start, or restart them.

What a trigger does not see: a statement that somebody copied with its mark; on SQLite the rows that REPLACE replaces, and
what other triggers write into the very table of a captured statement.
"""

from __future__ import annotations

from .drift import drift, installed
from .making import create, drop, drop_sql, sql

__all__ = ["create", "drift", "drop", "drop_sql", "installed", "sql"]
