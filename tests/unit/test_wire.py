"""The forms of an event on a transport: every one gives the same event back, and what is not one is told as such."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import json
import uuid
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from sqla_events import Event, EventError
from sqla_events.event import encode, lane_of
from sqla_events.provider import Message
from sqla_events.wire import WireSettings, packing, unpacked

FORMS = [
    WireSettings(compression=compression, compress_from=least, cloudevents=mode)
    for compression, least in [("none", 0), ("gzip", 0), ("zstd", 0), ("gzip", 10_000)]
    for mode in (None, "structured", "binary")
]


def message(event: Event) -> Message:
    return Message(str(event.id), event.type, lane_of(event.schema, event.entity, event.key, str(event.id)), encode(event))


def there(event: Event, settings: WireSettings) -> Message:
    pack = packing(settings)
    return message(event) if pack is None else pack(message(event))


def example(**changes: Any) -> Event:
    return Event(
        type="public.users.update",
        payload={"after": {"name": 'Zoë % "x"', "price": decimal.Decimal("1.10"), "at": dt.time(1, 2)}},
        metadata={"trace": "ü ✓", "when": dt.date(2026, 1, 2)},
        user_id=7,
        session_id="s 1",
        instance_id="web-1 ü",
        key="1",
        seq=12,
        schema_version=3,
    ).replace(**changes)


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_every_form_gives_the_event_back(settings: WireSettings) -> None:
    """Types, unicode, metadata and context survive each form."""
    for event in (example(), Event(type="a.b.c"), example(payload="x" * 50_000), example(user_id="u-1", key="ü/1")):
        packed = there(event, settings)
        assert all(value.isascii() for value in packed.headers.values())
        assert unpacked(packed.body, packed.headers) == event


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, st.dictionaries(texts, texts), st.sampled_from(FORMS))
def test_any_text_survives(text: str, metadata: dict[str, str], settings: WireSettings) -> None:
    """Whatever users put into keys, sessions, payload and metadata."""
    event = Event(type="a.b.c", payload=text, metadata=metadata, key=text, session_id=text)
    packed = there(event, settings)
    assert unpacked(packed.body, packed.headers) == event


def test_small_bodies_stay_as_they_are() -> None:
    """Below the threshold, and where compression gains nothing."""
    assert there(Event(type="a.b.c"), WireSettings(compression="gzip")).headers == {}
    packed = there(Event(type="a.b.c", payload="x" * 100_000), WireSettings(compression="gzip"))
    assert len(packed.body) < 1000
    assert packed.headers == {"content-encoding": "gzip"}


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_the_official_package_reads_them(mode: str) -> None:
    """Checked by cloudevents, not by ourselves: attributes as the specification wants them."""
    event = example(payload={"a": [1, "ü"]})
    packed = there(event, WireSettings(cloudevents=mode))
    read = from_http_event(HTTPMessage(headers=dict(packed.headers), body=packed.body))
    assert read.get_id() == str(event.id)
    assert read.get_type() == "public.users.update"
    assert read.get_subject() == "1"
    assert read.get_time() == event.created_at
    assert read.get_source() == "/sqla-events/web-1%20%C3%BC"
    assert read.get_data() == {"a": [1, "ü"]}
    assert read.get_datacontenttype() == "application/json"
    assert read.get_extension("sourcekind") == "internal"
    assert read.get_extension("partitionkey") == "public.users:1"
    assert json.loads(read.get_extension("metadata"))["trace"] == "ü ✓"


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize("changes", [{"key": ""}, {"key": None, "seq": None}, {"metadata": {}, "payload": None}, {"session_id": ""}], ids=str)
def test_the_official_package_accepts_what_is_at_the_edge(mode: str, changes: dict[str, Any]) -> None:
    """Empty texts, nothing at all: valid for it, and ours again afterwards."""
    event = example(**changes)
    packed = there(event, WireSettings(cloudevents=mode))
    from_http_event(HTTPMessage(headers=dict(packed.headers), body=packed.body))
    assert unpacked(packed.body, packed.headers) == event


def test_sequences_order_as_text() -> None:
    """The extension asks for it: 9 comes before 10."""
    nine, ten = (there(example(seq=seq), WireSettings(cloudevents="binary")).headers["ce-sequence"] for seq in (9, 10))
    assert nine < ten


FOREIGN = {"id": "A 1", "source": "/shop", "type": "com.example.paid", "subject": "s", "trace": "ü", "amount": 5}


@pytest.mark.parametrize("write", [to_structured_event, to_binary_event])
@pytest.mark.parametrize(
    ("content_type", "data", "payload"),
    [
        ("application/json", {"a": 1}, {"a": 1}),
        ("application/vnd.shop+json", [1], [1]),
        ("text/plain", "grüezi", "grüezi"),
        ("application/octet-stream", b"\x00\xff", b"\x00\xff"),
        (None, None, None),
    ],
    ids=str,
)
def test_a_cloudevent_of_somebody_else_is_an_event(write: Any, content_type: str | None, data: Any, payload: Any) -> None:
    """Written by the official package: its id, its source and its extensions are kept, data of every kind arrives."""
    attributes = {**FOREIGN, "time": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)} | ({"datacontenttype": content_type} if content_type else {})
    made = write(CloudEvent(attributes, data))
    headers = {name.lower(): value for name, value in made.headers.items()}
    event = unpacked(made.body, headers)
    assert (event.type, event.payload, event.key, event.source) == ("com.example.paid", payload, "s", "system")
    assert event.created_at == attributes["time"]
    assert event.metadata == {"id": "A 1", "source": "/shop", "trace": "ü", "amount": "5"}
    assert event.id == unpacked(made.body, headers).id == uuid.uuid5(uuid.NAMESPACE_URL, "/shop#A 1")


def test_the_id_and_time_of_somebody_else() -> None:
    """A UUID is taken as it is; without a time it is the moment of reading."""
    one, before = uuid.uuid4(), dt.datetime.now(dt.UTC)
    body = json.dumps({"specversion": "1.0", "id": str(one), "source": "/shop", "type": "a.b.c", "data": 5}).encode()
    event = unpacked(body, {"content-type": "application/cloudevents+json; charset=utf-8"})
    assert (event.id, event.type, event.payload) == (one, "a.b.c", 5)
    assert before <= event.created_at


@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        (b"{}", {"content-encoding": "br"}, "'br'; it must be gzip or zstd"),
        (b"{}", {"content-encoding": "gzip"}, "gzip body cannot be read"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], {"content-encoding": "gzip"}, "ends too early"),
        (b"{}", {"content-encoding": "zstd"}, "zstd body cannot be read"),
        (b"{}", {"content-type": "application/cloudevents+json"}, "specversion is None"),
        (b'{"specversion":"1.0"}', {"content-type": "application/cloudevents+json"}, "no id and no source and no type"),
        (b"[]", {"content-type": "application/cloudevents+json"}, "not a CloudEvent"),
        (b"<x>", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "a.b.c", "ce-source": "x"}, "not a"),
        (b"1", {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "a b", "ce-source": "x"}, "type is 'a b'"),
        (b"1", {"ce-specversion": "1.0", "ce-id": "%ff", "ce-type": "a.b", "ce-source": "x"}, "not a CloudEvent"),
        (b'{"specversion":"1.0","id":"1","source":"x","type":"a.b","data_base64":"!"}', {"content-type": "application/cloudevents+json"}, "not a CloudEvent"),
        (b"", {}, "not an event"),
    ],
)
def test_what_is_no_event_is_told(body: bytes, headers: dict[str, str], told: str) -> None:
    """As EventError: the consumer buries it and goes on."""
    with pytest.raises(EventError, match=told):
        unpacked(body, headers)
