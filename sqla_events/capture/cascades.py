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

What has to be held is every row that may change, as it was, for when the statement is done: a tuple of its values. What
became of them is looked at, and written, some rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .codec import TableCodec
from .column import Loaded
from .plan import Plan, Row, Shape
from .select import matching, portions, present_rows, reserve

Values = dict[str, Loaded]
OnMissed = Callable[[Plan, str], None]

_CHANGES = ("CASCADE", "SET NULL", "SET DEFAULT")

PORTION = 1000
"""Rows that are looked at again at a time."""


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
class Held:
    """Rows of one table as they were, by their key."""

    names: tuple[str, ...]
    """Keys of the columns."""
    rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, found: Iterable[tuple[str, Values]]) -> list[str]:
        """Further rows; returns the keys of those that were not here."""
        new = []
        for key, row in found:
            if key not in self.rows:
                self.rows[key] = tuple([value.value for value in row.values()])
                new.append(key)
        return new

    def values(self, key: str) -> Values:
        """One row."""
        return dict(zip(self.names, map(Loaded, self.rows[key]), strict=True))

    def of(self, keys: Iterable[str], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """What some rows have in some columns."""
        places = [self.names.index(name) for name in names]
        return (tuple([self.rows[key][place] for place in places]) for key in keys)


@dataclass(slots=True)
class Reached:
    """What one statement may change beside its own rows, as it was before it."""

    parents: Held
    """Of the statement's rows: key, and the columns that are referred to."""
    links: list[tuple[sa.Table, Link]] = field(default_factory=list)
    """Followed foreign keys, nearest first, each with the table that is referred to."""
    rows: dict[sa.Table, Held] = field(default_factory=dict)
    """Rows that may change."""
    how: dict[tuple[sa.Table, str], Link] = field(default_factory=dict)
    """The foreign key by which a row was found first, of tables without a key."""
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
        columns = tuple(dict.fromkeys((*plan.codec.key, *(name for link in links for name in link.referred))))
        reached = Reached(Held(columns))
        reached.parents.add(_identified(plan.codec, _parents(connection, plan, context, columns)))
        waiting = [(plan.table, link, reached.parents, list(reached.parents.rows)) for link in links]
        while waiting:
            parent, link, held, keys = waiting.pop(0)
            children = reached.rows.setdefault(link.child, Held(self._names(link.child)))
            new = self._children(connection, plan, reached, link, held.of(keys, link.referred))
            reached.links.append((parent, link))
            if new:
                waiting += [(link.child, one, children, new) for one in self._follow(link.child, link.then, set(link.referring))]
        return reached

    def _children(
        self, connection: Connection, plan: Plan, reached: Reached, link: Link, wanted: Iterable[tuple[Any, ...]]
    ) -> list[str]:
        """Take up the rows that refer to one of the wanted; the keys of those that were not reached before."""
        reader, children = self._reader(link.child), reached.rows[link.child]
        found = matching(connection, plan, reader, link.referring, wanted, children.names, lock=True)
        new = children.add(_identified(reader, found))
        if not reader.key:
            reached.how.update(((link.child, key), link) for key in new)
        return new

    def _names(self, table: sa.Table) -> tuple[str, ...]:
        """What is read of a row: what its events show, and what links it to others."""
        referring = (element.parent.key for element in table.foreign_keys)
        referred = (name for link in self._of(table) for name in link.referred)
        return tuple(dict.fromkeys((*self._reader(table).all_keys, *referring, *referred)))

    # After -------------------------------------------------------------------------------------------------------

    def changed(
        self, connection: Connection, plan: Plan, reached: Reached, written: Sequence[Row], missed: OnMissed
    ) -> Iterator[tuple[Plan, list[Row]]]:
        """What has become of the rows that were reached: a plan and its rows, some at a time; of a DELETE the farthest first."""
        own = {str(plan.codec.key_text(plan.codec.moments(row.key, connection))) for row in written}
        if plan.codec.key and not plan.moves_key and own - reached.parents.rows.keys():
            missed(plan, "a row that appeared while its cascades were read")
        pairs = _pairs(connection, plan, reached.parents, written)
        if plan.moves_key and len(written) > 1 and not pairs and any(map(self._moves, reached.links)):
            missed(plan, "a change of several keys at once, which other rows' keys follow,")
        moved = self._moved(connection, plan, reached, own, pairs)
        for table in reversed(list(reached.rows)) if plan.verb == "delete" else list(reached.rows):
            made = self._plan(plan, table)
            if made.codec.key:
                for some in self._again(connection, plan, table, reached, own, moved):
                    yield made, [row for before, after in some for row in _difference(made.codec, before, after)]
            else:
                yield made, _without_key(connection, plan, made.codec, own, reached, moved)

    def _moves(self, step: tuple[sa.Table, Link]) -> bool:
        link = step[1]
        return link.verb == "update" and bool(set(link.referring) & set(self._reader(link.child).key))

    def _again(
        self, connection: Connection, plan: Plan, table: sa.Table, reached: Reached, own: set[str], moved: _Moved
    ) -> Iterator[list[tuple[Values, Values | None]]]:
        """Rows of a table as they were and as they are, some at a time; None of one that is gone."""
        reader, held = self._reader(table), reached.rows[table]
        for keys in portions(_foreign(plan, table, held, own), PORTION):
            rows = {key: held.values(key) for key in keys}
            places = {key: _place(row, table, reached, moved) for key, row in rows.items()}
            wanted = [tuple(row[name].value for name in reader.key) for row in (*rows.values(), *places.values())]
            present = dict(_identified(reader, matching(connection, plan, reader, reader.key, wanted, held.names)))
            yield [(row, present.get(str(reader.key_text(places[key]))) or present.get(key)) for key, row in rows.items()]

    def _moved(self, connection: Connection, plan: Plan, reached: Reached, own: set[str], pairs: _Pairs) -> _Moved:
        """Where what is referred to has gone."""
        moved: _Moved = {}
        for parent, link in reached.links:
            if link.verb == "update":
                found = moved.setdefault(link, {})
                between = parent in reached.rows and self._reader(parent).key
                again = self._again(connection, plan, parent, reached, own, moved) if between else ()
                for before, after in chain(pairs if parent is plan.table else (), chain.from_iterable(again)):
                    old, new = (None if row is None else _tuple(row, link.referred) for row in (before, after))
                    if old is not None and new is not None and old != new:
                        found[old] = new
        return moved

    def _plan(self, cause: Plan, table: sa.Table) -> Plan:
        shape = Shape(table, "update", None, given=False, upsert=False, sorted=False)
        made = Plan(None, shape, self._reader(table), many=False, want_old=True)
        made.translate, made.cause = cause.translate, cause
        return made


_Pairs = list[tuple[Values, Values]]
"""Rows as they were and as they are."""
_Moved = dict[Link, dict[tuple[Any, ...], tuple[Any, ...]]]
"""By foreign key with ON UPDATE: values that were referred to, and what they are now."""


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


def followers(table: sa.Table) -> frozenset[sa.Table]:
    """Tables whose rows the database may change when rows of this one go or their keys change, however far away."""
    found: set[sa.Table] = set()
    new = [table]
    while new:
        parent = new.pop()
        for child in table.metadata.tables.values():
            if child not in found and any(_changes(one) and _refers(one, parent) for one in child.foreign_key_constraints):
                found.add(child)
                new.append(child)
    return frozenset(found)


def _changes(constraint: sa.ForeignKeyConstraint) -> bool:
    return any(action and action.upper() in _CHANGES for action in (constraint.ondelete, constraint.onupdate))


def _parents(connection: Connection, plan: Plan, context: Any, names: Sequence[str]) -> Iterable[Values]:
    """The statement's rows, locked."""
    if plan.shape.by_key is None:
        sets = context.compiled_parameters
        return [row for given in sets for row in present_rows(connection, plan, context, given, names) or ()]
    keys = [tuple(given[label] for _, label in plan.shape.by_key) for given in context.compiled_parameters]
    return matching(connection, plan, plan.codec, plan.codec.key, keys, names, lock=True, bound=True)


def _identified(reader: TableCodec, rows: Iterable[Values]) -> Iterator[tuple[str, Values]]:
    """Rows with their key; with everything they have and a number where they have none."""
    counts: Counter[str] = Counter()
    for row in rows:
        if reader.key:
            yield str(reader.key_text(row)), row
        else:
            text = repr([value.value for value in row.values()])
            counts[text] += 1
            yield f"{text} {counts[text]}", row


def _foreign(plan: Plan, table: sa.Table, held: Held, own: set[str]) -> list[str]:
    """Keys of the rows that the statement has not written itself."""
    return [key for key in held.rows if table is not plan.table or key not in own]


def _tuple(row: Values, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple([row[name].value for name in names])


def _pairs(connection: Connection, plan: Plan, parents: Held, written: Sequence[Row]) -> _Pairs:
    """The statement's rows before and after it. Where keys moved and nobody tells which: only if it is just one."""
    if len(written) == 2 and [row.verb for row in written] == ["delete", "create"]:
        gone, come = written
        written = [Row(gone.key, None, come.after)]
    alone = next(iter(parents.rows)) if not plan.codec.key and len(parents.rows) == len(written) == 1 else None
    keys = [alone or str(plan.codec.key_text(plan.codec.moments(row.key, connection))) for row in written]
    known = [(parents.values(key), row.after) for key, row in zip(keys, written, strict=True) if row.after and key in parents.rows]
    return [(before, before | _loaded(plan.codec, after)) for before, after in known]


def _loaded(codec: TableCodec, values: Mapping[str, Any]) -> Values:
    found = {}
    for name, value in values.items():
        column = codec.columns.get(name)
        if not isinstance(value, Loaded):
            value = Loaded(column.bind(value) if column is not None and column.bind is not None else value)
        found[name] = value
    return found


def _place(row: Values, table: sa.Table, reached: Reached, moved: _Moved) -> Values:
    """Where a row is now, if a key that it refers to has moved."""
    place = row
    for _, link in reached.links:
        if link.child is table and link in moved:
            there = moved[link].get(_tuple(row, link.referring))
            if there is not None:
                place = place | dict(zip(link.referring, map(Loaded, there), strict=True))
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
    connection: Connection, plan: Plan, reader: TableCodec, own: set[str], reached: Reached, moved: _Moved
) -> list[Row]:
    """Rows that no key tells apart: those that are not as they were are deleted, and created anew where they are kept."""
    table, held = reader.table, reached.rows[reader.table]
    links = [link for _, link in reached.links if link.child is table]
    referring = tuple(dict.fromkeys(name for link in links for name in link.referring))
    wanted = held.of(held.rows, referring)
    still = dict(_identified(reader, matching(connection, plan, reader, referring, wanted, held.names)))
    rows = []
    for key in _foreign(plan, table, held, own):
        if key not in still:
            row = held.values(key)
            rows.append(Row({}, row, verb="delete"))
            link = reached.how[table, key]
            if link.then == "update":
                after = _place(row, table, reached, moved)
                unknown: tuple[str, ...] = ()
                if link.nulls:
                    after = after | dict.fromkeys(link.referring, Loaded(None))
                elif link not in moved:  # SET DEFAULT
                    after = {name: value for name, value in after.items() if name not in link.referring}
                    unknown = tuple(str(table.columns[name].name) for name in link.referring)
                rows.append(Row({}, None, after, unknown, verb="create"))
    return rows
