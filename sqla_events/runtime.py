"""What runs between start and stop, on one event loop: provider, relay, consumers, upkeep.

Every part is supervised: one that fails is logged and started again after a back-off, so that a broken connection or a
bug in one group needs nobody to look after it. A part that another process must do (the lease is elsewhere) waits.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from . import log
from .bridge import Database, Doorbell
from .config import Config
from .consumer import Consumer, ConsumerSettings
from .errors import ConfigError, DeliveryFailed, ProviderUnavailable, SchemaError
from .event import Event, Status, encode, lane_of
from .provider import Batch, Message, Provider, ProviderContext
from .providers import load
from .providers.log import reader_settings
from .publishing import Writer
from .relay import Relays
from .retry import FOREVER, until_available
from .schema import Tables
from .signals import Signals, Unavailable, logger
from .subscription import Subscriptions
from .upcasting import Upcasters
from .upkeep import keep_up
from .wire import packing

ELSEWHERE_SECONDS = 0.5

PAUSES_SECONDS = 1.0
"""Between looks whether somebody paused a subscription for every process."""

OPEN_SECONDS = 10.0
"""For which a question waits until the provider answers."""


class Publishing(Protocol):
    """What a runtime tells whoever publishes here, and asks it (publisher.Publisher)."""

    def stored(self, events: Sequence[Event]) -> None:
        """These are in the log, or at the provider."""
        ...

    def settled(self, group: str, event: Event, error: BaseException | None) -> None:
        """A group is through with an event; the error is that of a subscription that gave up."""
        ...

    def awaited(self) -> Sequence[uuid.UUID]:
        """Ids of events that somebody waits for."""
        ...


class Runtime:
    """Made and closed on one running loop; a broker that starts again makes another."""

    def __init__(
        self,
        config: Config,
        engine: Engine | AsyncEngine | None,
        tables: Tables,
        groups: dict[str, Subscriptions],
        signals: Signals,
        doorbell: Doorbell,
        publishing: Publishing,
        upcast: Upcasters,
    ) -> None:
        self._config = config
        self._engine = engine
        self.tables = tables
        self.loop = asyncio.get_running_loop()
        self._groups = groups
        self._signals = signals
        self._doorbell = doorbell
        self.ring = doorbell.ring
        self._publishing = publishing
        self._upcast = upcast
        self.database: Database | None = None
        self.provider: Provider | None = None
        self.writer: Writer | None = None
        self.ready = asyncio.Event()
        """Set when the provider is open."""
        self._name = f"{config.instance_id}-{secrets.token_hex(4)}"
        """Of this start: an instance id may be shared by processes of one host, the owner of a lease may not."""
        self._stopping = asyncio.Event()
        self._parts: dict[str, asyncio.Task[None]] = {}
        self._consumers: dict[str, Consumer] = {}
        self._relays: dict[str, Relays] = {}
        self._destinations: dict[str, Provider] = {}
        self._paused: set[tuple[str, str]] = set()
        """Those that the database said were paused when it was asked last."""
        self.pack = packing(config.wire) or _unchanged
        self.provider_name = config.provider

    # Life --------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Check the tables and make the provider, so that questions can be asked; nothing runs yet.

        :raises SchemaError: if tables are missing or outdated.
        :raises ConfigError: if provider or engine cannot be used as configured.
        :raises ProviderUnavailable: if the database does not answer.
        """
        if self._engine is not None:
            self.database = Database(self._engine)
            await self.database.run(log.verify, self.tables)
        self.provider = load(self._config, self._context())
        for name in self._config.destinations:
            self.the_database  # noqa: B018 - raises where there is no log to relay from
            self._destinations[name] = load(self._config.destination(name), self._context())

    async def open(self) -> None:
        """:meth:`connect`, then start everything; a provider that does not answer yet is tried in the background."""
        await self.connect()
        self.writer = Writer(self._store, self._config.buffer_size)
        self._part("provider", self._serve)
        for name, provider in self._destinations.items():
            self._part(f"destination {name}", partial(self._serve_destination, name, provider))

    @property
    def the_database(self) -> Database:
        """The database.

        :raises ConfigError: in a process without one.
        """
        if self.database is None:
            raise ConfigError(
                "this is asked of the log, and the broker has no database: give it the database's URL (database.url), or an engine"
            )
        return self.database

    async def the_provider(self) -> Provider:
        """The provider, open; where nothing runs, it is opened for the one question.

        :raises ProviderUnavailable: if it does not answer.
        """
        if self.provider is None:
            raise ConfigError("this broker has no provider yet; start it first")
        if self.writer is None and not self.ready.is_set():
            await self.provider.open()
            self.ready.set()
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self.ready.wait()
        except TimeoutError:
            raise ProviderUnavailable(f"provider {self.provider_name!r} does not answer yet") from None
        return self.provider

    async def _store(self, events: Sequence[Event]) -> None:
        if self.database is not None:
            await self.database.run(log.append, self.tables, events)
        else:
            assert self.provider is not None
            await self.ready.wait()
            await self.provider.publish(Batch([self.pack(message_of(event)) for event in events]))
        self._publishing.stored(events)

    def _context(self) -> ProviderContext:
        return ProviderContext(self.database, self.tables, self._config.instance_id, self._signals, self._doorbell)

    async def _serve(self) -> None:
        assert self.provider is not None
        await until_available(
            self.provider.open, ProviderUnavailable, asyncio.sleep, self._unavailable(self._config.provider)
        )
        self.ready.set()
        if self.database is not None and not self.provider.features.log_is_transport:
            self._relay(self._config.provider, self._config, self.provider)
        if self.database is not None:
            self._part("upkeep", self._keep_up)
        if self.database is not None:
            self._part("elsewhere", self._look_elsewhere)
            await until_available(self._heed_pauses, ProviderUnavailable, asyncio.sleep, self._unavailable("database"))
            self._part("pauses", self._watch_pauses)
        for group in list(self._groups):
            self.consume(group)

    async def _serve_destination(self, name: str, provider: Provider) -> None:
        await until_available(provider.open, ProviderUnavailable, asyncio.sleep, self._unavailable(name))
        self._relay(name, self._config.destination(name), provider)

    def _relay(self, name: str, config: Config, provider: Provider) -> None:
        self._part(f"relay {name}", partial(self._run_relay, name, config, provider))

    async def close(self, drain: float) -> None:
        """Stop taking in, let handlers finish within ``drain`` seconds, settle, release leases and connections."""
        self._stopping.set()
        for consumer in self._consumers.values():
            consumer.stop()
        for relay in self._relays.values():
            relay.stop()
        if self.writer is not None:
            await self.writer.close(drain)
        await self._end_parts(drain)
        for provider in (self.provider, *self._destinations.values()):
            if provider is not None:
                await provider.close()
        if self.database is not None:
            await self.database.close()

    async def _end_parts(self, drain: float) -> None:
        lasting = [task for name, task in self._parts.items() if name.startswith(("consumer ", "relay "))]
        if lasting:
            await asyncio.wait(lasting, timeout=drain + 1.0)
        for task in self._parts.values():
            task.cancel()
        await asyncio.gather(*self._parts.values(), return_exceptions=True)

    # Parts -------------------------------------------------------------------------------------------------------

    def _part(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._parts[name] = asyncio.create_task(self._supervise(name, run), name=f"sqla-events-{name}")

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                await run()
                return
            except (ConfigError, SchemaError):
                logger.exception("%s cannot run and will not be tried again", name)
                return
            except Exception as error:
                failures += 1
                delay = FOREVER.delay(failures)
                logger.exception("%s failed and starts again in %.2f s", name, delay)
                self._signals.emit(Unavailable(name, f"{type(error).__name__}: {error}", delay))
                await asyncio.sleep(delay)

    def consume(self, group: str) -> None:
        """Start the consumer of a group, or start it again with the subscriptions that the group has now."""
        running = self._consumers.pop(group, None)
        previous = self._parts.get(f"consumer {group}")
        if not self.ready.is_set() or not self._groups.get(group):
            if running is not None:
                running.stop()
            return

        async def run() -> None:
            if running is not None and previous is not None:
                running.stop()
                await asyncio.wait([previous])
            await self._run_consumer(group)

        self._part(f"consumer {group}", run)

    def resume(self, group: str, name: str) -> None:
        """A paused subscription goes on, if its group is consumed here."""
        if (consumer := self._consumers.get(group)) is not None:
            consumer.resume(name)

    async def _watch_pauses(self) -> None:
        while True:
            await asyncio.sleep(PAUSES_SECONDS)
            await self._heed_pauses()

    async def _heed_pauses(self) -> None:
        """Subscriptions that somebody paused, or resumed, for every process."""
        assert self.database is not None
        stored = await self.database.run(log.paused, self.tables, list(self._groups))
        known, self._paused = self._paused, stored
        for group, name in stored - known:
            self._groups[group].paused.add(name)
            if name not in self._groups[group]:  # mistyped, or renamed since
                there = ", ".join(one.name for one in self._groups[group])
                logger.warning("paused is %r of group %r, which has no such subscription; there are: %s", name, group, there)
        for group, name in known - stored:
            self._groups[group].paused.discard(name)
            self.resume(group, name)

    async def _run_consumer(self, group: str) -> None:
        assert self.provider is not None
        config = self._config
        workers = 1 if config.mode == "sync" else config.worker_count
        settings = ConsumerSettings(self._name, workers, config.buffer_size)
        consumer = Consumer(
            self.provider,
            group,
            self._groups[group],
            settings,
            self._signals,
            partial(self._publishing.settled, group),
            self._upcast,
        )
        self._consumers[group] = consumer
        if self._stopping.is_set():
            return
        await consumer.run(config.shutdown_timeout)

    async def _run_relay(self, name: str, config: Config, provider: Provider) -> None:
        assert self.database is not None
        settings = reader_settings(config, f"relay:{name}", self._name, 4 * config.batch_size)
        if provider.features.one_writer:
            settings = replace(settings, partitions=1)
        relay = Relays(
            self.database, self.tables, provider, settings, self._signals, self._doorbell, packing(config.wire)
        )
        self._relays[name] = relay
        await relay.run()

    async def _keep_up(self) -> None:
        assert self.database is not None
        await keep_up(self.database, self.tables, self._config.retention, self._config.database.partition_size)

    async def _look_elsewhere(self) -> None:
        """Events that somebody waits for may be handled by another process of the group: ask the log now and then."""
        assert self.database is not None
        while True:
            await asyncio.sleep(ELSEWHERE_SECONDS)
            for event_id in self._publishing.awaited():
                for group in list(self._groups):  # a thread may subscribe meanwhile
                    event = await self.database.run(log.get_event, self.tables, event_id, group)
                    if event is not None and event.status in (Status.COMPLETED, Status.FAILED):
                        error = DeliveryFailed(event.error or "") if event.status == Status.FAILED else None
                        self._publishing.settled(group, event, error)

    def _unavailable(self, what: str) -> Callable[[float, BaseException], Any]:
        def note(delay: float, error: BaseException) -> None:
            logger.warning("%s does not answer, next try in %.2f s: %s", what, delay, error)
            self._signals.emit(Unavailable(what, str(error), delay))

        return note


def _unchanged(message: Message) -> Message:
    return message


def message_of(event: Event) -> Message:
    """An event on its way out without a log."""
    lane = lane_of(event.schema, event.entity, event.key, str(event.id))
    return Message(str(event.id), event.type, lane, encode(event), event.seq)
