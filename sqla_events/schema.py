"""The four tables and the view, as SQLAlchemy metadata that the log reads and writes through.

They are created by the Alembic migration in ``migrations/`` (whose revisions are frozen DDL of their own), never
silently by the library. ``events`` is append-only: nothing ever updates it. Why: a status per row costs one or two
updates an event, bloats the table and collapses while a long transaction holds back vacuum (measured: 47,000 events/s
falling to 21,000 within one backlog, against 390,000, flat, for one position row per consumer group).

JSON columns are ``json`` on PostgreSQL, not ``jsonb``: text passes through untouched, NUL characters included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Double,
    FetchedValue,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    cast,
)
from sqlalchemy.types import UserDefinedType

from .errors import ConfigError

REVISION = "0002"
"""The migration that this version of the library needs; the database tells its own in ``Names.version``."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")


@dataclass(frozen=True)
class Names:
    """What the tables are called.

    ``events`` names the log; the others derive from it (``events`` -> ``event_positions``, ``event_batches``,
    ``event_deliveries``, ``event_status``, and ``sqla_events_version``, for another name ``<name>_version``).
    ``schema`` is the database schema, None for the default one.

    :raises ConfigError: for a name that is not a plain identifier of at most 48 characters.
    """

    events: str = "events"
    schema: str | None = None

    def __post_init__(self) -> None:
        for field in ("events", "schema"):
            name = getattr(self, field)
            if name is not None and not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{'table_name' if field == 'events' else 'schema'} is {name!r}; it must be a plain identifier: "
                    "a letter or underscore, then letters, digits, underscores, at most 48 characters"
                )

    def _derived(self, what: str) -> str:
        return f"{self.events.removesuffix('s')}_{what}"

    @property
    def positions(self) -> str:
        return self._derived("positions")

    @property
    def batches(self) -> str:
        return self._derived("batches")

    @property
    def deliveries(self) -> str:
        return self._derived("deliveries")

    @property
    def status(self) -> str:
        return self._derived("status")

    @property
    def guard(self) -> str:
        """Of event triggers on SQLite: made with the first of them."""
        return self._derived("guard")

    @property
    def sequence(self) -> str:
        return f"{self.events}_seq_seq"

    @property
    def version(self) -> str:
        """Alembic's version table for ours, which is never the application's ``alembic_version``."""
        return "sqla_events_version" if self.events == "events" else self._derived("version")

    @property
    def all(self) -> tuple[str, ...]:
        """Every relation of ours, the version table included."""
        return (self.events, self.positions, self.batches, self.deliveries, self.status, self.version)

    @property
    def reserved(self) -> tuple[str, ...]:
        """Every name that is ours, whether it is there or not."""
        return (*self.all, self.guard)

    def qualified(self, name: str) -> str:
        """``name`` as SQL text, with its schema. Names are plain identifiers: quoting keeps their case and no more."""
        return f'"{self.schema}"."{name}"' if self.schema else f'"{name}"'


class JsonText(UserDefinedType[str]):
    """PostgreSQL's ``json``, written and read as the text that it is: nothing is encoded or decoded on the way."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "JSON"

    def column_expression(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """Selected as text: psycopg would decode JSON otherwise."""
        return cast(column, Text)


_Json = Text().with_variant(JsonText(), "postgresql")
_Time = DateTime(timezone=True)


class Tables:
    """The tables under their names, on a MetaData of their own: an app's ``create_all`` does not see them."""

    def __init__(self, names: Names | None = None) -> None:
        self.names = names or Names()
        self.metadata = MetaData(schema=self.names.schema)

    @cached_property
    def events(self) -> Table:
        """The log. ``seq`` on PostgreSQL first forces the transaction id, then takes the next number (see log.py).

        ``key`` is the primary key as text; ``types`` is the sidecar of encoding.py; ``id`` has no B-tree:
        positions and retention go by ``seq``, and a look-up by id narrows ``seq`` by ``created_at``, which a version 7
        id carries.
        """
        return Table(
            self.names.events,
            self.metadata,
            Column("seq", BigInteger().with_variant(Integer, "sqlite"), FetchedValue(), primary_key=True),
            Column("id", Uuid, nullable=False),
            Column("source", Text, nullable=False),
            Column("type", Text, nullable=False),
            Column("schema", Text),
            Column("entity", Text),
            Column("operation", Text),
            Column("key", Text),
            Column("payload", _Json, nullable=False),
            Column("types", _Json),
            Column("metadata", _Json),
            Column("user_id", Text),
            Column("session_id", Text),
            Column("instance_id", Text),
            Column("schema_version", Integer, nullable=False, server_default="1"),
            Column("created_at", _Time, FetchedValue(), nullable=False),
        )

    @cached_property
    def positions(self) -> Table:
        """Who has read what: everything up to ``high`` except ``gaps`` (JSON list of [first, last]).

        The lease is part of the row: ``owner`` holds it until ``lease_expires``; ``epoch`` grows with every owner.
        ``claimant`` asks for it, until ``claim_expires``: a process that has fewer of the group's partitions.
        """
        return Table(
            self.names.positions,
            self.metadata,
            Column("group", Text),
            Column("partition", Integer),
            Column("partitions", Integer, nullable=False, server_default="1"),
            Column("high", BigInteger, nullable=False, server_default="0"),
            Column("gaps", Text, nullable=False, server_default="[]"),
            Column("owner", Text),
            Column("lease_expires", _Time),
            Column("epoch", BigInteger, nullable=False, server_default="0"),
            Column("updated_at", _Time),
            Column("claimant", Text),
            Column("claim_expires", _Time),
            PrimaryKeyConstraint("group", "partition"),
        )

    @cached_property
    def batches(self) -> Table:
        """One row per committed batch: when the events up to ``high`` (and the ``filled`` stragglers) were done."""
        return Table(
            self.names.batches,
            self.metadata,
            Column("group", Text),
            Column("partition", Integer),
            Column("high", BigInteger),
            Column("epoch", BigInteger),
            Column("filled", Text, nullable=False, server_default="[]"),
            Column("instance_id", Text),
            Column("started_at", _Time, nullable=False),
            Column("completed_at", _Time, nullable=False),
        )

    @cached_property
    def deliveries(self) -> Table:
        """Only events with trouble. ``status`` is ``retrying`` or ``failed``; failed IS the dead letter queue."""
        return Table(
            self.names.deliveries,
            self.metadata,
            Column("group", Text),
            Column("seq", BigInteger),
            Column("subscription", Text),
            Column("status", Text, nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("next_attempt_at", Double),
            Column("error", Text),
            Column("traceback", Text),
            Column("first_failed_at", _Time, nullable=False),
            Column("last_failed_at", _Time, nullable=False),
            PrimaryKeyConstraint("group", "seq", "subscription"),
        )
