"""Event types as NATS subjects, and patterns as the filters of a consumer.

``public.users.create`` is the subject ``events.public.users.create``: a type has no character that a subject may not
have (:func:`event_type.check_type`), so nothing is escaped. A pattern is a filter once each glob in it is ``*``; what the
filter lets through beyond the pattern is dropped by the client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ...errors import EventError
from ...event_type import check_type

Filter = tuple[str, ...]
"""Tokens below the prefix; ``*`` is any one token, ``>`` at the end the rest."""

ALL: Filter = (">",)


@lru_cache(maxsize=8192)
def subject_of(prefix: str, event_type: str) -> str:
    """The subject of a type.

    :raises EventError: for what is no type (a row that was written by hand): it could be read as part of the protocol.
    """
    check_type(event_type)
    return f"{prefix}.{event_type}"


def check_prefix(prefix: str) -> str:
    """A prefix of subjects.

    :raises EventError: where it is none.
    """
    check_type(prefix)
    if prefix.startswith("$"):
        raise EventError(f"subjects that begin with $ belong to NATS, and the prefix is {prefix!r}")
    return prefix


def filters(patterns: Sequence[str]) -> list[Filter]:
    """Filters that let everything through that matches one of the patterns.

    The server refuses filters of one consumer that overlap (``a.*.c`` and ``a.b.*``), so such are joined to one that is wider.
    """
    found: list[Filter] = []
    for wanted in dict.fromkeys(_filter(pattern) for pattern in patterns):
        new = wanted
        while (other := next((one for one in found if _overlap(one, new)), None)) is not None:
            found.remove(other)
            new = _joined(one=other, other=new)
        found.append(new)
    return found


def _filter(pattern: str) -> Filter:
    if pattern == "*":
        return ALL
    return tuple("*" if any(sign in segment for sign in "*?[") else segment for segment in pattern.split("."))


def _overlap(one: Filter, other: Filter) -> bool:
    for mine, theirs in zip(one, other, strict=False):
        if ">" in (mine, theirs):
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(one) == len(other)


def _joined(one: Filter, other: Filter) -> Filter:
    tokens: list[str] = []
    for mine, theirs in zip(one, other, strict=False):
        if ">" in (mine, theirs):
            return (*tokens, ">")
        tokens.append(mine if mine == theirs else "*")
    if len(one) == len(other):
        return tuple(tokens)
    return (*tokens[:-1], ">")  # which stands for at least one token


_PLAIN = re.compile(r"[^A-Za-z0-9_-]")


def token(name: str) -> str:
    """Any text as one token of a subject, and as the name of a consumer: ``app.mail`` is ``app=2Email``."""
    return _PLAIN.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode()), name) or "="

