"""Capture on every engine that a test makes, and the listeners that take its proof."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.dml import UpdateBase

from sqla_events.bridge import refuse_autocommit
from sqla_events.capture import Capture, flushed, select
from sqla_events.capture.plan import table_of, unwrapped
from sqla_events.capture.quiet import unheard
from sqla_events.capture.settings import CaptureSettings
from sqla_events.errors import ConfigError
from sqla_events.schema import Tables
from sqla_events.signals import Fact, Gap, Signals

from . import renamed
from .log import DEFAULT_SCHEMA
from .mutants import MUTANTS, Mutant
from .postgresql import PostgreSQL
from .proof import Proof, Report, writes
from .sqlite import SQLite

DATABASES = {"sqlite": SQLite(), "postgresql": PostgreSQL()}
DRIVERS = ("pysqlite", "psycopg")
UNREPLAYED = ("aiosqlite", "asyncpg")
"""Drivers whose connections nobody reads beside the test."""
KEY = "sqla_events_suite"

_ENDS = re.compile(r"\s*(COMMIT|END|ROLLBACK(?!\s+TO)|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)

proofs: WeakSet[Proof] = WeakSet()
_report: Callable[[], Report] = Report
_mutate: Mutant = MUTANTS[None]


def install(mutant: str | None, report: Callable[[], Report]) -> None:
    """Let every engine that is made from now on be hooked."""
    global _report, _mutate
    _report, _mutate = report, MUTANTS[mutant]
    made = Engine.__init__

    def init(
        self: Engine, pool: Any, dialect: Any, url: Any, logging_name: Any = None, echo: Any = None, query_cache_size: int = 500,
        execution_options: Any = None, hide_parameters: bool = False,
    ) -> None:  # create_engine() reads the names  # fmt: skip
        made(self, pool, dialect, url, logging_name, echo, query_cache_size, execution_options, hide_parameters)
        if type(self) is Engine and getattr(dialect, "driver", None) in DRIVERS and not dialect.is_async:
            Hooked(self, DATABASES[dialect.name])
        elif type(self) is Engine and getattr(dialect, "driver", None) in UNREPLAYED:
            _capture(self, DATABASES[dialect.name])

    Engine.__init__ = init  # type: ignore[method-assign]


def _capture(engine: Engine, database: Any) -> None:
    """Hooks and no replay. On PostgreSQL the log is there before the tests begin."""
    with suppress(ConfigError):
        refuse_autocommit(engine)
        if engine.dialect.name == "sqlite":
            with unheard(engine):
                event.listen(engine, "connect", lambda raw, _: database.prepare(raw))
        settings = CaptureSettings(default_schema=DEFAULT_SCHEMA)
        Capture(engine, settings, Tables(database.names), "suite", lambda _: lambda _: None, Signals()).install()


def select_unseen() -> None:
    """Let no listener see the SELECTs of capture from now on: what a test then sees is what it would see without hooks."""
    run = select._run

    def unseen(connection: Connection, *query: Any) -> Any:
        seen = connection.__dict__.pop("dispatch")
        try:
            return run(connection, *query)
        finally:
            connection.dispatch = seen

    select._run = unseen


def listen_again() -> None:
    """Some of SQLAlchemy's tests take every listener off every mapper, ours too: then events have no old values."""
    for name, listener in flushed.LISTENERS.items():
        with suppress(InvalidRequestError):
            event.remove(Mapper, name, listener)
    flushed._listen_to_mappers.cache_clear()
    flushed._listen_to_mappers()


def check_all() -> None:
    """At the end of a test: whatever is not committed yet."""
    for proof in list(proofs):
        _over(proof)


def _proof_of(connection: Connection) -> Proof | None:
    return None if connection.closed or connection.invalidated else connection.info.get(KEY)


def _over(proof: Proof) -> None:
    """A transaction ends, or a test does."""
    _safely(lambda: proof.check(_report(), _mutate))
    proof.forget()


def _safely(step: Callable[[], None]) -> None:
    """A check that fails by itself must not disturb the test, nor go unnoticed."""
    try:
        step()
    except Exception as error:
        _report().unchecked.append(f"{type(error).__name__}: {error}" )


def _note_tables(proof: Proof, context: Any) -> None:
    """Which Table an event of a name will be about: that of the statement or of its CTEs, or what foreign keys reach from it."""
    ctes = getattr(getattr(context, "compiled", None), "ctes", None) or ()
    for element in (getattr(context, "invoked_statement", None), *(cte.element for cte in ctes)):
        statement = unwrapped(element)
        if isinstance(statement, UpdateBase) and (table := table_of(statement)) is not None:
            translate = context.execution_options.get("schema_translate_map") or {}
            for other in (*table.metadata.tables.values(), table):
                proof.tables[translate.get(other.schema, other.schema), str(other.name)] = other


class Hooked:
    """One engine with capture and proof."""

    def __init__(self, engine: Engine, database: Any) -> None:
        self.database = database
        self.proof: Proof | None = None
        """Of the statement that ran last."""
        signals = Signals()
        signals.subscribe(self._fact)
        settings = CaptureSettings(default_schema=DEFAULT_SCHEMA)
        self.capture = Capture(engine, settings, Tables(database.names), "suite", lambda _: lambda _: None, signals)
        try:
            refuse_autocommit(engine)
        except ConfigError:
            return
        event.listen(engine, "connect", self._connect)
        for name in ("do_commit", "do_rollback"):  # of most transactions no event tells
            setattr(engine.dialect, name, partial(self._ends, getattr(engine.dialect, name)))
        with unheard(engine):  # as in an application that does not listen itself
            for name in ("do_execute", "do_execute_no_params", "do_executemany", "rollback", "rollback_twophase"):
                event.listen(engine, name, getattr(self, f"_{name}"))
            self._before = self.capture._listener.before  # not a listener: statements that are executed once tell none
            self.capture._listener.before = self._before_statement  # type: ignore[method-assign]
            self.capture.install()
            for name in ("commit", "prepare_twophase", "commit_twophase", "reset"):
                event.listen(engine, name, getattr(self, f"_{name}"))

    def _connect(self, raw: Any, record: Any) -> None:
        self.database.prepare(raw)
        record.info[KEY] = proof = Proof(self.database, raw)
        proofs.add(proof)

    def _before_statement(self, connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> Any:
        self._note(connection, sql, context)
        return self._before(connection, cursor, sql, parameters, context, many)

    def _note(self, connection: Connection, sql: str, context: Any) -> None:
        self.proof = proof = _proof_of(connection)
        if proof is None:
            return
        proof.connections[connection] = self.capture
        _note_tables(proof, context)
        if _ENDS.match(sql):
            _over(proof)
        elif writes(sql, context):
            _safely(proof.before_write)

    def _do_execute(self, cursor: Any, sql: str, parameters: Any, context: Any) -> None:
        if context is not None and (context.isinsert or context.isupdate or context.isdelete) and context.compiled is not None:
            table = table_of(unwrapped(context.invoked_statement))
            written = None if table is None else renamed.note(sql, str(table.name))
            if written is not None and self.proof is not None:
                self.proof.tables[written] = table

    _do_executemany = _do_execute

    def _do_execute_no_params(self, cursor: Any, sql: str, context: Any) -> None:
        self._do_execute(cursor, sql, (), context)

    def _commit(self, connection: Connection, *_: Any) -> None:
        proof = _proof_of(connection)
        if proof is not None:
            _over(proof)

    def _ends(self, plain: Callable[[Any], None], proxied: Any) -> None:
        record = getattr(proxied, "_connection_record", None)
        if record is not None and (proof := record.info.get(KEY)) is not None:
            _over(proof)
        plain(proxied)

    _rollback = _rollback_twophase = _prepare_twophase = _commit_twophase = _commit

    def _reset(self, dbapi_connection: Any, connection_record: Any, reset_state: Any) -> None:
        if (proof := connection_record.info.get(KEY)) is not None:
            proof.forget()

    def _fact(self, fact: Fact) -> None:
        if isinstance(fact, Gap):
            _report().gaps.append(f"{fact.reason}: {fact.statement}")
            if self.proof is not None:
                self.proof.gaps.add(fact.table.lower())
