"""Values as JSON and back: whatever a column can hold comes back equal and of the same type."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import ipaddress
import math
import uuid
from collections import OrderedDict
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import Range

from sqla_events.encoding import Types, code_of, dumps, enum_code, escape, lift, lower
from sqla_events.errors import EventError


class Colour(enum.Enum):
    RED = 1
    GREEN = (2, 3)


class Grade(enum.IntEnum):
    A = 1


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


def texts(value: Any) -> tuple[str, str]:
    """JSON text and sidecar text."""
    types: Types = {}
    text = dumps(lower(value, "", types))
    return text, dumps(types) if types else ""


def round_trip(value: Any) -> Any:
    text, types = texts(value)
    return lift(msgspec.json.decode(text), types)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same type, all the way down; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (float, Decimal)) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dt.datetime):
        return one == other and one.utcoffset() == other.utcoffset()
    if isinstance(one, Range):
        return same(
            [one.lower, one.upper, one.bounds, one.empty], [other.lower, other.upper, other.bounds, other.empty]
        )
    return bool(one == other)


# Every type ---------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
OFFSETS = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(
    lambda t: dt.timedelta(minutes=t // dt.timedelta(minutes=1))
)
ZONES = st.none() | OFFSETS.map(dt.timezone)
DECIMALS = (
    st.decimals(allow_nan=False)
    | st.just(Decimal("NaN"))
    | st.decimals(places=2, allow_nan=False, allow_infinity=False)
)
RANGE_ENDS = st.one_of(
    st.tuples(st.integers(), st.integers()),
    st.tuples(st.dates(), st.dates()),
    st.tuples(st.decimals(allow_nan=False, allow_infinity=False), st.none()),
    st.tuples(st.none(), st.datetimes(timezones=st.just(dt.UTC))),
)
RANGES = st.builds(
    lambda ends, bounds: Range(*ends, bounds=bounds), RANGE_ENDS, st.sampled_from(["[)", "()", "[]", "(]"])
) | st.just(Range(empty=True))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    DECIMALS,
    st.uuids(),
    st.dates(),
    st.times(timezones=ZONES),
    st.datetimes(timezones=ZONES),
    st.timedeltas(),
    st.binary(),
    st.ip_addresses(),
    st.ip_addresses().map(ipaddress.ip_interface),
    st.ip_addresses().map(lambda address: ipaddress.ip_network(f"{address}/16", strict=False)),
    RANGES,
    st.sampled_from([Colour.RED, Colour.GREEN, Grade.A, Word.YES, Rights.READ]),
    st.just(sa.JSON.NULL),
)
HASHABLE = st.one_of(st.integers(), TEXT, st.uuids(), st.dates(), st.binary())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(TEXT, inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_every_value_comes_back(value: Any) -> None:
    """However nested, whatever the keys."""
    assert same(round_trip({"payload": value})["payload"], value)


@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.10"), Decimal("-0"), Decimal("1E+400"), Decimal("Infinity"), Decimal("NaN"),
        float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308,
        2**64, -(2**63), 10**40, 2**53 + 1,
        dt.time(12, 30, 1, 5, dt.timezone(dt.timedelta(hours=5, minutes=30))), dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), dt.timedelta.min, dt.timedelta.max,
        dt.timedelta(days=-1, microseconds=1), dt.date(1, 1, 1),
        "\x00", "a\x00b", "\U0001f600", "\u2028</script>", "",
        b"", b"\x00\xff", uuid.UUID(int=0), ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_network("fe80::/10"),
        Range(dt.date(2026, 1, 1), None, bounds="[)"), Range(None, None), Range(empty=True), Range(Decimal("1.5"), Decimal("2.5"), bounds="()"),
        (), (1, (2, (3,))), set(), frozenset({1}), {"a": {1, 2}}, [[], [[]], {}], {"": {"": ""}},
        {"a/b": Decimal(1), "a~b": Decimal(2), "*": Decimal(3), "~1": Decimal(4), "~2": Decimal(5)},
        [Decimal(1), None, Decimal(2)], [Decimal(1), 2, "3"], [Decimal(1), "1"], [[Decimal(1)], Decimal(2)], {"0": Decimal(1)}, [{"0": dt.date(2026, 1, 1)}],
    ],
)  # fmt: skip
def test_edges_come_back(value: Any) -> None:
    """The values that encoders get wrong."""
    assert same(round_trip(value), value)
    assert same(round_trip({"payload": [value]}), {"payload": [value]})


def test_a_time_zone_comes_back_as_its_offset() -> None:
    """The moment is exact; the name of the zone is not kept."""
    moment = dt.datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    back = round_trip(moment)
    assert back == moment
    assert back.utcoffset() == dt.timedelta(hours=2)


def test_naive_and_aware_times_stay_what_they_are() -> None:
    """No zone is made up."""
    assert round_trip(dt.datetime(2026, 1, 1)).tzinfo is None
    assert round_trip(dt.datetime(2026, 1, 1, tzinfo=dt.UTC)).tzinfo is not None


# How it looks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "types"),
    [
        (1, "1", ""),
        ({"a": [1, 2.5, None, True, "x"]}, '{"a":[1,2.5,null,true,"x"]}', ""),
        (Decimal("1.10"), '"1.10"', '{"":"decimal"}'),
        (float("-inf"), '"-Infinity"', '{"":"float"}'),
        ({"p": dt.timedelta(days=1, milliseconds=500)}, '{"p":"P1DT0.5S"}', '{"/p":"timedelta"}'),
        (b"\x00\x01", '"AAE="', '{"":"bytes"}'),
        ([Decimal(1), Decimal(2)], '["1","2"]', '{"/*":"decimal"}'),
        ([Decimal(1), 2], '["1",2]', '{"/0":"decimal"}'),
        ([Decimal(1), dt.date(2026, 1, 1)], '["1","2026-01-01"]', '{"/0":"decimal","/1":"date"}'),
        (Range(1, 5), '{"lower":1,"upper":5,"bounds":"[)","empty":false}', '{"":"range"}'),
        ({"a/b": uuid.UUID(int=1)}, '{"a/b":"00000000-0000-0000-0000-000000000001"}', '{"/a~1b":"uuid"}'),
        (sa.JSON.NULL, "null", '{"":"jsonnull"}'),
        ("\x00", r'"\u0000"', ""),
    ],
)
def test_the_json_is_natural(value: Any, text: str, types: str) -> None:
    """SQL and other languages see what they expect; the sidecar says what JSON cannot."""
    assert texts(value) == (text, types)


def test_one_wildcard_serves_every_row_of_a_table() -> None:
    """The sidecar of captured rows is constant; null in such a column stays None."""
    value = {"before": {"price": "1.10"}, "after": {"price": None, "name": "x"}, "key": {"id": 1}}
    lifted = lift(value, '{"/*/price":"decimal"}')
    assert lifted == {"before": {"price": Decimal("1.10")}, "after": {"price": None, "name": "x"}, "key": {"id": 1}}


@given(st.text())
def test_escaped_segments_hold_no_separator_and_no_wildcard(key: str) -> None:
    """Whatever the key."""
    assert "/" not in escape(key)
    assert "*" not in escape(key)


def test_a_type_code_is_known_by_class() -> None:
    """What capture asks once for each column."""
    assert (code_of(Decimal), code_of(dt.datetime), code_of(str), code_of(object)) == (
        "decimal",
        "datetime",
        None,
        None,
    )


# Subclasses, enums, strangers ---------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Decimal
    y: int


class Markup(str):
    __slots__ = ()


class Money(Decimal):
    pass


class Stamp(dt.datetime):
    pass


class Ratio(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Markup("<b>"), "<b>"),
        (Money("1.5"), Decimal("1.5")),
        (Stamp(2026, 1, 1), dt.datetime(2026, 1, 1)),
        (Ratio(0.5), 0.5),
        (Ratio("nan"), float("nan")),
        (OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (Point(Decimal(1), 2), (Decimal(1), 2)),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        (sa.sql.elements.quoted_name("x", True), "x"),
    ],
)
def test_subclasses_travel_as_their_base(value: Any, expected: Any) -> None:
    """What libraries put into columns: Markup, pendulum, named tuples."""
    assert same(round_trip(value), expected)


def test_an_enum_is_its_name_where_the_class_is_unknown() -> None:
    """Another process may not have the class; it gets text, as does one whose class lost the member."""
    assert lift("RED", '{"":"enum:shop.models.Colour"}') == "RED"
    assert lift("BLUE", dumps({"": enum_code(Colour)})) == "BLUE"
    assert lift("RED", dumps({"": enum_code(Colour)})) is Colour.RED


@pytest.mark.parametrize("value", [Rights.READ | Rights.WRITE, Rights(0)])
def test_flags_of_several_members_come_back(value: Rights) -> None:
    """They have no single name."""
    assert round_trip({"payload": value}) == {"payload": value}


@pytest.mark.parametrize(
    "value", [object(), complex(1, 2), lambda: 1, {1: "a"}, {"a": {None: 1}}, [object()], ValueError("x")]
)
def test_what_has_no_json_form_is_named(value: Any) -> None:
    """With where it stands, so that it can be found in a large payload."""
    with pytest.raises(EventError, match=r"/payload.* (is a|has the key)"):
        lower(value, "/payload", {})


def test_a_lone_surrogate_is_refused() -> None:
    """UTF-8 has no form for it."""
    with pytest.raises(EventError, match="surrogate"):
        dumps("\ud800")


@pytest.mark.parametrize(
    ("value", "types"),
    [
        ("x", '{"":"decimal"}'),
        (5, '{"":"uuid"}'),
        ("x", '{"":"date"}'),
        ({}, '{"":"range"}'),
        ("x", '{"":"quaternion"}'),
        ([1], '{"":"bytes"}'),
        ("!!!!", '{"":"bytes"}'),
        ("AAE=\n", '{"":"bytes"}'),
        (1, "[]"),
        (1, "{"),
        ("P", '{"":"timedelta"}'),
        (5, '{"":"set"}'),
    ],
)
def test_a_sidecar_that_does_not_fit_is_an_event_error(value: Any, types: str) -> None:
    """Whatever is wrong with it: the consumer buries the event and goes on."""
    with pytest.raises(EventError):
        lift(value, types)


@pytest.mark.parametrize("types", ['{"/a/b":"decimal"}', '{"/7":"date"}', '{"/*/*/x":"uuid"}'])
def test_pointers_to_nothing_change_nothing(types: str) -> None:
    """A constant sidecar names columns that one row may lack."""
    assert lift({"c": 1}, types) == {"c": 1}
    assert lift([1], types) == [1]


class Price(Decimal):
    def __str__(self) -> str:
        return f"{super().__str__()} EUR"


class Label(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "label"


class Loud(uuid.UUID):
    def __str__(self) -> str:
        return "loud"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Price("1.5"), Decimal("1.5")), (Label("x"), "x"), (Loud(int=5), uuid.UUID(int=5)), ({Label("k"): Price(1)}, {"k": Decimal(1)})],
)  # fmt: skip
def test_how_a_subclass_prints_itself_does_not_matter(value: Any, expected: Any) -> None:
    """What travels is the value of the base."""
    assert same(round_trip(value), expected)


def test_an_integer_beyond_what_python_prints_is_refused() -> None:
    """More than 4300 digits; fewer come back."""
    assert round_trip(10**4000) == 10**4000
    with pytest.raises(EventError, match="4300 digits"):
        texts(10**5000)
