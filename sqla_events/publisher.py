"""Where a published event goes: into a caller's transaction, into one of its own, or straight to the provider."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from . import context, log
from .bridge import in_coroutine, wait_for
from .capture import Capture
from .capture.buffer import Written
from .config import Config
from .errors import ConfigError
from .event import Event
from .publishing import P, Receipt, Waiters, filled, make_event
from .runtime import Runtime
from .schema import Tables
from .signals import Published, Signals, logger
from .subscription import Subscriptions
from .workers import in_handler


class Publisher:
    """Publishes for one broker, and waits for handlers where somebody asked to (``publish_sync``, mode ``sync``)."""

    def __init__(
        self,
        config: Config,
        engine: Engine | AsyncEngine | None,
        tables: Tables,
        signals: Signals,
        groups: Mapping[str, Subscriptions],
        runtime: Callable[[], Runtime | None],
        ring: Callable[[], None],
        capture: Callable[[], Capture | None],
    ) -> None:
        self._config = config
        self._engine = engine
        self._tables = tables
        self._signals = signals
        self._groups = groups
        self._runtime = runtime
        self._ring = ring
        self._captured_by = capture
        self._waiters = Waiters()

    def make(self, event: Event | str, payload: Any, fields: dict[str, Any]) -> Event:
        """The event asked for, with user, session and metadata of the surrounding ``event_context`` and our instance id."""
        about = context.current()
        defaults = {
            "user_id": about.user_id,
            "session_id": about.session_id,
            "metadata": about.metadata,
            "instance_id": self._config.instance_id,
        }
        return filled(make_event(event, payload, fields), defaults)

    # Three places ------------------------------------------------------------------------------------------------

    def publish(self, event: P, session: Any = None) -> Receipt[P]:
        """Into the session's transaction, or on its own where there is none; a list as one."""
        events = [event] if isinstance(event, Event) else event
        if not self._config.enabled:
            return Receipt(event)
        if session is None:
            return Receipt(event, self._alone(events))
        if isinstance(session, (AsyncSession, AsyncConnection)):
            return Receipt(event, lambda: session.run_sync(self._inside, events))
        self._inside(session, events)
        return Receipt(event)

    def _inside(self, session: Session | scoped_session[Session] | Connection, events: Sequence[Event]) -> None:
        connection = session if isinstance(session, Connection) else self._connection_of(session)
        capture = self._captured_by()
        if capture is not None:
            capture.drain(connection)
            for event in events:
                capture.note(connection, event.id, event.type)
        log.append(connection, self._tables, events)

    def _connection_of(self, session: Session | scoped_session[Session]) -> Connection:
        if not isinstance(session, (Session, scoped_session)):
            raise ConfigError(
                f"session is {session!r}; it must be a Session, AsyncSession, Connection or AsyncConnection"
            )
        session.flush()  # what the session changed before comes before the event in the log
        if self._engine is None or isinstance(session.get_bind(), Connection):
            return session.connection()
        engine = self._engine.sync_engine if isinstance(self._engine, AsyncEngine) else self._engine
        return session.connection(bind_arguments={"bind": engine})

    def _alone(self, events: Sequence[Event]) -> Future[None]:
        runtime = self._runtime()
        if runtime is not None and runtime.writer is not None:
            return runtime.writer.put(events)
        if not isinstance(self._engine, Engine):
            raise ConfigError(
                "publishing without session= needs a running broker here; call start(), or use 'async with broker', or give session="
            )
        with self._engine.begin() as connection:
            log.append(connection, self._tables, events)
        self.stored(events)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def stored(self, events: Sequence[Event]) -> None:
        """Events are in the log, or at the provider: count them and wake whoever reads."""
        for event in events:
            self._signals.emit(Published(str(event.source), event.type))
        self._ring()

    # Waiting for handlers ----------------------------------------------------------------------------------------

    def publish_and_wait(self, event: Event) -> Receipt[Event]:
        """Publish on its own and wait until this broker's groups are through with it."""
        if not self._config.enabled:
            return Receipt(event)
        runtime = self._runtime()
        if runtime is None or runtime.writer is None:
            raise ConfigError(
                "publish_sync waits for handlers, and this broker does not run; call start() or use 'async with broker'"
            )
        handled = self._waiters.expect(self._interested(event.id, event.type))
        stored = runtime.writer.put([event])
        outcome = _both(stored, handled)
        outcome.add_done_callback(lambda _: self._waiters.forget(handled))
        if not in_coroutine():
            outcome.result()
        return Receipt(event, outcome)

    def _interested(self, event_id: uuid.UUID, event_type: str) -> list[tuple[uuid.UUID, str]]:
        return [
            (event_id, group) for group, subscriptions in self._groups.items() if subscriptions.matching(event_type)
        ]

    def awaited(self) -> list[uuid.UUID]:
        """Events that somebody has been waiting for."""
        return self._waiters.ids()

    def settled(self, group: str, event: Event, error: BaseException | None) -> None:
        """A group is through with an event."""
        if self._waiters:
            self._waiters.settled(group, event, error)

    def committing(self, written: Written) -> Callable[[bool], None]:
        """A transaction that wrote events commits now; what is returned is to be called when it has.

        It wakes the reader; in mode ``sync`` it also waits for the handlers. They are waited for from before the
        COMMIT on: a reader may be through with an event before anybody could ask.
        """
        self._ring()  # a moment early, which readers expect: some commits have no moment after
        if self._config.mode != "sync" or self._runtime() is None or in_handler():
            return partial(self._count, written)
        handled = self._waiters.expect(
            one for event_id, event_type in written.ids for one in self._interested(event_id, event_type)
        )
        return lambda committed: self._await_handlers(handled, written) if committed else self._waiters.forget(handled)

    def _count(self, written: Written, committed: bool = True) -> None:
        if committed:
            self._ring()
            for event_type, count in written.counts.items():
                self._signals.emit(Published("database", event_type, count))

    def _await_handlers(self, handled: Future[None], written: Written) -> None:
        self._count(written)
        try:
            wait_for(handled, self._config.sync_timeout)
        except TimeoutError:
            logger.warning(
                "commit returns although its handlers are not through after %s s (sync_timeout)",
                self._config.sync_timeout,
            )
        except Exception as error:  # committed is committed: the failure is a dead letter, not the committer's
            logger.warning("%s", error)
        finally:
            self._waiters.forget(handled)


def _both(first: Future[None], second: Future[None]) -> Future[None]:
    """Done when both are; fails as soon as one fails."""
    outcome: Future[None] = Future()

    def settle(done: Future[None]) -> None:
        if outcome.done():
            return
        error = done.exception()
        if error is not None:
            outcome.set_exception(error)
        elif first.done() and second.done():
            outcome.set_result(None)

    first.add_done_callback(settle)
    second.add_done_callback(settle)
    return outcome
