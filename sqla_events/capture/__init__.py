"""Capture: every write of an engine becomes rows of the outbox, on the connection and in the transaction of the write."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapper, Session

from .. import context, encoding
from ..bridge import refuse_autocommit
from ..errors import CaptureError, ConfigError
from ..event import new_id, type_of
from ..schema import Tables
from ..signals import Gap, Signals, logger
from . import outbox
from .buffer import Buffer, buffer_of
from .codec import TableCodec
from .listener import Listener
from .plan import Loaded, Plan, Row
from .rows import known_values
from .settings import CaptureSettings

After = Callable[[bool], None]
Committing = Callable[[list[tuple[Any, str]]], After]
"""Called right before COMMIT with (id, type) of the transaction's events; what it returns is called when it went well
(True), or did not (False)."""

DRAIN_AT = 1000

_committed: ContextVar[tuple[After, ...]] = ContextVar("sqla_events_committed", default=())


class Capture:
    """The hooks on one engine."""

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        settings: CaptureSettings,
        tables: Tables,
        instance_id: str,
        committing: Committing,
        signals: Signals,
        track_ids: bool = False,
    ) -> None:
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self._settings = settings
        self._tables = tables
        self._instance_id = instance_id
        self._committing = committing
        self._signals = signals
        self._track_ids = track_ids
        self._codecs: dict[sa.Table, TableCodec | None] = {}
        on_gap = None if settings.on_gap == "ignore" else self._gap
        self._listener = Listener(self._engine, self._codec_of, self._make, on_gap, settings.old_values)
        self._installed = False
        self._text_id = self._engine.dialect.name == "sqlite"
        self._enabled = {
            "create": settings.enable_create,
            "update": settings.enable_update,
            "delete": settings.enable_delete,
            "read": settings.enable_read,
        }
        self._include = _Choice(settings.include, settings.default_schema)
        self._exclude = _Choice(settings.exclude, settings.default_schema)

    # Hooks -------------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Hook in; doing it again changes nothing."""
        if self._installed:
            return
        refuse_autocommit(self._engine)
        self._listener.listen()
        for name in _TRANSACTION:
            event.listen(self._engine, name, getattr(self, f"_{name}"))
        for target, name, function in self._around:
            event.listen(target, name, function)
        self._installed = True

    def uninstall(self) -> None:
        """Take every hook off again."""
        if not self._installed:
            return
        self._listener.unlisten()
        for name in _TRANSACTION:
            event.remove(self._engine, name, getattr(self, f"_{name}"))
        for target, name, function in self._around:
            event.remove(target, name, function)
        self._installed = False

    @property
    def _around(self) -> list[tuple[Any, str, Any]]:
        hooks = [(Session, "after_commit", self._after_session), (self._engine, "checkin", self._after_connection)]
        if self._settings.enable_read:
            hooks.append((Session, "loaded_as_persistent", self._read))
        return hooks

    # Transactions ------------------------------------------------------------------------------------------------

    def _commit(self, connection: Connection) -> None:
        buffer = buffer_of(connection)
        try:
            self._drain(connection, buffer)
        except BaseException:
            # SQLAlchemy takes a transaction whose commit hook raised for over and gives its connection back as it is:
            # the next one to get it would commit our half.
            connection.dialect.do_rollback(connection.connection)
            buffer.clear()
            raise
        if buffer.written:
            buffer.after = self._committing(list(buffer.written))
            _committed.set((*_committed.get(), buffer.after))
        buffer.clear()

    def _prepare_twophase(self, connection: Connection, xid: Any) -> None:
        self._drain(connection, buffer_of(connection))

    def _commit_twophase(self, connection: Connection, xid: Any, is_prepared: bool) -> None:
        self._commit(connection)

    def _rollback(self, connection: Connection) -> None:
        buffer = buffer_of(connection)
        buffer.clear()
        failed, buffer.after = buffer.after, None
        if failed in (waiting := _committed.get()):  # the COMMIT itself failed
            _committed.set(tuple(other for other in waiting if other is not failed))
            failed(False)

    def _rollback_twophase(self, connection: Connection, xid: Any, is_prepared: bool) -> None:
        self._rollback(connection)

    def _savepoint(self, connection: Connection, name: str) -> None:
        buffer = buffer_of(connection)
        self._drain(connection, buffer)
        buffer.marks[name] = len(buffer.written)

    def _rollback_savepoint(self, connection: Connection, name: str, _: Any) -> None:
        buffer = buffer_of(connection)
        buffer.rows.clear()
        buffer.plans.clear()
        del buffer.written[buffer.marks.get(name, 0) :]

    def _after_session(self, session: Session) -> None:
        _finish()

    def _after_connection(self, dbapi_connection: Any, record: Any) -> None:
        _finish()

    # Events ------------------------------------------------------------------------------------------------------

    def note(self, connection: Connection, event_id: Any, event_type: str) -> None:
        """An event was published by hand in this connection's transaction."""
        buffer_of(connection).written.append((event_id, event_type))

    def _drain(self, connection: Connection, buffer: Buffer) -> None:
        if not buffer.rows:
            return
        rows = list(buffer.rows)
        buffer.rows.clear()
        outbox.write(connection, self._tables, rows)

    def drain(self, connection: Connection) -> None:
        """Write what is captured and not written yet, so that what follows comes after it in the log."""
        self._drain(connection, buffer_of(connection))

    def _make(self, connection: Connection, buffer: Buffer, plan: Plan, row: Row) -> None:
        verb = row.verb or plan.verb
        if not self._enabled[verb]:
            return
        codec, special = plan.codec, {}
        payload: dict[str, Any] = {"key": _side(codec, row.key, "key", special)}
        if row.before is not None and self._settings.old_values != "never":
            payload["before"] = _side(codec, row.before, "before", special)
        if row.after is not None:
            payload["after"] = _side(codec, row.after, "after", special)
        if row.unknown:
            payload["unknown"] = list(row.unknown)
        if row.upsert:
            payload["upsert"] = True
        if verb == "delete" and codec.cascades:
            payload["cascades"] = codec.cascades
        text = encoding.dumps(payload)
        limit = self._settings.max_payload_bytes
        if limit is not None and len(text.encode()) > limit:
            text = self._too_large(plan, payload, len(text.encode()), limit)
        key = codec.key_text({name: _plain(value) for name, value in row.key.items()})
        self._add(connection, buffer, plan.table, verb, key, text, codec.types(special))

    def _gap(self, table: str, statement: str, reason: str) -> None:
        """A write that cannot be seen into: known tables of ours and Alembic's are none of the application's."""
        if table in self._tables.names.all or table == "alembic_version":
            return
        self._signals.emit(Gap(statement[:1000], reason))
        message = f"{reason} writes to {table!r} and is not captured: {statement[:200]}"
        if self._settings.on_gap == "raise":
            raise CaptureError(f"{message}; write it with insert(), update() or delete(), or set capture.on_gap to 'warn' or 'ignore'")
        logger.warning("%s", message)

    def _read(self, session: Session, instance: Any) -> None:
        """An entity was loaded: one event for each of its captured tables, written when the transaction commits."""
        state = sa.inspect(instance)
        bind = session.get_bind(state.mapper)
        if getattr(bind, "engine", bind).pool is not self._engine.pool:
            return
        connection = session.connection(bind_arguments={"mapper": state.mapper})
        for table in state.mapper.tables:
            codec = self._codec_of(table)
            if codec is not None:
                plan = Plan(None, None, table, "read", codec, unit_of_work=False, many=False, want_old=False)
                values = known_values(state, table)
                key = {name: values[name] for name in codec.key if name in values}
                self._make(connection, buffer_of(connection), plan, Row(key, after=values))

    def _too_large(self, plan: Plan, payload: dict[str, Any], size: int, limit: int) -> str:
        if self._settings.on_too_large == "error":
            raise CaptureError(
                f"an event of {plan.table.fullname} has a payload of {size} bytes, and max_payload_bytes is {limit}; "
                "exclude large columns (exclude_columns), raise the limit, or set on_too_large to 'truncate'"
            )
        names = sorted({name for side in ("before", "after") for name in payload.get(side, {})})
        return encoding.dumps({"key": payload["key"], "truncated": names})

    def _add(
        self, connection: Connection, buffer: Buffer, table: sa.Table, verb: str, key: str | None, payload: str, types: str | None
    ) -> None:
        about = context.current()
        identity = new_id()
        schema = _schema_of(table, connection) or self._settings.default_schema
        kind = type_of(schema, table.name, verb)
        metadata = None
        if about.metadata:
            special: encoding.Types = {}
            metadata = encoding.dumps(encoding.lower(about.metadata, "/metadata", special))
            types = _joined(types, special)
        buffer.rows.append(
            (
                identity.hex if self._text_id else str(identity), "database", kind, schema, table.name, verb, key, payload, types, metadata,
                None if about.user_id is None else str(about.user_id), about.session_id, self._instance_id,
            )  # fmt: skip
        )
        buffer.written.append((identity, kind) if self._track_ids else _untracked(kind))
        if len(buffer.rows) >= DRAIN_AT and verb != "read":  # a result is being fetched: its connection is not to be written on
            self._drain(connection, buffer)

    # What is captured --------------------------------------------------------------------------------------------

    def _codec_of(self, table: sa.Table) -> TableCodec | None:
        try:
            return self._codecs[table]
        except KeyError:
            codec = self._codecs[table] = self._codec(table) if self._wanted(table) else None
            return codec

    def _wanted(self, table: sa.Table) -> bool:
        if table.name in self._tables.names.all:
            return False
        return not self._exclude.has(table) and (not self._include or self._include.has(table))

    def _codec(self, table: sa.Table) -> TableCodec:
        s = self._settings
        return TableCodec(
            table, self._engine.dialect, table.primary_key,
            _columns(s.exclude_columns, "exclude", s.default_schema), _columns(s.redact_columns, "redact", s.default_schema),
            s.on_unencodable == "placeholder",
        )  # fmt: skip


_TRANSACTION = (
    "commit", "rollback", "savepoint", "rollback_savepoint", "prepare_twophase", "commit_twophase", "rollback_twophase",
)  # fmt: skip


@lru_cache(maxsize=4096)
def _untracked(kind: str) -> tuple[None, str]:
    """One tuple for all events of a type: a transaction of a million rows keeps a million pointers, not a million ids."""
    return None, kind


def _finish() -> None:
    waiting = _committed.get()
    if waiting:
        _committed.set(())
        for after in waiting:
            after(True)


def _side(codec: TableCodec, values: dict[str, Any], where: str, types: encoding.Types) -> dict[str, Any]:
    bound = {key: value for key, value in values.items() if type(value) is not Loaded}
    loaded = {key: value.value for key, value in values.items() if type(value) is Loaded}
    return {**codec.side(bound, where, types), **codec.side(loaded, where, types, bound=False)}


def _plain(value: Any) -> Any:
    return value.value if type(value) is Loaded else value


def _schema_of(table: sa.Table, connection: Connection) -> str | None:
    translate = connection.get_execution_options().get("schema_translate_map")
    return translate.get(table.schema, table.schema) if translate else table.schema


def _joined(types: str | None, more: encoding.Types) -> str | None:
    if not more:
        return types
    text = encoding.dumps(more)
    return text if types is None else f"{types[:-1]},{text[1:]}"


def _columns(patterns: tuple[str, ...], word: str, default_schema: str) -> Callable[[sa.Column[Any]], bool]:
    def chosen(column: sa.Column[Any]) -> bool:
        table = column.table
        full = f"{table.schema or default_schema}.{table.name}.{column.name}"
        return column.info.get("sqla_events") == word or any(
            fnmatchcase(full if "." in pattern else column.name, pattern) for pattern in patterns
        )

    return chosen


class _Choice:
    """Tables by pattern, mapped class or Table."""

    def __init__(self, wanted: tuple[Any, ...], default_schema: str) -> None:
        self._patterns = [one for one in wanted if isinstance(one, str)]
        self._tables = {table for one in wanted if not isinstance(one, str) for table in _tables_of(one)}
        self._default_schema = default_schema

    def __bool__(self) -> bool:
        return bool(self._patterns or self._tables)

    def has(self, table: sa.Table) -> bool:
        full = f"{table.schema or self._default_schema}.{table.name}"
        return table in self._tables or any(fnmatchcase(full, pattern) or fnmatchcase(f"{full}.create", pattern) for pattern in self._patterns)


def _tables_of(one: Any) -> list[sa.Table]:
    found = sa.inspect(one, raiseerr=False)
    tables = list(found.tables) if isinstance(found, Mapper) else [one]
    if not all(isinstance(table, sa.Table) for table in tables):
        raise ConfigError(f"capture.include or exclude has {one!r}; it must be a pattern, a mapped class or a Table")
    return tables
