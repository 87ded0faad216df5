"""txoutbox as it is meant for keys: strict order, rows deleted when done, the batch size that was fastest."""

from __future__ import annotations

import asyncio
import json

from harness import BODY, Seen, main
from txoutbox import Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

STRICT = True


async def prepare(dsn, count):
    storage = await PostgresStorage.connect(dsn)
    await storage.create_schema()
    sql = "INSERT INTO outbox (topic, key, payload) SELECT 'items', n::text, $1 FROM generate_series(1, $2::int) n"
    await storage.pool.execute(sql, json.dumps(BODY).encode(), count)
    await storage.pool.execute("ANALYZE outbox")
    await storage.close()


async def drain(dsn, count, strict=STRICT):
    storage = await PostgresStorage.connect(dsn)
    storage = PostgresStorage(storage.pool, strict_ordering=strict, delete_on_ack=True)
    seen = Seen(count)

    async def publish(message):
        message.json()
        seen.one()

    relay = Relay(storage, publish, config=RelayConfig(batch_size=500, concurrency=50, publish_timeout=None))
    running = asyncio.create_task(relay.run())
    await seen.all.wait()
    relay.stop()
    await running
    await storage.pool.close()


if __name__ == "__main__":
    main(prepare, drain)
