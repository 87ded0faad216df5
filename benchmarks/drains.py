"""Draining a backlog: what our relay and consumer do with it, and the ceilings, a bare driver doing the same work.

Each function runs in a process of its own (see measured.py) and returns its Cost.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import sqlalchemy as sa

from benchmarks.measured import Cost, Meter
from sqla_events import Config, Event, log
from sqla_events.bridge import Database, Doorbell
from sqla_events.broker import Broker
from sqla_events.log.reader import leased
from sqla_events.log.settings import ReaderSettings
from sqla_events.schema import Tables
from sqla_events.signals import Fact, Relayed, Signals

BATCH = 2000
TABLES = Tables()
BODY = {"key": {"id": 0}, "after": {"name": "x" * 120, "email": "y" * 80, "note": "z" * 60}}


def fill(engine: sa.Engine, count: int) -> None:
    """A backlog of events of about 400 bytes, each of another row."""
    with engine.begin() as connection:
        for start in range(0, count, 5000):
            rows = range(start, min(start + 5000, count))
            events = [Event(type="public.items.create", payload=BODY, key=str(row)) for row in rows]
            log.append(connection, TABLES, events)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE events")


# Ours ---------------------------------------------------------------------------------------------------------------


def read_commit(url: str, server: int, count: int) -> Cost:
    """A reader hands out, settles and commits; nothing is done with the events."""
    return asyncio.run(_read_commit(url, server, count))


async def _read_commit(url: str, server: int, count: int) -> Cost:
    engine, seen = sa.create_engine(url), 0
    database = Database(engine)
    settings = ReaderSettings("read", "bench", batch_size=BATCH, prefetch=2 * BATCH)
    async with leased(database, TABLES, settings, Signals(), Doorbell()) as reader:
        meter = Meter(server)
        async for batch in reader.batches():
            reader.settle([delivery.row.seq for delivery in batch])
            seen += len(batch)
            if seen >= count:
                break
        await reader.commit()
        cost = meter.stop(count)
    await database.close()
    engine.dispose()
    return cost


def to_handler(url: str, server: int, count: int, coroutine: bool) -> Cost:
    """Provider ``memory``, to a handler that does nothing: a function or a coroutine function."""
    seen, done = 0, threading.Event()

    def plain(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen >= count:
            done.set()

    async def awaited(event: Event) -> None:
        plain(event)

    config = Config(batch_size=BATCH, buffer_size=2 * BATCH, consumer_group=f"handler-{coroutine}")
    engine = sa.create_engine(url)
    broker = Broker(config, engine)
    broker.subscribe("*", handler=awaited if coroutine else plain)
    return _timed(broker, engine, done, server, count)


def to_provider(url: str, server: int, count: int, settings: dict[str, Any]) -> Cost:
    """A relay publishes all of it to another provider."""
    sent, done = 0, threading.Event()

    def note(fact: Fact) -> None:
        nonlocal sent
        if isinstance(fact, Relayed):
            sent += fact.count
            if sent >= count:
                done.set()

    engine = sa.create_engine(url)
    broker = Broker(Config.load({"batch_size": BATCH, **settings}), engine)
    broker.signals.subscribe(note)
    return _timed(broker, engine, done, server, count)


def _timed(broker: Broker, engine: sa.Engine, done: threading.Event, server: int, count: int) -> Cost:
    meter = Meter(server)
    broker.start()
    done.wait()
    cost = meter.stop(count)
    broker.stop()
    engine.dispose()
    return cost


# Ceilings -----------------------------------------------------------------------------------------------------------


def bare_read(url: str, server: int, count: int) -> Cost:
    """psycopg reads seq and payload by keyset, binary, in batches of the same size."""
    engine = sa.create_engine(url)
    raw = engine.raw_connection()
    cursor = raw.driver_connection.cursor(binary=True)  # type: ignore[union-attr]
    meter, last, seen = Meter(server), 0, 0
    while seen < count:
        cursor.execute("SELECT seq, payload::text FROM events WHERE seq > %s ORDER BY seq LIMIT %s", (last, BATCH))
        rows = cursor.fetchall()
        last, seen = rows[-1][0], seen + len(rows)
    cost = meter.stop(count)
    raw.close()
    engine.dispose()
    return cost


def bare_redis(url: str, server: int, count: int) -> Cost:
    """Texts of 400 bytes appended by a server-side script, one call for each batch."""
    import redis

    client = redis.Redis.from_url(url)
    add = client.register_script("for i = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'body', ARGV[i]) end")
    bodies = [b"x" * 400] * BATCH
    meter = Meter(server)
    for _ in range(0, count, BATCH):
        add(keys=["ceiling"], args=bodies)
    cost = meter.stop(count)
    client.delete("ceiling")
    client.close()
    return cost


def bare_nats(address: tuple[str, int], server: int, count: int) -> Cost:
    """The protocol written by hand: messages with ids to a stream on disk, every acknowledgement counted."""
    import nats

    async def stream() -> None:
        client = await nats.connect(f"nats://{address[0]}:{address[1]}")
        await client.jetstream().add_stream(name="CEILING", subjects=["ceiling"])
        await client.close()

    asyncio.run(stream())
    meter = Meter(server)
    with socket.create_connection(address) as wire:
        wire.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB acks 1\r\n')
        for start in range(0, count, BATCH):
            wire.sendall(b"".join(_hpub(start + number) for number in range(BATCH)))
            _await_acks(wire, BATCH)
    return meter.stop(count)


def _hpub(number: int) -> bytes:
    head = b"NATS/1.0\r\nNats-Msg-Id: %032d\r\n\r\n" % number
    return b"HPUB ceiling acks %d %d\r\n%s%s\r\n" % (len(head), len(head) + 400, head, b"x" * 400)


def _await_acks(wire: socket.socket, count: int) -> None:
    """Read until so many came; one that says ``error`` would mean that the ceiling is none."""
    seen, rest = 0, b""
    while seen < count:
        rest += wire.recv(1 << 20)
        if b'"error"' in rest:
            raise RuntimeError(f"JetStream refused: {rest[:200]!r}")
        seen += rest.count(b"MSG acks")
        rest = rest[rest.rfind(b"MSG acks") + 1 :]
