"""Whether Python finds the same rows by a WHERE as the database does: ``synchronize_session="evaluate"`` takes it that it does.

Where that is sure, objects have been brought up to what a statement has done, although nobody has seen its rows. It is not sure of
text in an order, of collations and blanks, of numbers that are rounded, and of values that are of another kind than their column
(``id = '1'``).
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, False_, Grouping, Null, True_

from .codec import TableCodec
from .stored import is_spelled

_EQUAL = (operators.eq, operators.ne, operators.in_op, operators.not_in_op)
_ORDER = (*_EQUAL, operators.lt, operators.le, operators.gt, operators.ge)
_OPERATORS: dict[type | None, tuple[Any, ...]] = {
    int: _ORDER, dt.date: _ORDER, dt.datetime: _ORDER, bool: _EQUAL, uuid.UUID: _EQUAL, str: _EQUAL,
}  # fmt: skip
"""By the values that a column has."""


def alike(codec: TableCodec, context: Any) -> bool:
    """Whether the WHERE of a statement on a table is one that both understand alike."""
    criteria = context.compiled.dml_compile_state.statement._where_criteria
    return all(_is_alike(one, codec, context) for one in criteria)


def _is_alike(one: Any, codec: TableCodec, context: Any) -> bool:
    if isinstance(one, Grouping):
        return _is_alike(one.element, codec, context)
    if isinstance(one, BooleanClauseList):
        return all(_is_alike(part, codec, context) for part in one.clauses)
    if not isinstance(one, BinaryExpression) or not isinstance(one.left, sa.Column) or one.left.table is not codec.table:
        return False
    if isinstance(one.right, (Null, True_, False_)):
        return one.operator in (operators.is_, operators.is_not)
    return isinstance(one.right, BindParameter) and _are_of(codec, one.left.key, one.operator, _values(one.right, context))


def _values(bound: BindParameter[Any], context: Any) -> list[Any]:
    """What is bound; SQLAlchemy has each value of a list bound by itself."""
    name, given = context.compiled.bind_names.get(bound), context.compiled_parameters[0]
    return [given.get(one) for one in (context._expanded_parameters or {}).get(name, (name,))]


def _are_of(codec: TableCodec, key: str, operator: Any, values: Sequence[Any]) -> bool:
    """Whether the values are of the kind that the column has, and compared in a way that both have."""
    column = codec.columns.get(key) or codec.key_codecs.get(key)
    if column is None or column.bind is not None or column.narrows or is_spelled(column.kind, codec.dialect):
        return False
    if isinstance(column.kind, (sa.CHAR, sa.NCHAR)) or not all(type(value) is column.expected for value in values):
        return False
    zoned = getattr(column.kind, "timezone", False)
    if column.expected is dt.datetime and not all((value.tzinfo is not None) is zoned for value in values):
        return False
    return operator in (_EQUAL if column.enum is not None else _OPERATORS.get(column.expected, ()))
