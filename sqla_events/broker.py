"""The broker: what an application holds. It captures, publishes, subscribes, and runs in whichever way the app runs.

* ``broker.start()`` / ``broker.stop()``: a background thread with a loop of its own; for synchronous applications.
* ``async with broker``: on the running loop; for asyncio applications.
* ``broker.run()``: in the foreground until SIGINT or SIGTERM; for worker processes.

Whoever only captures (a web process whose relay runs elsewhere) calls none of these.
"""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from . import inspection, log, replaying
from .bridge import Doorbell, run_until_signal
from .capture import Capture
from .config import Config
from .errors import ConfigError
from .event import Event
from .groups import Groups
from .hooked import claim, release
from .inspection import DeadLetterDesk, EventFilter
from .lifecycle import Lifecycle
from .publisher import Publisher
from .publishing import Receipt
from .retry import RetryPolicy
from .runtime import Runtime
from .schema import Names, Tables
from .signals import Signals
from .subscription import Handler
from .upcasting import Upcaster, Upcasters

H = TypeVar("H", bound=Handler)
T = TypeVar("T")


class Broker:
    """Events of one engine, or of one transport where there is no database.

    Thread-safe. Guarantees: an event is in the log exactly if its transaction committed; every group gets every event
    at least once; the events of one row in the order of their commits.

    :param config: everything that can be set; see docs/configuration.md.
    :param engine: the application's Engine or AsyncEngine; None for a process that only consumes or publishes over
        Redis or NATS.
    :raises ConfigError: for a configuration that cannot work with this engine.
    """

    def __init__(self, config: Config, engine: Engine | AsyncEngine | None = None) -> None:
        self.config = config
        self.engine = engine
        self.signals = Signals()
        self.tables = Tables(Names(config.database.table_name, config.database.schema))
        self.installed = False
        """Whether changes are captured (between install and uninstall)."""
        self._doorbell = Doorbell()
        self._groups = Groups(config)
        self._upcasters = Upcasters()
        self._lock = threading.RLock()
        """Of starting, stopping and subscribing: a group that subscribes while the broker starts is consumed too."""
        self._lifecycle = Lifecycle(config, self._make_runtime, self._lock)
        self._publisher = Publisher(
            config,
            engine,
            self.tables,
            self.signals,
            self._groups.by_name,
            lambda: self._lifecycle.runtime,
            self._doorbell.ring,
            lambda: self._capture,
        )
        self._capture = self._make_capture()

    def _make_capture(self) -> Capture | None:
        if self.engine is None:
            return None
        return Capture(
            self.engine,
            self.config.capture,
            self.tables,
            self.config.instance_id,
            self._publisher.committing,
            self.signals,
            self.config.mode == "sync",
        )

    # Capture -----------------------------------------------------------------------------------------------------

    def install(self) -> Broker:
        """Capture from now on; doing it again changes nothing. ``install_crud_hooks`` calls it.

        :raises ConfigError: if the engine has another broker's hooks, or is in AUTOCOMMIT.
        """
        if self.engine is not None:
            claim(self.engine, self)
        if self._capture is not None and self.config.enabled:
            try:
                self._capture.install()
            except BaseException:
                self._release()
                raise
        self.installed = True
        return self

    def uninstall(self) -> None:
        """Stop, and take every hook off the engine again."""
        self.stop()
        self.installed = False
        if self._capture is not None:
            self._capture.uninstall()
        self._release()

    def _release(self) -> None:
        if self.engine is not None:
            release(self.engine, self)

    # Subscribe ---------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *targets: Any,
        handler: H | None = None,
        group: str | None = None,
        name: str | None = None,
        retry_policy: RetryPolicy | None = None,
        timeout: float | None = None,
        retry_on: tuple[type[BaseException], ...] = (Exception,),
    ) -> Any:
        """Have a handler called with every event that matches; as a decorator, or with ``handler=``.

        ::

            @broker.subscribe("public.users.*", "*.*.delete")
            def handler(event): ...

            broker.subscribe(User, "update", handler=notify)

        :param targets: patterns; or a mapped class or Table, then operations (none: all of them).
        :param handler: a function or coroutine function of one event.
        :param group: consumer group; the configured one unless given. Each group gets every event once, whatever the
            number of its processes; all processes of a group must subscribe alike.
        :param name: names the subscription in retries and dead letters; the handler's own name unless given.
        :param retry_policy: instead of the configured one.
        :param timeout: seconds an attempt may take (coroutine functions only).
        :param retry_on: exceptions worth another attempt; the others make a dead letter at once.
        :returns: the handler.
        :raises EventError: for a pattern that is not one.
        :raises ConfigError: for a name that the group has already, or a timeout that cannot be kept.
        """
        if handler is None and len(targets) == 1 and _is_bare_handler(targets[0]):
            raise ConfigError("write @broker.subscribe('pattern') with a pattern, not @broker.subscribe")

        def decorate(function: H) -> H:
            with self._lock:
                where = self._groups.add(function, targets, group, name, retry_policy, timeout, retry_on)
            self._lifecycle.tell(Runtime.consume, where)
            return function

        return decorate if handler is None else decorate(handler)

    def unsubscribe(self, handler: Handler, group: str | None = None) -> None:
        """Take every subscription of this handler out of the group. Events in hand are still finished."""
        with self._lock:
            where = self._groups.remove(handler, group)
        self._lifecycle.tell(Runtime.consume, where)

    def pause(self, subscription: Handler | str, group: str | None = None, *, everywhere: bool = False) -> Any:
        """Call this handler (or the subscription of this name) with nothing more until :meth:`resume`.

        Events wait for it, in order. They count as in hand: once ``buffer_size`` of them wait, the other subscriptions
        of its group wait with it, so give one that is paused for long a group of its own.

        :param everywhere: in every process with this database, within a second, and over restarts; in a coroutine, await
            what is returned. Otherwise in this process, at once.
        :raises ConfigError: if the group has no such subscription; with ``everywhere`` also without a database.
        """
        if everywhere:
            return self._tell_all(log.pause, subscription, group)
        with self._lock:
            self._groups.pause(subscription, group)
        return None

    def resume(self, subscription: Handler | str, group: str | None = None, *, everywhere: bool = False) -> Any:
        """Go on where :meth:`pause` stopped; nothing happens if it was not paused. ``everywhere`` as there.

        :raises ConfigError: if the group has no such subscription; with ``everywhere`` also without a database.
        """
        if everywhere:
            return self._tell_all(log.resume, subscription, group)
        with self._lock:
            resumed = self._groups.resume(subscription, group)
        for where, name in resumed:
            self._lifecycle.tell(Runtime.resume, where, name)
        return None

    def _tell_all(self, tell: Callable[..., None], subscription: Handler | str, group: str | None) -> Any:
        targets = self._groups.targets(subscription, group)
        return self._ask(lambda runtime: runtime.the_database.run(tell, runtime.tables, targets))

    def upcaster(self, pattern: str, *, to: int) -> Callable[[Upcaster], Upcaster]:
        """Register how events of the version before become version ``to``, for types that match; as a decorator.

        ::

            @broker.upcaster("public.users.*", to=2)
            def split_name(event):
                first, _, last = event.payload["name"].partition(" ")
                return event.replace(payload={"first": first, "last": last})

        Handlers then see version 2 only. Where patterns overlap, the upcaster that was registered last is used.

        :raises ConfigError: for a version below 2, or a step that is registered already.
        """

        def decorate(function: Upcaster) -> Upcaster:
            self._upcasters.add(pattern, to, function)
            return function

        return decorate

    # Publish -----------------------------------------------------------------------------------------------------

    def publish(self, event: Event | str, payload: Any = None, *, session: Any = None, **fields: Any) -> Receipt[Event]:
        """Publish one event: as :meth:`publish_sync` in mode ``sync``, as :meth:`publish_async` in mode ``async``.

        :param event: an Event, or a type; with a type, ``payload`` and ``fields`` are the event's.
        :param session: a Session, AsyncSession, Connection or AsyncConnection: the event becomes part of its
            transaction, and is an event only if that commits. For the async ones, await what is returned.
        :returns: a receipt: ``.event``, ``.result(timeout)``, and awaitable.
        :raises EventError: for an event that is not valid.
        """
        if self.config.mode == "sync" and session is None:
            return self.publish_sync(event, payload, **fields)
        return self.publish_async(event, payload, session=session, **fields)

    def publish_async(self, event: Event | str, payload: Any = None, *, session: Any = None, **fields: Any) -> Receipt[Event]:
        """Publish without waiting; the receipt is done when the event is stored durably (with ``session``: written in it).

        :raises ProviderUnavailable: (from the receipt) if it could not be stored.
        """
        return self._publisher.publish(self._publisher.make(event, payload, fields), session)

    def publish_many(self, events: Iterable[Event], *, session: Any = None) -> Receipt[list[Event]]:
        """Publish events together: in the log all or none, in this order, with one statement; without waiting for handlers.

        :param session: as of :meth:`publish`.
        :returns: one receipt for all; its result is the list of events.
        :raises EventError: for one that is not valid; none is published.
        """
        return self._publisher.publish([self._publisher.make(event, None, {}) for event in events], session)

    def publish_sync(self, event: Event | str, payload: Any = None, **fields: Any) -> Receipt[Event]:
        """Publish and wait until every subscription of this broker's groups is through with it.

        In a coroutine, await the receipt; elsewhere the call itself blocks.

        :raises DeliveryFailed: if a handler failed for good; the event is a dead letter of its subscription.
        """
        return self._publisher.publish_and_wait(self._publisher.make(event, payload, fields))

    # Ask ----------------------------------------------------------------------------------------------------------

    @property
    def dead_letters(self) -> DeadLetterDesk:
        """The dead letters of the provider: ``list``, ``redrive``, ``discard``. In a coroutine, await what they return."""
        return DeadLetterDesk(self._ask)

    def get(self, event_id: uuid.UUID | str, group: str | None = None) -> Any:
        """The event of this id as the group sees it (status, times, error, retries); None if the log has none.

        In a coroutine, await what is returned.

        :raises EventError: for a text that is no UUID.
        """
        wanted = replaying.identity(event_id)
        return self._ask(lambda runtime: inspection.get(runtime, wanted, group or self.config.default_group))

    def list(self, wanted: EventFilter | None = None) -> Any:
        """Events of the log, oldest first. In a coroutine, await what is returned."""
        return self._ask(lambda runtime: inspection.find(runtime, wanted or EventFilter(), self.config.default_group))

    def stats(self) -> Any:
        """How far every group and partition is. In a coroutine, await what is returned."""
        return self._ask(inspection.stats)

    def _ask(self, question: Callable[[Runtime], Coroutine[Any, Any, T]]) -> Any:
        return self._lifecycle.ask(question)

    def replay(
        self,
        pattern: str = "*",
        *,
        since: dt.datetime | None = None,
        position: int | str | None = None,
        id: uuid.UUID | str | None = None,  # noqa: A002 - the event's
        subscription: Handler | str | None = None,
        group: str | None = None,
    ) -> Any:
        """Deliver old events that match once more, oldest first; returns how many. In a coroutine, await it.

        They come from the log, or from what the transport keeps where this process has no database; from a beginning up to
        what is newest now. ``event.is_replay`` tells a handler, ``event.metadata["replay"]`` names the replay. Replays are
        not replayed.

        :param since: begin with what was created then or later.
        :param position: begin with this one: the event's seq in the log, or a position of the transport's own.
        :param id: begin with this event.
        :param subscription: deliver into this subscription of the group alone, its handler or name. None: as new
            deliveries to everyone; the copies carry ``metadata["first_created_at"]``.
        :raises ConfigError: for more than one beginning, a subscription that the group does not have, or a transport that
            keeps no history.
        :raises EventError: for an event that is not there any more, or a pattern that is none.
        """
        at = None if position is None else str(position)
        targets = [] if subscription is None else self._groups.targets(subscription, group)
        wanted = replaying.Wanted(pattern, since, at, None if id is None else replaying.identity(id), targets)
        return self._ask(lambda runtime: replaying.replay(runtime, wanted))

    # Run ---------------------------------------------------------------------------------------------------------

    def start(self) -> Broker:
        """Relay and consume in a background thread until :meth:`stop`; doing it again changes nothing.

        :raises SchemaError: if the event tables are missing or outdated; the message names the command.
        """
        self._lifecycle.start()
        return self

    def stop(self, timeout: float | None = None) -> None:
        """Take in nothing more, let handlers finish within ``timeout`` seconds (``shutdown_timeout``), settle, end.

        What is not finished by then comes again after the next start. Does nothing if the broker does not run; one that
        runs in ``async with`` ends with that block.

        :raises ConfigError: in a coroutine handler of this broker, which would wait for itself.
        """
        self._lifecycle.stop(timeout)

    def run(self) -> None:
        """Relay and consume in the foreground until SIGINT or SIGTERM, then stop gracefully."""
        run_until_signal(self)

    async def __aenter__(self) -> Broker:
        """Relay and consume on the running loop."""
        await self._lifecycle.enter()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._lifecycle.leave()

    def _make_runtime(self) -> Runtime:
        return Runtime(
            self.config,
            self.engine,
            self.tables,
            self._groups.by_name,
            self.signals,
            self._doorbell,
            self._publisher,
            self._upcasters,
        )

    @property
    def running(self) -> bool:
        """Whether it relays and consumes now."""
        return self._lifecycle.runtime is not None


def _is_bare_handler(target: Any) -> bool:
    return callable(target) and not isinstance(target, type) and not hasattr(target, "__table__")
