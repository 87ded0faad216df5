"""NATS JetStream: one stream of events, a durable consumer for each group. docs/nats.md tells it from outside.

    connection   nats-py, and what is written and read many at a time       jetstream   the API's requests, the bucket
    streams      made or compared with the settings                         subjects    types and patterns
    publisher    each message once, in order                                lease       one reader of a consumer at a time
    puller       deliveries in order                                        settler     acknowledgements, failures
    letters      dead letters                                               history     what the stream keeps
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from ...config import NatsSettings
from ...errors import ConfigError, EventError
from ...provider import Batch, Features, Interest, Message, ProviderContext
from ...signals import Leased
from ..log import leases, merged
from .connection import Connection
from .delivery import NatsDelivery
from .history import history
from .jetstream import Bucket, Conflict, JetStream
from .lease import Lease, Share
from .letters import NatsDeadLetters
from .publisher import Publisher
from .puller import Puller, Pulling
from .streams import ensure, nanoseconds
from .subjects import check_prefix, filters, token

FILTERS = (2, 10)
"""The first server version whose consumers are given filters. One before it has no more than one for each, and forgets what
was not delivered yet when that is changed (seen on 2.9.10: it goes on at the end of the stream)."""


class NatsProvider:
    """See provider.Provider.

    :raises ConfigError: for a name of a stream or a prefix of subjects that NATS does not take.
    """

    def __init__(self, config: Any, context: ProviderContext) -> None:
        given: NatsSettings = config.nats
        self._settings = given
        self._config = config
        self._context = context
        _check(given)
        self._connection = Connection(given, f"sqla-events {context.instance_id}")
        self._jetstream = JetStream(self._connection)
        self._bucket = Bucket(self._jetstream, given.stream_name)
        self._publisher = Publisher(
            self._jetstream, self._bucket, given.stream_name, given.subject_prefix, log_name(context)
        )
        self.dead_letters = NatsDeadLetters(self._jetstream, given.stream_name, given.subject_prefix)

    @property
    def features(self) -> Features:
        """What is promised; ``max_message_bytes`` is known once a server has said what it takes."""
        return Features(
            durable=True,
            shared_groups=True,
            cross_process=True,
            idempotent_publish=True,
            one_writer=True,
            retry_survives_restart=True,
            provider_filter=True,
            history=True,
            max_message_bytes=self._publisher.max_message_bytes,
        )

    async def open(self) -> None:
        """Connect; make the streams, or compare them with the settings."""
        await self._connection.ready()
        await ensure(self._jetstream, self._settings, self._bucket)

    async def publish(self, batch: Batch) -> None:
        """Append to the stream: what came from a relay once and in order, whatever happens."""
        await self._publisher.publish(batch)

    async def consume(self, interest: Interest) -> AsyncGenerator[Sequence[NatsDelivery], None]:
        """Deliver by durable consumers, one for each partition of the group, each read by whoever holds its lease."""
        keys = [f"lease.{self._durable(interest.group, number)}" for number in range(self._config.partitions)]
        among = Share(self._bucket, f"{interest.consumer}-{secrets.token_hex(4)}", keys)
        streams = [leases(partial(self._partition, interest, among, number)) for number in range(self._config.partitions)]
        async with aclosing(merged(streams)) as stream:
            async for batch in stream:
                yield batch

    async def history(
        self, since: dt.datetime | None = None, position: str | None = None
    ) -> AsyncGenerator[Sequence[Message], None]:
        """The stream from there on; positions are its sequence numbers."""
        given = self._settings
        async with aclosing(history(self._jetstream, given.stream_name, given.subject_prefix, since, position)) as pages:
            async for page in pages:
                yield page

    async def close(self) -> None:
        """Let go of the connection. What was settled became durable when its consumer ended."""
        await self._connection.close()

    # One partition -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _partition(self, interest: Interest, among: Share, number: int) -> AsyncIterator[Puller]:
        about = Leased(interest.group, number, 0, held=True)
        lease = await Lease(among, among.keys[number], self._config.lease, about, self._context.signals).taken()
        try:
            await self._check_partitions(interest.group)
            yield Puller(self._jetstream, self._bucket, self.dead_letters, lease, self._pulling(interest, number))
        finally:
            await lease.release()

    async def _check_partitions(self, group: str) -> None:
        """A group's events must not be split in two ways at the same time.

        :raises ConfigError: if the group is split into another number of partitions.
        """
        key, wanted = f"group.{token(group)}", self._config.partitions
        found, revision = await self._bucket.get(key)
        if found is None:
            try:
                await self._bucket.put(key, {"partitions": wanted}, revision)
            except Conflict:
                found, _ = await self._bucket.get(key)
        if found is not None and found["partitions"] != wanted:
            raise ConfigError(
                f"group {group!r} has {found['partitions']} partitions on NATS and the setting 'partitions' is {wanted}; "
                "docs/nats.md says how to change it"
            )

    def _durable(self, group: str, number: int) -> str:
        of = self._config.partitions
        name = token(group)
        if len(name) > 150:
            name = f"{name[:100]}={hashlib.blake2b(group.encode(), digest_size=12).hexdigest()}"
        return name if of == 1 else f"{name}={number}of{of}"

    def _pulling(self, interest: Interest, number: int) -> Pulling:
        given, of = self._settings, self._config.partitions
        durable = self._durable(interest.group, number)
        return Pulling(
            given.stream_name,
            durable,
            self._definition(durable, interest),
            interest.group,
            given.subject_prefix,
            interest.patterns,
            max(1, interest.prefetch // of),
            given.ack_wait,
            given.max_deliver,
            share(number, of),
        )

    def _definition(self, durable: str, interest: Interest) -> dict[str, Any]:
        """Of a durable consumer. No limit of deliveries: the server would withhold an event silently and for ever."""
        return {
            "durable_name": durable,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": nanoseconds(self._settings.ack_wait),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "replay_policy": "instant",
            **self._filters(interest),
        }

    def _filters(self, interest: Interest) -> dict[str, Any]:
        if self._connection.server_version < FILTERS:
            return {}
        subjects = [".".join((self._settings.subject_prefix, *one)) for one in filters(interest.patterns)]
        return {"filter_subject": subjects[0]} if len(subjects) == 1 else {"filter_subjects": subjects}


def share(number: int, of: int) -> Callable[[NatsDelivery], bool] | None:
    """Whether a delivery belongs to a partition; None where there is only one."""
    return None if of == 1 else lambda delivery: zlib.crc32(delivery.lane.encode()) % of == number


def log_name(context: ProviderContext) -> str:
    """Names the log that a relay reads, so that several services may share a stream: by the address of its table."""
    if context.database is None:
        return "none"
    url, names = context.database.url, context.tables.names
    address = (url.host, url.port, url.database, names.schema, names.events)
    return hashlib.blake2b(repr(address).encode(), digest_size=6).hexdigest()


def _check(given: NatsSettings) -> None:
    if not given.stream_name or token(given.stream_name) != given.stream_name or len(given.stream_name) > 200:
        raise ConfigError(
            f"nats.stream_name is {given.stream_name!r}; it must be letters, digits, '-' and '_', at most 200 of them"
        )
    try:
        check_prefix(given.subject_prefix)
    except EventError as error:
        raise ConfigError(f"nats.subject_prefix is {given.subject_prefix!r}: {error}") from error
