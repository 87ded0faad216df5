"""eventsourcing reads its own log and decodes it: a projection without retries, positions or broker."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from harness import BODY, main


class Item(Aggregate):
    """One row."""

    @event("Created")
    def __init__(self, body):
        self.body = body


def application(dsn):
    url = urlsplit(dsn)
    os.environ |= {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": url.path[1:],
        "POSTGRES_HOST": url.hostname,
        "POSTGRES_PORT": str(url.port),
        "POSTGRES_USER": url.username,
        "POSTGRES_PASSWORD": "",
    }
    return Application()


async def prepare(dsn, count):
    app = application(dsn)
    for _ in range(0, count, 1000):
        app.save(*(Item(body=BODY) for _ in range(1000)))
    app.close()


async def drain(dsn, count):
    app, last, seen = application(dsn), 0, 0
    while seen < count:
        for notification in app.recorder.select_notifications(start=last + 1, limit=2000):
            app.mapper.to_domain_event(notification)
            last, seen = notification.id, seen + 1
    app.close()


if __name__ == "__main__":
    main(prepare, drain)
