"""The configuration: one frozen value, read from YAML, a dict, the environment, a URL or keyword arguments, checked once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..capture.settings import CaptureSettings
from ..errors import ConfigError
from ..retry import RetryPolicy
from ..settings import (
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
from ..wire import WireSettings
from .sources import from_url, given_by, merged, variables


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

    enabled: bool = setting(BOOL, True, "Capture and run; false: nothing is captured, published or delivered.")
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
        given = merged(as_mapping(source) if isinstance(source, Config) else given_by(source), overrides)
        if not overrides and isinstance(source, Config):
            return source
        if "://" in str(given.get("provider")):
            given = from_url(given)
        try:
            return cls.read(given)
        except ConfigError as error:
            if source is None and (names := variables()):  # nobody wrote 'port'; Kubernetes makes variables for its services
                raise ConfigError(f"{error}; the environment has {', '.join(names)}") from None
            raise
