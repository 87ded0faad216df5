"""A captured database, and an empty copy that its events are applied to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import Event, EventFilter, install_crud_hooks
from sqla_events.broker import Broker
from sqla_events.testing import apply, differences
from tests.capture.model import Base


class Stage:
    """What a test writes on, and how it is checked."""

    def __init__(self, engine: sa.Engine, copy: sa.Engine) -> None:
        self.engine = engine
        self.copy = copy
        self.broker: Broker | None = None

    def hook(self, **capture: Any) -> Broker:
        self.broker = install_crud_hooks(self.engine, {"capture": capture})
        return self.broker

    def session(self, **options: Any) -> Session:
        return Session(self.engine, **options)

    def events(self, pattern: str = "*") -> list[Event]:
        assert self.broker is not None
        found: list[Event] = self.broker.list(EventFilter(pattern=pattern, limit=100_000))
        return found

    def create(self, metadata: sa.MetaData) -> None:
        """Make further tables, here and in the copy."""
        metadata.create_all(self.engine)
        metadata.create_all(self.copy)

    def empty(self) -> None:
        """As at the beginning: no rows, no events, keys from 1 on."""
        with self.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.exec_driver_sql("UPDATE owners SET favourite_id = NULL")
                connection.exec_driver_sql(f"DELETE FROM {table.name}")
            if connection.dialect.name == "postgresql":
                for table in ("items", "tags", "owners", "pets", "people", "parents", "children"):
                    connection.exec_driver_sql(f"ALTER SEQUENCE {table}_id_seq RESTART")
        with self.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")

    def check(self, metadata: sa.MetaData = Base.metadata) -> list[Event]:
        """Replay equivalence; returns the events."""
        events = self.events()
        with self.engine.connect() as source, self.copy.begin() as copy:
            for table in reversed(metadata.sorted_tables):
                copy.execute(table.delete())
            apply(copy, metadata, events, check_before=True)
            assert differences(source, copy, metadata) == []
        return events


@pytest.fixture
def stage(database_url: str, tmp_path: Path) -> Iterator[Stage]:
    engine = sa.create_engine(database_url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        copy = sa.create_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    else:
        copy = sa.create_engine(database_url, execution_options={"schema_translate_map": {None: "copy"}})
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA copy")
    Base.metadata.create_all(engine)
    Base.metadata.create_all(copy)
    made = Stage(engine, copy)
    yield made
    if made.broker is not None:
        made.broker.uninstall()
    engine.dispose()
    copy.dispose()
