"""Writes that capture cannot see into: text SQL, and data-modifying CTEs that ``ctes`` does not catch. Never in silence."""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import dropwhile
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.sql import dml

from .plan import table_of, target_of, unwrapped
from .text import read

OnGap = Callable[[str | None, str, str, str], None]
"""(schema, table, statement, reason)"""

OnText = Callable[[Connection, str, str | None], None]
"""(connection, word, savepoint): see :class:`text.Text`"""


def look(on_gap: OnGap, sql: str, context: Any, caught: Container[Any] = ()) -> None:
    """Report what the CTEs of this execution write that are not caught."""
    for cte in context.compiled.ctes:
        if cte not in caught and isinstance(cte.element, dml.UpdateBase) and (name := name_of(cte.element)) is not None:
            on_gap(*name, sql, "a data-modifying CTE")


def look_at_target(on_gap: OnGap, element: Any, sql: str) -> None:
    """Report a statement on a ``table()`` that stands for none that is declared: its key and types are not known."""
    statement = unwrapped(element)
    if isinstance(statement, dml.UpdateBase) and table_of(statement) is None and (name := name_of(statement)) is not None:
        on_gap(*name, sql, "a statement on a table() that no Table is declared for")


def name_of(statement: dml.UpdateBase) -> tuple[str | None, str] | None:
    """Schema and name of what a statement writes to, if it has one."""
    target = target_of(statement)
    name = getattr(target, "name", None)
    return None if name is None else (getattr(target, "schema", None), str(name))


def writes(sql: str, dialect: str) -> tuple[tuple[str | None, str, str], ...]:
    """Schema, table and reason of each write in a text."""
    return read(sql, dialect).writes


BACK = ("rollback", "rollback_savepoint")


def may_have_rolled_back(sql: str | None, context: Any, of_driver: bool) -> bool:
    """Whether an execution that has failed is of a ROLLBACK or ROLLBACK TO as text, and nobody knows whether it has run: it was a
    listener who failed, or another statement of the text.
    """
    if sql is None or not (context.compiled is None or context.is_text):
        return False
    text = read(str(sql), context.dialect.name)
    return (text.several or not of_driver) and any(word in BACK for word, _ in text.words)


def told_before(connection: Connection, sql: str, on_text: OnText) -> None:
    """Tell of each SAVEPOINT and COMMIT of a text that is about to be executed."""
    for word, name in read(sql, connection.dialect.name).words:
        if word not in BACK:
            on_text(connection, word, name)


def told_after(connection: Connection, sql: str, on_text: OnText) -> None:
    """Tell of each ROLLBACK of a text that has been executed, and of what came after it."""
    for word, name in dropwhile(lambda one: one[0] not in BACK, read(sql, connection.dialect.name).words):
        on_text(connection, word, name)
