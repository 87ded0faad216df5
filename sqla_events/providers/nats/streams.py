"""The streams that a provider needs: made where they are missing, compared with the settings where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import NatsSettings
from ...errors import ConfigError, ProviderUnavailable
from .jetstream import STREAM_MISSING, Bucket, JetStream, Refused

NO_CLUSTER = 10074
"""More than one replica asked of a server that has no others."""
IN_USE = 10058
"""Another process made the stream at the same moment."""


def nanoseconds(seconds: float | None) -> int:
    """As the API has durations; 0: none."""
    return int((seconds or 0) * 1e9)


def main_stream(given: NatsSettings) -> dict[str, Any]:
    """The stream of events. ``discard new``: a full one refuses what comes, which stays in the log, and keeps what nobody has read."""
    window = given.duplicate_window if not given.max_age else min(given.duplicate_window, given.max_age)
    return {
        "name": given.stream_name,
        "subjects": [f"{given.subject_prefix}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": given.storage,
        "num_replicas": given.replicas,
        "max_age": nanoseconds(given.max_age),
        "max_bytes": given.max_bytes or -1,
        "duplicate_window": nanoseconds(window),
    }


def side_stream(given: NatsSettings, definition: Mapping[str, Any]) -> dict[str, Any]:
    """A stream of our own beside it, kept as safely."""
    return {"storage": given.storage, "num_replicas": given.replicas, "retention": "limits", **definition}


def dead_stream(stream: str) -> dict[str, Any]:
    """Dead letters: the last one of each group, subscription and event."""
    name = dead_name(stream)
    return {"name": name, "subjects": [f"{name}.>"], "max_msgs_per_subject": 1, "discard": "old"}


def dead_name(stream: str) -> str:
    """The stream of the dead letters of a stream."""
    return f"{stream}_DEAD"


async def ensure(jetstream: JetStream, given: NatsSettings, bucket: Bucket) -> None:
    """All three are there and as set.

    :raises ConfigError: if the stream is there and is not what the settings say; names each difference.
    :raises ProviderUnavailable: if they cannot be made now.
    """
    wanted = main_stream(given)
    found = await _made(jetstream, wanted)
    if differences := _differences(wanted, found):
        raise ConfigError(
            f"stream {given.stream_name!r} is not what the settings say: {'; '.join(differences)}. "
            f"Change the settings (section nats), or the stream: nats stream edit {given.stream_name}"
        )
    await _made(jetstream, side_stream(given, bucket.definition))
    await _made(jetstream, side_stream(given, dead_stream(given.stream_name)))


async def _made(jetstream: JetStream, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the stream, which is created if there is none."""
    name = wanted["name"]
    for _ in range(3):
        try:
            return dict((await jetstream.call(f"STREAM.INFO.{name}"))["config"])
        except Refused as error:
            if error.number != STREAM_MISSING:
                raise _cannot(name, error) from error
        try:
            return dict((await jetstream.call(f"STREAM.CREATE.{name}", wanted))["config"])
        except Refused as error:
            if error.number != IN_USE:
                raise _cannot(name, error) from error
    raise ProviderUnavailable(f"stream {name!r} comes and goes")


def _cannot(name: str, error: Refused) -> Exception:
    if error.number == NO_CLUSTER or error.code == 400:
        return ConfigError(f"stream {name!r} cannot be made as the settings (section nats) say: {error}")
    return ProviderUnavailable(f"stream {name!r} cannot be made now: {error}")


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    told = [
        f"{name} is {_shown(name, found.get(name))} there and {_shown(name, wanted[name])} here"
        for name in ("retention", "storage", "num_replicas", "max_age", "max_bytes", "duplicate_window", "discard")
        if (found.get(name) or 0) != (wanted[name] or 0) and not (name == "duplicate_window" and not wanted[name])
    ]
    if not any(_covers(one, wanted["subjects"][0]) for one in found.get("subjects") or ()):
        told.append(f"its subjects are {', '.join(found.get('subjects') or ['none'])} and ours are {wanted['subjects'][0]}")
    if found.get("sealed") or found.get("no_ack"):
        told.append("it is sealed, or acknowledges nothing")
    return told


def _shown(name: str, value: Any) -> str:
    if name in ("max_age", "duplicate_window"):
        return f"{(value or 0) / 1e9:g} s"
    return str(value)


def _covers(wide: str, narrow: str) -> bool:
    """Whether all subjects of one filter are subjects of the other."""
    wanted, given = narrow.split("."), wide.split(".")
    for number, part in enumerate(given):
        if part == ">":
            return len(wanted) > number
        if number >= len(wanted) or wanted[number] == ">" or part not in ("*", wanted[number]):
            return False
    return len(given) == len(wanted)
