"""What one statement writes, as far as it tells: known when it is made, when it is compiled, and while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.orm.context import FromStatement
from sqlalchemy.sql import dml, operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Grouping
from sqlalchemy.sql.lambdas import LambdaElement
from sqlalchemy.util import LRUCache

from .codec import TableCodec
from .column import Loaded
from .mapped import declared, key_columns

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
    replaces: bool = False
    """OR REPLACE, which removes rows that are in the way (SQLite)."""
    keeps: bool = False
    """OR FAIL, which keeps what it has written before a row that fails (SQLite)."""
    in_flush: bool = False
    """It is the unit of work's, or a bulk method's: they have compiled statements of their own."""
    synchronized: str = ""
    """How the session brings its objects up to it."""
    posts: bool = False
    """The unit of work's ``post_update``, of which no object takes note before its flush is over."""


def shape_of(element: Any) -> Shape | None:
    """What an executable writes; None if it is no INSERT, UPDATE or DELETE of a table."""
    return _shape(unwrapped(element)) if isinstance(element, (dml.UpdateBase, LambdaElement, FromStatement)) else None


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
    words = " ".join(str(prefix).upper() for prefix, _ in statement._prefixes)
    replaces, keeps = "REPLACE" in words, "FAIL" in words
    if verb != "create":
        conjuncts = list(_conjuncts(statement._where_criteria))
        by_key = _by_key(conjuncts, table)
        return Shape(table, verb, by_key, False, False, False, len(conjuncts) == len(by_key or ()), replaces, keeps)
    clauses = conflicts(statement)
    values = statement._values or statement._multi_values
    declared = isinstance(target_of(statement), sa.Table)  # or nobody has told SQLAlchemy the types of what is given
    plain = declared and not values and statement.select is None and not clauses and not words
    upsert = replaces or any(type(one).__name__ == "OnConflictDoUpdate" for one in clauses)
    sorted_ = statement._sort_by_parameter_order and not statement._returning
    return Shape(table, verb, None, plain, upsert, sorted_, replaces=replaces, keeps=keeps)


def conflicts(statement: Any) -> tuple[Any, ...]:
    """What stands behind the values of an INSERT: its ON CONFLICT, of which SQLAlchemy 2.1 takes several on SQLite."""
    clause = statement._post_values_clause
    return () if clause is None else tuple(getattr(clause, "clauses", (clause,)))


def table_of(statement: Any) -> sa.Table | None:
    """The table that a statement writes; None of one that nobody has declared."""
    target = target_of(statement)
    if isinstance(target, sa.Table):
        return target._deannotate() if target._annotations else target
    return declared(target) if isinstance(target, sa.TableClause) else None


def target_of(statement: Any) -> Any:
    """What a statement writes to, behind an alias too.

    A bulk statement on a mapped class goes out once for each of its tables, and says which by an annotation alone. Of a class
    that is loaded with the tables of its subclasses (``with_polymorphic``), it names their join and writes the class's own.
    """
    said = statement._annotations
    target = said.get("_emit_update_table", said.get("_emit_insert_table", statement.table))
    while isinstance(target, sa.sql.selectable.AliasedReturnsRows):
        target = target.element
    mapper = target._annotations.get("parentmapper") if isinstance(target, sa.Join) else None
    return target if mapper is None else mapper.local_table


def _by_key(conjuncts: list[Any], table: sa.Table) -> tuple[tuple[str, str], ...] | None:
    found: dict[str, str] = {}
    for one in conjuncts:
        if isinstance(one, BinaryExpression) and one.operator is operators.eq:
            column, value = one.left, one.right
            named = isinstance(value, BindParameter) and not value.unique and value.callable is None
            named = named and not (value.literal_execute or value.expanding)  # which are no parameters when it runs
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


# When it is compiled ------------------------------------------------------------------------------------------------


class Common(msgspec.Struct, frozen=True):
    """What the rows of one INSERT have in common: columns that are NULL, and names of those that nobody tells."""

    nulls: dict[str, Any]
    unknown: tuple[str, ...]


class Program(msgspec.Struct, frozen=True):
    """What one compiled statement tells about the columns of its table."""

    given: tuple[str, ...] = ()
    """Keys of columns whose value is a parameter, and stored as it is."""
    moved: frozenset[str] = frozenset()
    """Keys of columns that may get a value that no parameter says: expressions, onupdate, computed."""
    unsaid: frozenset[str] = frozenset()
    """Keys of those whose value SQLAlchemy itself does not have returned either, or, of an UPDATE, gives to nobody but the
    unit of work. A TypeDecorator's are among them: the way from the database and back through it need not lead to the same
    value."""
    answered: bool = False
    """An INSERT of which the database tells something that SQLAlchemy asks for: at least the key."""
    common: Common = Common({}, ())
    """Of an INSERT's rows, where nothing but their parameters tells what they are."""
    unknown: tuple[str, ...] = ()
    """Names of the columns that may get a value that no parameter says."""
    bound: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = ()
    """Of columns of TypeDecorators: key, place among the driver's parameters, and what makes of that one what is stored."""
    carries: bool = False
    """Its executions may take their event along, see ``carried``."""
    uncounted: bool = False
    """Nothing but its rows tells how many it has written."""
    makes_key: bool = False
    """They return the key, a number, which the database makes, and nothing else."""


NO_PROGRAM = Program()
"""Of a DELETE, and of a plan that no compiled statement of its own carries out."""


def as_compiled(shape: Shape, compiled: Any) -> Shape:
    """With the names that parameters have when it is compiled: long ones are shortened."""
    if not shape.by_key or all(len(label) <= compiled.label_length - 6 for _, label in shape.by_key):
        return shape
    names = {str(bound.key): name for bound, name in compiled.bind_names.items()}
    return replace(shape, by_key=tuple((key, names.get(label, label)) for key, label in shape.by_key))


def program(compiled: Any, shape: Shape, codec: TableCodec) -> Program:
    """The program of a compiled statement, to be kept with it."""
    uncounted = compiled.dialect.name == "sqlite" and _returns_late(compiled, shape)
    if shape.verb == "delete":
        return Program(uncounted=True) if uncounted else NO_PROGRAM
    columns = shape.table.columns
    expressed = {_key(column) for column in getattr(compiled.dml_compile_state, "_dict_parameters", None) or ()}
    prefetch = compiled.insert_prefetch if shape.verb == "create" else compiled.update_prefetch
    parameters = {*(compiled.column_keys or ()), *(column.key for column in prefetch)}
    expressed |= {
        column.key for column in columns if column.key in parameters and (column.type._has_bind_expression or codec.narrows(column.key))
    }
    given = tuple(column.key for column in columns if column.key in parameters and column.key not in expressed)
    may = _may_be_set if shape.verb == "create" else _may_change
    moved = frozenset(column.key for column in columns if column.key in expressed or may(column)).difference(given)
    returning = compiled.implicit_returning or ()  # what the caller asks for is his alone
    told = {str(getattr(column, "key", None)) for column in returning}
    exact = {column.key for column in columns if column.key in told and not isinstance(column.type, sa.types.TypeDecorator)}
    return Program(
        given,
        moved,
        moved if shape.verb == "update" else moved - exact,
        bool(returning) or not all(key in given for key in codec.key),
        common(codec, moved, given),
        tuple(str(columns[key].name) for key in sorted(moved)),
        tuple(_bound(compiled, given, codec)),
        uncounted=uncounted,
    )


def _returns_late(compiled: Any, shape: Shape) -> bool:
    """Whether SQLite's driver tells how many rows a statement has written when its caller fetches them, or never. What the unit of
    work has returned of an INSERT is told.
    """
    asked = getattr(compiled.statement, "_returning", ()) or (shape.verb != "create" and compiled.effective_returning)
    return bool(asked or compiled.ctes)


def _bound(compiled: Any, given: Iterable[str], codec: TableCodec) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    if compiled.literal_execute_params or compiled.post_compile_params:
        return  # the places of parameters are others at each execution
    for key in given:
        column = codec.columns.get(key) or codec.key_codecs.get(key)
        unbind = None if column is None else column.unbinder()
        if unbind is not None:
            yield key, compiled.positiontup.index(key) if compiled.positional else compiled.escaped_bind_names.get(key, key), unbind


def common(codec: TableCodec, moved: frozenset[str], known: Iterable[str]) -> Common:
    """What rows of an INSERT have in common, of which these columns are known."""
    missing = [column for column in codec.table.columns if column.key not in known]
    nulls = {column.key: codec.nulls.get(column.key) for column in missing if column.key not in moved}
    return Common(nulls, tuple(str(column.name) for column in missing if column.key in moved))


def set_columns(statement: Any, table: sa.Table) -> frozenset[str]:
    """Keys of columns that an UPDATE sets by itself, whatever it is compiled into."""
    ordered = getattr(statement, "_ordered_values", None) or ()  # of SQLAlchemy 2.0
    named = {_key(column) for column in (*(statement._values or ()), *(column for column, _ in ordered))}
    return frozenset(column.key for column in table.columns if column.key in named or _may_change(column))


def _key(column: Any) -> str:
    """Of the column that is set, a part of it too: ``values({items.c.tags[2]: "new"})``."""
    while (whole := next((getattr(column, name) for kind, name in _PARTS if isinstance(column, kind)), None)) is not None:
        column = whole
    return str(getattr(column, "key", column))


_PARTS = ((BinaryExpression, "left"), (Grouping, "element"), (sa.TypeCoerce, "clause"))
"""Types of expressions that stand for a part of a column, each with its attribute that leads there."""


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


class Plan(msgspec.Struct, eq=False):
    """One execution of a statement on a captured table."""

    element: Any
    """What is executed: the statement, or a lambda or ``from_statement`` around it."""
    shape: Shape
    codec: TableCodec
    many: bool
    """More than one set of parameters."""
    want_old: bool
    """Old values are wanted although nobody has loaded them."""
    context: Any = None
    """SQLAlchemy's, of the execution."""
    program: Program = NO_PROGRAM
    whole: bool = False
    """Every row comes back whole, so that nothing of it has to be put together."""
    ride: tuple[str, ...] = ()
    """Keys of the columns that ride along in RETURNING; ``old.`` before those of the row as it was."""
    rode: list[dict[str, Loaded]] = []
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
    within: Any = None
    """It writes its events itself: within.Within."""
    frame: Any = None
    """What would stand around it for that: frame.Frame, where it can."""
    carry: Any = None
    """It takes its event along: carried.Carried."""
    foretold: list[Row] | None = None
    """What it would write, of which no event could be made before it ran."""
    rows: int = -1
    """How many rows it has written, if the driver says so."""
    ran: bool = False
    """The statement has been executed."""
    carried: int = 0
    """How many it has written."""
    sole: bool = False
    """One row, by key: when it has run, there is nothing to be found out but whether it matched."""
    together: bool = False
    """Of many: it is told only how many rows all sets have matched, and which rows came back."""
    own: bool = False
    """Of many: they run one by one or in a way that returns rows, not by the driver's executemany."""
    done: bool = False
    """They have, and nobody else has taken them out of our hands."""

    @property
    def statement(self) -> Any:
        return unwrapped(self.element)

    @property
    def table(self) -> sa.Table:
        return self.shape.table

    @property
    def verb(self) -> str:
        return self.shape.verb


def of_flush(context: Any) -> bool:
    """Whether the unit of work executes this, or a bulk method: mappers have a cache of their own for compiled statements."""
    return type(context.execution_options.get("compiled_cache")) is LRUCache


def synchronization(context: Any) -> str:
    """How the session brings its objects up to what this UPDATE or DELETE does: "fetch", "evaluate"; empty where it does not."""
    options = context.execution_options.get("_sa_orm_update_options")
    return "" if options is None or options._dml_strategy == "core_only" else options._synchronize_session or ""


def changed_keys(plan: Plan) -> frozenset[str]:
    """Keys of the columns that an UPDATE changes."""
    if plan.changed is None:
        plan.changed = plan.program.moved.union(plan.program.given)
    return plan.changed


def moves(plan: Plan) -> bool:
    """Whether the rows of an UPDATE cannot be told by their key: it has none, or changes it."""
    return not plan.codec.key or plan.moves_key


def needed_keys(plan: Plan) -> tuple[str, ...]:
    """Keys of the columns that events of a statement's rows are made of."""
    keys = plan.codec.all_keys
    if plan.verb != "update" or plan.reached is not None or moves(plan):
        return keys
    return tuple(key for key in keys if key in changed_keys(plan) or key in plan.codec.key)


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
