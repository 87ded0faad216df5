"""How fast committed events leave the log, and how soon: one process, servers on the same machine.

    python benchmarks/relay.py [--json FILE] [--events N] [--seconds N] [--peers]      (or make bench-relay, PEERS=1)

Every rate stands beside its ceiling, measured in the same run: a bare driver that reads, or publishes, as many bytes in
batches of the same size. Latency is from before COMMIT is sent to the handler, at 100 commits a second; beside it stand
the commit alone and one bare read of the same statement. Peers drain a backlog of the same size of event, see peers.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa

from benchmarks import doorbell, drains, peers, prompt
from benchmarks.measured import Cost, apart
from benchmarks.model import Base, Item
from benchmarks.report import Figure, publish
from benchmarks.servers import postgres
from sqla_events.alembic import upgrade
from sqla_events.errors import ConfigError
from tests.servers.nats import NatsServer
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer


def cost(name: str, measured: Cost, baseline: str, top: Cost) -> Iterator[Figure]:
    """One drain as figures."""
    yield Figure(name, measured.rate, "events/s", baseline, measured.rate / top.rate)
    yield Figure(f"{name}_per_cpu_second", measured.count / measured.cpu, "events/s")
    both = measured.cpu + measured.server_cpu
    yield Figure(f"{name}_per_cpu_second_with_postgres", measured.count / both, "events/s")
    yield Figure(f"{name}_rss", measured.rss, "MB")


def throughput(url: str, server: int, count: int, redis: RedisServer, nats: NatsServer) -> Iterator[Figure]:
    """From the log to nowhere, to Redis, to NATS, to handlers."""
    top = apart(drains.bare_read, url, server, count)
    yield Figure("bare_read", top.rate, "events/s")
    yield from cost("read_commit", apart(drains.read_commit, url, server, count), "bare_read", top)
    for name, settings, bare, target in (
        ("redis", {"redis": {"url": redis.url}}, drains.bare_redis, redis.url),
        ("nats", {"nats": {"url": nats.url}}, drains.bare_nats, ("127.0.0.1", nats.port)),
    ):
        try:
            measured = apart(drains.to_provider, url, server, count, {"provider": name, **settings})
        except ConfigError as error:
            print(f"postgres_to_{name}: not measured: {error}")
            continue
        ceiling = apart(bare, target, server, count)
        yield Figure(f"bare_{name}", ceiling.rate, "events/s")
        yield from cost(f"postgres_to_{name}", measured, f"bare_{name}", ceiling)
    handlers = [apart(drains.to_handler, url, server, count, coroutine) for coroutine in (False, True)]
    yield from cost("postgres_to_handler_sync", handlers[0], "bare_read", top)
    yield from cost("postgres_to_handler_async", handlers[1], "bare_read", top)
    slower = min(handlers, key=lambda one: one.rate)
    yield Figure("postgres_to_handler", slower.rate, "events/s", "bare_read", slower.rate / top.rate)


@contextmanager
def database(server: PostgresServer, name: str) -> Iterator[tuple[str, sa.Engine]]:
    """A database with the log and the table ``items``: its URL, and an engine."""
    url = server.url("psycopg", server.create_database(name=name))
    upgrade(url)
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine, tables=[Item.__table__])  # type: ignore[list-item]
    try:
        yield url, engine
    finally:
        engine.dispose()


def ours(server: PostgresServer, options: argparse.Namespace) -> Iterator[Figure]:
    """Everything of ours."""
    redis, nats = RedisServer(None, "--appendfsync", "everysec"), NatsServer()
    redis.start()
    nats.start()
    with database(server, "backlog") as (url, engine):
        drains.fill(engine, options.events)
        yield from throughput(url, server.pid, options.events, redis, nats)
    redis.remove()
    nats.remove()
    with database(server, "prompt") as (url, engine):
        yield from prompt.figures(url, engine, server.pid, options.seconds)
    with database(server, "doorbell") as (url, _):
        yield from doorbell.figures(url, options.seconds)


def main() -> None:
    """Run everything once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=os.environ.get("JSON"))
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of latency and of commits")
    parser.add_argument("--peers", action="store_true", default=os.environ.get("PEERS") == "1")
    options = parser.parse_args()
    with postgres() as server:
        found = list(ours(server, options))
        if options.peers:
            found += peers.figures(server)
    publish(found, options.json)


if __name__ == "__main__":
    main()
