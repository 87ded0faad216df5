"""Writes that capture cannot see into: text SQL, and data-modifying CTEs that ``ctes`` does not catch. Never in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from functools import lru_cache
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.sql import dml

from .plan import table_of, target_of, unwrapped

OnGap = Callable[[str | None, str, str, str], None]
"""(schema, table, statement, reason)"""

OnText = Callable[[Connection, str, str | None], None]
"""(connection, word, savepoint): see :func:`transaction_word`"""

_NAME = r"(?:ONLY\s+)?([\w.\"`\[\]]+)"
_LEAD = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_EXPLAIN = r"(?:EXPLAIN\s+(?:ANALY[ZS]E|\([^)]*ANALY[ZS]E[^)]*\))\s+(?:VERBOSE\s+)?)?"
"""Which executes."""
_TEXT = re.compile(
    rf"{_LEAD}{_EXPLAIN}(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|REPLACE\s+INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM|MERGE\s+INTO"
    rf"|TRUNCATE(?:\s+TABLE)?|COPY(?=\s+[^(\s]+(?:\s*\([^)]*\))?\s+FROM))\s+{_NAME}",
    re.IGNORECASE | re.DOTALL,
)
_WITH = re.compile(rf"{_LEAD}WITH\b", re.IGNORECASE | re.DOTALL)
_CTE = re.compile(
    rf"{_LEAD}WITH\b.*?\b(?:INSERT\s+INTO|(?<!FOR )UPDATE|DELETE\s+FROM|MERGE\s+INTO)\s+{_NAME}",
    re.IGNORECASE | re.DOTALL,
)


def look(on_gap: OnGap, sql: str, context: Any, caught: Container[Any] = ()) -> None:
    """Report what this execution writes beside the rows of its own statement, and of the CTEs that are caught."""
    compiled = getattr(context, "compiled", None)
    if ctes := getattr(compiled, "ctes", None):
        for cte in ctes:
            if cte not in caught and isinstance(cte.element, dml.UpdateBase) and (name := name_of(cte.element)) is not None:
                on_gap(*name, sql, "a data-modifying CTE")
    elif compiled is None or not (context.isinsert or context.isupdate or context.isdelete):
        _look_at_text(on_gap, sql)


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


_LITERAL = re.compile(r"'(?:[^']|'')*'")


def _look_at_text(on_gap: OnGap, sql: str) -> None:
    for schema, table, reason in writes(sql):
        on_gap(schema, table, sql, reason)


def writes(sql: str) -> list[tuple[str | None, str, str]]:
    """Schema, table and reason of each write in a text."""
    return _writes(sql) if len(sql) <= KEPT_LENGTH else _writes.__wrapped__(sql)


KEPT_LENGTH = 10_000
"""Characters of a statement up to which it is looked at once: a SELECT passes here each time that it is executed."""


@lru_cache(maxsize=512)
def _writes(sql: str) -> list[tuple[str | None, str, str]]:
    found = []
    for part in _LITERAL.sub("''", sql).split(";") if ";" in sql else (sql,):
        match, reason = _TEXT.match(part), "text SQL"
        if match is None and _WITH.match(part):
            match, reason = _CTE.match(_LITERAL.sub("''", part)), "a data-modifying CTE"
        if match:
            schema, _, name = match[1].rpartition(".")
            found.append((_bare(schema.rpartition(".")[2]) or None, _bare(name), reason))
    return found


def _bare(name: str) -> str:
    return name.strip('"`[]')


_TRANSACTION = re.compile(
    rf"{_LEAD}(?:(SAVEPOINT)\s+(\S+)|(ROLLBACK)\s+(?:\w+\s+)?TO\s+(?:SAVEPOINT\s+)?(\S+)|(COMMIT|END|RELEASE|ROLLBACK)\b)",
    re.IGNORECASE | re.DOTALL,
)


BACK = ("rollback", "rollback_savepoint")


def rolls_back(sql: str | None, context: Any) -> bool:
    """Whether an execution is of a ROLLBACK or ROLLBACK TO as text."""
    text = sql is not None and (context.compiled is None or context.is_text)
    word = transaction_word(str(sql)) if text else None
    return word is not None and word[0] in BACK


def told(connection: Connection, sql: str, words: Container[str], on_text: OnText) -> None:
    """Tell of a statement as text, if it is one of these."""
    word = transaction_word(sql)
    if word is not None and word[0] in words:
        on_text(connection, *word)


def transaction_word(sql: str) -> tuple[str, str | None] | None:
    """SAVEPOINT, ROLLBACK TO, COMMIT, ROLLBACK and RELEASE (which may be SQLite's COMMIT) that somebody writes as text: the word, and
    the savepoint's name.
    """
    match = _TRANSACTION.match(sql)
    if match is None:
        return None
    savepoint, name, back, to, end = match.groups()
    if savepoint:
        return "savepoint", name
    return ("rollback_savepoint", to) if back else ("rollback" if end.upper() == "ROLLBACK" else "commit", None)


