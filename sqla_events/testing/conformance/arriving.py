"""Events arrive unchanged, in order, at everybody who wants them."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pytest

from ...event import Event
from ...provider import Batch
from ...runtime import message_of
from ...wire import WireSettings, packing
from ..transport import Transport, consuming, lanes, opened, publish
from .material import bare, events

PAYLOADS: dict[str, Any] = {
    "nothing": None,
    "a row": {"key": {"id": 1}, "before": {}, "after": {"id": 1, "name": "Ann", "active": True, "score": None}},
    "every type": {
        "decimal": Decimal("1.10"),
        "float": [0.1, float("inf"), -1e300],
        "integer": 2**63 - 1,
        "uuid": uuid.UUID(int=7),
        "datetime": dt.datetime(2024, 2, 29, 23, 59, 59, 999999, dt.timezone(dt.timedelta(hours=5, minutes=30))),
        "date": dt.date(1, 1, 1),
        "time": dt.time(23, 59, 59, 1),
        "timedelta": dt.timedelta(days=-1, microseconds=1),
        "bytes": bytes(range(256)),
        "containers": [(1, 2), {3}, frozenset({4}), [], {}],
    },
    "unicode": {"text": "ü \U0001f600 \u2028 \x00 \x1f \\ \"quoted\" 'single' %s \ufeff", "ключ": "值"},
    "a megabyte": "0123456789" * 100_000,
}


class Arriving:
    """Of :class:`ProviderConformance`."""

    @pytest.mark.parametrize("payload", PAYLOADS)
    async def test_an_event_arrives_unchanged(self, transport: Transport, payload: str) -> None:
        """Every field, every type of value, every character, a megabyte."""
        event = Event(
            type="public.order%2Elines.update",
            payload=PAYLOADS[payload],
            user_id=7,
            session_id='s"1',
            instance_id="host-ü",
            metadata={"request": "r-1", "at": dt.date(2024, 2, 29)},
            key="1,'ü'\n",
            schema_version=3,
        )
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider, event)
            (delivery,) = await stream.take(1)
            assert bare(delivery.event()) == event
            assert (delivery.type, delivery.only) == (event.type, None)
            assert not delivery.attempts
            assert not delivery.buried

    @pytest.mark.parametrize("form", ["gzip", "structured", "binary"])
    async def test_headers_arrive_with_the_body(self, transport: Transport, form: str) -> None:
        """Compressed and as CloudEvents: the headers say how to read the body."""
        wire = WireSettings(compression="gzip", compress_from=0) if form == "gzip" else WireSettings(cloudevents=form)
        pack, event = packing(wire), events(1)[0].replace(metadata={"ü": 1}, payload={"n": Decimal("1.0")})
        assert pack is not None
        async with opened(transport) as provider, consuming(provider) as stream:
            await provider.publish(Batch([pack(message_of(event))]))
            (delivery,) = await stream.take(1)
            assert bare(delivery.event()) == event

    async def test_the_events_of_a_row_arrive_in_order(self, transport: Transport) -> None:
        """Over many batches, each event once."""
        sent = events(600, rows=7)
        async with opened(transport) as provider, consuming(provider) as stream:
            for start in range(0, 600, 50):
                await publish(provider, *sent[start : start + 50])
            await stream.take(600)
            assert lanes(stream.events) == lanes(sent)
            assert len(stream.ids) == 600

    async def test_an_empty_batch_is_nothing(self, transport: Transport) -> None:
        """What comes after it arrives."""
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider)
            await publish(provider, *events(1))
            assert len(await stream.take(1)) == 1

    async def test_patterns_choose_what_a_group_gets(self, transport: Transport) -> None:
        """Everything that matches comes; where the provider filters, nothing else does."""
        sent = [
            Event(type=f"{schema}.{entity}.{operation}", key="1")
            for schema in ("public", "auth")
            for entity in ("users", "order_lines", "orders")
            for operation in ("create", "delete")
        ]
        last = Event(type="the.end", key="1")
        wanted = {
            **dict.fromkeys(["public.users.create", "public.users.delete", "auth.users.delete", "the.end"]),
            **dict.fromkeys(["auth.order_lines.delete", "auth.orders.delete", "public.order_lines.create"]),
            **dict.fromkeys(["public.order_lines.delete", "public.orders.delete"]),
        }
        patterns = ("public.users.*", "*.*.delete", "public.order_*.create", "the.end")
        async with opened(transport) as provider, consuming(provider, patterns=patterns) as stream:
            await publish(provider, *sent, last)
            await stream.until(lambda: wanted.keys() <= {delivery.type for delivery in stream.deliveries})
            got = [delivery.type for delivery in stream.deliveries]
            if provider.features.provider_filter:
                assert sorted(got) == sorted(wanted)
