"""Three NATS servers that are one: nodes are killed mid-stream, the leader among them; nothing is lost, repeated or swapped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sqla_events.errors import ConfigError, ProviderUnavailable
from sqla_events.provider import Message
from sqla_events.providers.nats import NatsProvider
from sqla_events.retry import until_available
from sqla_events.testing.transport import consuming, lanes
from tests.providers.nats_support import STREAM, batch, ids, messages, provider, stored_ids
from tests.servers import nats as nats_servers
from tests.servers.nats import NatsCluster, NatsServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster(local_servers: bool) -> Iterator[NatsCluster]:
    one = NatsCluster(nats_servers.local_binary() if local_servers else None)
    one.start()
    yield one
    one.remove()


@pytest.fixture
async def provided(cluster: NatsCluster, request: pytest.FixtureRequest) -> AsyncIterator[NatsProvider]:
    """A provider whose streams have a copy on each node."""
    cluster.start()
    one = provider(cluster.url, replicas=3, duplicate_window=0.1, stream_name=STREAM, lease=2)
    await patiently(one.open, ConfigError, ProviderUnavailable)
    await one._jetstream.call(f"STREAM.PURGE.{STREAM}")
    yield one
    await one.close()


async def patiently(call: Any, *transient: type[Exception]) -> Any:
    """A cluster takes some time to find itself, and a new leader."""
    async with asyncio.timeout(120):
        return await until_available(call, transient, asyncio.sleep, lambda delay, error: None)


async def leader(one: NatsProvider, cluster: NatsCluster) -> NatsServer:
    """Of the stream."""
    info = await patiently(lambda: one._jetstream.info(STREAM), ProviderUnavailable)
    return cluster.servers[int(info["cluster"]["leader"].removeprefix("node"))]


async def test_nodes_that_are_killed_mid_stream(cluster: NatsCluster, provided: NatsProvider) -> None:
    """Every batch is published until it is acknowledged, as a relay does, while the leader goes away again and again; a
    consumer reads along."""
    one = provided
    sent = messages(3000, rows=9)
    async with consuming(one, prefetch=200) as stream:

        async def relay() -> None:
            for start in range(0, len(sent), 60):
                given = batch(sent[start : start + 60])
                await patiently(lambda given=given: one.publish(given), ProviderUnavailable)

        publishing = asyncio.create_task(relay())
        for share in (0.2, 0.6):
            await stream.take(int(len(sent) * share))
            victim = await leader(one, cluster)
            victim.kill()
            await asyncio.sleep(1)  # some of what follows is for two nodes
            victim.start()
        await publishing
        await stream.until(lambda: {message.id for message in sent} <= set(stream.ids))
        assert await stored(one) == ids(sent)
        expected = lanes([delivery.event() for delivery in sorted(stream.deliveries, key=lambda each: each.event().payload)])
        assert lanes(stream.events) == expected


async def stored(one: NatsProvider) -> list[str]:
    found: list[str] = await patiently(lambda: stored_ids(one), ProviderUnavailable)
    return found


async def test_a_relay_that_follows_after_the_leader_died(cluster: NatsCluster, provided: NatsProvider) -> None:
    """Its predecessor published and was killed with the leader: nothing is there twice."""
    sent: list[Message] = messages(600, first=5000)
    first = provided
    for start in range(0, 400, 100):
        given = batch(sent[start : start + 100], epoch=1, group="relay:second")
        await patiently(lambda given=given: first.publish(given), ProviderUnavailable)
    victim = await leader(first, cluster)
    victim.kill()
    heir = provider(cluster.url, replicas=3, duplicate_window=0.1, lease=2)
    try:
        await patiently(heir.open, ProviderUnavailable)
        for start in range(200, 600, 100):
            given = batch(sent[start : start + 100], epoch=2, group="relay:second")
            await patiently(lambda given=given: heir.publish(given), ProviderUnavailable)
        assert [one for one in await stored(heir) if one in set(ids(sent))] == ids(sent)
    finally:
        await heir.close()
        victim.start()
