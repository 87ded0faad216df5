"""Events as CloudEvents 1.0, structured (one JSON object) and binary (attributes as headers, the payload as body).

What CloudEvents has no attribute for are extension attributes, so that nothing is lost on the way there and back:
``sourcekind`` is our ``source`` (CloudEvents' own ``source`` is a URI of the instance), ``types`` the sidecar of
encoding.py, ``metadata`` JSON text. Their names are lower case letters and digits, as the specification asks. Attributes
in headers are percent-encoded as its HTTP binding says (section 3.1.3.2).

What has a life of its own after the event was made (status, attempts, errors) is the receiver's and does not travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from .errors import EventError
from .event import Event, Wire, decode
from .provider import Message

STRUCTURED_TYPE = "application/cloudevents+json"
_PREFIX = "ce-"

_NAMES = {
    "id": "id",
    "type": "type",
    "time": "created_at",
    "subject": "key",
    "sourcekind": "source",
    "dbschema": "schema",
    "entity": "entity",
    "operation": "operation",
    "sequence": "seq",
    "schemaversion": "schema_version",
    "userid": "user_id",
    "sessionid": "session_id",
    "instanceid": "instance_id",
    "metadata": "metadata",
    "types": "types",
}
"""Attribute -> member of our wire form."""

_INTEGERS = {"seq", "schema_version"}
_JSON = {"metadata", "types"}

_wire = msgspec.json.Decoder(Wire)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def structured(message: Message) -> Message:
    """One JSON object with attributes and ``data``."""
    attributes, data = _taken_apart(message)
    body = _encoder.encode({**attributes, "data": msgspec.Raw(data)})
    return msgspec.structs.replace(message, body=body, headers={**message.headers, "content-type": STRUCTURED_TYPE})


def binary(message: Message) -> Message:
    """Attributes in headers, the payload alone as body."""
    attributes, data = _taken_apart(message)
    headers = {_PREFIX + name: quote(value, safe=_UNQUOTED) for name, value in attributes.items()}
    headers["content-type"] = headers.pop(_PREFIX + "datacontenttype")
    return msgspec.structs.replace(message, body=data, headers={**message.headers, **headers})


MODES: Mapping[str, Callable[[Message], Message]] = {"structured": structured, "binary": binary}

_UNQUOTED = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""Printable ASCII but for the space, the double quote and the percent sign."""


def _taken_apart(message: Message) -> tuple[dict[str, str], bytes]:
    wire = _wire.decode(message.body)
    attributes = {
        "specversion": "1.0",
        "source": f"/sqla-events/{quote(wire.instance_id or 'unknown', safe='')}",
        "datacontenttype": "application/json",
    }
    for attribute, member in _NAMES.items():
        value = getattr(wire, member)
        if value not in (None, {}, b"{}"):
            attributes[attribute] = _text_of(member, value)
    return attributes, bytes(wire.payload)


def _text_of(member: str, value: Any) -> str:
    if member == "created_at":
        return value.isoformat().replace("+00:00", "Z")  # type: ignore[no-any-return]
    if member == "metadata":
        return bytes(value).decode()
    return _encoder.encode(value).decode() if member == "types" else str(value)


def event_of(body: bytes, headers: Mapping[str, str]) -> Event:
    """The event that a CloudEvent describes. One of another producer's has what CloudEvents has: id, type, time, data.

    :raises EventError: where it is no CloudEvent 1.0 with JSON data, or has no UUID for an id.
    """
    try:
        if headers.get("content-type", "").startswith(STRUCTURED_TYPE):
            members = _raw.decode(body)
            data = members.pop("data", b"null")
            attributes = {name: _plain(value) for name, value in members.items()}
        else:
            data = body or b"null"
            attributes = {
                name.removeprefix(_PREFIX): unquote(value)
                for name, value in headers.items()
                if name.startswith(_PREFIX)
            }
        return _event(attributes, bytes(data))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
        raise EventError(f"not a CloudEvent: {error} in {body[:80]!r}") from error


def _plain(value: msgspec.Raw) -> str:
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, str) else bytes(value).decode()


def _event(attributes: dict[str, str], data: bytes) -> Event:
    if attributes.get("specversion") != "1.0":
        raise ValueError(f"specversion is {attributes.get('specversion')!r}; it must be '1.0'")
    missing = [name for name in ("id", "type", "time") if name not in attributes]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    members = {
        member: _member(member, attributes[attribute])
        for attribute, member in _NAMES.items()
        if attribute in attributes
    }
    members.setdefault("source", "system")
    return decode(_encoder.encode({**members, "payload": msgspec.Raw(data)}))


def _member(member: str, text: str) -> Any:
    if member in _JSON:
        return msgspec.Raw(text.encode())
    return int(text) if member in _INTEGERS else text
