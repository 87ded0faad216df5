"""What one statement writes, as far as it tells: known when it is made, when it is compiled, and while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import ref

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm.context import FromStatement
from sqlalchemy.sql import dml, operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Grouping
from sqlalchemy.sql.lambdas import LambdaElement

from .codec import Loaded, TableCodec

VERBS: tuple[tuple[type, str], ...] = ((dml.Insert, "create"), (dml.Update, "update"), (dml.Delete, "delete"))


# When it is made ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """One INSERT, UPDATE or DELETE, whatever its parameters and settings. Does not hold the statement: it is kept by it."""

    table: sa.Table
    verb: str
    by_key: tuple[tuple[str, str], ...] | None
    """(column key, parameter) of the primary key where the WHERE names it, so that each set of parameters is one row."""
    given: bool
    """An INSERT of its parameters and nothing else: each set of them is one row."""
    upsert: bool
    """An INSERT that may update a row instead."""
    sorted: bool
    """Its RETURNING comes back in the order of its parameters, and is the unit of work's own."""
    exact: bool = True
    """The WHERE names the primary key and nothing more."""


_Kept = TypeVar("_Kept")


class ByIdentity(Generic[_Kept]):
    """What is known about objects, as long as they live.

    Why not WeakKeyDictionary: annotated statements, of one bulk update on several tables, are equal to each other.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ref[Any], _Kept]] = {}

    def get(self, owner: Any, make: Callable[[], _Kept]) -> _Kept:
        """What is kept for the owner, made where nothing is."""
        kept = self._kept.get(id(owner))
        if kept is not None and kept[0]() is owner:
            return kept[1]
        made, number, drop = make(), id(owner), self._kept.pop
        self._kept[number] = (ref(owner, lambda _: drop(number, None)), made)
        return made


_shapes: ByIdentity[Shape | None] = ByIdentity()


def shape_of(element: Any) -> Shape | None:
    """What an executable writes; None if it is no INSERT, UPDATE or DELETE of a table."""
    if not isinstance(element, (dml.UpdateBase, LambdaElement, FromStatement)):
        return None
    return _shapes.get(element, lambda: _shape(unwrapped(element)))


def unwrapped(element: Any) -> Any:
    """The INSERT, UPDATE or DELETE in a lambda or a ``from_statement``; else the element itself."""
    while True:
        if isinstance(element, LambdaElement):
            element = element._resolved
        elif isinstance(element, FromStatement):
            element = element.element
        else:
            return element


def _shape(statement: Any) -> Shape | None:
    verb = next((verb for kind, verb in VERBS if isinstance(statement, kind)), None)
    table = None if verb is None else table_of(statement)
    if verb is None or table is None:
        return None
    if verb != "create":
        conjuncts = list(_conjuncts(statement._where_criteria))
        by_key = _by_key(conjuncts, table)
        return Shape(table, verb, by_key, False, False, False, exact=len(conjuncts) == len(by_key or ()))
    words = " ".join(str(prefix).upper() for prefix, _ in statement._prefixes)
    clause = statement._post_values_clause
    values = statement._values or statement._multi_values
    plain = not values and statement.select is None and clause is None and not words
    upsert = type(clause).__name__ == "OnConflictDoUpdate" or "REPLACE" in words
    sorted_ = statement._sort_by_parameter_order and not statement._returning
    return Shape(table, verb, None, plain, upsert, sorted_)


def table_of(statement: Any) -> sa.Table | None:
    """The table that a statement writes, behind an alias too.

    A bulk statement on a mapped class goes out once for each of its tables, and says which by an annotation alone.
    """
    said = statement._annotations
    table = said.get("_emit_update_table", said.get("_emit_insert_table", statement.table))
    while isinstance(table, sa.sql.selectable.AliasedReturnsRows):
        table = table.element
    if not isinstance(table, sa.Table):
        return None
    return table._deannotate() if table._annotations else table


def _by_key(conjuncts: list[Any], table: sa.Table) -> tuple[tuple[str, str], ...] | None:
    found: dict[str, str] = {}
    for one in conjuncts:
        if isinstance(one, BinaryExpression) and one.operator is operators.eq:
            column, value = one.left, one.right
            named = isinstance(value, BindParameter) and not value.unique and value.callable is None
            if named and isinstance(column, sa.Column) and column.table is table:
                found[str(column.key)] = str(value.key)
    keys = key_columns(table)
    return tuple((key, found[key]) for key in keys) if keys and all(key in found for key in keys) else None


def _conjuncts(criteria: Any) -> Iterator[Any]:
    for one in criteria:
        while isinstance(one, Grouping):
            one = one.element
        if isinstance(one, BooleanClauseList) and one.operator is operators.and_:
            yield from _conjuncts(one.clauses)
        else:
            yield one


_keys: ByIdentity[tuple[str, ...]] = ByIdentity()


def key_columns(table: sa.Table) -> tuple[str, ...]:
    """Keys of the columns that identify a row: the primary key, or what a mapper takes for it where the table has none."""
    return _keys.get(table, lambda: tuple(column.key for column in table.primary_key) or _mapped_key(table))


def _mapped_key(table: sa.Table) -> tuple[str, ...]:
    for registry in sa.orm.mapperlib._all_registries():
        for mapper in registry.mappers:
            if mapper.local_table is table and all(column.table is table for column in mapper.primary_key):
                return tuple(str(column.key) for column in mapper.primary_key)
    return ()


# When it is compiled ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Program:
    """What one compiled statement tells about the columns of its table."""

    given: tuple[str, ...]
    """Keys of columns whose value is a parameter, and stored as it is."""
    moved: frozenset[str]
    """Keys of columns that may get a value that no parameter says: expressions, onupdate, computed."""
    told: frozenset[str]
    """Keys of columns that SQLAlchemy itself has returned; without a TypeDecorator's, since the way from the database and
    back through it need not lead to the same value."""


_programs: ByIdentity[Program] = ByIdentity()


def program_of(shape: Shape, context: Any) -> Program:
    """The program of the statement that runs; made once for each compiled statement."""
    return _programs.get(context.compiled, lambda: _program(shape, context.compiled))


def _program(shape: Shape, compiled: Any) -> Program:
    columns = shape.table.columns
    expressed = {_key(column) for column in getattr(compiled.dml_compile_state, "_dict_parameters", None) or ()}
    prefetch = compiled.insert_prefetch if shape.verb == "create" else compiled.update_prefetch
    parameters = {*(compiled.column_keys or ()), *(column.key for column in prefetch)}
    expressed |= {
        column.key for column in columns if column.key in parameters and column.type._has_bind_expression
    }
    given = tuple(column.key for column in columns if column.key in parameters and column.key not in expressed)
    may = _may_be_set if shape.verb == "create" else _may_change
    moved = {column.key for column in columns if column.key in expressed or may(column)}
    told = {str(getattr(column, "key", None)) for column in compiled.effective_returning or ()}
    exact = {column.key for column in columns if column.key in told and not isinstance(column.type, sa.types.TypeDecorator)}
    return Program(given, frozenset(moved).difference(given), frozenset(exact))


def set_columns(statement: Any, table: sa.Table) -> frozenset[str]:
    """Keys of columns that an UPDATE sets by itself, whatever it is compiled into."""
    ordered = getattr(statement, "_ordered_values", None) or ()  # of SQLAlchemy 2.0
    named = {_key(column) for column in (*(statement._values or ()), *(column for column, _ in ordered))}
    return frozenset(column.key for column in table.columns if column.key in named or _may_change(column))


def _key(column: Any) -> str:
    return str(getattr(column, "key", column))


def _may_change(column: sa.Column[Any]) -> bool:
    """Whether an UPDATE may change a column that it does not name."""
    return column.computed is not None or column.onupdate is not None or column.server_onupdate is not None


def _may_be_set(column: sa.Column[Any]) -> bool:
    """Whether a column that an INSERT does not name becomes something else than NULL."""
    return (
        column.server_default is not None
        or column.default is not None
        or column.primary_key
        or column.computed is not None
        or column.identity is not None
    )


# While it runs ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Plan:
    """One execution of a statement on a captured table."""

    element: Any
    """What is executed: the statement, or a lambda or ``from_statement`` around it."""
    statement: Any
    shape: Shape
    codec: TableCodec
    many: bool
    """More than one set of parameters."""
    want_old: bool
    """Old values are wanted although nobody has loaded them."""
    whole: bool = False
    """Every row comes back whole, so that nothing of it has to be put together."""
    ride: tuple[str, ...] = ()
    """Keys of the columns that ride along in RETURNING; ``old.`` before those of the row as it was."""
    rode: list[dict[str, Loaded]] = field(default_factory=list)
    """What came back, a dict for each row."""
    before: list[dict[str, Loaded]] | None = None
    """Rows that the WHERE selects, read before the statement."""
    standing: Any = None
    """Of an upsert: the rows that it finds, upserts.Standing."""
    counts: list[int] | None = None
    """Of many: how many rows each set of parameters has matched."""
    look_before: bool = False
    """The rows have to be read before the statement."""
    blind: bool = False
    """Nothing tells its rows: a reported gap."""
    moves_key: bool = False
    """An UPDATE, not by key, that sets columns of the key."""
    translate: Mapping[Any, Any] | None = None
    """The ``schema_translate_map`` it runs with."""
    reached: Any = None
    """Rows of others that it may change through foreign keys: cascades.Reached."""
    cause: Plan | None = None
    """The plan whose statement made the database change these rows."""
    changed: frozenset[str] | None = None
    """Keys of columns that an UPDATE changes, where no compiled statement of its own says so."""
    own: bool = False
    """Of many: they run one by one or in a way that returns rows, not by the driver's executemany."""

    @property
    def table(self) -> sa.Table:
        return self.shape.table

    @property
    def verb(self) -> str:
        return self.shape.verb

    def is_of(self, context: Any) -> bool:
        """Whether this is the plan of the statement that runs."""
        invoked = getattr(context, "invoked_statement", None)
        return invoked is not None and (invoked is self.element or unwrapped(invoked) is self.statement)


class Row(msgspec.Struct, gc=False):
    """One row that was written; values by column key."""

    key: dict[str, Any]
    """Primary key before the write."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    unknown: tuple[str, ...] = ()
    """Names of columns that may have changed to a value that nobody told."""
    verb: str | None = None
    """Where it is not the statement's: an upsert that updated."""
    upsert: bool = False
    """It was an upsert, and the database does not tell whether the row is new."""
