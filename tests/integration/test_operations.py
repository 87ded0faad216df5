"""What docs/operations.md tells people to do, done."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import Event, install_crud_hooks
from tests.integration.shop import Base, Inbox, User, eventually

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
SQLITE = ("(gaps::json->0->>0)::bigint", "json_extract(gaps, '$[0][0]')")


def statements(url: str) -> list[str]:
    text = DOCS.read_text()
    assert all(part in text for part in SQLITE)
    (sql,) = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [one for one in (sql.replace(*SQLITE) if "sqlite" in url else sql).split(";") if one.strip()]


def test_a_group_goes_on_with_another_number_of_partitions(database_url: str) -> None:
    """Stopped in the middle of a backlog with one partition, continued with three: nothing is missing, rows keep their order."""
    engine = sa.create_engine(database_url)
    Base.metadata.create_all(engine)
    inbox = Inbox()
    seen: set[str] = set()

    def handle(event: Event) -> None:
        inbox(event)
        seen.add(f"{event.key} {event.operation}")

    before = install_crud_hooks(engine, worker_count=1, buffer_size=10, poll_interval=0.05)
    before.subscribe("*", handler=handle)
    with Session(engine) as session:
        session.add_all([User(id=number, name="x") for number in range(200)])
        session.commit()
        for user in session.scalars(sa.select(User)):
            user.name = "y"
        session.commit()
    before.start()
    inbox.wait(50)
    before.stop()
    before.uninstall()
    assert len(seen) < 400
    with engine.begin() as connection:
        for statement in statements(database_url):
            connection.exec_driver_sql(statement)
    after = install_crud_hooks(engine, partitions=3, poll_interval=0.05)
    after.subscribe("*", handler=handle)
    after.start()
    eventually(lambda: len(seen) == 400)
    after.uninstall()
    engine.dispose()
    for number in range(200):
        mine = [event.operation for event in inbox.events if event.key == str(number)]
        assert list(dict.fromkeys(mine)) == ["create", "update"]
