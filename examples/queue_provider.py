"""A provider of your own, in one page: events in an SQLite file, for the processes of one machine.

It is found by the scheme of its URL, ``queue:////var/lib/app/queue.db``, through an entry point of the package it is in::

    [project.entry-points."sqla_events.providers"]
    queue = "queue_provider:QueueProvider"

and it keeps the contract: the suite that sqla_events ships says so. What it does not promise (several consumers of a group
at a time, attempts that survive a restart) is left out of ``features``, and its tests are skipped.
"""

import asyncio
import datetime as dt
import json
import sqlite3
import time
from urllib.parse import urlsplit

from sqla_events.errors import EventError, ProviderUnavailable
from sqla_events.filter import matches
from sqla_events.provider import DeadLetter, Features, Message, only_header, only_of
from sqla_events.wire import unpacked

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS messages (number INTEGER PRIMARY KEY AUTOINCREMENT, at, id, type, lane, body, headers);
CREATE TABLE IF NOT EXISTS done ("group", number, PRIMARY KEY ("group", number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letters (
    letter INTEGER PRIMARY KEY AUTOINCREMENT, number, "group", subscription, error, traceback, attempts, at);
"""
SELECT = "SELECT number, id, type, lane, body, headers FROM messages"


class QueueProvider:
    features = Features(durable=True, shared_groups=False, cross_process=True, history=True)

    def __init__(self, config, context):
        self._path = urlsplit(config.provider_url).path[1:]
        self._poll_interval = config.options.get("poll_interval", 0.02)  # seconds
        self._db = None

    async def open(self):
        try:
            self._db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            self._db.executescript(TABLES)
        except sqlite3.OperationalError as error:
            raise ProviderUnavailable(f"{self._path} cannot be opened: {error}") from error

    async def publish(self, batch):
        store(self._db, batch.messages)

    async def consume(self, interest):
        last, in_hand = 0, set()  # what is not done comes from the beginning on, whoever had it in hand before
        query = f'{SELECT} WHERE number > ? AND number NOT IN (SELECT number FROM done WHERE "group" = ?) LIMIT ?'
        while True:
            rows = self._db.execute(query, (last, interest.group, interest.prefetch - len(in_hand))).fetchall()
            if rows:
                last = rows[-1][0]
                in_hand.update(number for number, *_ in rows)
                yield [Delivery(self._db, interest.group, in_hand, number, Message(*rest)) for number, *rest in map(read, rows)]
            else:
                await asyncio.sleep(self._poll_interval)

    async def history(self, since=None, position=None):
        if position is not None and not position.isdecimal():
            raise EventError(f"the position is {position!r}; in this queue it is a number")
        start = (int(position or 0), since.timestamp() if since else 0)
        rows = self._db.execute(f"{SELECT} WHERE number >= ? AND at >= ? ORDER BY number", start).fetchall()
        if rows:
            yield [Message(*rest) for _, *rest in map(read, rows)]

    async def close(self):
        if self._db is not None:
            self._db.close()

    @property
    def dead_letters(self):
        return Letters(self._db)


def store(db, messages):
    rows = [(time.time(), one.id, one.type, one.lane, one.body, json.dumps(dict(one.headers))) for one in messages]
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO messages (at, id, type, lane, body, headers) VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.execute("COMMIT")


def read(row):
    """The number, and what a Message is made of."""
    number, identity, kind, lane, body, headers = row
    return number, identity, kind, lane, body, None, json.loads(headers)


class Delivery:
    attempts, due, buried = {}, {}, frozenset()

    def __init__(self, db, group, in_hand, number, message):
        self._db, self._group, self._in_hand, self._number, self._message = db, group, in_hand, number, message
        self.type, self.lane, self.only = message.type, message.lane, only_of(message.headers, group)

    def event(self):
        return unpacked(self._message.body, self._message.headers)

    def ack(self):
        self._db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (self._group, self._number))
        self._in_hand.discard(self._number)

    def retry(self, failure, delay):
        """It stays in hand, and nobody else of its group is there to take it."""

    def bury(self, failure):
        letter = (self._number, self._group, failure.subscription, failure.error, failure.traceback, failure.attempts)
        self._db.execute("INSERT INTO letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", (*letter, time.time()))


class Letters:
    def __init__(self, db):
        self._db = db

    async def list(self, *, group=None, pattern="*", limit=100, after=None):
        return [letter for letter, _ in self._meant(None, group, pattern) if int(letter.id) > int(after or 0)][:limit]

    async def redrive(self, ids=None, *, group=None, pattern="*"):
        meant = self._meant(ids, group, pattern)
        for letter, (identity, kind, lane, body, seq, headers) in meant:
            headers = {**headers, **only_header(letter.group, letter.subscription)}
            store(self._db, [Message(f"{identity}:{letter.id}", kind, lane, body, seq, headers)])
        return self._forget(meant)

    async def discard(self, ids=None, *, group=None, pattern="*"):
        return self._forget(self._meant(ids, group, pattern))

    def _meant(self, ids, group, pattern):
        """Letters, each with what its message was made of."""
        found = []
        for letter, number, of, subscription, error, trace, attempts, at in self._db.execute("SELECT * FROM letters"):
            _, *parts = read(self._db.execute(f"{SELECT} WHERE number = ?", (number,)).fetchone())
            if group in (None, of) and matches(pattern, parts[1]) and (ids is None or str(letter) in ids):
                event, moment = unpacked(parts[3], parts[5]), dt.datetime.fromtimestamp(at, dt.UTC)
                found.append((DeadLetter(str(letter), of, subscription, event, error, trace, attempts, moment, moment), parts))
        return found

    def _forget(self, meant):
        self._db.executemany("DELETE FROM letters WHERE letter = ?", [(letter.id,) for letter, _ in meant])
        return len(meant)
