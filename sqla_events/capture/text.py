"""What SQL that somebody has written as text does: the tables that it writes, and the transactions that it begins or ends.

It is read once from its beginning to its end, as its database splits it: what stands in a literal, a comment or a quoted name is no
word of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple


class Text(NamedTuple):
    """What a text does."""

    writes: tuple[tuple[str | None, str, str], ...] = ()
    """Schema, table and reason of each write."""
    words: tuple[tuple[str, str | None], ...] = ()
    """SAVEPOINT, ROLLBACK TO, ROLLBACK, and COMMIT or what may be one (RELEASE is, on SQLite); with the savepoint's name."""
    several: bool = False
    """More than one statement."""


KEPT_LENGTH = 10_000
"""Characters of a text up to which what it does is kept of many; SQLAlchemy has it read each time that it is executed."""


def read(sql: str, dialect: str) -> Text:
    """What a text does, by the name of its dialect. A SELECT that is alone passes here often."""
    if sql.startswith(("SELECT", "select")) and ";" not in sql:
        return _NOTHING
    return _read(sql, dialect) if len(sql) <= KEPT_LENGTH else _read_long(sql, dialect)


def _read_anew(sql: str, dialect: str) -> Text:
    statements = [tokens for tokens in _statements(sql, dialect) if tokens]
    writes = tuple(write for tokens in statements for write in (*_filled(tokens), *_writes(_executed(tokens))))
    words = tuple(word for tokens in statements if (word := _transaction_word(tokens)) is not None)
    return Text(writes, words, len(statements) > 1)


_NOTHING = Text()
_read = lru_cache(maxsize=512)(_read_anew)
_read_long = lru_cache(maxsize=4)(_read_anew)

# Tokens --------------------------------------------------------------------------------------------------------------
# Each alternative takes what is not closed up to the end, as the databases do before they refuse it: so none is tried twice.

_LETTER, _MORE = r"[A-Za-z_\x80-\U0010ffff]", r"[A-Za-z0-9_$\x80-\U0010ffff]*"
_STRING = r"'[^']*(?:''[^']*)*(?:'|\Z)"
_QUOTED = r'"[^"]*(?:""[^"]*)*(?:"|\Z)'
_WORD = rf"(?P<word>{_LETTER}{_MORE})|(?P<sign>[;(),.])"
_TOKENS = {
    "postgresql": re.compile(
        r"--[^\n\r]*|(?P<comment>/\*)"
        r"|(?P<literal>[eE]'(?:[^'\\]++|\\.?|''|'[ \t\r\f\v]*\n\s*')*(?:'|\Z)"  # a line further on it continues, with its escapes
        rf"|(?P<tag>\$(?:{_LETTER}[A-Za-z0-9_\x80-\U0010ffff]*)?\$)(?:.*?(?P=tag)|.*))"
        rf"|(?P<string>{_STRING})|(?:[uU]&)?(?P<quoted>{_QUOTED})|{_WORD}",
        re.DOTALL,
    ),
    "sqlite": re.compile(
        rf"--[^\n]*|/\*.*?(?:\*/|\Z)|[@:#$]{_MORE}|(?P<string>{_STRING})"
        rf"|(?P<quoted>{_QUOTED}|`[^`]*(?:``[^`]*)*(?:`|\Z)|\[[^\]]*(?:\]|\Z))|{_WORD}",
        re.DOTALL,
    ),
}
_COMMENT = re.compile(r"/\*|\*/")


def tokens(sql: str, dialect: str) -> Iterator[str]:
    """Words in lower case; signs; literals and quoted names behind a quote. Numbers, operators and comments are left out."""
    search, at = _TOKENS.get(dialect, _TOKENS["postgresql"]).search, 0
    while (found := search(sql, at)) is not None:
        at, kind = found.end(), found.lastgroup
        if kind == "word":
            yield found[0].lower()
        elif kind == "sign":
            yield found[0]
        elif kind == "comment":
            at = _end_of_comment(sql, at)
        elif kind == "literal":
            yield "'"
        elif kind is not None:
            yield _quoted(found[kind])


def _end_of_comment(sql: str, at: int) -> int:
    """PostgreSQL's comments have comments in them."""
    depth = 1
    while depth and (found := _COMMENT.search(sql, at)) is not None:
        at = found.end()
        depth += 1 if found[0] == "/*" else -1
    return len(sql) if depth else at


def _quoted(text: str) -> str:
    last = "]" if text[0] == "[" else text[0]
    return ("'" if last == "'" else '"') + text[1:].removesuffix(last).replace(last * 2, last)


# Statements ----------------------------------------------------------------------------------------------------------

HEAD = 16
"""As many tokens tell what a statement writes that begins with one of these."""
BRIEF = ("select", "values", "insert", "replace", "update", "delete", "merge")


def _statements(sql: str, dialect: str) -> Iterator[list[str]]:
    """The tokens of each statement; of a brief one its first."""
    alone = ";" not in sql.rstrip("; \t\r\n")
    found: list[str] = []
    depth, body = 0, False
    for word in tokens(sql, dialect):
        depth += (word == "(") - (word == ")")
        body = _in_body(body, found, word)
        if word == ";" and depth <= 0 and not body:
            yield found
            found, depth = [], 0
        elif len(found) < HEAD or found[0] not in BRIEF:
            found.append(word)
        elif alone:
            break
    yield found


def _in_body(body: bool, found: list[str], word: str) -> bool:
    """Whether it is between BEGIN and END of a trigger or function, where semicolons end no statement that is executed."""
    if body:
        return word != "end" or found[-1] not in (";", "atomic")
    return (word == "atomic" and found[-1:] == ["begin"]) or (word == "begin" and found[:1] == ["create"] and "trigger" in found[1:3])


def _executed(found: list[str]) -> list[str]:
    """What is executed of a statement: that of EXPLAIN ANALYZE, the query of CREATE TABLE AS."""
    found = _explained(found)
    if found[:1] == ["create"]:
        return found[found.index("as") + 1 :] if "table" in found[1:4] and "as" in found else []
    return found


def _explained(found: list[str]) -> list[str]:
    match found:
        case ["explain", "(", *rest] if ")" in rest:
            end = rest.index(")")
            return rest[end + 1 :] if {"analyze", "analyse"}.intersection(rest[:end]) else []
        case ["explain", "analyze" | "analyse", "verbose", *rest] | ["explain", "analyze" | "analyse", *rest]:
            return rest
        case ["explain", *_]:
            return []
    return found


# Writes --------------------------------------------------------------------------------------------------------------

MAIN = ("select", "values", "table", "insert", "replace", "update", "delete", "merge")
"""What the statement behind a WITH begins with."""
SIGNS = ";(),."


def _writes(found: list[str]) -> Iterator[tuple[str | None, str, str]]:
    reason = "a data-modifying CTE" if found[:1] == ["with"] else "text SQL"
    for start in _starts(found):
        for name in _targets(found, start):
            if name:
                yield name[-2] if len(name) > 1 else None, name[-1], reason


def _filled(found: list[str]) -> Iterator[tuple[str | None, str, str]]:
    """The table that CREATE TABLE AS makes with its rows, if that lasts."""
    found = _explained(found)
    if found[:1] != ["create"] or "table" not in found[1:3] or found[1] in ("temp", "temporary") or found[-3:] == ["with", "no", "data"]:
        return
    at = found.index("table") + 1
    at += 3 if found[at : at + 3] == ["if", "not", "exists"] else 0
    name, end = _name(found, at)
    if name and _has_query(found[end:]):
        yield name[-2] if len(name) > 1 else None, name[-1], "CREATE TABLE AS"


def _has_query(rest: list[str]) -> bool:
    """Whether an AS stands there that is not in parentheses: of a column that is computed it is."""
    depth = 0
    for word in rest:
        depth += (word == "(") - (word == ")")
        if word == "as" and depth == 0:
            return True
    return False


def _starts(found: list[str]) -> Iterator[int]:
    """Where a statement begins: the whole, those of its WITH and the one behind it, and one in parentheses."""
    lists: list[int] = []  # how deep stands a WITH whose own statement is still to come
    depth, begins = 0, True
    for n, word in enumerate(found):
        here = lists[-1:] == [depth]
        if begins and word == "with":
            lists.append(depth)
        elif begins:
            yield n
        elif here and word in MAIN and (found[n - 1] == ")" or found[n - 2] in ("set", "using")):  # of SEARCH and CYCLE
            lists.pop()
            yield n
        begins = word == "(" and (begins or (here and found[n - 1] in ("as", "materialized")) or (n == 1 and found[0] == "copy"))
        depth += (word == "(") - (word == ")")


def _targets(found: list[str], start: int) -> Iterator[list[str]]:
    """The names that a statement writes which begins there."""
    match found[start : start + 4]:
        case ["insert", "or", _, "into"]:
            yield _name(found, start + 4)[0]
        case ["insert" | "replace" | "merge", "into", *_] | ["delete", "from", *_]:
            yield _name(found, start + 2)[0]
        case ["update", *rest]:
            yield _name(found, start + (3 if rest[:1] == ["or"] else 1))[0]
        case ["truncate", *rest]:
            yield from _truncated(found, start + (2 if rest[:1] == ["table"] else 1))
        case ["copy", *_] if start == 0:
            yield _copied(found, start + 1)


def _truncated(found: list[str], at: int) -> Iterator[list[str]]:
    name, at = _name(found, at)
    yield name
    while found[at : at + 1] == [","]:
        name, at = _name(found, at + 1)
        yield name


def _copied(found: list[str], at: int) -> list[str]:
    name, end = _name(found, at + (found[at : at + 1] == ["binary"]))
    if found[end : end + 1] == ["("] and ")" in found[end:]:
        end = found.index(")", end) + 1
    return name if found[end : end + 1] == ["from"] else []


def _name(found: list[str], at: int) -> tuple[list[str], int]:
    """The parts of the name that stands there, and where it ends: ``ONLY (a.b)``, too."""
    at += found[at : at + 1] == ["only"]
    bracket = found[at : at + 1] == ["("]
    at += bracket
    parts = found[at : at + 1]
    while found[at + 1 : at + 2] == ["."]:
        at += 2
        parts += found[at : at + 1]
    named = not any(one in SIGNS for one in parts)
    return [_plain(one) for one in parts if named], at + 1 + bracket


# Transactions --------------------------------------------------------------------------------------------------------


def _transaction_word(found: list[str]) -> tuple[str, str | None] | None:
    match found:
        case ["savepoint", name, *_]:
            return "savepoint", _plain(name)
        case ["rollback", "to", "savepoint", name, *_] | ["rollback", _, "to", "savepoint", name, *_]:
            return "rollback_savepoint", _plain(name)
        case ["rollback", "to", name, *_] | ["rollback", _, "to", name, *_]:
            return "rollback_savepoint", _plain(name)
        case ["rollback" | "abort", *_]:
            return "rollback", None
        case ["commit" | "end" | "release", *_] | ["prepare", "transaction", *_]:
            return "commit", None
    return None


def _plain(word: str) -> str:
    """A name as it is written without quotes."""
    return word[1:] if word[0] in "'\"" else word
