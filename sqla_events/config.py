"""The configuration: one frozen value, read from YAML, a dict, the environment, a URL or keyword arguments, checked once."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .capture.settings import CaptureSettings
from .errors import ConfigError
from .retry import RetryPolicy
from .settings import (
    BOOL,
    DURATION,
    INT,
    MAPPING,
    SIZE,
    TEXT,
    Section,
    as_mapping,
    one_of,
    optional,
    section,
    setting,
    shown,
)
from .wire import WireSettings

PREFIX = "SQLA_EVENTS_"


@dataclass(frozen=True)
class RedisSettings(Section):
    """Provider `redis`: one stream, with consumer groups."""

    path: ClassVar[str] = "redis"
    url: str | None = setting(
        optional(TEXT),
        None,
        "`redis://`, `rediss://`, `redis+sentinel://` or `redis+cluster://`; wins over host, port, db.",
        secret=True,
    )
    host: str = setting(TEXT, "localhost", "Server.")
    port: int = setting(INT, 6379, "Port.", least=1, most=65535)
    db: int = setting(INT, 0, "Database number.", least=0)
    username: str | None = setting(optional(TEXT), None, "ACL user.")
    password: str | None = setting(optional(TEXT), None, "Password.", secret=True)
    stream_name: str = setting(
        TEXT, "sqla-events", "Key of the stream; further keys of ours start with it in braces: `{sqla-events}:…`."
    )
    consumer_group: str | None = setting(
        optional(TEXT), None, "Consumer group on this provider; null: `consumer_group`."
    )
    max_len: int | None = setting(
        optional(INT),
        None,
        "Entries that the stream keeps; older ones go once every group has acknowledged them. null: all.",
        least=1,
    )
    max_age: float | None = setting(
        optional(DURATION),
        None,
        "Seconds after which entries go that every group has acknowledged. null: never.",
        least=0,
    )
    trim_unread: bool = setting(
        BOOL, False, "Let `max_len` and `max_age` also remove what a group has not acknowledged: loses events."
    )
    max_event_bytes: int = setting(
        SIZE, 32 * 2**20, "A larger event is rejected and becomes a dead letter of the relay.", least=1
    )


@dataclass(frozen=True)
class NatsSettings(Section):
    """Provider `nats`: one JetStream stream, a durable consumer for each group."""

    path: ClassVar[str] = "nats"
    url: str = setting(TEXT, "nats://localhost:4222", "Server, or several with commas.", secret=True)
    stream_name: str = setting(TEXT, "SQLA_EVENTS", "JetStream stream; created if it is missing, verified if not.")
    subject_prefix: str = setting(TEXT, "events", "Subjects are this, a dot, and the event type.")
    storage: str = setting(one_of("file", "memory"), "file", "Where the stream keeps its messages.")
    max_age: float | None = setting(optional(DURATION), None, "Seconds after which messages go. null: never.", least=0)
    max_bytes: int | None = setting(optional(INT), None, "Size of the stream. null: no limit.", least=1)
    replicas: int = setting(INT, 1, "Copies of the stream in a cluster.", least=1)
    duplicate_window: float = setting(
        DURATION, 120.0, "Seconds within which the server drops a message id that it has seen.", least=0
    )
    ack_wait: float = setting(
        DURATION,
        30.0,
        "Seconds after which the server redelivers what nobody settled; extended while a handler works.",
        least=0.1,
    )
    max_deliver: int | None = setting(
        optional(INT),
        None,
        "Deliveries of an event after which, still not settled, it becomes a dead letter: it kills its consumers. null: no limit.",
        least=1,
    )
    credentials: str | None = setting(optional(TEXT), None, "Path of a credentials file (JWT and key).")
    nkey_seed: str | None = setting(optional(TEXT), None, "Path of a file with the seed of an NKey.")
    user: str | None = setting(optional(TEXT), None, "User.")
    password: str | None = setting(optional(TEXT), None, "Password.", secret=True)
    token: str | None = setting(optional(TEXT), None, "Token.", secret=True)
    tls_ca: str | None = setting(
        optional(TEXT), None, "Path of the certificates that the server's is checked with. null: the system's."
    )
    tls_certificate: str | None = setting(optional(TEXT), None, "Path of our own certificate, where the server asks for one.")
    tls_key: str | None = setting(optional(TEXT), None, "Path of its key. null: in the same file.")


@dataclass(frozen=True)
class DatabaseSettings(Section):
    """The log itself, whatever the provider."""

    path: ClassVar[str] = "database"
    url: str | None = setting(
        optional(TEXT), None, "Its database, for `connect()` in a process that has no engine of its own.", secret=True
    )
    table_name: str = setting(TEXT, "events", "The log's table; the others derive from it (`event_positions`, …).")
    schema: str | None = setting(optional(TEXT), None, "The database schema of these tables. null: the default one.")
    channel: str = setting(TEXT, "sqla_events", "PostgreSQL notification channel of the doorbell.")
    poll_interval: float | None = setting(
        optional(DURATION), None, "Seconds; the provider's own `poll_interval`. null: the general one.", least=0.001
    )
    listen: bool = setting(
        BOOL,
        True,
        "LISTEN on the channel (provider `database`); off behind a transaction pooler. Polling finds everything all the same.",
    )
    partition_size: int = setting(
        INT,
        1_000_000,
        "Numbers of a new range partition of the log, where it has such (`sqla-events migrate --partitioned`).",
        least=1000,
    )


@dataclass(frozen=True)
class Config(Section):
    """Everything that can be set. Make it with :meth:`load`, or by name: unknown or wrong values are errors either way."""

    enabled: bool = setting(BOOL, True, "Capture and run; false: the broker does nothing.")
    provider: str = setting(
        TEXT,
        "memory",
        "What carries events: memory, database, redis, nats, or the name of another that is installed; or its URL.",
    )
    provider_url: str | None = setting(
        optional(TEXT), None, "URL of a provider that is not ours, as it was given for `provider`.", secret=True
    )
    options: dict[str, Any] = setting(
        MAPPING, {}, "Settings of a provider that is not ours, as it documents them.", secret=True
    )
    destinations: dict[str, Any] = setting(
        MAPPING,
        {},
        "Further transports that every event is relayed to: a name (its position is kept under it) and a provider's URL, "
        "or a mapping of settings as here.",
        secret=True,
    )
    mode: str = setting(
        one_of("async", "sync"),
        "async",
        "async: handlers run in the background. sync: commit() and publish() return after the handlers.",
    )
    worker_count: int = setting(INT, 10, "Handlers that run at the same time.", least=1)
    buffer_size: int = setting(
        INT, 1000, "Events in hand at most: delivered and not settled, or published and not stored.", least=1
    )
    instance_id: str = setting(TEXT, "", "Name of this process in events and leases. Empty: host name and process id.")
    consumer_group: str = setting(
        TEXT, "default", "Group of subscriptions that name none. Every process of a group must subscribe alike."
    )
    retry_policy: RetryPolicy = section(RetryPolicy, "Retries of handlers that fail.")
    handler_timeout: float | None = setting(
        optional(DURATION), None, "Seconds an attempt of a coroutine handler may take. null: any time.", least=0
    )
    shutdown_timeout: float = setting(DURATION, 30.0, "Seconds that stop() lets handlers finish.", least=0)
    sync_timeout: float = setting(
        DURATION,
        30.0,
        "Seconds that commit() waits for handlers in mode sync, then it returns with a warning.",
        least=0,
    )
    batch_size: int = setting(INT, 1000, "Events read and published at once, at most.", least=1)
    poll_interval: float = setting(
        DURATION,
        1.0,
        "Seconds between looks at the log when nothing happens; much less when something does.",
        least=0.001,
    )
    lease: float = setting(
        DURATION, 5.0, "Seconds after which a standby takes over from a process that is gone.", least=0.5
    )
    partitions: int = setting(
        INT, 1, "Leases that a group is split into. Changing it on a live system: see docs/operations.md.", least=1
    )
    retention: float | None = setting(
        optional(DURATION),
        None,
        "Seconds that events are kept after they were created, once every group is through. null: for ever.",
        least=1,
    )
    redis: RedisSettings = section(RedisSettings, "Provider redis.")
    nats: NatsSettings = section(NatsSettings, "Provider nats.")
    database: DatabaseSettings = section(DatabaseSettings, "The log.")
    wire: WireSettings = section(WireSettings, "How events look on a transport.")
    capture: CaptureSettings = section(CaptureSettings, "What is captured.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "://" in self.provider:
            raise ConfigError(f"provider is {shown(self.provider)}; Config.load() reads URLs, Config() takes names")
        for name in self.destinations:
            self.destination(name)
        if not self.instance_id:
            object.__setattr__(self, "instance_id", f"{socket.gethostname()}-{os.getpid()}")

    @property
    def default_group(self) -> str:
        """The consumer group of subscriptions that name none: ``redis.consumer_group`` may say it for that provider."""
        own = self.redis.consumer_group if self.provider == "redis" else None
        return own or self.consumer_group

    def destination(self, name: str) -> Config:
        """What a destination's provider is made with: these settings, with those that the destination has of its own.

        :raises ConfigError: for one that is neither URL nor settings, or that has the log for a transport.
        """
        given = self.destinations[name]
        own = {"provider": given} if isinstance(given, str) else given
        if not isinstance(own, Mapping) or "provider" not in own:
            raise ConfigError(
                f"destinations.{name} is {shown(given)}; it must be a provider's URL, or settings with a provider"
            )
        made = Config.load({**as_mapping(self), "destinations": {}}, **own)
        if name == self.provider:
            raise ConfigError(f"destinations.{name} has the name of the provider, whose position it would share")
        if made.provider in ("memory", "database"):
            raise ConfigError(
                f"destinations.{name} is {made.provider!r}, which reads the log itself; it needs no destination"
            )
        return made

    @classmethod
    def load(
        cls, source: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None, **overrides: Any
    ) -> Config:
        """Read a configuration.

        :param source: a Config; a mapping (with or without ``event_broker`` around it); the path of a YAML file, or its
            text; a provider URL such as ``redis://host/0``; None: the environment variables ``SQLA_EVENTS_…``, where two
            underscores separate section and key (``SQLA_EVENTS_RETRY_POLICY__MAX_RETRIES=5``).
        :param overrides: single settings that win; a mapping for a section adds to what the section has.
        :raises ConfigError: naming key, value and what is allowed.
        """
        given = _merged(_given(source), overrides)
        if not overrides and isinstance(source, Config):
            return source
        if "://" in str(given.get("provider")):
            given = _from_url(given)
        return cls.read(given)


_SCHEMES = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "nats": "nats",
    "tls": "nats",
    "ws": "nats",
    "wss": "nats",
}


def _from_url(given: Mapping[str, Any]) -> dict[str, Any]:
    """``provider`` as a URL, taken apart: the provider's name, and the URL in its section."""
    url = str(given["provider"])
    scheme = url.partition("://")[0].lower().partition("+")[0]
    name = {"postgresql": "database", "sqlite": "database"}.get(scheme, _SCHEMES.get(scheme, scheme))
    values = {**given, "provider": name}
    if scheme == name == "database":
        return values
    return _merged(values, {name: {"url": url}} if name in ("redis", "nats", "database") else {"provider_url": url})


# Sources ------------------------------------------------------------------------------------------------------------


def _given(source: Any) -> Mapping[str, Any]:
    if source is None:
        return _environment()
    if isinstance(source, Config):
        return as_mapping(source)
    if isinstance(source, Mapping):
        return _unwrapped(source)
    if isinstance(source, str) and "\n" in source:
        return _yaml(source, "the YAML text")
    if isinstance(source, str) and "://" in source:
        return _from_url({"provider": source})  # what it says stays where an override names another provider
    if isinstance(source, (str, os.PathLike)):
        return _file(Path(source))
    raise ConfigError(
        f"config is {shown(source)}; "
        "it must be a Config, a mapping, the path of a YAML file, YAML text, a provider URL or None"
    )


def _file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {str(path)!r} is not UTF-8 text") from error
    except ValueError as error:  # a NUL character in the path
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    return _yaml(text, f"config file {str(path)!r}")


_QUOTATION = re.compile(r""" ['"](?!<|.['"])""")
"""Where a problem begins to quote the text: an unquoted password that starts with ``*`` or ``!`` is an alias or a tag."""


def _yaml(text: str, name: str) -> Mapping[str, Any]:
    """What a YAML text says. Its errors are told without quoting the text, which may hold passwords."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = _QUOTATION.split(getattr(error, "problem", None) or "unreadable")[0]
        raise ConfigError(f"{name} is not YAML{where}: {problem}") from None
    except ValueError:  # 2026-13-45 looks like a date
        raise ConfigError(f"{name} is not YAML: it holds a date or number that there is not") from None
    if not isinstance(content, Mapping):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(
            f"{name} holds {found}; it must hold a mapping, with or without the key event_broker"
        )
    return _unwrapped(content)


def _unwrapped(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is under ``event_broker`` where that is there (other keys beside it belong to others), variables replaced."""
    inner = given.get("event_broker", given)
    if inner is None:  # the bare key, everything under it commented out
        return {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"event_broker is {shown(inner)}; it must be a mapping")
    return {key: _expanded(value) for key, value in inner.items()}


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expanded(value: Any) -> Any:
    """The value with every variable in its texts replaced."""
    if isinstance(value, str):
        return _VARIABLE.sub(_variable, value)
    if isinstance(value, Mapping):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return value


def _variable(match: re.Match[str]) -> str:
    name, default = match[1], match[2]
    if found := os.environ.get(name):
        return found
    if default is not None:
        return default
    if name == "HOSTNAME":  # shells set it, service managers often do not
        return socket.gethostname()
    raise ConfigError(
        f"the configuration uses ${{{name}}}, and that environment variable is not set; "
        f"set it, or write ${{{name}:-default}}"
    )


def _environment() -> dict[str, Any]:
    """Sorted, so that a section's own variable (which is an error) comes before those of its settings."""
    given: dict[str, Any] = {}
    for name in sorted(os.environ):
        if name.startswith(PREFIX):
            outer, _, inner = name.removeprefix(PREFIX).lower().partition("__")
            holder, key = (given.setdefault(outer, {}), inner) if inner else (given, outer)
            if isinstance(holder, dict):
                holder[key] = os.environ[name]
    return given


def _merged(given: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for key, value in overrides.items():
        held = merged.get(key)
        held = as_mapping(held) if isinstance(held, Section) else held
        merged[key] = {**held, **value} if isinstance(value, Mapping) and isinstance(held, Mapping) else value
    return merged
