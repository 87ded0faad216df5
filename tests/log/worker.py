"""A relay process for the tests: every partition of one group, into a table that remembers order and refuses old epochs.

python -m tests.log.worker URL PARTITIONS OWNER
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import psycopg
from sqlalchemy import create_engine, make_url

from sqla_events.bridge import Database, Doorbell, in_thread
from sqla_events.errors import LeaseLost, ProviderUnavailable
from sqla_events.log.settings import ReaderSettings
from sqla_events.provider import Batch, Features
from sqla_events.relay import Relays
from sqla_events.schema import Tables
from sqla_events.signals import Signals

LEASE = 1.0
SINK = """
CREATE TABLE sink (n bigserial PRIMARY KEY, id uuid, seq bigint, key text, version int, partition int, epoch bigint, partitions int);
CREATE TABLE sink_epochs (partitions int, partition int, epoch bigint NOT NULL, PRIMARY KEY (partitions, partition))
"""


class Sink:
    """A transport with the one thing that a transport needs against zombies: it knows the newest epoch."""

    features = Features(durable=True, shared_groups=True, cross_process=True)

    def __init__(self, url: str) -> None:
        self._conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def publish(self, batch: Batch) -> None:
        await in_thread(self._publish, batch)

    def _publish(self, batch: Batch) -> None:
        try:
            with psycopg.connect(self._conninfo) as link:
                self._store(link, batch)
        except psycopg.OperationalError as error:
            raise ProviderUnavailable(str(error)) from error

    def _store(self, link: psycopg.Connection, batch: Batch) -> None:
        link.execute("SELECT pg_advisory_xact_lock(1)")
        newest = link.execute(
            """INSERT INTO sink_epochs VALUES (%s, %s, %s)
            ON CONFLICT (partitions, partition) DO UPDATE SET epoch = greatest(sink_epochs.epoch, excluded.epoch)
            RETURNING greatest(epoch, (SELECT max(epoch) + 1 FROM sink_epochs WHERE partitions <> %s))""",
            (batch.partitions, batch.partition, batch.epoch, batch.partitions),
        ).fetchone()
        if newest is None or newest[0] > batch.epoch:
            raise LeaseLost(f"epoch {batch.epoch} of partition {batch.partition} of {batch.partitions} is over")
        with link.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO sink (id, seq, key, version, partition, epoch, partitions) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [self._row(batch, json.loads(message.body)) for message in batch.messages],
            )

    def _row(self, batch: Batch, body: dict[str, object]) -> tuple[object, ...]:
        payload = body["payload"]
        assert isinstance(payload, dict)
        lease = (batch.partition, batch.epoch, batch.partitions)
        return (body["id"], body["seq"], body.get("key"), payload["version"], *lease)


async def main(url: str, partitions: int, owner: str) -> None:
    settings = ReaderSettings(
        "load", owner, partitions=partitions, lease=LEASE, batch_size=100, prefetch=400, poll_interval=0.05
    )
    database = Database(engine := create_engine(url))
    relays = Relays(database, Tables(), Sink(url), settings, Signals(), Doorbell())  # type: ignore[arg-type]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, relays.stop)
    await relays.run()
    await database.close()
    engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
