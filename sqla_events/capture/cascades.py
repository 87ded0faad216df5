"""Rows that the database itself changes: ON DELETE CASCADE, SET NULL and SET DEFAULT, ON UPDATE of a key that is referred to.

No statement names them, so they are looked at twice: the rows that the foreign keys reach from the statement's rows are
read before it, level by level, and again after it; what differs is an event, marked with ``cascaded_from``.

Why look again instead of inferring: SQLite enforces foreign keys only where ``PRAGMA foreign_keys`` says so, a database
may have another action than the metadata, SET DEFAULT and computed columns have values that only the database knows.

Why this is the default although it costs SELECTs inside a flush: a deleted row without its event is what nobody finds
before production. Only a DELETE, and an UPDATE of columns that are referred to, of a table with such foreign keys pays:
a SELECT of its rows, and one or two for each table that refers to it. ``capture.cascades`` switches it.

Why nothing slips between looking and writing: on PostgreSQL the statement's rows are locked first, and a row that refers
to one of them cannot be added while they are; on SQLite the write lock is taken before looking. A row of the statement
itself that appears in between (READ COMMITTED) is noticed, and is a reported gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .codec import TableCodec
from .column import Loaded
from .plan import Plan, Row, Shape
from .select import matching, present_rows, reserve

Values = dict[str, Loaded]
OnMissed = Callable[[Plan, str], None]

_CHANGES = ("CASCADE", "SET NULL", "SET DEFAULT")


@dataclass(frozen=True, slots=True)
class Link:
    """A foreign key through which a change of one table's rows changes another's."""

    child: sa.Table
    referred: tuple[str, ...]
    """Keys of the columns of the table that is referred to."""
    referring: tuple[str, ...]
    """Keys of the columns of the child, in the same order."""
    verb: str
    """What happens to the row that is referred to: delete or update."""
    then: str
    """What happens to the child's row because of it."""
    nulls: bool
    """By setting the referring columns to NULL."""


@dataclass(slots=True)
class Reached:
    """What one statement may change beside its own rows, as it was before it."""

    parents: list[Values]
    """Of the statement's rows: key, and the columns that are referred to."""
    links: list[tuple[sa.Table, Link]] = field(default_factory=list)
    """Followed foreign keys, nearest first, each with the table that is referred to."""
    rows: dict[sa.Table, dict[str, Values]] = field(default_factory=dict)
    """Rows that may change, by their key."""
    how: dict[tuple[sa.Table, str], Link] = field(default_factory=dict)
    """The foreign key by which a row was found first."""
    held: list[Row] = field(default_factory=list)
    """What the statement itself wrote: events of deleted children come first."""


class Cascades:
    """Follows the foreign keys of captured tables."""

    def __init__(self, operations: Callable[[sa.Table], frozenset[str]], reader: Callable[[sa.Table], TableCodec]) -> None:
        self._operations = operations
        self._reader = reader
        self._links: dict[sa.Table, tuple[int, tuple[Link, ...]]] = {}

    def forget(self) -> None:
        """Foreign keys are declared further."""
        self._links.clear()

    def reaches(self, table: sa.Table) -> frozenset[str]:
        """The verbs by which a statement on the table may change rows of others that are captured."""
        return frozenset(link.verb for link in self._of(table) if self._matters(link, set()))

    def _of(self, table: sa.Table) -> tuple[Link, ...]:
        known, links = self._links.get(table, (-1, ()))
        if known != len(table.metadata.tables):  # tables may be defined later
            links = tuple(_links(table))
            self._links[table] = len(table.metadata.tables), links
        return links

    def _follow(self, table: sa.Table, verb: str, columns: set[str]) -> list[Link]:
        """The foreign keys that matter when rows are deleted, or have some columns updated."""
        return [
            link
            for link in self._of(table)
            if link.verb == verb and (verb == "delete" or columns & set(link.referred)) and self._matters(link, set())
        ]

    def _matters(self, link: Link, seen: set[Link]) -> bool:
        """Whether a captured table is at the end of it, or beyond."""
        if link.then in self._operations(link.child):
            return True
        seen.add(link)
        beyond = (other for other in self._of(link.child) if other.verb == link.then and other not in seen)
        return any(self._matters(other, seen) for other in beyond)

    # Before ------------------------------------------------------------------------------------------------------

    def look(self, connection: Connection, plan: Plan, context: Any) -> Reached | None:
        """Read what the statement may change through foreign keys; None where it cannot change anything."""
        links = self._follow(plan.table, plan.verb, {*plan.program.given, *plan.program.moved})
        if not links:
            return None
        reserve(connection)
        columns = dict.fromkeys((*plan.codec.key, *(name for link in links for name in link.referred)))
        reached = Reached(_parents(connection, plan, context, list(columns)))
        waiting = [(plan.table, link, reached.parents) for link in links]
        while waiting:
            parent, link, rows = waiting.pop(0)
            new = self._children(connection, plan, reached, link, rows)
            reached.links.append((parent, link))
            if new:
                waiting += [(link.child, one, new) for one in self._follow(link.child, link.then, set(link.referring))]
        return reached

    def _children(self, connection: Connection, plan: Plan, reached: Reached, link: Link, rows: list[Values]) -> list[Values]:
        reader, known = self._reader(link.child), reached.rows.setdefault(link.child, {})
        wanted = [tuple(row[name].value for name in link.referred) for row in rows]
        found = matching(connection, plan, reader, link.referring, wanted, self._names(link.child), lock=True)
        new = {key: row for key, row in _identified(reader, found).items() if key not in known}
        known.update(new)
        reached.how.update(((link.child, key), link) for key in new)
        return list(new.values())

    def _names(self, table: sa.Table) -> tuple[str, ...]:
        """What is read of a row: what its events show, and what links it to others."""
        referring = (element.parent.key for element in table.foreign_keys)
        referred = (name for link in self._of(table) for name in link.referred)
        return tuple(dict.fromkeys((*self._reader(table).all_keys, *referring, *referred)))

    # After -------------------------------------------------------------------------------------------------------

    def changed(
        self, connection: Connection, plan: Plan, reached: Reached, written: Sequence[Row], missed: OnMissed
    ) -> Iterator[tuple[Plan, list[Row]]]:
        """What has become of the rows that were reached: for each table a plan and its rows."""
        own = {plan.codec.key_text(row.key) for row in written}
        parents = {plan.codec.key_text(row): row for row in reached.parents}
        if own - parents.keys() and plan.codec.key and not plan.moves_key:
            missed(plan, "a row that appeared while its cascades were read")
        moved: _Moves = {plan.table: _pairs(plan, parents, written)}
        if plan.moves_key and len(written) > 1 and not moved[plan.table] and any(map(self._moves, reached.links)):
            missed(plan, "a change of several keys at once, which other rows' keys follow,")
        for table, before in reached.rows.items():
            skip = own if table is plan.table else set()
            looked = {key: row for key, row in before.items() if key not in skip}
            if looked:
                yield self._plan(plan, table), self._differences(connection, plan, table, looked, reached, moved)

    def _moves(self, step: tuple[sa.Table, Link]) -> bool:
        link = step[1]
        return link.verb == "update" and bool(set(link.referring) & set(self._reader(link.child).key))

    def _differences(
        self, connection: Connection, plan: Plan, table: sa.Table, looked: dict[str, Values], reached: Reached, moved: _Moves
    ) -> list[Row]:
        reader, names = self._reader(table), self._names(table)
        places = {key: _moved(row, table, reached, moved) for key, row in looked.items()}
        if not reader.key:
            return _without_key(connection, plan, reader, looked, places, reached)
        wanted = [tuple(row[name].value for name in reader.key) for row in (*looked.values(), *places.values())]
        present = _identified(reader, matching(connection, plan, reader, reader.key, wanted, names))
        rows, pairs = [], []
        for key, before in looked.items():
            after = present.get(str(reader.key_text(places[key]))) or present.get(key)
            rows += _difference(reader, before, after)
            if after is not None:
                pairs.append((before, after))
        moved[table] = pairs
        return rows

    def _plan(self, cause: Plan, table: sa.Table) -> Plan:
        shape = Shape(table, "update", None, given=False, upsert=False, sorted=False)
        made = Plan(None, shape, self._reader(table), many=False, want_old=True)
        made.translate, made.cause = cause.translate, cause
        return made


_Pairs = list[tuple[Values, Values]]
_Moves = dict[sa.Table, _Pairs]
"""Rows as they were and as they are, of the tables that are done."""


def _links(table: sa.Table) -> Iterator[Link]:
    for child in table.metadata.tables.values():
        for constraint in child.foreign_key_constraints:
            if not _refers(constraint, table):
                continue
            referred = tuple(element.column.key for element in constraint.elements)
            referring = tuple(element.parent.key for element in constraint.elements)
            for verb, text in (("delete", constraint.ondelete), ("update", constraint.onupdate)):
                action = str(text or "").upper()
                if action.startswith(_CHANGES):
                    then = "delete" if verb == "delete" and action == "CASCADE" else "update"
                    yield Link(child, referred, referring, verb, then, action.startswith("SET NULL"))


def _refers(constraint: sa.ForeignKeyConstraint, table: sa.Table) -> bool:
    try:
        return constraint.referred_table is table
    except sa.exc.InvalidRequestError:  # the other table is not defined (yet)
        return False


def named(table: sa.Table) -> dict[str, str]:
    """Of the tables that a delete may reach: the action, by the table's name."""
    return {
        child.fullname: constraint.ondelete.upper()
        for child in table.metadata.tables.values()
        for constraint in child.foreign_key_constraints
        if constraint.ondelete and constraint.ondelete.upper() != "NO ACTION" and _refers(constraint, table)
    }


def _parents(connection: Connection, plan: Plan, context: Any, names: Sequence[str]) -> list[Values]:
    """The statement's rows, locked."""
    if plan.shape.by_key is None:
        sets = context.compiled_parameters
        return [row for given in sets for row in present_rows(connection, plan, context, given, names)]
    keys = [tuple(given[label] for _, label in plan.shape.by_key) for given in context.compiled_parameters]
    return matching(connection, plan, plan.codec, plan.codec.key, keys, names, lock=True, bound=True)


def _identified(reader: TableCodec, rows: Sequence[Values]) -> dict[str, Values]:
    """Rows by their key; by everything they have and a number where they have none."""
    if reader.key:
        return {str(reader.key_text(row)): row for row in rows}
    texts = [repr([value.value for value in row.values()]) for row in rows]
    counts: Counter[str] = Counter()
    found = {}
    for text, row in zip(texts, rows, strict=True):
        counts[text] += 1
        found[f"{text} {counts[text]}"] = row
    return found


def _pairs(plan: Plan, parents: Mapping[str | None, Values], written: Sequence[Row]) -> _Pairs:
    """The statement's rows before and after it. Where keys moved and nobody tells which: only if it is just one."""
    if len(written) == 2 and [row.verb for row in written] == ["delete", "create"]:
        gone, come = written
        written = [Row(gone.key, None, come.after)]
    pairs = [(parents.get(plan.codec.key_text(row.key)), row.after) for row in written]
    return [(before, before | _loaded(plan.codec, after)) for before, after in pairs if before is not None and after]


def _loaded(codec: TableCodec, values: Mapping[str, Any]) -> Values:
    found = {}
    for name, value in values.items():
        column = codec.columns.get(name)
        if not isinstance(value, Loaded):
            value = Loaded(column.bind(value) if column is not None and column.bind is not None else value)
        found[name] = value
    return found


def _moved(row: Values, table: sa.Table, reached: Reached, moved: _Moves) -> Values:
    """Where a row is now, if a key that it refers to has moved."""
    place = dict(row)
    for parent, link in reached.links:
        if link.child is not table or link.verb != "update":
            continue
        refers = [row[name].value for name in link.referring]
        for before, after in moved.get(parent, ()):
            if [before[name].value for name in link.referred] == refers:
                place |= {name: after[other] for name, other in zip(link.referring, link.referred, strict=True)}
    return place


def _difference(reader: TableCodec, before: Values, after: Values | None) -> list[Row]:
    key = {name: before[name] for name in reader.key}
    if after is None:
        return [Row(key, before, None, verb="delete")]
    changed = [name for name, value in after.items() if value.value != before[name].value]
    if not changed:
        return []
    return [Row(key, {name: before[name] for name in changed}, {name: after[name] for name in changed}, verb="update")]


def _without_key(
    connection: Connection, plan: Plan, reader: TableCodec, looked: dict[str, Values], places: dict[str, Values], reached: Reached
) -> list[Row]:
    """Rows that no key tells apart: those that are not as they were are deleted, and created anew where they are kept."""
    names = tuple(next(iter(looked.values())))
    links = [link for _, link in reached.links if link.child is reader.table]
    referring = tuple(dict.fromkeys(name for link in links for name in link.referring))
    wanted = [tuple(row[name].value for name in referring) for row in looked.values()]
    still = _identified(reader, matching(connection, plan, reader, referring, wanted, names))
    rows = []
    for key, row in looked.items():
        if key not in still:
            rows.append(Row({}, row, verb="delete"))
            link = reached.how[reader.table, key]
            if link.then == "update":
                nulls = dict.fromkeys(link.referring, Loaded(None)) if link.nulls else {}
                rows.append(Row({}, None, places[key] | nulls, verb="create"))
    return rows
