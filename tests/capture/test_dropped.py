"""Triggers of others that keep rows out, or set what is given."""

from __future__ import annotations

import sqlalchemy as sa

from tests.capture.conftest import Stage

metadata = sa.MetaData()
kept_out = sa.Table("kept_out", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("x", sa.String(5)))
stamped = sa.Table(
    "stamped", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer, sa.FetchedValue(), server_onupdate=sa.FetchedValue())
)  # fmt: skip


def make(stage: Stage, *statements: str) -> None:
    with stage.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_rows_that_a_trigger_keeps_out(stage: Stage) -> None:
    """What is not there has no event."""
    stage.create(metadata)
    if stage.engine.dialect.name == "sqlite":
        make(stage, "CREATE TRIGGER no BEFORE INSERT ON kept_out WHEN NEW.x = 'no' BEGIN SELECT RAISE(IGNORE); END")
    else:
        make(
            stage, "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.x = ''no'' THEN RETURN NULL; END IF; RETURN NEW; END'",
            "CREATE TRIGGER no BEFORE INSERT ON kept_out FOR EACH ROW EXECUTE FUNCTION no()",
        )  # fmt: skip
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(kept_out.insert(), {"id": 1, "x": "no"})
        connection.execute(kept_out.insert(), {"id": 2, "x": "a"})
        connection.execute(kept_out.insert(), [{"id": 3, "x": "no"}, {"id": 4, "x": "b"}, {"id": 5, "x": "no"}])
    assert [event.key for event in stage.check(metadata)] == ["2", "4"]


def test_a_column_that_a_trigger_sets_whatever_is_given(stage: Stage) -> None:
    """PostgreSQL tells it, where the metadata says that the database sets it."""
    if stage.engine.dialect.name == "sqlite":
        return
    stage.create(metadata)
    make(
        stage, "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n = 77; RETURN NEW; END'",
        "CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION stamp()",
    )  # fmt: skip
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(stamped.insert(), {"id": 1, "n": 1})
        connection.execute(stamped.insert(), [{"id": 2, "n": 1}, {"id": 3, "n": 2}])
        connection.execute(stamped.update().where(stamped.c.id == sa.bindparam("k")).values(n=5), {"k": 1})
    assert [event.after["n"] for event in stage.check(metadata)] == [77] * 4
