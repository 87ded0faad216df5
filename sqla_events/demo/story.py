"""What happens in the demo, chapter by chapter, told while it happens."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.orm import Session

from .. import alembic
from ..broker import Broker
from ..context import event_context
from ..errors import ConfigError
from ..install import install_crud_hooks
from ..schema import Names, Tables
from ..signals import Buried, Fact, Retrying, logger
from .handlers import FAILING_TOTAL, PATTERNS, SETTINGS, Handlers
from .shop import Base, Order, OrderLine, Product, User
from .tally import Sum, Tally, add_up

NAMES = Names("shop_log")
BACKLOG = 400
PATIENCE = 40.0
"""Seconds that anything may take; it takes far less."""


def run(url: URL | str | None = None) -> int:
    """Play the demo in a database of its own (SQLite), or in the one at ``url``; returns the exit code.

    :raises ConfigError: if the database is not one for it: an async driver, tables of the same names.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sqla-events-demo-")))
        target = make_url(url) if url is not None else make_url(f"sqlite:///{folder / 'shop.db'}")
        engine = stack.enter_context(_stage(target))
        tally = Tally(folder / "tally")
        stack.callback(tally.close)
        logger.addFilter(_untold)
        stack.callback(logger.removeFilter, _untold)
        story = Story(engine, tally)
        stack.callback(story.end)
        try:
            total = story.tell()
        except TimeoutError as error:
            say(f"\nFAILED: {error}")
            return 1
    return _verdict(total, time.monotonic() - started)


def _untold(record: logging.LogRecord) -> bool:
    """The story tells of dead letters itself."""
    return "dead letter" not in record.msg


def _verdict(total: Sum, seconds: float) -> int:
    say(f"\n{seconds:.1f} s. The log was counted in its table, deliveries by what the handlers wrote down, by event id:")
    say(f"duplicates after the kill = {total.duplicates} (handled again, as the kill came before their acknowledgement was stored)")
    say(f"handled although rolled back = {total.unknown}")
    say(f"captured = delivered + dead: {total.captured} = {total.delivered} + {total.dead}")
    say(f"{total.lost} lost")
    return 0 if total.right else 1


def say(text: str) -> None:
    """Print a line as one write, so that lines of threads do not mix."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives once it is true.

    :raises TimeoutError: if it takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:g} s for this: {what}")
        time.sleep(0.02)
    return answer


# The stage ----------------------------------------------------------------------------------------------------------


@contextmanager
def _stage(url: URL) -> Iterator[Engine]:
    """The database, without our tables before and after."""
    if url.get_dialect().is_async and url.get_driver_name() != "psycopg":
        raise ConfigError(f"the shop is synchronous and {url.drivername} is not; give postgresql+psycopg://… or sqlite:///…")
    engine = sa.create_engine(url)
    try:
        _refuse_if_taken(engine)
        try:
            yield engine
        finally:
            _strike(engine)
    finally:
        engine.dispose()


def _refuse_if_taken(engine: Engine) -> None:
    ours = {*NAMES.all, *Base.metadata.tables}
    inspector = sa.inspect(engine)
    taken = sorted(ours & {*inspector.get_table_names(), *inspector.get_view_names()})
    if taken:
        names = ", ".join(taken)
        raise ConfigError(f"the database has tables that the demo would make and drop ({names}); drop them or give another database")


def _strike(engine: Engine) -> None:
    if sa.inspect(engine).has_table(NAMES.version):
        alembic.downgrade(engine, NAMES)
        with engine.begin() as connection:  # Alembic leaves its own table, empty
            connection.execute(sa.text(f"DROP TABLE {NAMES.qualified(NAMES.version)}"))
    Base.metadata.drop_all(engine)


# The story ----------------------------------------------------------------------------------------------------------


class Story:
    """One performance."""

    def __init__(self, engine: Engine, tally: Tally) -> None:
        self.engine = engine
        self.tally = tally
        self.tables = Tables(NAMES)
        self.handlers = Handlers(tally, say)
        self._chapter = 0
        self._broker: Broker | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def tell(self) -> Sum:
        """Everything in order."""
        self.migrate()
        self.install()
        for chapter in (self.commit, self.roll_back, self.update, self.publish, self.retry, self.bury, self.kill):
            chapter()
        self.broker.stop()
        return self.total()

    def end(self) -> None:
        """Stop whatever still runs."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
        if self._broker is not None:
            self._broker.uninstall()

    @property
    def broker(self) -> Broker:
        """The shop's broker, once installed."""
        assert self._broker is not None
        return self._broker

    def chapter(self, title: str, about: str = "") -> None:
        """Print a heading."""
        self._chapter += 1
        say(f"\n{self._chapter}. {title}")
        if about:
            say(textwrap.fill(about, 110, initial_indent="   ", subsequent_indent="   "))

    # Setting up --------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """The tables."""
        self.chapter("Migrate", f"The shop's tables, and the log's: sqla-events migrate {self.engine.url!r} --table-name {NAMES.events}")
        Base.metadata.create_all(self.engine)
        alembic.upgrade(self.engine, NAMES)
        say(f"   tables: {', '.join(sorted(sa.inspect(self.engine).get_table_names()))}")

    def install(self) -> None:
        """Hooks and subscriptions."""
        self.chapter("One call installs the hooks", "broker = install_crud_hooks(engine, …); the shop's code stays as it is.")
        self._broker = install_crud_hooks(self.engine, SETTINGS)
        self.broker.signals.subscribe(self.tell_fact)
        self.handlers.subscribe(self.broker)
        for name, patterns in PATTERNS.items():
            say(f"   @broker.subscribe({', '.join(map(repr, patterns))})  # {name}")
        self.broker.start()

    @staticmethod
    def tell_fact(fact: Fact) -> None:
        """Print retries and burials."""
        if isinstance(fact, Retrying):
            say(f"      {fact.subscription:<8} !! attempt {fact.attempts} failed: {fact.error}; again in {fact.delay:.2f} s")
        elif isinstance(fact, Buried):
            say(f"      {fact.subscription:<8} ++ gives up, dead letter: {fact.error}")

    # What the shop does ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """A transaction with three kinds of rows."""
        self.chapter("A transaction commits", "In event_context(user_id=42, request='r-1'). Watch which patterns match.")
        with event_context(user_id=42, request="r-1"), Session(self.engine) as session, session.begin():
            tea = Product(id=1, title="Tea", stock=100)
            ann = User(id=1, name="Ann", address="Elm Street 1")
            session.add_all([tea, ann])
            session.flush()
            session.add(Order(id=1, user=ann, total=500, address=ann.address, lines=[OrderLine(id=1, product_id=1)]))
        self.settle()

    def roll_back(self) -> None:
        """What did not happen is no event."""
        self.chapter("A transaction rolls back, and a savepoint in another", "What was not committed never happened: no event.")
        before = self.count()
        with Session(self.engine) as session:
            session.add(User(id=666, name="Nobody"))
            session.flush()
            session.rollback()
        say(f"   rolled back the user Nobody: {self.count() - before} events")
        with Session(self.engine) as session, session.begin():
            session.add(User(id=2, name="Bob", address="Oak Street 2"))
            savepoint = session.begin_nested()
            session.add(User(id=667, name="Nobody either"))
            session.flush()
            savepoint.rollback()
        say(f"   committed Bob, rolled back Nobody either to the savepoint: {self.count() - before} event")
        self.settle()

    def update(self) -> None:
        """Old and new values; a delete."""
        self.chapter("An update and a delete", "Events carry the values before and after.")
        with event_context(user_id=42), Session(self.engine) as session:
            tea = session.get_one(Product, 1)
            tea.stock -= 1
            session.commit()
            session.add(Product(id=2, title="Coffee"))
            session.commit()
            session.delete(session.get_one(Product, 2))
            session.commit()
        self.settle()

    def publish(self) -> None:
        """Events that are no rows."""
        self.chapter("Publishing by hand", "On its own, in a transaction that commits, and in one that rolls back.")
        self.broker.publish("shop.mail.newsletter", {"to": "everybody"}).result(PATIENCE)
        with Session(self.engine) as session:
            self.broker.publish("shop.mail.receipt", {"to": "Ann"}, session=session)
            session.commit()
            self.broker.publish("shop.mail.never", {"to": "Nobody"}, session=session)
            session.rollback()
        self.settle()

    def order(self, number: int, total: int, address: str | None) -> None:
        """Ann buys something."""
        with Session(self.engine) as session, session.begin():
            session.add(Order(id=number, user_id=1, total=total, address=address))

    def retry(self) -> None:
        """A handler that recovers."""
        self.chapter("A handler fails twice, is retried with back-off, and recovers", "The others are not disturbed.")
        self.order(2, FAILING_TOTAL, "Elm Street 1")
        self.settle()

    def bury(self) -> None:
        """Dead letters, and redriving them."""
        self.chapter("A handler fails for good: dead letters, redriven", "The carrier is down; order 4 has no address besides.")
        self.handlers.carrier_answers = False
        self.order(3, 300, "Elm Street 1")
        self.order(4, 400, None)
        letters = until(lambda: len(found := self.broker.dead_letters.list()) == 2 and found, "two dead letters")
        self.settle()
        say("   broker.dead_letters.list():")
        for letter in letters:
            say(f"      {letter.id}  {letter.event.type} #{letter.event.key}  {letter.attempts} attempts  {letter.error}")
        self.handlers.carrier_answers = True
        say(f"   The carrier answers again; redriven: {self.broker.dead_letters.redrive()}")
        until(lambda: [one.event.key for one in self.broker.dead_letters.list()] == ["4"], "order 4 is a dead letter again")
        self.settle()
        say("   Order 3 is on its way; order 4 stays a dead letter until somebody decides.")

    # Killing -----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL in the middle of a backlog, then a start as if nothing had been."""
        self.chapter(
            "SIGKILL in the middle of a backlog",
            f"The broker stops, {BACKLOG} more rows are committed, another process starts to consume and is killed.",
        )
        self.broker.stop()
        self.handlers.say = lambda _: None
        for number in range(BACKLOG // 20):
            with Session(self.engine) as session, session.begin():
                session.add_all(User(id=1000 + 20 * number + n, name=f"Customer {20 * number + n}") for n in range(20))
        say(f"   {self.count()} events in the log, {self.missing()} of them not handled by everybody")
        self.kill_a_worker()
        say(f"   the worker was killed with SIGKILL (exit code {self.exit_code}); {self.missing()} events are still to be handled")
        self.broker.start()
        self.settle()
        say("   started again: the backlog is through")

    def kill_a_worker(self) -> None:
        """Let a worker get some way into the backlog."""
        start = self.missing()
        environment = {**os.environ, "SHOP_URL": self.engine.url.render_as_string(hide_password=False)}
        command = [sys.executable, "-m", "sqla_events.demo.worker", str(self.tally.path)]
        self._worker = subprocess.Popen(command, env=environment)  # noqa: S603 - our own module
        until(lambda: self.missing() < start - BACKLOG // 4, "the worker gets through a quarter of the backlog")
        self._worker.kill()
        self.exit_code = self._worker.wait()

    # Counting ----------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Events in the log's table."""
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(self.tables.events)) or 0

    def total(self) -> Sum:
        """The books as they are now."""
        events = self.tables.events
        with self.engine.connect() as connection:
            log = [(str(row.id), row.type) for row in connection.execute(sa.select(events.c.id, events.c.type))]
        dead = {(letter.subscription, str(letter.event.id)) for letter in self.broker.dead_letters.list()}
        return add_up(log, dead, self.tally.counts(), PATTERNS)

    def missing(self) -> int:
        """Events that are neither delivered nor dead yet."""
        return self.total().lost

    def settle(self) -> None:
        """Wait until every event is delivered or dead."""
        until(lambda: self.missing() == 0, "every event is delivered or dead")
