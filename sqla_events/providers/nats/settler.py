"""Makes durable what was settled, in the order in which it was: failures first, then acknowledgements, many at a time."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from dataclasses import dataclass, field
from typing import Any

from ...errors import ProviderUnavailable
from ...event import now
from ...provider import Failure
from ...signals import logger
from .connection import Connection, Out
from .delivery import NatsDelivery
from .jetstream import AT_ONCE, Bucket
from .letters import NatsDeadLetters

ACK, NAK, WORKING = b"+ACK", b"-NAK", b"+WPI"
RETRY_SECONDS = 0.2


@dataclass
class Note:
    """What is to be written about one delivery."""

    delivery: NatsDelivery
    burials: list[Failure] = field(default_factory=list)


class Settler:
    """Of one durable consumer."""

    def __init__(self, connection: Connection, bucket: Bucket, letters: NatsDeadLetters, group: str, durable: str, ack_wait: float) -> None:
        self._connection = connection
        self._bucket = bucket
        self._letters = letters
        self._group = group
        self._durable = durable
        self._ack_wait = ack_wait
        self.in_hand: dict[int, NatsDelivery] = {}
        """By number in the stream: what is here and not settled."""
        self._acks: list[tuple[str, int]] = []
        self._notes: dict[int, Note] = {}
        self._first: dict[int, dt.datetime] = {}
        """When a delivery failed first, where it has; its failures are kept in the bucket."""
        self._some = asyncio.Event()
        self._worked_at = time.monotonic()

    # What is to be written ---------------------------------------------------------------------------------------

    def acknowledge(self, reply: str, seq: int = 0) -> None:
        """A message is through."""
        self._acks.append((reply, seq))
        self._some.set()

    def note(self, delivery: NatsDelivery, buried: Failure | None) -> None:
        """A handler failed; with ``buried``, for good."""
        self._first.setdefault(delivery.seq, now())
        note = self._notes.setdefault(delivery.seq, Note(delivery))
        if buried is not None:
            note.burials.append(buried)
        self._some.set()

    # Failures of earlier processes -------------------------------------------------------------------------------

    async def failures(self, floor: int) -> dict[int, Any]:
        """What they noted about messages above ``floor``, by number; the rest is forgotten."""
        keys = {int(key.rpartition(".")[2]): key for key in await self._bucket.keys(self._key("*"))}
        for seq in [seq for seq in keys if seq <= floor]:
            await self._bucket.drop(keys.pop(seq))
        values = await self._bucket.many(list(keys.values()))
        found = {seq: values[key] for seq, key in keys.items() if key in values}
        self._first |= {seq: dt.datetime.fromisoformat(value["first"]) for seq, value in found.items()}
        return found

    def _key(self, seq: object) -> str:
        return f"retry.{self._durable}.{seq}"

    # Writing -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write whenever there is something, and say every now and then that the work goes on."""
        while True:
            await self._due()
            try:
                await self.write()
                await self._say_working()
            except ProviderUnavailable as error:
                logger.debug("acknowledgements of %s wait for NATS: %s", self._durable, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _due(self) -> None:
        try:
            async with asyncio.timeout(self._worked_at + self._ack_wait / 3 - time.monotonic()):
                await self._some.wait()
        except TimeoutError:
            return

    async def _say_working(self) -> None:
        if time.monotonic() >= self._worked_at + self._ack_wait / 3:
            await self._connection.write([Out(one.reply, WORKING) for one in self.in_hand.values()])
            self._worked_at = time.monotonic()

    async def write(self) -> None:
        """Dead letters and failures, then acknowledgements.

        :raises ProviderUnavailable: with everything still to be written.
        """
        self._some.clear()
        acks, self._acks = self._acks, []
        notes, self._notes = self._notes, {}
        try:
            settled = {seq for _, seq in acks}
            await self._each([self._write_note(note, seq in settled) for seq, note in notes.items()])
            await self._connection.write([Out(reply, ACK) for reply, _ in acks])
        except BaseException:
            self._acks[:0] = acks
            self._put_back(notes)
            self._some.set()
            raise
        await self._each([self._bucket.drop(self._key(seq)) for _, seq in acks if self._first.pop(seq, None)])

    async def _each(self, calls: list[Any]) -> None:
        for start in range(0, len(calls), AT_ONCE):
            await asyncio.gather(*calls[start : start + AT_ONCE])

    async def _write_note(self, note: Note, settled: bool) -> None:
        one = note.delivery
        first = self._first[one.seq]
        for failure in note.burials:
            await self._letters.add(self._group, one, failure, first)
        if not settled:
            value = {"attempts": one.attempts, "due": one.due, "buried": sorted(one.buried), "first": first.isoformat()}
            await self._bucket.put(self._key(one.seq), value)

    def _put_back(self, notes: dict[int, Note]) -> None:
        for seq, note in self._notes.items():
            if seq in notes:
                notes[seq].burials += note.burials
            else:
                notes[seq] = note
        self._notes = notes

    async def give_back(self) -> None:
        """What is in hand may go to another at once."""
        await self._connection.write([Out(one.reply, NAK) for one in self.in_hand.values()])
