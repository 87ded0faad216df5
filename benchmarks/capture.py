"""What capture costs: seconds of a whole transaction with hooks, over none and over a hand-written insert of the same events.

Every round runs all ways one after the other, so that noise of the machine hits them alike; the figure is the median
round. ``hand_written`` is what a careful team writes itself: after ``session.flush()``, one Core ``insert()`` of one
row per change into the same events table, payload by ``json.dumps``.

    python benchmarks/capture.py [--json FILE] [--url URL ...] [--rounds N] [--rows 1,100,10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.model import Base, Item, item
from benchmarks.report import Figure, publish
from benchmarks.servers import database_urls
from sqla_events import install_crud_hooks
from sqla_events.alembic import upgrade
from sqla_events.schema import Tables

EVENTS = Tables().events
OPERATIONS = ("insert", "update", "delete")


def change(session: Session, operation: str, rows: int) -> list[Item]:
    """Make the changes of one transaction, flush them, return the rows."""
    if operation == "insert":
        items = [item(number) for number in range(rows)]
        session.add_all(items)
    else:
        items = list(session.scalars(sa.select(Item).order_by(Item.id).limit(rows)))
        for one in items:
            if operation == "update":
                one.quantity += 1
                one.note = f"changed {one.quantity}"
            else:
                session.delete(one)
    session.flush()
    return items


def plain(session: Session, operation: str, rows: int) -> None:
    """Nothing but the changes."""
    change(session, operation, rows)


def hand_written(session: Session, operation: str, rows: int) -> None:
    """The changes, then the events of them in one Core statement."""
    verb = {"insert": "create"}.get(operation, operation)
    items = change(session, operation, rows)
    session.execute(sa.insert(EVENTS), [_event(one, verb) for one in items])


def _event(one: Item, verb: str) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in _COLUMNS}
    if verb == "update":
        body = {
            "key": {"id": one.id},
            "before": {"quantity": one.quantity - 1, "note": None},
            "after": {"quantity": one.quantity, "note": one.note},
        }
    else:
        body = {"key": {"id": one.id}, ("after" if verb == "create" else "before"): values}
    return {
        "id": uuid.uuid4(),
        "source": "database",
        "type": f"public.items.{verb}",
        "schema": "public",
        "entity": "items",
        "operation": verb,
        "key": str(one.id),
        "payload": json.dumps(body, default=str),
        "instance_id": "bench",
    }


_COLUMNS = tuple(column.name for column in Item.__table__.columns)


class Way:
    """One engine on one fresh database and the way it captures."""

    def __init__(self, name: str, url: str, work: Callable[[Session, str, int], None], hooks: bool) -> None:
        self.name = name
        self.work = work
        self.is_async = "asyncpg" in url or "aiosqlite" in url
        self.engine: Any = create_async_engine(url) if self.is_async else sa.create_engine(url)
        self.broker = install_crud_hooks(self.engine, provider="memory") if hooks else None
        self.loop = asyncio.new_event_loop() if self.is_async else None

    def run(self, operation: str, rows: int) -> float:
        """Seconds of one transaction."""
        gc.collect()
        started = time.perf_counter()
        if self.loop is not None:
            self.loop.run_until_complete(self._async(operation, rows))
        else:
            with Session(self.engine) as session, session.begin():
                self.work(session, operation, rows)
        return time.perf_counter() - started

    async def _async(self, operation: str, rows: int) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            await session.run_sync(self.work, operation, rows)

    def close(self) -> None:
        if self.broker is not None:
            self.broker.uninstall()
        if self.loop is not None:
            self.loop.run_until_complete(self.engine.dispose())
            self.loop.close()
        else:
            self.engine.dispose()


@contextmanager
def ways(make_url: Callable[[str], str]) -> Iterator[list[Way]]:
    """None, hand-written and ours, each on a database of its own."""
    made = []
    for name, work, hooks in (("none", plain, False), ("hand_written", hand_written, False), ("capture", plain, True)):
        url = make_url(name)
        sync = url.replace("+asyncpg", "+psycopg").replace("+aiosqlite", "")
        upgrade(sync)
        engine = sa.create_engine(sync)
        Base.metadata.create_all(engine)
        engine.dispose()
        made.append(Way(name, url, work, hooks))
    try:
        yield made
    finally:
        for way in made:
            way.close()


def measure(made: list[Way], rows: int, rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds by way and operation. A round inserts, updates and deletes the same rows."""
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for operation in OPERATIONS:
            for way in made:
                seconds = way.run(operation, rows)
                if number:  # the first round fills caches
                    times.setdefault((way.name, operation), []).append(seconds)
    return {key: statistics.median(values) for key, values in times.items()}


def figures(label: str, rows: int, medians: dict[tuple[str, str], float]) -> Iterator[Figure]:
    """Per operation: ours over no capture, ours over hand-written, and the share of the overhead."""
    for operation in OPERATIONS:
        name = f"{label} {operation} {rows}"
        ours = medians["capture", operation]
        for baseline in ("none", "hand_written"):
            yield Figure(name, ours / rows * 1e6, "us/row", baseline, ours / medians[baseline, operation])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=os.environ.get("JSON"))
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds for each case; 0: 200, 30 and 3 for 1, 100 and 10,000 rows"
    )
    parser.add_argument("--rows", default="1,100,10000")
    parser.add_argument("--only", default="", help="part of a database's label: sqlite, psycopg, asyncpg")
    options = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, database_urls(Path(folder)) as urls:
        for label, make_url in urls.items():
            if options.only in label:
                with ways(make_url) as made:
                    for rows in map(int, options.rows.split(",")):
                        rounds = options.rounds or {1: 60, 100: 12}.get(rows, 3)
                        found += figures(label, rows, measure(made, rows, rounds))
    publish(found, options.json)


if __name__ == "__main__":
    main()
