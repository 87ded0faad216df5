"""The ways that the capture benchmark compares keep the same events."""

from __future__ import annotations

import json

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks import ways
from benchmarks.capture import Case

SAME = ("hand_written", "capture", "statement_triggers", "row_triggers")


def kept(engine: sa.Engine) -> list[tuple[str, str, list[str]]]:
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT type, key, CAST(payload AS text) FROM events ORDER BY seq")
        return sorted((kind, key, sorted(json.loads(payload))) for kind, key, payload in found)


def test_they_keep_the_same_events(postgres_url: str) -> None:
    """Type, key and which sides the payload has, of each row's insert, update and delete."""
    found = {}
    for name in SAME:
        way, engine = ways.WAYS[name](), sa.create_engine(postgres_url)
        way.prepare(engine)
        way.install(engine)
        for operation in ("insert", "update", "delete"):
            with Session(engine) as session, session.begin():
                way.work(session, operation, 3)
        found[name] = kept(engine)
        assert ways.count(engine, way) == 9
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")
            connection.exec_driver_sql("DROP TABLE items")
            for verb in ("create", "update", "delete"):
                connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS tell_{verb}")
        engine.dispose()
    assert found["capture"] == [
        *(("public.items.create", str(n), ["after", "key"]) for n in range(3)),
        *(("public.items.delete", str(n), ["before", "key"]) for n in range(3)),
        *(("public.items.update", str(n), ["after", "before", "key"]) for n in range(3)),
    ]
    assert all(events == found["capture"] for events in found.values())


def test_ratios_are_those_of_the_rounds() -> None:
    """The machine is twice as slow in the second round: that is nobody's."""
    times = {"none": [1.0, 2.0, 1.0], "hand_written": [2.0, 4.0, 2.0], "capture": [1.5, 3.0, 1.5], "continuum": [11.0]}
    figures = {(one.name, one.baseline): one for one in Case("db", "insert", 10, times).figures()}
    assert figures["db insert 10", "hand_written"].ratio == 0.75
    assert figures["db insert 10", "none"].value == 1.5 / 10 * 1e6
    assert figures["db insert 10 overhead", "continuum"].ratio == 0.05
