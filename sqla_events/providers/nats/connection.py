"""One connection of nats-py for all that a provider does: made when it is needed, and again when it was closed for good.

nats-py reconnects by itself after most failures. What waits for an answer meanwhile is told at once, instead of after its
time-out: the caller looks up what came of it.

Why private members of nats-py are used, in three places, all in this file: many messages are put together here and given
to the client as one piece of its output (:meth:`Connection.write`; 1.1 microseconds of CPU for a message of 500 bytes
instead of 13 through ``publish``); what has arrived is taken from a subscription's queue many at a time (:class:`Inbox`;
37,000 messages a second one by one); and headers stay as they came until somebody asks for them (:class:`Headers`; to parse
them was a third of what receiving costs). Where a version of nats-py has no such members, its public methods are used; the
tests run both ways.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ...config import NatsSettings
from ...errors import ConfigError, ProviderUnavailable
from ...signals import logger

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""For which the answer to a request may take. The loss of the connection ends the wait at once."""
CONNECT_SECONDS = 3
"""For one server."""
RECONNECT_SECONDS = 0.1
"""Between attempts to reconnect."""
MOST_TOLD = 500
"""Characters of errors that are remembered."""
PIECE = 262_144
"""Bytes that are handed to the socket at once: the server works on the first while we make the next."""


class Out(NamedTuple):
    """One message to publish."""

    subject: str
    body: bytes = b""
    head: bytes = b""
    """Its headers as they travel: see :func:`head_of`."""
    reply: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """By name."""
        return headers_of(self.head)

    def command(self) -> bytes:
        """As the protocol has it."""
        place = f"{self.subject} {self.reply}".encode()
        size, head = len(self.body), len(self.head)
        if not head:
            return b"PUB %b %d\r\n%b\r\n" % (place, size, self.body)
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (place, head, head + size, self.head, self.body)


def head_of(lines: str) -> bytes:
    """Headers as they travel, of lines ``name:value`` that each end with CR LF."""
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class Headers(Mapping[str, str]):
    """The headers of a message, parsed when they are asked for."""

    __slots__ = ("_parsed", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._parsed: dict[str, str] | None = None

    @property
    def parsed(self) -> dict[str, str]:
        """By name, as they were written."""
        if self._parsed is None:
            self._parsed = headers_of(self.raw)
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self.parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parsed)

    def __len__(self) -> int:
        return len(self.parsed)


def headers_of(raw: bytes) -> dict[str, str]:
    r"""Headers as they travel, by name.

    >>> headers_of(b"NATS/1.0\r\nNats-Msg-Id:7\r\ncontent-encoding: gzip\r\n\r\n")
    {'Nats-Msg-Id': '7', 'content-encoding': 'gzip'}
    """
    pairs = (line.partition(":") for line in raw.decode(errors="replace").split("\r\n")[1:] if line)
    return {name: value.strip() for name, _, value in pairs}


class LazyClient(Client):
    """nats-py's client with two things of our own."""

    async def _process_headers(self, headers: bytes) -> Any:
        """:class:`Headers`, except where there is a status, which the client itself has to understand."""
        if headers and headers.startswith(b"NATS/1.0\r\n"):
            return Headers(headers)
        return await super()._process_headers(headers)

    async def _connect_to_server(self, server: Any) -> None:
        """Close what an attempt before this one has left open: nats-py forgets it."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.close()
        await super()._connect_to_server(server)


class Connection:
    """To one server or to any of a cluster."""

    private = all(hasattr(Client, name) for name in ("_send_command", "_flush_pending"))
    """Whether this version of nats-py has the members that are used."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._lost: asyncio.Future[None] | None = None
        """Of the connection that is; done when it is lost."""
        self._trouble = ""
        self.generation = 0
        """Grows whenever the connection was made or made again: what was under way before may be lost."""

    @property
    def max_payload(self) -> int | None:
        """Bytes that a message may have, headers included; None before the first connection."""
        return None if self._client is None else self._client.max_payload

    @property
    def server_version(self) -> tuple[int, int]:
        """Of the server that we are connected to."""
        assert self._client is not None
        version = self._client.connected_server_version
        return (version.major, version.minor)

    async def ready(self) -> Client:
        """The client, connected.

        :raises ProviderUnavailable: while no server can be reached.
        """
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                self._client = await self._connected()
        if not self._client.is_connected:
            raise ProviderUnavailable(f"NATS is being reconnected{self._because}")
        return self._client

    async def ask(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """Send a request, return its answer.

        :raises ProviderUnavailable: if the connection is lost or nobody answers.
        """
        client = await self.ready()
        try:
            return await self._unless_lost(client.request(subject, body, timeout=ANSWER_SECONDS, headers=headers))
        except nats.errors.NoRespondersError as error:
            raise ProviderUnavailable(
                f"nobody answers at {subject}: JetStream is not enabled (nats-server -js), or the stream has no leader now"
            ) from error
        except nats.errors.TimeoutError as error:
            raise ProviderUnavailable(f"no answer at {subject} within {ANSWER_SECONDS:g} s{self._because}") from error
        except (nats.errors.Error, OSError) as error:
            raise ProviderUnavailable(f"NATS: {error}") from error

    async def _unless_lost(self, answer: Awaitable[T]) -> T:
        assert self._lost is not None
        task, lost = asyncio.ensure_future(answer), self._lost
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        raise ProviderUnavailable(f"the connection to NATS was lost{self._because}")

    async def write(self, messages: Sequence[Out]) -> None:
        """Publish messages without asking for answers.

        :raises ProviderUnavailable: while no server can be reached. What was handed over before may arrive or not.
        """
        client = await self.ready()
        try:
            if self.private:
                await self._write(client, messages)
            else:
                for one in messages:
                    await client.publish(one.subject, one.body, one.reply, headers=one.headers or None)
        except (nats.errors.Error, OSError) as error:
            raise ProviderUnavailable(f"NATS: {error}") from error

    async def _write(self, client: Client, messages: Sequence[Out]) -> None:
        commands: list[bytes] = []
        size = 0
        for one in messages:
            commands.append(one.command())
            size += len(commands[-1])
            if size > PIECE:
                await self._hand_over(client, commands)
                commands, size = [], 0
        if commands:
            await self._hand_over(client, commands)

    async def _hand_over(self, client: Client, commands: list[bytes]) -> None:
        await client._send_command(b"".join(commands))  # noqa: SLF001 - see the top of this file
        await client._flush_pending()  # noqa: SLF001
        await asyncio.sleep(0)
        if not client.is_connected:
            raise ProviderUnavailable(f"the connection to NATS was lost{self._because}")

    async def flush(self) -> None:
        """Wait until the server has read all that was written.

        :raises ProviderUnavailable: if it does not say so.
        """
        client = await self.ready()
        try:
            await self._unless_lost(client.flush(timeout=int(ANSWER_SECONDS)))
        except (nats.errors.Error, OSError) as error:
            raise ProviderUnavailable(f"NATS: {error}") from error

    async def inbox(self) -> Inbox:
        """A subscription that only we know of."""
        client = await self.ready()
        subject = client.new_inbox()
        try:
            subscription = await client.subscribe(f"{subject}.*", pending_msgs_limit=0, pending_bytes_limit=0)
        except (nats.errors.Error, OSError) as error:
            raise ProviderUnavailable(f"NATS: {error}") from error
        return Inbox(subject, subscription, client, private=self.private)

    async def close(self) -> None:
        """Send what is written and end. May be called twice."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            await client.close()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    # Connecting --------------------------------------------------------------------------------------------------

    async def _connected(self) -> Client:
        options = self._options()
        client = LazyClient()
        self._trouble = ""
        try:
            async with asyncio.timeout(CONNECT_SECONDS * (len(options["servers"]) + 1)):  # some failures of TLS never end
                await client.connect(**options)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await _discard(client)
            raise ProviderUnavailable(f"NATS does not answer{self._because or f': {error}'}") from error
        except BaseException:
            await _discard(client)
            raise
        client.options["max_reconnect_attempts"] = -1  # for ever, now that it has worked once
        self._renewed()
        return client

    def _options(self) -> dict[str, Any]:
        given = self._settings
        for name, file in (("credentials", given.credentials), ("nkey_seed", given.nkey_seed)):
            if file is not None and not os.access(file, os.R_OK):
                raise ConfigError(f"nats.{name} is {file!r}; it must be the path of a file that can be read")
        options: dict[str, Any] = {
            "servers": [one.strip() for one in given.url.split(",") if one.strip()],
            "name": self._name,
            "connect_timeout": CONNECT_SECONDS,
            "reconnect_time_wait": RECONNECT_SECONDS,
            "max_reconnect_attempts": 1,
            "ping_interval": 10,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
        }
        own = {
            "user": given.user,
            "password": given.password,
            "token": given.token,
            "user_credentials": given.credentials,
            "nkeys_seed": given.nkey_seed,
            "tls": tls_context(given),
        }
        return options | {name: value for name, value in own.items() if value is not None}

    @property
    def _because(self) -> str:
        return f": {self._trouble}" if self._trouble else ""

    async def _on_error(self, error: Exception) -> None:
        """Each kind once, until the connection stands: the server's reason comes with resets of the connection around it."""
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if text not in self._trouble and len(self._trouble) < MOST_TOLD:
            self._trouble = f"{self._trouble}; {text}" if self._trouble else text
            if not self._connecting.locked():  # whoever connects is told by the exception
                logger.warning("NATS: %s", text)

    async def _on_disconnected(self) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def _on_reconnected(self) -> None:
        self._trouble = ""
        self._renewed()

    def _renewed(self) -> None:
        self._lost = asyncio.get_running_loop().create_future()
        self.generation += 1


class Inbox:
    """What comes to a subject of our own, many at a time."""

    def __init__(self, subject: str, subscription: Any, client: Client, *, private: bool) -> None:
        self.subject = subject
        self._subscription = subscription
        self._client = client
        self._queue: asyncio.Queue[Msg] | None = None
        if private:
            self._queue = getattr(subscription, "_pending_queue", None)

    @property
    def usable(self) -> bool:
        """Whether anything can still come: a client that was closed for good brings nothing."""
        return not self._client.is_closed

    async def some(self, seconds: float) -> list[Msg]:
        """What has arrived, at least one; nothing if nothing does within ``seconds``."""
        if self._queue is None:
            return await self._next(seconds)
        try:
            async with asyncio.timeout(seconds):
                found = [await self._queue.get()]
        except TimeoutError:
            return []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found

    async def _next(self, seconds: float) -> list[Msg]:
        try:
            return [await self._subscription.next_msg(timeout=seconds)]
        except nats.errors.Error:
            return []

    async def close(self) -> None:
        """Nothing comes any more."""
        try:
            await self._subscription.unsubscribe()
        except nats.errors.Error:
            return  # closed already


async def _discard(client: Client) -> None:
    """Close a client that did not connect. Versions of nats-py fail at that in ways of their own, and there is nothing to lose."""
    with suppress(Exception):
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.close()


def tls_context(given: NatsSettings) -> Any:
    """For ``tls://`` and where a certificate is set.

    :raises ConfigError: for a file that is not there or is no certificate.
    """
    if not (given.tls_ca or given.tls_certificate):
        return None
    import ssl

    try:
        context = ssl.create_default_context(cafile=given.tls_ca)
        if given.tls_certificate:
            context.load_cert_chain(given.tls_certificate, given.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"nats.tls_ca, nats.tls_certificate or nats.tls_key cannot be used: {error}") from error
    return context
