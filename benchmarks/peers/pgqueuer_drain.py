"""pgqueuer: jobs in a table, claimed with SKIP LOCKED, one handler call for each."""

from __future__ import annotations

import json
from datetime import timedelta

import asyncpg
from harness import BODY, main
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.queries import Queries


async def prepare(dsn, count):
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for start in range(0, count, 5000):
        many = min(5000, count - start)
        await queries.enqueue(["items"] * many, [json.dumps(BODY).encode()] * many, [0] * many)
    await connection.execute("ANALYZE")
    await connection.close()


async def drain(dsn, count):
    connection = await asyncpg.connect(dsn)
    queuer = PgQueuer.from_asyncpg_connection(connection)

    @queuer.entrypoint("items")
    async def handle(job):
        json.loads(job.payload)

    await queuer.qm.run(mode=QueueExecutionMode.drain, batch_size=1000, dequeue_timeout=timedelta(seconds=1))
    left = await connection.fetchval("SELECT count(*) FROM pgqueuer")
    assert left == 0, f"{left} jobs are left"
    await connection.close()


if __name__ == "__main__":
    main(prepare, drain)
