"""Events as CloudEvents 1.0, structured (one JSON object) and binary (attributes as headers, the payload as body).

What CloudEvents has no attribute for are extension attributes, so that nothing is lost on the way there and back:
``sourcekind`` is our ``source`` (CloudEvents' own ``source`` is a URI of the instance), ``types`` the sidecar of
encoding.py, ``metadata`` JSON text. Their names are lower case letters and digits, as the specification asks. Attributes
in headers are percent-encoded as its HTTP binding says (section 3.1.3.2). ``sequence`` and ``partitionkey`` are documented
extensions: the first orders as text, so the number has zeros in front; the second is the row.

An event of another producer keeps what it has: its id is a UUID of version 5 from source and id where it is none itself,
its source, its schema and its extensions are metadata, and data that is not JSON is text or bytes.

What has a life of its own after the event was made (status, attempts, errors) is the receiver's and does not travel.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from .errors import EventError
from .event import Event, Wire, decode, now
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
    if wire.key == "":  # a subject must not be empty: the empty key is told by the row alone
        del attributes["subject"]
    return {**attributes, "partitionkey": message.lane}, bytes(wire.payload)


def _text_of(member: str, value: Any) -> str:
    if member == "created_at":
        return value.isoformat().replace("+00:00", "Z")  # type: ignore[no-any-return]
    if member == "seq":
        return f"{value:019d}"
    if member == "metadata":
        return bytes(value).decode()
    return _encoder.encode(value).decode() if member == "types" else str(value)


def event_of(body: bytes, headers: Mapping[str, str]) -> Event:
    """The event that a CloudEvent describes. One of another producer's has what CloudEvents has: id, type, time, data.

    :raises EventError: where it is no CloudEvent 1.0.
    """
    try:
        if headers.get("content-type", "").startswith(STRUCTURED_TYPE):
            return _event(*_structured(body))
        return _event(*_binary(body, headers))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
        raise EventError(f"not a CloudEvent: {error} in {body[:80]!r}") from error


def _structured(body: bytes) -> tuple[dict[str, str], bytes, str | None]:
    """Attributes, data, and what the data is where it is not JSON."""
    members = _raw.decode(body)
    data, packed = bytes(members.pop("data", b"null")), members.pop("data_base64", None)
    attributes = {name: _plain(value) for name, value in members.items() if bytes(value) != b"null"}
    if packed is None:
        return attributes, data, None
    return attributes, *_data(base64.b64decode(_plain(packed), validate=True), attributes.get("datacontenttype"))


def _binary(body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, str], bytes, str | None]:
    attributes = {
        name.removeprefix(_PREFIX): unquote(value, errors="strict")
        for name, value in headers.items()
        if name.startswith(_PREFIX)
    }
    return attributes, *_data(body, headers.get("content-type"))


def _data(data: bytes, content_type: str | None) -> tuple[bytes, str | None]:
    """Data as JSON, and what it is as a Python value where JSON does not say."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if not data:
        return b"null", None
    if kind.endswith(("/json", "+json")):
        return data, None
    if kind.startswith("text/"):
        return _encoder.encode(data.decode()), None
    return _encoder.encode(base64.b64encode(data).decode()), "bytes"


def _plain(value: msgspec.Raw) -> str:
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, str) else bytes(value).decode()


def _event(attributes: dict[str, str], data: bytes, kind: str | None) -> Event:
    if attributes.get("specversion") != "1.0":
        raise ValueError(f"specversion is {attributes.get('specversion')!r}; it must be '1.0'")
    missing = [name for name in ("id", "source", "type") if not attributes.get(name)]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    if "sourcekind" not in attributes:
        attributes = _foreign(attributes, kind)
    elif "subject" not in attributes and attributes.get("partitionkey", "").endswith(":"):
        attributes["subject"] = ""
    members = {
        member: _member(member, attributes[attribute])
        for attribute, member in _NAMES.items()
        if attribute in attributes
    }
    return decode(_encoder.encode({**members, "payload": msgspec.Raw(data)}))


_CORE = ("id", "type", "time", "subject")


def _foreign(attributes: dict[str, str], kind: str | None) -> dict[str, str]:
    """An event of another producer in our terms: none of our extensions means there what it means here."""
    own = {name: attributes[name] for name in _CORE if name in attributes}
    about = {name: value for name, value in attributes.items() if name not in {*_CORE, "specversion", "datacontenttype"}}
    if not _is_uuid(own["id"]):
        about["id"] = own["id"]
        own["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{attributes['source']}#{own['id']}"))
    own.setdefault("time", now().isoformat())
    types = {} if kind is None else {"types": _encoder.encode({"/payload": kind}).decode()}
    return {**own, **types, "sourcekind": "system", "metadata": _encoder.encode(about).decode()}


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _member(member: str, text: str) -> Any:
    if member in _JSON:
        return msgspec.Raw(text.encode())
    return int(text) if member in _INTEGERS else text
