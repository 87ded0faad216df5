"""JetStream by its API of subjects and JSON, which is what servers of every version agree on.

Also the key-value side of it: a bucket is a stream that keeps the last message of each subject, and ``nats kv`` shows it.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import ProviderUnavailable
from .connection import Connection, headers_of

NO_MESSAGE = 10037
CONSUMER_MISSING = 10014
STREAM_MISSING = 10059
WRONG_LAST = (10071, 10164)
AT_ONCE = 128
"""Requests under way at the same time."""


class Refused(Exception):
    """The server said no."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("code", 0))
        self.number = int(error.get("err_code", 0))
        super().__init__(str(error.get("description", error)))


class Conflict(Exception):
    """Somebody else wrote the key since it was read."""


class Kept(NamedTuple):
    """A message as a stream keeps it."""

    seq: int
    subject: str
    body: bytes
    headers: dict[str, str]
    time: dt.datetime


class Stored(NamedTuple):
    """A publish that was acknowledged."""

    seq: int
    duplicate: bool


class JetStream:
    """The requests that this provider makes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def call(self, verb: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request of the API.

        :raises Refused: with the server's reason.
        :raises ProviderUnavailable: if nobody answers, or a cluster has no leader at the moment.
        """
        body = b"" if request is None else json.dumps(request).encode()
        answer = json.loads((await self.connection.ask(f"$JS.API.{verb}", body)).data)
        return _accepted(answer)

    async def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> Stored:
        """Publish one message and wait until it is stored.

        :raises Refused: with the server's reason.
        """
        answer = await self.connection.ask(subject, body, dict(headers) if headers else None)
        return stored(answer.data)

    async def need(self, verb: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same, of something that should be there.

        :raises ProviderUnavailable: with the server's reason, too.
        """
        try:
            return await self.call(verb, request)
        except Refused as error:
            raise ProviderUnavailable(f"{verb}: {error}") from error

    async def info(self, stream: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Configuration and state of a stream that should be there, from its leader."""
        return await self.need(f"STREAM.INFO.{stream}", request)

    async def get(self, stream: str, **which: Any) -> Kept | None:
        """One message, from the leader: ``seq=``, ``last_by_subj=``, or ``seq=`` and ``next_by_subj=``."""
        try:
            message = (await self.call(f"STREAM.MSG.GET.{stream}", which))["message"]
        except Refused as error:
            if error.number == NO_MESSAGE:
                return None
            raise ProviderUnavailable(f"stream {stream!r} cannot be read: {error}") from error
        return Kept(
            message["seq"],
            message["subject"],
            base64.b64decode(message.get("data", "")),
            headers_of(base64.b64decode(message.get("hdrs", ""))),
            dt.datetime.fromisoformat(message["time"]),
        )

    async def each(self, stream: str, first: int, last: int) -> AsyncIterator[Kept]:
        """Every message of a range that is still there, in order, from the leader (a consumer may read from a replica that lags)."""
        for start in range(first, last + 1, AT_ONCE):
            seqs = range(start, min(start + AT_ONCE, last + 1))
            for kept in await asyncio.gather(*(self.get(stream, seq=seq) for seq in seqs)):
                if kept is not None:
                    yield kept

    async def following(self, stream: str, subject: str, after: int = 0) -> AsyncIterator[Kept]:
        """Every message of a filter behind a sequence number, in order."""
        while (kept := await self.get(stream, seq=after + 1, next_by_subj=subject)) is not None:
            yield kept
            after = kept.seq

    async def delete(self, stream: str, seq: int) -> bool:
        """Take one message out; whether it was there."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except Refused:
            return False
        return True


class Bucket:
    """Keys and JSON values, changed only by who knows the present revision."""

    def __init__(self, jetstream: JetStream, name: str) -> None:
        self.stream = f"KV_{name}"
        self._jetstream = jetstream
        self._prefix = f"$KV.{name}."

    @property
    def definition(self) -> dict[str, Any]:
        """Of its stream, as ``nats kv add`` would make it."""
        return {
            "name": self.stream,
            "subjects": [f"{self._prefix}>"],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
        }

    async def get(self, key: str) -> tuple[Any, int]:
        """Value and revision; ``(None, 0)`` where there is none."""
        kept = await self._jetstream.get(self.stream, last_by_subj=self._prefix + key)
        if kept is None:
            return None, 0
        return (json.loads(kept.body) if kept.body else None), kept.seq

    async def put(self, key: str, value: Any, revision: int | None = None) -> int:
        """Write a value; returns its revision.

        :raises Conflict: if ``revision`` is given and not the present one.
        """
        headers = {} if revision is None else {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            answer = await self._jetstream.store(self._prefix + key, json.dumps(value).encode(), headers)
        except Refused as error:
            if error.number in WRONG_LAST:
                raise Conflict(key) from error
            raise ProviderUnavailable(f"key {key!r} cannot be written: {error}") from error
        return answer.seq

    async def keys(self, filter_: str) -> list[str]:
        """The keys that match a filter."""
        request = {"subjects_filter": self._prefix + filter_}
        state = (await self._jetstream.info(self.stream, request))["state"]
        return [subject.removeprefix(self._prefix) for subject in state.get("subjects") or ()]

    async def many(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of keys."""
        found: dict[str, Any] = {}
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            values = await asyncio.gather(*map(self.get, part))
            found |= {key: value for key, (value, _) in zip(part, values, strict=True) if value is not None}
        return found

    async def drop(self, key: str) -> None:
        """Forget a key."""
        await self._jetstream.need(f"STREAM.PURGE.{self.stream}", {"filter": self._prefix + key})


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    if (error := answer.get("error")) is not None:
        refused = Refused(error)
        if refused.code == 503:
            raise ProviderUnavailable(f"JetStream: {refused}") from refused
        raise refused
    return answer


def stored(data: bytes) -> Stored:
    """What the acknowledgement of a publish says.

    :raises Refused: where it is none.
    """
    answer = _accepted(json.loads(data))
    return Stored(int(answer["seq"]), bool(answer.get("duplicate", False)))

