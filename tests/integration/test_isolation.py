"""Applications whose engine is REPEATABLE READ or SERIALIZABLE: what fails to serialize is tried again, and is an event once."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqla_events import install_crud_hooks
from tests.integration.shop import Base, Inbox, Order, User, eventually
from tests.servers.postgres import PostgresDatabase

WRITERS, TIMES = 4, 15


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_contended_writes_with_retries(postgres: PostgresDatabase, level: str) -> None:
    """Every increment that committed is one event, in its order; the failures before it are none."""
    engine = sa.create_engine(postgres.url(), isolation_level=level, pool_size=WRITERS)
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, poll_interval=0.05)
    inbox = Inbox()
    broker.subscribe("public.orders.update", handler=inbox)
    with Session(engine) as session:
        session.add(User(id=1, name="x", orders=[Order(id=1, total=0)]))
        session.commit()
    broker.start()
    failures: list[OperationalError] = []
    threads = [threading.Thread(target=increment, args=(engine, failures)) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inbox.wait(WRITERS * TIMES)
    eventually(lambda: [one.lag for one in broker.stats()] == [0])
    broker.uninstall()
    engine.dispose()
    assert [event.after["total"] for event in inbox.events] == list(range(1, WRITERS * TIMES + 1))
    assert failures, "nothing was contended"


def increment(engine: sa.Engine, failures: list[OperationalError]) -> None:
    """TIMES increments, each tried until it commits."""
    for _ in range(TIMES):
        while True:
            try:
                with Session(engine) as session:
                    session.get_one(Order, 1).total += 1
                    session.commit()
                break
            except OperationalError as error:
                failures.append(error)
