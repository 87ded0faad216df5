"""A process that forks while its broker runs. On PostgreSQL: SQLite forbids to fork with a database open."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import install_crud_hooks
from tests.integration.shop import Base, Inbox, User, eventually

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(work: Callable[[], bool]) -> bool:
    """Whether ``work()`` gave True in a forked process, within a minute."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_forked_process_captures_and_starts_for_itself(mode: str, postgres_url: str) -> None:
    """Nothing runs there, so nothing waits for it: it captures, starts and stops; the parent's broker goes on all the while."""
    engine, inbox = sa.create_engine(postgres_url), Inbox()
    Base.metadata.create_all(engine)
    broker = install_crud_hooks(engine, mode=mode, poll_interval=0.05, provider="database")
    broker.subscribe("public.users.create", handler=inbox)
    broker.start()

    def add(number: int) -> None:
        with Session(engine) as session, session.begin():
            session.add(User(id=number, name="x"))

    def child() -> bool:
        engine.dispose(close=False)
        idle = not broker.running
        add(1)
        broker.stop()  # which runs nothing
        broker.start()
        asked = isinstance(broker.stats(), list)
        broker.stop()
        return idle and asked

    assert in_child(child)
    add(2)
    eventually(lambda: {event.key for event in inbox.events} == {"1", "2"})
    broker.uninstall()
    engine.dispose()
