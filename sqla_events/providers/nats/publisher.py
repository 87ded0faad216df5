"""Publishing: every message once and in order, whatever is killed when.

Why a chain and not Nats-Msg-Id alone: the server remembers ids for the duplicate window and no longer, and it stores what
it gets: when the leader of a stream changes, message 5 of a window can be lost and 6 stored, and publishing 5 again then
swaps the two. So each message names the one that must be the last of the stream when it is stored: the first of a window
by its sequence number (Nats-Expected-Last-Sequence), each further one by the id of the message before it
(Nats-Expected-Last-Msg-Id; numbers would fit again by chance when others have appended as many as were refused). One that
is lost makes the server refuse all behind it. What is stored is therefore always a beginning of what was sent, and the
acknowledgement of the last message, with the number that was counted, is one for all: the others ask for none.

When anything else comes back (an error, another number, nothing), the stream is read from the last number known to its
end: what of ours is there is not sent again, and the chain goes on from there. The same happens when another publisher
came between. Two relays of one log, of which one is a zombie, append nothing twice and nothing out of order: each has read
all that the other stored. The zombie learns it then, or when it next keeps a mark (a write that names the revision).

A relay that starts does not know what its predecessor published and did not commit. It reads the stream from a *mark* on:
a sequence number and the position that the relay had then, kept under the relay's name in the bucket. A mark whose
position the log's committed position includes is far enough back. Marks are kept the more sparsely the older they are.

Publishes without a relay have no position. Several at once make a chain of their own, for their order; one by itself needs
none. A caller that has to publish them again has the ids as its protection against duplicates, for the duplicate window.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ...errors import EventError, LeaseLost, ProviderUnavailable, PublishRejected
from ...position import Position, Ranges, joined, ranges_of, size, subtract, upto
from ...provider import Batch, Message
from ...signals import logger
from .connection import Out, head_of
from .delivery import TAG
from .history import pages
from .jetstream import AT_ONCE, WRONG_LAST, Bucket, Conflict, JetStream, Refused, Stored, stored
from .subjects import subject_of

WINDOW = 2000
"""Messages that are sent before an acknowledgement is waited for, and their bytes."""
WINDOW_BYTES = 4_000_000
IN_VAIN = 5
"""Looks at a stream that did not grow, in a row."""
TOO_LARGE = 10054
MARK_SECONDS = 0.25
"""Between two marks while busy."""
MARK_BYTES = 4096
"""Positions with more gaps than fit make no mark; reading begins at the one before."""
RESERVE = 32_768
"""Bytes of the server's max_payload that stay free, so that a dead letter has room for its error and traceback."""


@dataclass
class Chain:
    """What one relay knows of the stream."""

    key: str
    tag: str
    epoch: int
    revision: int
    marks: list[list[Any]]
    """``[sequence, position, Unix seconds]``, oldest first."""
    there: dict[str, int] = field(default_factory=dict)
    """Ids, and numbers in the log, of messages that the stream has and that may still be given to us."""
    position: str = ""
    reached: int = 0
    """Of the last batch, where the stream ended with it, and the ids of its messages."""
    batch: list[str] = field(default_factory=list)
    marked_at: float = 0.0

    def note(self, headers: Mapping[str, str]) -> None:
        """A message of the stream, ours or not."""
        tag, _, seq = headers.get(TAG, "").partition("/")
        if tag == self.tag:
            self.there[headers["Nats-Msg-Id"]] = int(seq or 0)

    def has(self, batch: Batch) -> bool:
        """Whether this very batch was the last one. The position alone does not say it: redriven events do not change it."""
        return batch.position == self.position and [one.id for one in batch.messages] == self.batch

    def settled(self, batch: Batch, reached: int) -> None:
        """A batch is in the stream: what its position includes is never given to us again."""
        self.position, self.reached = batch.position, reached
        self.batch = [one.id for one in batch.messages]
        if self.there and batch.position:
            done = position_of(batch.position).done
            self.there = {one: seq for one, seq in self.there.items() if not done(seq)}
        for one in self.batch:
            self.there.pop(one, None)


class Publisher:
    """Appends to one stream. Whatever is published through one provider goes one after the other."""

    def __init__(self, jetstream: JetStream, bucket: Bucket, stream: str, prefix: str, log: str) -> None:
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._bucket = bucket
        self._stream = stream
        self._prefix = prefix
        self._log = log
        self._turn = asyncio.Lock()
        self._chains: dict[str, Chain] = {}
        self._end: int | None = None
        """The sequence number up to which we know what the stream holds; None: nothing is known."""
        self._sure = False
        """Whether the stream ends there, as far as we know."""

    @property
    def max_message_bytes(self) -> int | None:
        """What a body may have; None before the first connection."""
        limit = self._connection.max_payload
        return None if limit is None else limit - RESERVE

    async def publish(self, batch: Batch) -> None:
        """See provider.Provider."""
        await self._connection.ready()
        for message in batch.messages:
            self._check(message)
        if not batch.messages:
            return
        async with self._turn:
            try:
                await (self._publish_chained(batch) if batch.epoch else self._publish_apart(batch.messages))
            except BaseException:
                self._sure = False
                raise

    def _check(self, message: Message) -> None:
        limit = self.max_message_bytes
        assert limit is not None
        if len(message.body) > limit - 1024 and len(message.body) + _size(message.headers) > limit:
            raise PublishRejected(
                message.id,
                f"it has {len(message.body)} bytes; this NATS server takes {limit} (max_payload less {RESERVE} for dead letters)",
            )
        try:
            subject_of(self._prefix, message.type)
        except EventError as error:
            raise PublishRejected(message.id, str(error)) from error
        if message.headers and any("\r" in value or "\n" in value for value in message.headers.values()):
            raise PublishRejected(message.id, f"a header has a line break: {dict(message.headers)!r}")

    # A relay's batch ---------------------------------------------------------------------------------------------

    async def _publish_chained(self, batch: Batch) -> None:
        chain = await self._chain(batch)
        if chain.has(batch):
            return
        await self._mark(chain)
        await self._append(chain, batch.messages)
        chain.settled(batch, self._end or 0)

    async def _append(self, chain: Chain, messages: Sequence[Message]) -> None:
        left, most, vain = list(messages), WINDOW, 0
        while True:
            if not self._sure:
                known, end = self._end, await self._look(chain)
                vain = vain + 1 if end == known else 0
                most = 1 if vain > 1 else WINDOW  # alone, its reason is told
            if chain.there:
                left = [message for message in left if message.id not in chain.there]
            if not left:
                return
            if vain > IN_VAIN:
                raise ProviderUnavailable(f"stream {self._stream} neither takes event {left[0].id} nor says why")
            window = _window(left, most)
            if await self._send(chain, window):
                left, vain = left[len(window) :], 0
            else:
                self._sure = False

    async def _send(self, chain: Chain, window: Sequence[Message]) -> bool:
        """Whether the stream now ends with this window; if not, nobody knows what is there.

        :raises PublishRejected: where it is one message, which the server will never take.
        :raises ProviderUnavailable: where it is one message, which the server does not take now.
        """
        outs = self._outs(chain, window)
        if len(outs) > 1:
            await self._connection.write(outs[:-1])
        last = outs[-1]
        answer = await self._connection.ask(last.subject, last.body, last.headers)
        return self._concluded(chain, window, answer.data)

    def _outs(self, chain: Chain, window: Sequence[Message]) -> list[Out]:
        """The links of the chain: each names the one before it."""
        outs, prefix, tag = [], self._prefix, chain.tag
        before = f"Nats-Expected-Last-Sequence:{self._end}"
        for one in window:
            own = "".join(f"{name}:{value}\r\n" for name, value in one.headers.items()) if one.headers else ""
            head = head_of(f"Nats-Msg-Id:{one.id}\r\n{before}\r\n{TAG}:{tag}/{one.seq or 0}\r\n{own}")
            outs.append(Out(subject_of(prefix, one.type), one.body, head))
            before = f"Nats-Expected-Last-Msg-Id:{one.id}"
        return outs

    def _concluded(self, chain: Chain, window: Sequence[Message], answer: bytes) -> bool:
        try:
            end: Stored = stored(answer)
        except Refused as error:
            if len(window) > 1 or error.number in WRONG_LAST:  # of several, why the first was refused is not known
                return False
            raise _told(error, window[0]) from error
        if end.duplicate and len(window) == 1:  # from before the first mark, and within the duplicate window
            chain.there[window[0].id] = window[0].seq or 0
            return True
        if end.duplicate or end.seq != (self._end or 0) + len(window):
            return False
        self._end = end.seq
        chain.there.update((one.id, one.seq or 0) for one in window)
        return True

    async def _look(self, chain: Chain) -> int:
        """Read what the stream got since we last knew, and whether somebody newer does our work; returns where it ends."""
        last = int((await self._jetstream.info(self._stream))["state"]["last_seq"])
        known = last if self._end is None else self._end
        if last < known:
            logger.error(
                "stream %s ends at %d and had %d messages: it lost some that it had acknowledged, or was purged or made anew",
                self._stream, last, known,
            )  # fmt: skip
        if last > known:
            await self._check_epoch(chain)
            await self._note(known + 1, last, chain, *self._chains.values())
        self._end, self._sure = last, True
        return last

    async def _note(self, first: int, last: int, *chains: Chain) -> None:
        """Read the headers of a range: of few messages one by one, of more than that without their bodies."""
        if last - first < AT_ONCE:
            async for kept in self._jetstream.each(self._stream, first, last):
                for chain in chains:
                    chain.note(kept.headers)
            return
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": first, "headers_only": True}
        async with aclosing(pages(self._jetstream, self._stream, start, last)) as found:
            async for page in found:
                for message in page:
                    for chain in chains:
                        chain.note(message.headers or {})

    # Who publishes -----------------------------------------------------------------------------------------------

    async def _chain(self, batch: Batch) -> Chain:
        key = chain_key(self._log, batch)
        chain = self._chains.get(key)
        if chain is not None and batch.epoch < chain.epoch:
            raise _lost(batch, chain.epoch)
        if chain is None or batch.epoch > chain.epoch:
            chain = await self._begun(key, batch)
            self._chains[key] = chain
        return chain

    async def _begun(self, key: str, batch: Batch) -> Chain:
        """Claim the epoch, then learn what earlier ones published: what they publish later breaks our chain, and is seen."""
        kept, revision = await self._bucket.get(key)
        kept = kept or {"epoch": 0, "marks": []}
        if kept["epoch"] > batch.epoch:
            raise _lost(batch, kept["epoch"])
        tag = hashlib.blake2b(key.encode(), digest_size=5).hexdigest()
        chain = Chain(key, tag, batch.epoch, revision, kept["marks"], marked_at=time.time())
        last = (await self._jetstream.info(self._stream))["state"]["last_seq"]
        committed = _without(batch)
        if not chain.marks:
            chain.marks.append([last, f'{{"high":{committed.high},"gaps":{committed.gaps_text}}}', time.time()])
        await self._write(chain)
        first = next((seq for seq, position, _ in reversed(chain.marks) if _includes(committed, position)), chain.marks[0][0])
        if min(first, last) < first:
            first = last  # the stream was made anew
        await self._note(first + 1, last, chain)
        chain.there = {one: seq for one, seq in chain.there.items() if not seq or not committed.done(seq)}
        self._end, self._sure = last, True
        return chain

    async def _check_epoch(self, chain: Chain) -> None:
        if not chain.epoch:
            return
        kept, _ = await self._bucket.get(chain.key)
        if kept is not None and kept["epoch"] > chain.epoch:
            raise LeaseLost(f"{chain.key} of epoch {chain.epoch} is over: epoch {kept['epoch']} publishes")

    async def _mark(self, chain: Chain) -> None:
        """Keep where we are, unless the stream has messages of ours that are not settled; and see whether our epoch is over."""
        now = time.time()
        if now - chain.marked_at < MARK_SECONDS:
            return
        if chain.position and not chain.there and len(chain.position) <= MARK_BYTES:
            chain.marks = thinned([*chain.marks, [chain.reached, chain.position, now]], now)
        await self._write(chain)
        chain.marked_at = now

    async def _write(self, chain: Chain) -> None:
        value = {"epoch": chain.epoch, "marks": chain.marks}
        while True:
            try:
                chain.revision = await self._bucket.put(chain.key, value, chain.revision)
            except Conflict:  # of another epoch, or ours, of which the answer was lost
                await self._check_epoch(chain)
                _, chain.revision = await self._bucket.get(chain.key)
            else:
                return

    # Without a relay ---------------------------------------------------------------------------------------------

    async def _publish_apart(self, messages: Sequence[Message]) -> None:
        if len(messages) > 1:
            await self._append(Chain("", secrets.token_hex(5), 0, 0, []), messages)
            return
        (message,) = messages
        try:
            headers = {"Nats-Msg-Id": message.id, **message.headers}
            end = await self._jetstream.store(subject_of(self._prefix, message.type), message.body, headers)
        except Refused as error:
            raise _told(error, message) from error
        if self._end is not None and end.seq == self._end + 1:
            self._end = end.seq
        elif not end.duplicate:
            self._sure = False


def thinned(marks: Sequence[list[Any]], now: float) -> list[list[Any]]:
    """The newest mark, and of the others each that is half as old again as the one kept before it; always the oldest.

    >>> [now for _, _, now in thinned([[0, "", now] for now in range(100)], 99)]
    [0, 7, 38, 59, 73, 82, 88, 92, 95, 97, 98, 99]
    """
    kept: list[list[Any]] = []
    least = 0.0
    for mark in reversed(marks):
        if now - mark[2] >= least or mark is marks[0]:
            kept.append(mark)
            least = (now - mark[2]) * 1.5 + MARK_SECONDS
    return kept[::-1]


def chain_key(log: str, batch: Batch) -> str:
    """The key of a relay's marks: its log, group and share."""
    from .subjects import token

    return f"relay.{log}.{token(batch.group)}.{batch.partition}of{batch.partitions}"


def position_of(text: str) -> Position:
    """A batch's position."""
    import msgspec

    return msgspec.json.decode(text, type=Position)


def _without(batch: Batch) -> Position:
    """What was committed before this batch: its position without its events."""
    if not batch.position:
        return Position()
    position = position_of(batch.position)
    own: Ranges = ranges_of(message.seq for message in batch.messages if message.seq is not None)
    return Position(position.high, joined((*position.gaps, *upto(own, position.high))))


def _includes(committed: Position, text: str) -> bool:
    """Whether everything that is done in that position is done in the committed one."""
    then = position_of(text)
    above: Ranges = ((committed.high + 1, then.high),) if then.high > committed.high else ()
    undone = upto((*committed.gaps, *above), then.high)
    return not size(subtract(undone, then.gaps))


def _window(left: Sequence[Message], most: int) -> Sequence[Message]:
    total = 0
    for number, message in enumerate(left[:most]):
        total += len(message.body)
        if total > WINDOW_BYTES and number:
            return left[:number]
    return left[:most]


def _told(error: Refused, message: Message) -> Exception:
    """What the caller is to do about one message that the server did not take."""
    if error.number == TOO_LARGE:
        return PublishRejected(message.id, f"the stream takes no message of {len(message.body)} bytes: {error}")
    return ProviderUnavailable(f"the stream does not take event {message.id} now: {error}")


def _lost(batch: Batch, epoch: int) -> LeaseLost:
    return LeaseLost(
        f"epoch {batch.epoch} of {batch.group!r}, partition {batch.partition} of {batch.partitions}, is over: epoch {epoch} publishes"
    )


def _size(headers: Any) -> int:
    return 256 + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
