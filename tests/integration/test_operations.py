"""What docs/operations.md says about running several processes, with brokers."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import Broker, Event, install_crud_hooks
from tests.integration.shop import Base, Inbox, User, eventually


def start(url: str, inbox: Inbox, partitions: int) -> Broker:
    """A process that consumes."""
    broker = install_crud_hooks(sa.create_engine(url), partitions=partitions, poll_interval=0.05, buffer_size=10, worker_count=1)
    broker.subscribe("*", handler=inbox, name="inbox")
    return broker.start()


def end(broker: Broker) -> None:
    broker.uninstall()
    assert isinstance(broker.engine, sa.Engine)
    broker.engine.dispose()


def test_a_group_goes_on_with_another_number_of_partitions(database_url: str) -> None:
    """Old and new processes overlap in the middle of a backlog: nothing is missing or comes twice, rows keep their order."""
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    inbox = Inbox(lambda event: time.sleep(0.003))  # slow enough for both settings to be at it
    old = start(database_url, inbox, 1)
    assert isinstance(old.engine, sa.Engine)
    with Session(old.engine) as session:
        session.add_all([User(id=number, name="x") for number in range(200)])
        session.commit()
        for user in session.scalars(sa.select(User)):
            user.name = "y"
        session.commit()
    inbox.wait(50)
    new = [start(database_url, inbox, 3) for _ in range(2)]
    inbox.wait(80)
    end(old)
    inbox.wait(400)
    eventually(lambda: [(one.partition, one.lag) for one in new[0].stats()] == [(0, 0), (1, 0), (2, 0)])
    for broker in new:
        end(broker)
    engine.dispose()
    assert len(inbox.events) == len({event.id for event in inbox.events}) == 400
    for number in range(200):
        assert [operation(event) for event in inbox.events if event.key == str(number)] == ["create", "update"]


def operation(event: Event) -> str | None:
    return event.operation
