"""What a database user may do at least, by the statements that docs/migrations.md gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.orm import Session

from sqla_events import Broker, Config, Event, EventFilter, connect, install_crud_hooks
from sqla_events.cli import main
from tests.integration.shop import Base, Inbox, User, eventually
from tests.servers.postgres import PostgresDatabase

PAGE = Path(__file__).parents[2] / "docs" / "migrations.md"


@pytest.fixture
def granted(postgres: PostgresDatabase) -> Iterator[PostgresDatabase]:
    """With the roles app and worker, which have what the page says and, for the shop's own tables, everything."""
    (grants,) = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    admin = sa.create_engine(postgres.url())
    Base.metadata.create_all(admin)
    with admin.begin() as connection:
        tables = ", ".join(Base.metadata.tables)
        connection.exec_driver_sql(f"CREATE ROLE app LOGIN; CREATE ROLE worker LOGIN; GRANT ALL ON {tables} TO app; {grants}")
    yield postgres
    with admin.begin() as connection:
        connection.exec_driver_sql("DROP OWNED BY app, worker; DROP ROLE app, worker")
    admin.dispose()


def test_an_application_and_a_worker_of_least_rights(granted: PostgresDatabase) -> None:
    """One captures and publishes; the other consumes, is asked, redrives, replays, pauses and lets old events go."""
    as_app, as_worker = (granted.url().replace("postgres@", f"{role}@") for role in ("app", "worker"))
    engine, inbox, failing = sa.create_engine(as_app), Inbox(), Inbox(fail=lambda event: ValueError("no"))
    application = install_crud_hooks(engine)
    with Session(engine) as session, session.begin():
        session.add_all([User(id=number, name="x") for number in range(1500)])
        application.publish("a.b.c", session=session)
    application.publish_many([Event(type="a.b.d"), Event(type="a.b.d")]).result(20)
    worker = connect(as_worker, poll_interval=0.05, retry_policy={"max_retries": 0}, retention=3600)
    worker.subscribe("*", handler=inbox, name="inbox")
    worker.subscribe("a.b.d", handler=failing, name="failing")
    worker.start()
    inbox.wait(1503)
    eventually(lambda: len(worker.dead_letters.list()) == 2)
    assert worker.dead_letters.redrive() == 2
    assert worker.replay("a.b.c", subscription="inbox") == 1
    inbox.wait(1504)
    worker.pause("inbox", everywhere=True)
    worker.resume("inbox", everywhere=True)
    assert worker.get(inbox.events[0].id).status
    assert len(worker.list(EventFilter(pattern="a.b.*"))) == 3
    worker.stop()
    assert "default" in CliRunner().invoke(main, ["status", as_worker]).stdout
    application.uninstall()
    engine.dispose()


def test_one_user_for_all(granted: PostgresDatabase, redis_url: str) -> None:
    """Who has both rights captures, publishes and relays."""
    with granted.connect() as link:
        link.execute("GRANT worker TO app")
    engine, inbox = sa.create_engine(granted.url().replace("postgres@", "app@")), Inbox()
    broker = Broker(Config.load(redis_url, poll_interval=0.05), engine).install()
    broker.subscribe("*", handler=inbox)
    broker.start()
    with Session(engine) as session, session.begin():
        session.add(User(id=1, name="x"))
    broker.publish("a.b.c").result(20)
    inbox.wait(2)
    broker.uninstall()
    engine.dispose()
