"""The way to the server: calls, scripts, and what their errors mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from ...config import RedisSettings
from ...errors import ConfigError, LeaseLost, ProviderUnavailable
from . import address


@dataclass(frozen=True)
class Script:
    """A Lua script: one call that the server runs as a whole, or not at all."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.source.encode(), usedforsecurity=False).hexdigest())


def script(*names: str) -> Script:
    """A script from the files of these names, one after the other."""
    folder = files(__package__).joinpath("lua")
    return Script("\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names))


class Link:
    """A client, made on first use: it belongs to the loop that uses it."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._where = address.shown(settings)
        self._new()  # tells what is wrong with a URL where it is configured

    def _new(self) -> Any:
        return address.client(self._settings)

    @property
    def client(self) -> Any:
        """The redis-py client."""
        if self._client is None:
            self._client = self._new()
        return self._client

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A method of the client.

        :raises ProviderUnavailable: if the server does not answer, or not now.
        :raises ConfigError: if a key of ours holds something else.
        """
        with self._understood():
            return await getattr(self.client, name)(*arguments, **options)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """A script's answer; errors as for :meth:`call`.

        :raises LeaseLost: if the consumer group is not there any more.
        """
        with self._understood():
            try:
                return await self.client.evalsha(script.sha, len(keys), *keys, *arguments)
            except NoScriptError:  # nothing ran: a server forgets scripts when it restarts
                return await self.client.eval(script.source, len(keys), *keys, *arguments)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            yield
            if task and task.cancelling() > cancelled:  # Python 3.11: wait_for(), which redis-py calls, may swallow it
                raise asyncio.CancelledError
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:  # the second is none of the first
            text = str(error)
            if "NOGROUP" in text:
                raise LeaseLost(f"the consumer group is gone from Redis at {self._where}: {text}") from error
            if "WRONGTYPE" in text:
                raise ConfigError(f"a key of redis.stream_name holds something else at {self._where}: {text}") from error
            raise ProviderUnavailable(f"Redis at {self._where}: {text or type(error).__name__}") from error

    async def close(self) -> None:
        """Let go of every connection."""
        client, self._client = self._client, None
        for one in [] if client is None else address.clients(client):
            with suppress(RedisError, OSError):
                await one.aclose()
