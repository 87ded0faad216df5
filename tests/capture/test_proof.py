"""The proof by SQLAlchemy's own tests (benchmarks/suite): it finds what is wrong, finds nothing where nothing is, and reads its lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from benchmarks.suite import hooks
from benchmarks.suite.mutants import MUTANTS
from benchmarks.suite.outcome import compared, read_excuses, records, table, write_excuses
from benchmarks.suite.proof import Report
from sqla_events.capture import select


class Base(DeclarativeBase):
    pass


links = sa.Table("proof_links", Base.metadata, sa.Column("page", sa.ForeignKey("proof_pages.id")), sa.Column("other", sa.ForeignKey("proof_pages.id")))


class Page(Base):
    __tablename__ = "proof_pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    views: Mapped[int] = mapped_column(default=0)
    linked: Mapped[list[Page]] = relationship(secondary=links, primaryjoin="Page.id == proof_links.c.page", secondaryjoin="Page.id == proof_links.c.other")


class Owner(Base):
    __tablename__ = "proof_owners"
    id: Mapped[int] = mapped_column(primary_key=True)


class Owned(Base):
    __tablename__ = "proof_owned"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey("proof_owners.id", ondelete="CASCADE"))
    owner: Mapped[Owner] = relationship()


@pytest.fixture
def proving(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[sa.Engine, Report]]:
    with proved(empty_database_url, monkeypatch) as found:
        yield found


@contextmanager
def proved(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[sa.Engine, Report]]:
    report = Report()
    monkeypatch.setattr(hooks, "_report", lambda: report)
    engine = sa.create_engine(url)
    hooked = hooks.Hooked(engine, hooks.DATABASES[engine.dialect.name])
    Base.metadata.create_all(engine)
    yield engine, report
    hooked.capture.uninstall()
    engine.dispose()


def write(engine: sa.Engine) -> None:
    with Session(engine) as session:
        pages = [Page(title=f"page {n}") for n in range(120)]
        pages[0].linked = pages[1:3]
        session.add_all(pages)
        session.commit()
        pages[1].title = "changed"
        session.flush()
        session.delete(pages[0])
        session.rollback()
        with session.begin_nested() as savepoint:
            session.execute(sa.update(Page).values(views=1))
            savepoint.rollback()
        session.delete(pages[5])
        session.commit()


def test_nothing_is_found_where_nothing_is_wrong(proving: tuple[sa.Engine, Report]) -> None:
    """At COMMIT and at ROLLBACK, with what a savepoint undid."""
    engine, report = proving
    write(engine)
    assert (report.differences, report.unchecked, report.gaps) == ([], [], [])
    assert report.checks >= 3
    assert report.events >= 124
    assert report.rows > 300


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name])
def test_damage_to_the_events_is_found(proving: tuple[sa.Engine, Report], monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """One event in a hundred, the rows of an association, one column of an update."""
    engine, report = proving
    monkeypatch.setattr(hooks, "_mutate", MUTANTS[mutant])
    write(engine)
    assert report.differences


def test_text_that_writes_is_a_reported_gap_and_no_difference(proving: tuple[sa.Engine, Report]) -> None:
    """What capture says that it does not see is counted apart."""
    engine, report = proving
    with engine.begin() as connection:
        connection.execute(sa.insert(Page), {"title": "seen"})
        connection.exec_driver_sql("UPDATE proof_pages SET views = 7")
    assert report.differences == []
    assert report.behind_gaps
    assert "UPDATE proof_pages" in report.gaps[0]


def test_what_goes_around_sqlalchemy_is_a_difference(proving: tuple[sa.Engine, Report]) -> None:
    """A cursor of the driver's."""
    engine, report = proving
    with engine.begin() as connection:
        connection.execute(sa.insert(Page), {"title": "seen"})
        connection.connection.cursor().execute("UPDATE proof_pages SET views = 7")
    assert report.differences


def test_what_another_transaction_has_committed_is_no_difference(empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL it is seen at once; what goes around SQLAlchemy in the transaction's own tables is still found."""
    with proved(empty_postgres_url, monkeypatch) as (engine, report):
        for around in (False, True):
            with engine.begin() as one:
                one.execute(sa.insert(Page), {"title": "seen"})
                with engine.begin() as other:
                    other.execute(sa.insert(links), {"page": None, "other": None})
                if around:
                    one.connection.cursor().execute("DELETE FROM proof_links")
            assert bool(report.differences) is around


@pytest.mark.parametrize("mutant", [None, "events", "column"])
def test_a_table_that_a_listener_of_the_application_renames(
    empty_sqlite_url: str, monkeypatch: pytest.MonkeyPatch, mutant: str | None
) -> None:
    """Its events have the name that the metadata has, and are compared with the table that was written."""
    with proved(empty_sqlite_url, monkeypatch) as (engine, report):
        _write_shards(engine, mutant, monkeypatch)
    assert bool(report.differences) is bool(mutant)
    assert (report.unchecked, report.gaps) == ([], [])
    assert report.events > 190


def _write_shards(engine: sa.Engine, mutant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in ("one", "two"):
        Page.__table__.to_metadata(sa.MetaData(), name=f"{shard}_pages").create(engine)  # type: ignore[attr-defined]
    monkeypatch.setattr(hooks, "_mutate", MUTANTS[mutant])

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def rename(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> tuple[str, Any]:
        return re.sub(r"\bproof_pages\b", f"{connection.get_execution_options()['shard']}_pages", sql), parameters

    for shard in ("one", "two", "one"):
        with engine.connect().execution_options(shard=shard) as connection, Session(connection) as session:
            session.add_all(pages := [Page(title=f"{shard} {n}") for n in range(60)])
            session.flush()
            pages[1].title = "changed"
            session.execute(sa.delete(Page).where(Page.title.like("%7")))
            session.commit()


def record(**about: Any) -> dict[str, Any]:
    return {"test": "t.py::A_sqlite+pysqlite_3_40_1::test", "outcome": "passed", "text": "", "checks": 1, "events": 2, "rows": 3,
            "differences": [], "gaps": [], "behind_gaps": [], "unchecked": []} | about  # fmt: skip


@pytest.mark.parametrize(
    ("found", "good", "counts"),
    [
        (record(), True, (1, 0, 0, 0)),
        (record(outcome="failed"), False, (0, 1, 0, 0)),
        (record(outcome="error in setup"), False, (0, 1, 0, 0)),
        (record(differences=["x"]), False, (1, 0, 1, 0)),
        (record(behind_gaps=["x"], gaps=["y"]), True, (1, 0, 0, 1)),
        (record(behind_gaps=["x"], differences=["y"]), False, (1, 0, 1, 0)),
    ],
)
def test_outcomes(found: dict[str, Any], good: bool, counts: tuple[int, ...]) -> None:
    """What counts as what."""
    one = compared("sqlite", {"t.py::A::test": found}, set(), set(), {})
    assert (one.passed, len(one.failing), len(one.differing), len(one.gaps)) == counts
    assert one.good is good
    assert "sqlite" in table([one])


@pytest.mark.parametrize(
    ("found", "seeing", "listed", "excused"),
    [
        (record(outcome="failed"), True, True, True),
        (record(outcome="failed"), True, False, False),
        (record(outcome="failed"), False, True, False),
        (record(outcome="failed", differences=["x"]), True, True, False),
    ],
)
def test_excuses(found: dict[str, Any], seeing: bool, listed: bool, excused: bool, tmp_path: Path) -> None:
    """A failure is excused if it is listed and nothing fails where our SELECTs are not seen; a difference never is."""
    test = "t.py::A::test[a-b]"
    write_excuses({test: "a reason"} if listed else {}, tmp_path / "list")
    one = compared("sqlite", {test: found}, set(), {test} if seeing else set(), read_excuses(tmp_path / "list"))
    assert one.good is excused
    assert one.excused == ({test: "a reason"} if listed and seeing else {})
    assert one.unlisted == ([test] if seeing and not listed else [])


def test_a_test_that_fails_without_hooks_too_is_no_failure_of_theirs() -> None:
    """It is not excused either: there is nothing to excuse."""
    test = "t.py::A::test"
    one = compared("sqlite", {test: record(outcome="failed")}, {test}, set(), {})
    assert one.good
    assert not one.excused


@pytest.mark.parametrize("unseen", [False, True])
def test_our_selects_are_out_of_sight(proving: tuple[sa.Engine, Report], monkeypatch: pytest.MonkeyPatch, unseen: bool) -> None:
    """Where the run asks for it; the events are the same."""
    monkeypatch.setattr(select, "_run", select._run)
    if unseen:
        hooks.select_unseen()
    engine, report = proving
    seen: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *about: seen.append(about[2]))
    with Session(engine) as session:
        session.add(page := Owned(id=1, owner=Owner(id=1)))
        session.flush()
        session.expunge(page)
        session.execute(sa.delete(Owner))
        session.commit()
    assert any(sql.startswith("SELECT") for sql in seen) is not unseen
    assert (report.differences, report.unchecked, report.gaps) == ([], [], [])
    assert report.events == (4 if engine.dialect.name == "postgresql" else 3)


def test_records_are_read_without_the_database_in_their_names(tmp_path: Path) -> None:
    """So that one list serves every database."""
    import json

    (tmp_path / "gw0.jsonl").write_text(json.dumps(record()) + "\n")
    assert list(records(tmp_path)) == ["t.py::A::test"]
