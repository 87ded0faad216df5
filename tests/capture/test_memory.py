"""A transaction of very many rows does not hold their events in Python."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_events import install_crud_hooks
from sqla_events.capture import outbox
from sqla_events.capture.buffer import buffer_of
from sqla_events.capture.make import Maker


class Base(DeclarativeBase):
    pass


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]


PORTION = 250


@pytest.fixture
def hooked(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, {})
    yield engine
    broker.uninstall()
    engine.dispose()


def values(start: int, count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"line {number} of very many"} for number in range(start, start + count)]


def core(session: Session, start: int) -> None:
    session.execute(sa.insert(Line.__table__), values(start, PORTION))


def unit_of_work(session: Session, start: int) -> None:
    session.add_all([Line(**one) for one in values(start, PORTION)])
    session.flush()
    session.expunge_all()


@pytest.mark.parametrize("write", [core, unit_of_work])
def test_memory_does_not_grow_with_the_transaction(hooked: sa.Engine, write: Callable[[Session, int], None]) -> None:
    """Four times as many rows, the same peak; and all of them are in the log."""
    engine = hooked

    def peak(first: int, portions: int) -> int:
        with Session(engine) as session, session.begin():
            write(session, first - PORTION)  # caches are full
            tracemalloc.start()
            for number in range(portions):
                write(session, first + number * PORTION)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

    few, many = peak(PORTION, 6), peak(100_000, 24)
    assert many < few * 1.5
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(DISTINCT key) FROM events").scalar_one() == 32 * PORTION


@pytest.mark.parametrize("verb", ["insert", "update", "delete"])
def test_one_statement_is_written_as_its_rows_are_made(
    hooked: sa.Engine, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5,000 sets of parameters no more than a thousand events are in Python when some are written."""
    engine = hooked
    table, made, waiting = Line.__table__, [0], []
    make, write = Maker.events, outbox.write

    def counted(self: Maker, *arguments: Any) -> Any:
        events = make(self, *arguments)
        made[0] += len(events)
        return events

    def noted(connection: Any, tables: Any, rows: Any) -> None:
        waiting.append((made[0] - sum(count for _, count in waiting), len(rows)))
        write(connection, tables, rows)

    statements = {
        "insert": sa.insert(table),
        "update": sa.update(table).where(table.c.id == sa.bindparam("which")).values(text=sa.bindparam("new")),
        "delete": sa.delete(table).where(table.c.id == sa.bindparam("which")),
    }
    with engine.begin() as connection:
        if verb != "insert":
            connection.execute(statements["insert"], values(0, 5000))
        monkeypatch.setattr(Maker, "events", counted)
        monkeypatch.setattr(outbox, "write", noted)
        sets = values(0, 5000) if verb == "insert" else [{"which": number, "new": "new"} for number in range(5000)]
        connection.execute(statements[verb], sets)
        assert not buffer_of(connection).rows
    assert waiting == [(1000, 1000)] * 5


def test_of_a_million_events_only_numbers_are_kept(hooked: sa.Engine) -> None:
    """What is told after the COMMIT is counted while it is written, and a savepoint goes back to the count before it."""
    engine = hooked
    with engine.begin() as connection:
        connection.execute(sa.insert(Line.__table__), values(0, 1200))
        savepoint = connection.begin_nested()
        connection.execute(sa.insert(Line.__table__), values(1200, 1200))
        assert buffer_of(connection).written.counts == {"public.lines.create": 2400}
        savepoint.rollback()
        connection.execute(sa.insert(Line.__table__), values(1200, 1))
        assert buffer_of(connection).written.counts == {"public.lines.create": 1201}
        assert buffer_of(connection).written.ids == []
    assert not buffer_of(connection).written.counts


one_of_many = sa.MetaData()
boxes = sa.Table("boxes", one_of_many, sa.Column("id", sa.Integer, primary_key=True))
contents = sa.Table(
    "contents", one_of_many, sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String),
    sa.Column("box_id", sa.ForeignKey("boxes.id", ondelete="CASCADE"), index=True),
)  # fmt: skip


def test_what_a_foreign_key_deletes_is_written_some_at_a_time(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held until then are the values of the rows, and little more."""
    engine = sa.create_engine(sqlite_url)
    sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    one_of_many.create_all(engine)
    broker = install_crud_hooks(engine, {})
    written: list[int] = []
    write = outbox.write

    def noted(connection: Any, tables: Any, rows: Any) -> None:
        written.append(len(rows))
        write(connection, tables, rows)

    def peak(count: int) -> int:
        with engine.begin() as connection:
            connection.execute(boxes.insert(), {"id": 1})
            connection.execute(contents.insert(), [{"id": number, "text": f"content {number}", "box_id": 1} for number in range(count)])
        with engine.begin() as connection, monkeypatch.context() as patch:
            patch.setattr(outbox, "write", noted)
            tracemalloc.start()
            connection.execute(boxes.delete())
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    peak(1000)
    few = peak(2000)
    written.clear()
    assert (peak(8000) - few) / 6000 < 500
    assert written == [1000] * 8
    broker.uninstall()
    engine.dispose()
