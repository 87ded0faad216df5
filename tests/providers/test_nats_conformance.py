"""The contract, on NATS JetStream."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_events.testing import ProviderConformance, Transport, configured
from tests.servers.nats import NatsServer

pytestmark = pytest.mark.conformance


def settings(server: NatsServer, **more: Any) -> dict[str, Any]:
    return {"provider": "nats", "lease": 1.0, "nats": {"url": server.url, "ack_wait": 1.0}, **more}


class TestNats(ProviderConformance):
    @pytest.fixture
    def transport(self, nats: NatsServer) -> Transport:
        return Transport(configured(settings(nats)), nats.kill, nats.start, redelivery=1.0)
