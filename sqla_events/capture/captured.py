"""Which tables of an engine are captured, and what turns their rows into payloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from ..schema import Names
from . import cascades
from .cascades import Cascades
from .choice import Choice, columns
from .codec import TableCodec
from .mapped import key_columns
from .settings import CaptureSettings


class Captured:
    """The tables that one engine's settings choose."""

    def __init__(self, settings: CaptureSettings, dialect: Dialect, names: Names) -> None:
        self._settings = settings
        self._dialect = dialect
        self._names = names
        self._include = Choice(settings.include, settings.default_schema)
        self._exclude = Choice(settings.exclude, settings.default_schema)
        self._enabled = [name for name in ("create", "update", "delete", "read") if getattr(settings, f"enable_{name}")]
        self._codecs: dict[sa.Table, TableCodec | None] = {}
        self._readers: dict[sa.Table, TableCodec] = {}
        self.cascades = Cascades(self._operations, self._reader) if settings.cascades == "events" else None

    def codec_of(self, table: sa.Table) -> TableCodec | None:
        """The codec of a table; None if nothing of it is captured, and no foreign key leads from it to what is."""
        try:
            return self._codecs[table]
        except KeyError:
            codec = self._codecs[table] = self._codec(table)
            return codec

    def forget(self) -> None:
        """Look at every table anew."""
        self._codecs.clear()
        self._readers.clear()
        if self.cascades is not None:
            self.cascades.forget()

    def knows(self, part: Any, table: sa.Table) -> bool:
        """Whether what is known may be of what was there before a table got a further part."""
        beside = table.metadata if isinstance(part, sa.ForeignKeyConstraint) else None
        return any(known is table or known.metadata is beside for known in [*self._codecs, *self._readers])

    def is_named(self, schema: str | None, table: str) -> bool:
        """Whether anything is captured of a table that is known by name only. SQLite's names have no case, and ``main`` is no schema."""
        if self._dialect.name != "sqlite":
            return bool(self.operations(schema, table))
        return bool(self.operations(schema, table, str.lower) or (schema == "main" and self.operations(None, table, str.lower)))

    def operations(self, schema: str | None, table: str, fold: Callable[[str], str] = str) -> frozenset[str]:
        """Those on a table that are captured.

        :param fold: makes names equal that are so for the database.
        """
        table = fold(table)
        if schema == self._names.schema and table in self._names.reserved:
            return frozenset()
        return frozenset(
            operation
            for operation in self._enabled
            if not self._exclude.has(schema, table, operation, fold)
            and (not self._include or self._include.has(schema, table, operation, fold))
        )

    def _operations(self, table: sa.Table) -> frozenset[str]:
        return self.operations(table.schema, str(table.name))

    def _reader(self, table: sa.Table) -> TableCodec:
        """What reads a table's rows, whether they are captured or only lie between those that are."""
        codec = self.codec_of(table) or self._readers.get(table)
        if codec is None:
            codec = self._readers[table] = self._made(table, frozenset())
        return codec

    def _codec(self, table: sa.Table) -> TableCodec | None:
        operations = self._operations(table)
        reaches = self.cascades.reaches(table) if self.cascades else frozenset()
        if not operations and not reaches:
            return None
        codec = self._made(table, operations)
        codec.reaches = reaches
        if self.cascades is None:
            codec.followers = cascades.followers(table)
        if self._settings.cascades == "named":
            codec.cascades = cascades.named(table)
        return codec

    def _made(self, table: sa.Table, operations: frozenset[str]) -> TableCodec:
        s = self._settings
        return TableCodec(
            table, self._dialect, key_columns(table),
            columns(s.exclude_columns, "exclude", s.default_schema), columns(s.redact_columns, "redact", s.default_schema),
            s.on_unencodable == "placeholder", operations,
        )  # fmt: skip
