"""Where Redis is: a cluster, behind Sentinel, behind TLS, as a user with few rights; and URLs that cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqla_events.config import Config
from sqla_events.errors import ConfigError, ProviderUnavailable
from sqla_events.event import Event
from sqla_events.provider import Batch, Failure
from sqla_events.providers.redis import address
from sqla_events.providers.redis.keys import Keys
from sqla_events.providers.redis.link import Link
from sqla_events.providers.redis.trimming import trim
from sqla_events.runtime import message_of
from sqla_events.testing import ProviderConformance, Transport, configured
from sqla_events.testing.transport import consuming, hold, opened, publish
from tests.servers import redis as redis_servers
from tests.servers.redis import RedisServer, Sentinel, cluster
from tests.servers.tls import terminated


def binary(local_servers: bool) -> Path | None:
    return redis_servers.local_binary() if local_servers else None


async def there_and_back(url: str, **settings: Any) -> None:
    """Events of two rows arrive, and a dead letter can be read."""
    async with opened(Transport(configured({"provider": url, "lease": 1.0, **settings}))) as provider:
        async with consuming(provider) as stream:
            await publish(provider, *(Event(type="a.b.create", key=str(n % 2), payload=n) for n in range(10)))
            await stream.take(10)
            assert {event.payload for event in stream.events} == set(range(10))
        assert await provider.dead_letters.list() == []


async def everything_else(url: str, **settings: Any) -> None:
    """What a relay does, attempts, dead letters, history, trimming."""
    async with opened(Transport(configured({"provider": url, "lease": 1.0, **settings}))) as provider:
        message = message_of(Event(type="a.b.create", key="1"))
        await provider.publish(Batch([message], "relay:x", 0, 1, '{"high":1,"gaps":[]}'))
        async with consuming(provider, hold, group="other") as stream:
            for delivery in await stream.take(2):
                delivery.retry(Failure("app.mail", "E", "", 1), 0)
                delivery.bury(Failure("app.mail", "E", "", 2))
                delivery.ack()
        first, *_ = await provider.dead_letters.list()
        assert await provider.dead_letters.redrive([first.id]) == 1
        assert await provider.dead_letters.discard() > 0
        assert [page async for page in provider.history()]
        config = Config.load(url, **settings).redis
        link = Link(config)
        assert await trim(link, Keys(config.stream_name), config) > 0
        await link.close()


@pytest.fixture(scope="module")
def nodes(local_servers: bool) -> Iterator[list[RedisServer]]:
    with cluster(3, binary(local_servers)) as servers:
        yield servers


@pytest.mark.conformance
class TestRedisCluster(ProviderConformance):
    """Three nodes; all keys of a stream are on one of them."""

    @pytest.fixture
    def transport(self, nodes: list[RedisServer]) -> Transport:
        for node in nodes:
            node.flush()
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return Transport(configured({"provider": f"redis+cluster://{hosts}", "lease": 1.0, "partitions": 2}))


async def test_the_primary_that_sentinels_name(local_servers: bool) -> None:
    """Also after a fail-over: publishing and consuming go on by themselves, with what had reached the replica."""
    primary = RedisServer(binary(local_servers))
    primary.start()
    replica = RedisServer(binary(local_servers), "--replicaof", "127.0.0.1", str(primary.port))
    replica.start()
    sentinel = Sentinel(primary, binary(local_servers))
    try:
        sentinel.start()
        await until(lambda: f"{replica.port}" in sentinel.call("SENTINEL", "REPLICAS", "shop"))
        transport = Transport(configured({"provider": sentinel.url, "lease": 1.0}))
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider, *(Event(type="a.b.create", key="1", payload=n) for n in range(5)))
            await stream.take(5)
            await until(lambda: replica.call("XLEN", "sqla-events").startswith(":5"))
            primary.kill()
            await publish(provider, *(Event(type="a.b.create", key="1", payload=n) for n in range(5, 10)))
            await stream.until(lambda: {event.payload for event in stream.events} == set(range(10)))
            assert replica.call("XLEN", "sqla-events").startswith(":10")
    finally:
        for server in (sentinel, replica, primary):
            server.remove()


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_tls(redis: RedisServer, tmp_path: Path) -> None:
    """With a certificate that is trusted; without, the error says what is wrong."""
    async with terminated(redis.port, tmp_path) as (port, trusted):
        await there_and_back(f"rediss://localhost:{port}/0?ssl_ca_certs={trusted}")
        with pytest.raises(ProviderUnavailable, match="certificate"):
            await there_and_back(f"rediss://localhost:{port}/0")


ACL = (
    *("on", ">secret", "resetkeys", "~shop", "~{shop}:*", "-@all", "+@connection", "+eval", "+evalsha", "+time"),
    *("+get", "+set", "+del", "+exists", "+hget", "+hmget", "+hset", "+hdel", "+hgetall", "+hincrby"),
    *("+zadd", "+zrange", "+zrem", "+zremrangebyscore", "+xadd", "+xlen", "+xrange", "+xrevrange", "+xread", "+xdel"),
    *("+xtrim", "+xgroup", "+xreadgroup", "+xack", "+xautoclaim", "+xpending", "+xinfo"),
)
"""What docs/redis.md says a user needs."""


async def test_a_user_with_few_rights(redis: RedisServer) -> None:
    """Those in the documentation are enough; in the URL or as settings; a wrong password is told without being shown."""
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    assert " ".join(ACL[2:]) in " ".join(page.split())
    assert redis.call("ACL", "SETUSER", "app", *ACL).startswith("+OK")
    more: dict[str, Any] = {"redis": {"stream_name": "shop", "max_len": 3}}
    await there_and_back(f"redis://app:secret@127.0.0.1:{redis.port}/0", **more)
    credentials = {"username": "app", "password": "secret", "port": redis.port, "host": "127.0.0.1"}
    await there_and_back("redis", redis=more["redis"] | credentials)
    await everything_else(f"redis://app:secret@127.0.0.1:{redis.port}/0", **more)
    with pytest.raises(ProviderUnavailable, match="password") as error:
        await there_and_back(f"redis://app:seKret@127.0.0.1:{redis.port}/0")
    assert "seKret" not in str(error.value)
    await there_and_back(redis.url)  # and afterwards nothing has changed for others


async def test_a_unix_socket_and_another_database(local_servers: bool, tmp_path: Path) -> None:
    """As URLs say it; databases do not see each other's streams."""
    server = RedisServer(binary(local_servers), "--unixsocket", "socket")
    server.start()
    try:
        await there_and_back(f"unix://{server.folder}/socket?db=3")
        assert server.call("EXISTS", "sqla-events").startswith(":0")
        await there_and_back("redis", redis={"host": "127.0.0.1", "port": server.port, "db": 5})
        assert server.call("EXISTS", "sqla-events").startswith(":0")
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+shards://a:pass1@h:1", "scheme is 'redis\\+shards'"),
        ("redis+sentinel://a:pass1@h:1", "names no service"),
        ("redis+cluster://a:pass1@h:1,:2", "names no host"),
        ("redis+cluster://a:pass1@h:1/3", "database 0 alone"),
        ("redis://a:pass1@h:port/0", "redis.url cannot be used"),
        ("redis://h/0?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    """Say so where they are configured, without the password."""
    with pytest.raises(ConfigError, match=message) as error:
        address.client(Config.load(url).redis)
    assert "pass1" not in str(error.value)


async def test_seed_settings(redis: RedisServer) -> None:
    """The block of the event broker as it was, ``stream_name`` with a colon and ``consumer_group`` included."""
    config = f"""
    event_broker:
      provider: redis
      redis:
        stream_name: "resolvespec:events"
        consumer_group: "resolvespec-workers"
        host: "localhost"
        port: {redis.port}
    """
    settings = Config.load(config)
    assert settings.default_group == "resolvespec-workers"
    async with opened(Transport(configured({"provider": "redis", "redis": settings.redis}))) as provider:
        await provider.publish(Batch([]))
        await publish(provider, Event(type="a.b.create", payload=1))
    assert redis.call("XLEN", "resolvespec:events").startswith(":1")
