"""How an event looks on a transport: our JSON or a CloudEvent, compressed above a size, with headers that say which.

    packed(message) -> message       on the way out, by setting
    unpacked(body, headers) -> event on the way in, by what the headers say: readers need no setting, and a stream may
                                     hold events of every form while a setting changes

Sources: CloudEvents 1.0.2 with its JSON format, and the NATS and Kafka bindings for how attributes become headers
(``ce-`` and ``content-type``).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from .errors import ConfigError, EventError
from .event import Event, decode
from .provider import Message
from .settings import INT, Section, one_of, optional, setting

ENCODING = "content-encoding"
TYPE = "content-type"
MAX_UNPACKED = 256 * 2**20
"""Bytes that one event may have when it is uncompressed: a small message must not be able to fill the memory."""


@dataclass(frozen=True)
class WireSettings(Section):
    """How events look on Redis, NATS and other transports. The log itself always keeps plain JSON."""

    path: ClassVar[str] = "wire"
    compression: str = setting(
        one_of("none", "gzip", "zstd"), "none", "Compress large bodies; zstd needs `sqla-events[zstd]`."
    )
    compress_from: int = setting(INT, 4096, "Bytes from which a body is compressed.", least=0)
    cloudevents: str | None = setting(
        optional(one_of("structured", "binary")), None, "CloudEvents 1.0 in this mode. null: our own JSON."
    )


Pack = Callable[[Message], Message]


def packing(settings: WireSettings) -> Pack | None:
    """What turns a message into its form on the wire; None where that is what it is already.

    :raises ConfigError: for zstd without the package.
    """
    steps: list[Pack] = []
    if settings.cloudevents is not None:
        from .cloudevents import MODES

        steps.append(MODES[settings.cloudevents])
    if settings.compression != "none":
        steps.append(_compressing(settings.compression, settings.compress_from))
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else lambda message: steps[1](steps[0](message))


def unpacked(body: bytes, headers: Mapping[str, str]) -> Event:
    """The event that came with these headers; their names in lower case.

    :raises EventError: where it is not one, or is compressed in a way that cannot be read here.
    """
    if ENCODING in headers:
        body = _decompressed(body, headers[ENCODING])
    if "ce-specversion" in headers or headers.get(TYPE, "").startswith("application/cloudevents"):
        from .cloudevents import event_of

        return event_of(body, headers)
    return decode(body)


# Compression --------------------------------------------------------------------------------------------------------


def _compressing(name: str, least: int) -> Pack:
    compress = _zstd().ZstdCompressor().compress if name == "zstd" else _gzip

    def pack(message: Message) -> Message:
        if len(message.body) < least:
            return message
        small = compress(message.body)
        if len(small) >= len(message.body):
            return message
        return msgspec.structs.replace(message, body=small, headers={**message.headers, ENCODING: name})

    return pack


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=6, mtime=0)  # the same bytes each time: a republished message is the same


def _decompressed(body: bytes, encoding: str) -> bytes:
    try:
        if encoding == "gzip":
            return _gunzip(body)
        if encoding == "zstd":
            return _zstd().ZstdDecompressor().decompress(body, max_output_size=MAX_UNPACKED)  # type: ignore[no-any-return]
    except ConfigError as error:
        raise EventError(str(error)) from error
    except Exception as error:
        raise EventError(f"not an event: its {encoding} body cannot be read: {error}") from error
    raise EventError(f"not an event: {ENCODING} is {encoding!r}; it must be gzip or zstd")


def _gunzip(body: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    text = stream.decompress(body, MAX_UNPACKED)
    if not stream.eof:
        raise ValueError("it ends too early" if not stream.unconsumed_tail else f"it has more than {MAX_UNPACKED} bytes")
    return text


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("compression zstd needs the package zstandard; install 'sqla-events[zstd]'") from error
    return zstandard
