"""walbox: logical replication, one event in a transaction, a checkpoint every 50 transactions."""

from __future__ import annotations

import asyncio
import contextlib
import json

import psycopg
from harness import BODY, Seen, main
from walbox import Walbox, WalboxOptions

CHECKPOINT_EVERY = 50

BACKLOG = """
CREATE TABLE outbox (id bigserial PRIMARY KEY, entity text, payload jsonb);
CREATE PUBLICATION walbox_peer FOR TABLE outbox;
"""
LOOP = """
DO $$ BEGIN FOR n IN 1..{count} LOOP
    INSERT INTO outbox (entity, payload) VALUES (n::text, '{body}'); COMMIT;
END LOOP; END $$
"""


async def prepare(dsn, count):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(BACKLOG)
        connection.execute("SELECT pg_create_logical_replication_slot('walbox_peer', 'pgoutput')")
        connection.execute("SET synchronous_commit = off")
        connection.execute(LOOP.format(count=count, body=json.dumps(BODY)))


async def drain(dsn, count):
    options = WalboxOptions("peer", dsn, "walbox_peer", "walbox_peer")
    seen, number = Seen(count), 0

    async def handle(transaction, checkpoint):
        nonlocal number
        number += 1
        for change in transaction.changes:
            json.loads(change.new["payload"])
        if number % CHECKPOINT_EVERY == 0:
            await checkpoint.save(transaction.commit_lsn)
        seen.one(len(transaction.changes))

    running = asyncio.create_task(Walbox.build(options).run(handle))
    await asyncio.wait({running, asyncio.create_task(seen.all.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    main(prepare, drain)
