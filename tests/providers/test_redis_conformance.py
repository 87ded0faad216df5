"""The conformance suite on Redis: one stream, and one that is split."""

from __future__ import annotations

import pytest

from sqla_events.testing import ProviderConformance, Transport, configured
from tests.servers.redis import RedisServer


def transport_of(server: RedisServer, **settings: object) -> Transport:
    return Transport(
        configured({"provider": server.url, "lease": 1.0} | settings), server.kill, server.start, redelivery=1.0
    )


@pytest.mark.conformance
class TestRedis(ProviderConformance):
    """As it is by default."""

    @pytest.fixture
    def transport(self, redis: RedisServer) -> Transport:
        return transport_of(redis)


@pytest.mark.conformance
class TestRedisInPartitions(ProviderConformance):
    """Rows spread over streams."""

    @pytest.fixture
    def transport(self, redis: RedisServer) -> Transport:
        return transport_of(redis, partitions=3)
