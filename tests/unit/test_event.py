"""The event: what it takes, what it refuses, how it travels."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import time
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_events.errors import EventError
from sqla_events.event import (
    Event,
    Operation,
    Source,
    Status,
    check_type,
    lane_of,
    new_id,
    quote,
    type_of,
    unquote,
    user_id_from_text,
)

MOMENT = dt.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)


def test_the_fields_of_the_event_broker_are_all_here() -> None:
    """Its seventeen, and what we add beside them."""
    assert set(Event.__struct_fields__) == {
        "id", "source", "type", "status", "payload", "user_id", "session_id", "instance_id", "schema", "entity", "operation",
        "created_at", "processed_at", "completed_at", "error", "metadata", "retry_count",
    } | {"key", "seq", "schema_version"}  # fmt: skip


def test_the_words_of_the_event_broker() -> None:
    """Sources, statuses and operations are its."""
    assert list(Source) == ["database", "websocket", "frontend", "system", "internal"]
    assert list(Status) == ["pending", "processing", "completed", "failed"]
    assert list(Operation) == ["create", "update", "delete", "read"]


def test_only_the_type_is_needed() -> None:
    """The rest has defaults; schema, entity and operation come from the type."""
    before = dt.datetime.now(dt.UTC)
    event = Event(type="public.users.create")
    assert (event.schema, event.entity, event.operation) == ("public", "users", "create")
    assert (event.source, event.status, event.metadata, event.retry_count, event.schema_version) == (
        "internal",
        "pending",
        {},
        0,
        1,
    )
    assert event.id.version == 7
    assert before <= event.created_at <= dt.datetime.now(dt.UTC)
    assert event.before == event.after == {}


def test_parts_that_are_given_stay() -> None:
    """A type of other than three segments has no parts of its own."""
    assert Event(type="a.b.c", schema="x").schema == "x"
    assert Event(type="a.b.c", schema="x").entity == "b"
    assert Event(type="ping").schema is None
    assert Event(type="a.b.c.d").operation is None


def test_an_event_never_changes() -> None:
    """A state change is a new value, checked like the first."""
    event = Event(type="a.b.c")
    with pytest.raises(AttributeError):
        event.status = Status.FAILED  # type: ignore[misc]
    assert event.replace(status=Status.FAILED).status is Status.FAILED
    assert event.status is Status.PENDING
    with pytest.raises(EventError):
        event.replace(type="not a type")
    assert Event(type="a").metadata is not Event(type="a").metadata


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"type": ""}, "type is ''"),
        ({"type": "a..b"}, "type is 'a..b'"),
        ({"type": ".a"}, "type is '.a'"),
        ({"type": "a."}, "type is 'a.'"),
        ({"type": "a b"}, "type is 'a b'"),
        ({"type": "a.*"}, r"type is 'a\.\*'"),
        ({"type": "a.>"}, "type is 'a.>'"),
        ({"type": "a\x00"}, r"type is 'a\\x00'"),
        ({"type": "a" * 513}, "at most 512 characters"),
        ({"type": 7}, "type is 7"),
        ({"type": None}, "type is None"),
        ({"source": "cron"}, "source is 'cron'; it must be one of database, websocket, frontend, system, internal"),
        ({"status": "lost"}, "status is 'lost'; it must be one of pending, processing, completed, failed"),
        ({"status": []}, r"status is \[\]"),
        ({"user_id": 1.5}, "user_id is 1.5 of type float"),
        ({"user_id": True}, "user_id is True of type bool"),
        ({"metadata": [1]}, r"metadata is \[1\]; it must be a dict"),
        ({"metadata": None}, "metadata is None"),
        ({"created_at": dt.datetime(2026, 1, 1)}, "has no time zone"),
        ({"created_at": "2026-01-01"}, "created_at is '2026-01-01'"),
        ({"processed_at": dt.datetime(2026, 1, 1)}, "processed_at is .* has no time zone"),
        ({"completed_at": "now"}, "completed_at is 'now'"),
        ({"retry_count": "1"}, "retry_count is '1' of type str; it must be an int"),
        ({"retry_count": None}, "retry_count is None"),
        ({"schema_version": True}, "schema_version is True of type bool"),
        ({"seq": 1.5}, "seq is 1.5 of type float"),
        ({"type": "a\ud800"}, "type is 'a"),
        ({"id": "17"}, "id is '17'"),
        ({"id": 17}, "id is 17"),
        ({"session_id": 17}, "session_id is 17 of type int; it must be a str or None"),
        ({"key": 1}, "key is 1 of type int"),
        ({"entity": b"users"}, "entity is b'users' of type bytes"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], text: str) -> None:
    """Field, value and what is allowed."""
    with pytest.raises(EventError, match=text):
        Event(**{"type": "a.b.c", **fields})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (7, 7),
        ("7", 7),
        ("007", "007"),
        ("-3", -3),
        ("0", 0),
        ("-0", "-0"),
        ("ann", "ann"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (None, None),
        ("9" * 19, "9" * 19),
        ("", ""),
    ],
)
def test_a_user_id_is_a_number_where_it_is_one(given: Any, kept: Any) -> None:
    """The log keeps text: an integer written canonically comes back as one, everything else as it was."""
    assert Event(type="a", user_id=given).user_id == kept


def test_uuids_are_taken_where_text_is_meant_and_the_other_way() -> None:
    """Keys and session ids are often UUIDs; an id may come as text."""
    one = uuid.UUID(int=7)
    event = Event(type="a", key=one, session_id=one, id=str(one))
    assert (event.key, event.session_id, event.id) == (str(one), str(one), one)


def test_ids_sort_by_time() -> None:
    """Version 7 of RFC 9562: variant, version, milliseconds in front."""
    first = new_id()
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert abs((first.int >> 80) - time.time() * 1000) < 60_000
    assert len({new_id() for _ in range(10_000)}) == 10_000


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_table_name_makes_a_type(schema: str, table: str) -> None:
    """What would end a segment or match as a wildcard is quoted, and comes back as it was."""
    try:
        (schema + table).encode()
    except UnicodeEncodeError:
        return
    event_type = type_of(schema, table, "create")
    if len(event_type) <= 512:
        check_type(event_type)
        event = Event(type=event_type)
        assert (event.schema, event.entity, event.operation) == (schema, table, "create")
    assert unquote(quote(table)) == table


def test_the_lane_is_the_row() -> None:
    """Same row, same lane; without a key a lane of its own."""
    assert (
        lane_of("public", "users", "1", "x")
        == lane_of("public", "users", "1", "y")
        != lane_of("public", "users", "2", "x")
    )
    assert lane_of("public", "users", None, "x") == "x"


# Wire form ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MOMENTS = st.datetimes(timezones=st.just(dt.UTC))
EVENTS = st.builds(
    Event,
    type=st.sampled_from(["public.users.create", "a", "x.y.z.w", type_of("sché.ma", "t t", "update")]),
    source=st.sampled_from(Source),
    status=st.sampled_from(Status),
    payload=st.none() | st.dictionaries(TEXT, st.integers() | TEXT | st.decimals(allow_nan=False) | st.binary()),
    user_id=st.none() | st.integers(-(2**62), 2**62) | TEXT,
    session_id=st.none() | TEXT,
    instance_id=st.none() | TEXT,
    created_at=MOMENTS,
    processed_at=st.none() | MOMENTS,
    completed_at=st.none() | MOMENTS,
    error=st.none() | TEXT,
    metadata=st.dictionaries(TEXT, TEXT | st.uuids() | st.dates()),
    retry_count=st.integers(0, 100),
    key=st.none() | TEXT,
    seq=st.none() | st.integers(1, 2**62),
    schema_version=st.integers(1, 9),
)


@given(EVENTS)
def test_the_wire_form_gives_an_equal_event_back(event: Event) -> None:
    """Every field, NUL characters included, from bytes and from text."""
    assert Event.from_json(event.to_json()) == event
    assert Event.from_json(event.to_json().decode()) == event


def test_the_wire_form_is_plain_json() -> None:
    """Other languages read it: values as they are, the sidecar beside them, defaults left out."""
    event = Event(
        type="public.users.create", id=uuid.UUID(int=7), source=Source.DATABASE, created_at=MOMENT, key="1",
        payload={"after": {"price": Decimal("1.10")}}, metadata={"at": dt.date(2026, 1, 2)},
    )  # fmt: skip
    assert msgspec.json.decode(event.to_json()) == {
        "id": "00000000-0000-0000-0000-000000000007",
        "type": "public.users.create",
        "source": "database",
        "schema": "public",
        "entity": "users",
        "operation": "create",
        "key": "1",
        "created_at": "2026-02-03T04:05:06.000789Z",
        "metadata": {"at": "2026-01-02"},
        "types": {"/payload/after/price": "decimal", "/metadata/at": "date"},
        "payload": {"after": {"price": "1.10"}},
    }


def test_unknown_members_do_not_break_an_older_reader() -> None:
    """A newer writer may say more."""
    text = Event(type="a.b.c", payload=1).to_json()
    assert Event.from_json(text.replace(b'{"id"', b'{"new":{"x":[1]},"id"')).payload == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"type":"a"}', '{"id":"x","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z"}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a b","source":"system","created_at":"2026-01-01T00:00:00Z"}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"cron","created_at":"2026-01-01T00:00:00Z"}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00"}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","metadata":[1]}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","payload":"x","types":{"/payload":"decimal"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","payload":{"x":5},"types":{"/payload/x":"uuid"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","payload":"x","types":{"/payload":"quaternion"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","payload":{"x":1},"types":{"/payload":"range"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","types":{"":"set"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","types":{"/metadata":"set"}}',
     '{"id":"00000000-0000-0000-0000-000000000007","type":"a","source":"system","created_at":"2026-01-01T00:00:00Z","payload":"!!!!","types":{"/payload":"bytes"}}',
     b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_event_is_said_so(text: str | bytes) -> None:
    """One kind of error, whatever is wrong with the text: a consumer buries it."""
    with pytest.raises(EventError, match="not an event"):
        Event.from_json(text)


# What is nearly right -----------------------------------------------------------------------------------------------


class Word(str, enum.Enum):  # noqa: UP042 - the older spelling prints itself as Word.YES
    YES = "a.b.c"


class Number(enum.IntEnum):
    SEVEN = 7


def test_texts_and_numbers_of_other_classes_become_plain() -> None:
    """Drivers and formatters treat an enum otherwise than its text."""
    event = Event(type=Word.YES, session_id=Word.YES, user_id=Number.SEVEN)
    assert [type(one) for one in (event.type, event.session_id, event.user_id)] == [str, str, int]
    assert (event.type, event.session_id, event.user_id) == ("a.b.c", "a.b.c", 7)
    assert type(Event(type="a", user_id=Word.YES).user_id) is str


@pytest.mark.parametrize("user_id", [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**18, 10**30, 0, -1])
def test_a_large_user_id_is_the_same_from_the_log(user_id: int) -> None:
    """A number of 64 bits stays one, as 19-digit ids are; a larger one is text from the beginning."""
    kept = Event(type="a", user_id=user_id).user_id
    assert user_id_from_text(str(kept)) == kept
    assert isinstance(kept, int) is (-(2**63) <= user_id < 2**63)


@pytest.mark.parametrize("offset", [3208, -59, 3600, 19800])
def test_an_offset_with_seconds_keeps_the_moment(offset: int) -> None:
    """RFC 3339 has whole minutes; local mean times have not."""
    moment = dt.datetime(1880, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=offset)))
    event = Event(type="a", created_at=moment, processed_at=moment, completed_at=moment)
    assert Event.from_json(event.to_json()) == event


@pytest.mark.parametrize("fields", [{"error": "\ud800"}, {"key": "\udfff"}, {"payload": ["\ud800"]}, {"payload": {"\ud800": 1}}, {"payload": {"\ud800": Decimal(1)}}, {"metadata": {"a": "\ud800"}}])  # fmt: skip
def test_a_lone_surrogate_cannot_travel(fields: dict[str, Any]) -> None:
    """Wherever it stands, it is an EventError that says so."""
    with pytest.raises(EventError, match="lone surrogate"):
        Event(type="a", **fields).to_json()


def test_a_payload_that_holds_itself_cannot_travel() -> None:
    """Nor one that is nested without end; reading such a text ends as any garbage does."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EventError, match="holds itself"):
        Event(type="a", payload=circle).to_json()
    text = Event(type="a", payload=7, id=uuid.UUID(int=1)).to_json()
    with pytest.raises(EventError, match="not an event"):
        Event.from_json(text.replace(b'"payload":7', b'"payload":' + b"[" * 100_000 + b"]" * 100_000))


@given(st.binary() | st.text() | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(repr))  # fmt: skip
def test_garbage_is_an_event_error(text: bytes | str) -> None:
    """Never another error: it would stop a consumer."""
    with pytest.raises(EventError):
        Event.from_json(text)


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_event_is_an_event_error_or_an_event(place: int, damage: bytes) -> None:
    """Bytes lost or changed on the way."""
    text = Event(type="a.b.c", id=uuid.UUID(int=7), created_at=MOMENT, payload={"a": [Decimal(1), b"x", dt.timedelta(1)]}).to_json()  # fmt: skip
    with contextlib.suppress(EventError):
        assert isinstance(Event.from_json(text[:place] + damage + text[place + 1 :]), Event)


def test_ids_of_later_milliseconds_are_greater() -> None:
    """Sorting ids sorts events by when they were made."""
    ids = []
    for _ in range(5):
        ids.append(new_id())
        time.sleep(0.002)
    assert sorted(ids) == ids
    assert sorted(map(str, ids)) == list(map(str, ids))


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("users", "users"),
        ("a.b", "a%2Eb"),
        ("a b", "a%20b"),
        ("*", "%2A"),
        ("100%", "100%25"),
        ("%2E", "%252E"),
        ("what?", "what%3F"),
        ("[x]", "%5Bx]"),
        ("a>b", "a%3Eb"),
        ("Größe", "Größe"),
        ("\u2003", "%E2%80%83"),
        ("a/b~c", "a/b~c"),
    ],
)
def test_odd_table_names(name: str, quoted: str) -> None:
    """As they stand in a type, and back."""
    assert quote(name) == quoted
    assert unquote(quoted) == name
