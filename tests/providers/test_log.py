"""The contract, on the providers whose transport is the log: memory and database, on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_events.testing import ProviderConformance, Transport, configured
from tests.servers.postgres import PostgresDatabase

pytestmark = pytest.mark.conformance

QUICK: dict[str, Any] = {"lease": 2.0, "poll_interval": 0.05}


class TestMemoryOnSqlite(ProviderConformance):
    @pytest.fixture
    def transport(self, sqlite_url: str) -> Transport:
        return Transport(configured({"provider": "memory", **QUICK}, sqlite_url), redelivery=2.0)


class TestDatabaseOnSqlite(ProviderConformance):
    @pytest.fixture
    def transport(self, sqlite_url: str) -> Transport:
        url = sqlite_url.replace("sqlite:", "sqlite+aiosqlite:")
        return Transport(configured({"provider": "database", **QUICK}, url), redelivery=2.0)


class TestDatabaseOnPsycopg(ProviderConformance):
    @pytest.fixture
    def transport(self, postgres: PostgresDatabase) -> Transport:
        opener = configured({"provider": "database", **QUICK}, postgres.url())
        return Transport(opener, postgres.kill, postgres.start, redelivery=2.0)


class TestDatabaseOnAsyncpg(ProviderConformance):
    @pytest.fixture
    def transport(self, postgres: PostgresDatabase) -> Transport:
        opener = configured({"provider": "database", **QUICK}, postgres.url("asyncpg"))
        return Transport(opener, postgres.kill, postgres.start, redelivery=2.0)


class TestBuffer(ProviderConformance):
    """Memory without a database."""

    @pytest.fixture
    def transport(self) -> Transport:
        return Transport(configured({"provider": "memory"}))
