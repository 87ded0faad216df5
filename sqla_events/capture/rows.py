"""What the rows of a statement were and are, from its parameters, what SQLAlchemy fetched, what rode along, and the session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm.base import NO_VALUE, LoaderCallableStatus

from ..errors import CaptureError
from .buffer import Buffer
from .codec import MAX_KINDS
from .column import SQL_NULL, Loaded
from .plan import Common, Plan, Row, changed_keys, common, moves
from .ride import INSERTED, OLD

# Rows that came back whole ------------------------------------------------------------------------------------------


def whole_rows(plan: Plan, rows: Iterable[dict[str, Loaded]]) -> list[Row]:
    """Of a statement of anybody's, or of one whose parameters do not say enough."""
    if plan.verb == "create":
        return [_created(plan, row) for row in rows]
    if plan.verb == "delete":
        return [Row(_key(plan, row), before=row) for row in rows]
    changed = [key for key in plan.codec.all_keys if key in changed_keys(plan)]
    if plan.before is None or not moves(plan):
        olds = {_identity(plan, row): row for row in plan.before or ()}
        return [_changed(plan, row, changed, olds) for row in rows]
    replaced, plan.before = plan.before, []
    return [
        *(Row(_key(plan, row), before=row, verb="delete") for row in replaced),
        *(Row(_key(plan, row), after=row, verb="create") for row in rows),
    ]


def _key(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in plan.codec.key}


def _identity(plan: Plan, row: Mapping[str, Loaded]) -> tuple[Any, ...]:
    values = (row[name].value for name in plan.codec.key)
    return tuple(repr(value) if isinstance(value, (dict, list)) else value for value in values)


def _created(plan: Plan, row: dict[str, Loaded]) -> Row:
    if not plan.shape.upsert:
        return Row(_key(plan, row), after=row)
    new, old = _split(row)
    said = new.pop(INSERTED, None)
    key = _key(plan, new)
    if plan.standing is not None:
        old = plan.standing.replaced(new) or {}
        if said is None:
            return Row(_key(plan, old), old, new, verb="update") if old else Row(key, after=new)
    if said is None and not old:
        return Row(key, after=new, upsert=True)
    fresh = said.value if said is not None else all(value.value in (None, SQL_NULL) for value in old.values())
    return Row(key, after=new) if fresh else Row(_key(plan, old or new), old or None, new, verb="update")


def _changed(plan: Plan, row: dict[str, Loaded], changed: list[str], olds: Mapping[Any, dict[str, Loaded]]) -> Row:
    new, old = _split(row)
    before = old or olds.get(_identity(plan, new), {})
    after = {name: new[name] for name in changed}
    if not plan.codec.key:
        return Row({}, before, after)
    return Row(_key(plan, old or new), {name: before[name] for name in changed if name in before}, after)


def _split(row: dict[str, Loaded]) -> tuple[dict[str, Loaded], dict[str, Loaded]]:
    new, old = {}, {}
    for key, value in row.items():
        if key.startswith(OLD):
            old[key[len(OLD) :]] = value
        else:
            new[key] = value
    return new, old


# Inserts of their parameters ----------------------------------------------------------------------------------------


_Set = TypeVar("_Set")


def sets_of(plan: Plan, context: Any) -> Sequence[Mapping[str, Any]]:
    """Sets of parameters by name, as the caller gave them; of TypeDecorators as they were bound."""
    sets: Sequence[Mapping[str, Any]] = context.compiled_parameters
    if not (bound := plan.program.bound):
        return sets
    return [
        {**given, **{key: Loaded(unbind(raw[place])) for key, place, unbind in bound}}
        for given, raw in zip(sets, context.parameters, strict=True)
    ]


def dropped(plan: Plan, context: Any) -> bool:
    """Whether triggers have let fewer rows in than there are sets of parameters, as far as the driver tells."""
    if plan.counts is not None or plan.ride or plan.program.answered or not all(key in plan.program.given for key in plan.codec.key):
        return False
    return bool(plan.codec.key) and 0 <= plan.rows < len(context.compiled_parameters)


def inserted(plan: Plan, context: Any) -> Iterator[Row]:
    """One row for each set of parameters that went in."""
    program, sets = plan.program, sets_of(plan, context)
    if program.answered or plan.rode or lacks_key(context.compiled_parameters, plan.codec.key):
        told = _told(plan, context)
        sets = sets[: len(told)]  # fewer rows where a listener of the user's dropped some
        shared = common(plan.codec, program.moved, (*program.given, *(told[0] if told else ())))
    else:
        told, shared = [], program.common
    for given, answer in zip(_gone_in(plan, sets), _gone_in(plan, told) or repeat(None), strict=False):
        yield inserted_row(plan, given, answer, shared)


def inserted_one(plan: Plan, context: Any) -> Iterable[Row]:
    """The same, of a single set."""
    sets = context.compiled_parameters
    if plan.rows != 1 and _kept_out(plan, context):
        return ()
    if plan.program.answered or plan.rode or plan.counts is not None or lacks_key(sets, plan.codec.key):
        return inserted(plan, context)
    return (inserted_row(plan, sets_of(plan, context)[0], None, plan.program.common),)


def _kept_out(plan: Plan, context: Any) -> bool:
    """Whether the row of a single set did not go in: a trigger's doing, or that of ON CONFLICT."""
    return not plan.rode if plan.ride else plan.rows == 0 and not context.compiled.effective_returning


def inserted_row(plan: Plan, given: Mapping[str, Any], answer: Mapping[str, Any] | None, shared: Common) -> Row:
    """The row that a set of parameters makes, with what the database has answered, and what all rows have in common."""
    after = dict(zip(plan.program.given, map(given.__getitem__, plan.program.given), strict=True))
    if answer:
        for key, value in answer.items():
            if key not in after or (after[key] is None and key in plan.codec.key):  # what is given is stored, whatever its type reads
                after[key] = value
    if shared.nulls:
        after.update(shared.nulls)
    return Row({key: after[key] for key in plan.codec.key if key in after}, None, after, shared.unknown)


def foretold(plan: Plan, given: Mapping[str, Any], key: Any) -> Row:
    """What an INSERT of its parameters will make, with this for the key that the database makes."""
    (name,) = plan.codec.key
    after = {column: given[column] for column in plan.program.given}
    after[name] = key
    after.update(plan.program.common.nulls)
    return Row({name: key}, None, after)


def lacks_key(sets: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> bool:
    """Whether parameters leave a part of the key to the database."""
    for given in sets:
        for key in keys:
            if given[key] is None:
                return True
    return False


def _gone_in(plan: Plan, sets: Sequence[_Set]) -> Sequence[_Set]:
    """Without the sets whose row was not inserted."""
    counts = plan.counts
    if counts is None or (0 not in counts and len(counts) == len(sets)):
        return sets
    return [one for one, count in zip(sets, counts, strict=False) if count]


def _told(plan: Plan, context: Any) -> list[dict[str, Any]]:
    """What the database answered to an INSERT: keys, server defaults, what rode along; a dict for each row."""
    returned = [getattr(column, "key", None) for column in context.compiled.implicit_returning or ()]
    keys = [column.key for column in plan.table.primary_key]
    answers: list[dict[str, Any]] = [
        {key: _answer(plan, key, value) for key, value in zip(returned, row or (), strict=False) if key}
        for row in context.returned_default_rows or ()
    ]
    for index, row in enumerate(context.inserted_primary_key_rows):
        found = {key: value for key, value in zip(keys, row, strict=False) if value is not None}
        if index < len(answers):
            answers[index].update(found)
        else:
            answers.append(found)
    if not plan.many and plan.rode:
        answers[0].update(plan.rode[0])
    return answers


def _answer(plan: Plan, key: str, value: Any) -> Any:
    """What came from the database; NULL is NULL, whatever the column's type makes of a None that it is given."""
    return plan.codec.nulls.get(key) if value is None else value


# Updates and deletes by key -----------------------------------------------------------------------------------------


def matched(plan: Plan, context: Any) -> Sequence[Mapping[str, Any]] | None:
    """The sets of parameters that have matched a row; None where only a look at the rows can tell."""
    sets, counts = sets_of(plan, context), plan.counts
    if counts is None:
        count = len(plan.rode) if plan.ride else context.rowcount
        return () if count == 0 else sets if count == len(sets) or count < 0 or len(sets) == 1 else None
    if plan.together:
        return sets if counts[0] == len(sets) else _answered(plan, sets)
    return sets if 0 not in counts and len(counts) == len(sets) else [
        given for given, count in zip(sets, counts, strict=False) if count
    ]


def _answered(plan: Plan, sets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that came back are in the order of the sets; those that have none are missing."""
    found, candidates, connection = [], iter(sets), plan.context.root_connection
    for row in plan.rode:
        wanted = plan.codec.key_text(row)
        keys = ((given, plan.codec.moments(key_after(plan, given), connection)) for given in candidates)
        one = next((given for given, key in keys if plan.codec.key_text(key) == wanted), None)
        if one is None:
            raise CaptureError(
                f"no set of parameters has the key {wanted} as the database tells it of a row of {plan.table.fullname}: "
                "which of them have matched is not known; execute them one by one, or bind keys as the database has them"
            )
        found.append(one)
    return found


def key_after(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a row after the write."""
    return {name: given.get(name, given[label]) for name, label in plan.shape.by_key or ()}


def updated(plan: Plan, buffer: Buffer, sets: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    """One row for each set."""
    if len(plan.rode) == len(sets):
        return map(updated_row, repeat(plan), repeat(buffer), sets, plan.rode)
    return (updated_row(plan, buffer, sets[0]),) if len(sets) == 1 else map(updated_row, repeat(plan), repeat(buffer), sets)


def updated_row(plan: Plan, buffer: Buffer, given: Mapping[str, Any], rode: Mapping[str, Any] | None = None) -> Row:
    """What an UPDATE by key has made of a row, with what the database has told of it."""
    program, shape = plan.program, plan.shape
    after = dict(zip(program.given, map(given.__getitem__, program.given), strict=True))
    if rode:
        after.update((key, value) for key, value in rode.items() if key in program.moved)
    key = {name: given[label] for name, label in shape.by_key or ()}
    place = shape.table, tuple(key.values())
    state = buffer.states.pop(place, None)
    if state is not None and (not state.committed_state or shape.posts or not shape.in_flush):
        state = None  # left of a flush that found nothing to change
    before = {} if state is None else _olds(state, shape.table, after)
    if state is None or buffer.posted or buffer.astray:
        _post(plan, buffer, key, state, before, after)
    return Row(key, before, after, program.unknown if rode is None else ())


def deleted(plan: Plan, buffer: Buffer, sets: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    """One row for each set."""
    return (deleted_row(plan, buffer, sets[0]),) if len(sets) == 1 else map(deleted_row, repeat(plan), repeat(buffer), sets)


def deleted_row(plan: Plan, buffer: Buffer, given: Mapping[str, Any]) -> Row:
    """What a DELETE by key has removed."""
    shape = plan.shape
    key = {name: given[label] for name, label in shape.by_key or ()}
    place = shape.table, tuple(key.values())
    state = buffer.leaving.pop(place, None)
    before = {} if state is None or not shape.in_flush else known_values(state, shape.table)
    if buffer.posted or buffer.astray:
        posted = buffer.posted_of(shape.table).pop(plan.codec.key_text(key), {})
        if posted is None or buffer.is_astray(shape.table):
            before = {}
        before.update(posted or ())
    before.update(key)
    return Row(key, before)


# What the session knows ---------------------------------------------------------------------------------------------


def _post(plan: Plan, buffer: Buffer, key: dict[str, Any], state: Any, before: dict[str, Any], after: dict[str, Any]) -> None:
    """An UPDATE of which no object takes note before its flush is over, if at all (``post_update``, a row switch, a bulk method), or
    one that may follow something like it.
    """
    table = plan.shape.table
    known = buffer.posted_of(table).pop(plan.codec.key_text(key), {})
    doubtful = known is None or buffer.is_astray(table)
    if doubtful:
        before.clear()
    if known:
        before.update({name: known[name] for name in after if name in known})
    elif not (plan.shape.in_flush or plan.shape.synchronized) or (state is not None and not doubtful):
        return
    left = {name: value for name, value in (known or {}).items() if name not in plan.program.moved}
    _post_row(plan, buffer, Row(key, after=after), left)


def post_caused(plan: Plan, buffer: Buffer, rows: Iterable[Row]) -> None:
    """The database has changed these rows, and no object takes note of it."""
    posted = buffer.posted_of(plan.shape.table)
    for row in rows:
        _post_row(plan, buffer, row, posted.pop(plan.codec.key_text(row.key), None))


def post_synchronized(plan: Plan, buffer: Buffer, rows: Iterable[Row]) -> None:
    """A statement has changed these rows, and objects take note of it: of those that the session has found by their keys, or of
    those that Python takes to fulfil the WHERE, which the database may understand otherwise (``id = '1'``, collations).
    """
    if plan.shape.synchronized != "fetch":
        post_caused(plan, buffer, rows)
        return
    posted = buffer.posted_of(plan.shape.table)
    for row in rows if posted else ():
        if (text := plan.codec.key_text(row.key)) in posted:
            _post_row(plan, buffer, row, posted.pop(text))


def _post_row(plan: Plan, buffer: Buffer, row: Row, known: dict[str, Any] | None) -> None:
    codec, after = plan.codec, row.after
    if codec.spelled or codec.zoned:  # objects may have another form of its key
        if after is not None or buffer.posted_of(codec.table):
            buffer.stray(codec.table)
    elif after is not None:
        key = {name: after.get(name, value) for name, value in row.key.items()}
        buffer.post(codec.table, codec.key_text(key), {**(known or {}), **after})


def known_values(state: Any, table: sa.Table) -> dict[str, Any]:
    """A row as the session has loaded it; what it has not loaded is left out."""
    names = _attributes(state.manager.mapper, table)
    if not state.committed_state:  # nothing of it was changed, and mostly all is loaded
        values = [*map(state.dict.get, names.values(), repeat(NO_VALUE))]
        if all(map(_IS_VALUE.__getitem__, map(type, values))):
            return dict(zip(names, values, strict=True))
    return _olds(state, table, names)


def _olds(state: Any, table: sa.Table, keys: Iterable[str]) -> dict[str, Any]:
    """Values in the database as the session loaded or last wrote them. ``committed_state`` is complete here still: an UPDATE has
    its result before the flush takes note of it.
    """
    names, committed, current = _attributes(state.manager.mapper, table), state.committed_state, state.dict
    found = {}
    for key in keys:
        name = names.get(key)
        value = committed[name] if name in committed else current.get(name, NO_VALUE)
        if _IS_VALUE[type(value)]:
            found[key] = value
    return found


class _Kinds(dict[type, bool]):
    """By type of an attribute's value: whether it is one, and no SQL expression or mark of a missing one."""

    def __missing__(self, kind: type) -> bool:
        is_value = not issubclass(kind, (LoaderCallableStatus, sa.sql.ClauseElement))
        if len(self) < MAX_KINDS:
            self[kind] = is_value
        return is_value


_IS_VALUE = _Kinds()


@lru_cache(maxsize=4096)
def _attributes(mapper: Any, table: sa.Table) -> dict[str, str]:
    """Column key -> attribute name of a mapped class, for one of its tables. Not of columns whose type has SQL of its own on the way
    to the database or back: what the session has of an encrypted one is not what is stored.
    """
    columns = (one for one in table.columns if not (one.type._has_bind_expression or one.type._has_column_expression))
    found = {column.key: mapper._columntoproperty.get(column) for column in columns}
    return {key: prop.key for key, prop in found.items() if prop is not None}


def forget_attributes() -> None:
    """A mapped class may have further ones."""
    _attributes.cache_clear()
