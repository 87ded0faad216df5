"""faststream-outbox with the batch sizes and workers that were fastest (its defaults: 10 rows, 1 worker)."""

from __future__ import annotations

import logging

from faststream_outbox import OutboxBroker, make_outbox_table
from harness import BODY, Seen, main
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

TABLE = make_outbox_table(MetaData(), table_name="outbox")


def engine_of(dsn):
    return create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"), pool_size=30)


async def prepare(dsn, count):
    engine = engine_of(dsn)
    broker = OutboxBroker(engine, outbox_table=TABLE)
    async with engine.begin() as connection:
        await connection.run_sync(TABLE.metadata.create_all)
    await broker.start()
    for start in range(0, count, 1000):
        async with engine.begin() as connection:
            await broker.publish_batch(*[BODY] * min(1000, count - start), queue="items", session=connection)
    await broker.stop()
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ANALYZE outbox")
    await engine.dispose()


async def drain(dsn, count):
    engine = engine_of(dsn)
    broker = OutboxBroker(engine, outbox_table=TABLE, log_level=logging.ERROR)
    seen = Seen(count)

    @broker.subscriber(
        "items",
        max_workers=20,
        fetch_batch_size=500,
        min_fetch_interval=0.001,
        terminal_flush_batch_size=100,
    )
    async def handle(body: dict) -> None:
        seen.one()

    await broker.start()
    await seen.all.wait()
    await broker.stop()
    await engine.dispose()


if __name__ == "__main__":
    main(prepare, drain)
