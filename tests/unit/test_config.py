"""The configuration: where it may come from. What it refuses is in test_config_errors.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sqla_events.cli import main
from sqla_events.config import Config, RedisSettings
from sqla_events.retry import RetryPolicy
from sqla_events.settings import read_duration


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test itself sets."""
    for name in [name for name in os.environ if name.startswith("SQLA_EVENTS_")]:
        monkeypatch.delenv(name)


# The blocks of the event broker that this library reimplements: users move over with them unchanged.
BLOCKS: list[tuple[str, dict[str, Any]]] = [
    (
        """
event_broker:
  enabled: true
  provider: memory  # memory, redis, nats, database
  mode: async       # sync, async
  worker_count: 10
  buffer_size: 1000
  instance_id: "${HOSTNAME}"
""",
        {
            "enabled": True,
            "provider": "memory",
            "mode": "async",
            "worker_count": 10,
            "buffer_size": 1000,
            "instance_id": "host-7",
        },
    ),
    ("event_broker:\n  provider: memory\n", {"provider": "memory"}),
    (
        """
event_broker:
  provider: redis
  redis:
    stream_name: "resolvespec:events"
    consumer_group: "resolvespec-workers"
    host: "localhost"
    port: 6379
""",
        {
            "provider": "redis",
            "redis.stream_name": "resolvespec:events",
            "redis.consumer_group": "resolvespec-workers",
            "redis.host": "localhost",
            "redis.port": 6379,
        },
    ),
    (
        """
event_broker:
  provider: nats
  nats:
    url: "nats://localhost:4222"
    stream_name: "RESOLVESPEC_EVENTS"
""",
        {"provider": "nats", "nats.url": "nats://localhost:4222", "nats.stream_name": "RESOLVESPEC_EVENTS"},
    ),
    (
        """
event_broker:
  provider: database
  database:
    table_name: "events"
    channel: "resolvespec_events"
""",
        {"provider": "database", "database.table_name": "events", "database.channel": "resolvespec_events"},
    ),
    (
        "event_broker:\n  mode: async\n  worker_count: 10\n  buffer_size: 1000\n",
        {"mode": "async", "worker_count": 10, "buffer_size": 1000},
    ),
    ("event_broker:\n  mode: sync\n", {"mode": "sync"}),
    (
        """
event_broker:
  retry_policy:
    max_retries: 3
    initial_delay: 1s
    max_delay: 30s
    backoff_factor: 2.0  # Exponential backoff
""",
        {"retry_policy": RetryPolicy(max_retries=3, initial_delay=1.0, max_delay=30.0, backoff_factor=2.0)},
    ),
]


def value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("wrapping", ["whole", "among other keys", "unwrapped"])
@pytest.mark.parametrize(("block", "expected"), BLOCKS)
def test_the_blocks_of_the_event_broker_load_unchanged(
    block: str, expected: dict[str, Any], wrapping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of its own, inside an application's config.yaml, and without the outer key."""
    monkeypatch.setenv("HOSTNAME", "host-7")
    path = tmp_path / "config.yaml"
    if wrapping == "unwrapped":
        block = "\n".join(line.removeprefix("  ") for line in block.splitlines() if not line.startswith("event_broker"))
    path.write_text(f"server:\n  port: 8080\n{block}\nlog_level: info\n" if wrapping == "among other keys" else block)
    for source in (path, str(path)):
        config = Config.load(source)
        assert {name: value_at(config, name) for name in expected} == expected


def test_yaml_text_loads_like_a_file() -> None:
    """What has more than one line is text, not a path."""
    assert Config.load("event_broker:\n  worker_count: 3\n").worker_count == 3


def test_an_empty_block_is_all_defaults() -> None:
    """Everything under the key commented out."""
    assert Config.load("event_broker:\n  # provider: redis\n") == Config()


def test_a_dict_with_and_without_the_outer_key() -> None:
    """And lists for what is many."""
    assert Config.load({"event_broker": {"mode": "sync"}}) == Config.load({"mode": "sync"})
    assert Config.load({"capture": {"exclude": ["public.audit_*"]}}).capture.exclude == ("public.audit_*",)


def test_keyword_arguments_win_and_sections_add_up() -> None:
    """A mapping for a section changes what it names and leaves the rest."""
    config = Config.load({"worker_count": 2, "redis": {"host": "a", "port": 7000}}, worker_count=4, redis={"host": "b"})
    assert (config.worker_count, config.redis.host, config.redis.port) == (4, "b", 7000)


def test_a_config_is_taken_as_it_is_and_can_be_changed() -> None:
    """Changes of a Config go through the same reading as everything else."""
    config = Config.load(worker_count=2, retry_policy={"max_retries": 7})
    assert Config.load(config) is config
    changed = Config.load(config, retry_policy={"initial_delay": "250ms"}, provider="redis://h:1/2")
    assert changed.retry_policy == RetryPolicy(max_retries=7, initial_delay=0.25)
    assert (changed.provider, changed.redis.url, changed.worker_count) == ("redis", "redis://h:1/2", 2)


def test_a_retry_policy_object_is_a_section_too() -> None:
    """As is any other section's dataclass."""
    assert Config.load(retry_policy=RetryPolicy(max_retries=1)).retry_policy.max_retries == 1


def test_the_environment_names_settings_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two underscores lead into a section; lists have commas; nothing is null or empty."""
    for name, value in {
        "PROVIDER": "redis://h/1",
        "ENABLED": "no",
        "RETRY_POLICY__MAX_RETRIES": "5",
        "RETRY_POLICY__MAX_DELAY": "1m",
        "CAPTURE__EXCLUDE": "public.a, public.b",
        "CAPTURE__MAX_PAYLOAD_BYTES": "64KB",
        "RETENTION": "null",
        "REDIS__STREAM_NAME": "s",
    }.items():
        monkeypatch.setenv(f"SQLA_EVENTS_{name}", value)
    config = Config.load()
    assert (config.provider, config.redis.url, config.redis.stream_name, config.enabled) == (
        "redis",
        "redis://h/1",
        "s",
        False,
    )
    assert (config.retry_policy.max_retries, config.retry_policy.max_delay, config.retention) == (5, 60.0, None)
    assert (config.capture.exclude, config.capture.max_payload_bytes) == (("public.a", "public.b"), 65536)
    assert Config.load({}).provider == "memory"  # only where no other source is given


@pytest.mark.parametrize(
    ("url", "provider", "section"),
    [
        ("memory://", "memory", None),
        ("redis://h:6379/0", "redis", "redis"),
        ("REDIS://h", "redis", "redis"),
        ("redis://[::1]:6379/0", "redis", "redis"),
        ("redis://[half", "redis", "redis"),
        ("unix:///run/redis.sock", "redis", "redis"),
        ("rediss://u:p@h", "redis", "redis"),
        ("redis+sentinel://h:26379/mymaster", "redis", "redis"),
        ("nats://h:4222", "nats", "nats"),
        ("tls://h:4222", "nats", "nats"),
        ("database://", "database", None),
        ("postgresql+psycopg://u:p@h/d", "database", None),
        ("sqlite:///app.db", "database", None),
        ("kafka://h", "kafka", None),
    ],
)
def test_a_url_names_the_provider(url: str, provider: str, section: str | None) -> None:
    """As the whole configuration or as the value of provider; the URL goes to the provider's section."""
    for config in (Config.load(url), Config.load({"provider": url}), Config.load(provider=url)):
        assert config.provider == provider
        if section:
            assert getattr(config, section).url == url


def test_variables_expand_wherever_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a default where there is one, and inside lists and sections."""
    monkeypatch.setenv("SHOP_STREAM", "shop")
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    config = Config.load(
        {
            "redis": {
                "stream_name": "${SHOP_STREAM}:events",
                "host": "${NOT_SET_ANYWHERE:-db}",
                "password": "${NOT_SET_ANYWHERE:-}",
            },
            "capture": {"exclude": ["public.${SHOP_STREAM}"]},
        }
    )
    assert (config.redis.stream_name, config.redis.host, config.redis.password) == ("shop:events", "db", None)
    assert config.capture.exclude == ("public.shop",)


def test_hostname_is_known_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Service managers do not set HOSTNAME."""
    monkeypatch.delenv("HOSTNAME", raising=False)
    assert Config.load({"instance_id": "${HOSTNAME}"}).instance_id == socket.gethostname()


def test_an_instance_without_a_name_is_host_and_process() -> None:
    """So two processes of one host differ."""
    assert Config.load().instance_id == f"{socket.gethostname()}-{os.getpid()}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("250us", 0.00025),
        ("1.5s", 1.5),
        ("3", 3),
        (3, 3),
        (0.25, 0.25),
        ("1H", 3600),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    """As Go writes them; plain numbers are seconds."""
    assert read_duration(text) == pytest.approx(seconds)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    """Parts in a row are a sum."""
    assert read_duration(f"{hours}h{minutes}m{seconds}s{milliseconds}ms") == pytest.approx(
        hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    )


def test_passwords_are_in_no_repr() -> None:
    """A Config may be logged."""
    config = Config.load(
        "redis://user:hunter2@h/0",
        redis={"password": "hunter3"},
        nats={"url": "nats://u:hunter2@h", "token": "hunter4"},
    )
    assert "hunter" not in repr(config)
    assert config.redis.password == "hunter3"


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    """`sqla-events settings` prints it."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    printed = CliRunner().invoke(main, ["settings"])
    assert printed.exit_code == 0
    assert printed.stdout in text
    assert all(f"`{name}`" in printed.stdout for name in ("worker_count", "max_retries", "stream_name", "on_gap"))


def test_a_section_object_is_added_to_like_a_mapping() -> None:
    """Neither an override nor the provider's URL may drop what it says."""
    section = RedisSettings(stream_name="s", password="p")
    for config in (
        Config.load({"redis": section}, redis={"host": "h"}),
        Config.load({"provider": "redis://h", "redis": section}),
        Config.load(provider="redis://h", redis=section),
    ):
        assert (config.redis.stream_name, config.redis.password) == ("s", "p")
    assert Config.load({"redis": {"host": "h"}}, redis=section).redis == section


def test_a_database_beside_another_provider() -> None:
    """``connect("postgresql://…", provider="redis://…")``: the log is there, the transport elsewhere."""
    config = Config.load("postgresql://h/shop", provider="redis://r/0", database={"listen": False})
    assert (config.provider, config.redis.url) == ("redis", "redis://r/0")
    assert (config.database.url, config.database.listen) == ("postgresql://h/shop", False)
