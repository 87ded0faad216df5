"""What the configuration refuses: every error names the key, the value and what is allowed, and no secret."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sqla_events.capture.settings import CaptureSettings
from sqla_events.config import Config, DatabaseSettings, NatsSettings, RedisSettings
from sqla_events.errors import ConfigError
from sqla_events.retry import RetryPolicy


def message(given: Any, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.load(given, **overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"worker_cont": 5}, ["'worker_cont'", "value 5", "did you mean 'worker_count'?", "buffer_size"]),
        ({"redis": {"prot": 1}}, ["'redis.prot'", "value 1", "'port'", "stream_name"]),
        ({"retry_policy": {"retries": 3}}, ["'retry_policy.retries'", "value 3", "max_retries"]),
        ({"capture": {"enable_raed": True}}, ["'capture.enable_raed'", "value True", "'enable_read'"]),
        ({"xyz": "a" * 500}, ["'xyz'", "known are enabled, provider"]),
    ],
)
def test_an_unknown_key(given: dict[str, Any], parts: list[str]) -> None:
    """Where it stands, what was given, what was probably meant, what there is."""
    text = message(given)
    assert all(part in text for part in parts), text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("given", "start", "allowed"),
    [
        ({"enabled": "maybe"}, "enabled is 'maybe'", "true or false"),
        ({"enabled": 2}, "enabled is 2", "true or false"),
        ({"provider": 5}, "provider is 5", "text"),
        ({"mode": "turbo"}, "mode is 'turbo'", "one of async, sync"),
        ({"mode": None}, "mode is None", "one of async, sync"),
        ({"mode": ["sync"]}, "mode is ['sync']", "one of async, sync"),
        ({"worker_count": 0}, "worker_count is 0", "a whole number, at least 1"),
        ({"worker_count": 1.5}, "worker_count is 1.5", "a whole number, at least 1"),
        ({"worker_count": True}, "worker_count is True", "a whole number, at least 1"),
        ({"worker_count": "many"}, "worker_count is 'many'", "a whole number, at least 1"),
        ({"poll_interval": "1 fortnight"}, "poll_interval is '1 fortnight'", "'1h30m', at least 0.001"),
        ({"poll_interval": "0s"}, "poll_interval is '0s'", "at least 0.001"),
        ({"shutdown_timeout": -1}, "shutdown_timeout is -1", "at least 0"),
        ({"shutdown_timeout": float("nan")}, "shutdown_timeout is nan", "seconds as a number"),
        ({"shutdown_timeout": float("inf")}, "shutdown_timeout is inf", "seconds as a number"),
        ({"retention": "0s"}, "retention is '0s'", "or null, at least 1"),
        ({"capture": {"default_schema": ""}}, "capture.default_schema is ''", "the name of a schema, not empty"),
        ({"capture": {"default_schema": None}}, "capture.default_schema is None", "the name of a schema, not empty"),
        ({"redis": {"port": 70000}}, "redis.port is 70000", "at least 1, at most 65535"),
        ({"redis": {"db": -1}}, "redis.db is -1", "at least 0"),
        ({"redis": "localhost"}, "redis is 'localhost'", "a mapping with keys of url, host"),
        ({"redis": None}, "redis is None", "a mapping"),
        ({"nats": {"storage": "disk"}}, "nats.storage is 'disk'", "one of file, memory"),
        ({"retry_policy": {"backoff_factor": 0.5}}, "retry_policy.backoff_factor is 0.5", "at least 1"),
        ({"retry_policy": {"initial_delay": "soon"}}, "retry_policy.initial_delay is 'soon'", "'500ms'"),
        ({"retry_policy": 3}, "retry_policy is 3", "a mapping with keys of max_retries"),
        ({"capture": {"exclude_columns": [1]}}, "capture.exclude_columns is [1]", "a list of texts"),
        ({"capture": {"include": 7}}, "capture.include is 7", "patterns, mapped classes or Tables"),
        (
            {"capture": {"max_payload_bytes": "1 parsec"}},
            "capture.max_payload_bytes is '1 parsec'",
            "'64KB', '1MB', or null, at least 64",
        ),
        ({"capture": {"on_gap": "shrug"}}, "capture.on_gap is 'shrug'", "one of warn, raise, ignore"),
        ({"event_broker": [1]}, "event_broker is [1]", "a mapping"),
        (17, "config is 17", "a Config, a mapping, the path of a YAML file"),
    ],
)
def test_a_wrong_value(given: Any, start: str, allowed: str) -> None:
    """Key, value, what is allowed."""
    text = message(given)
    assert text.startswith(f"{start}; it must be ")
    assert allowed in text


@pytest.mark.parametrize("given", [{"worker_count": 0}, {"redis": {"port": 0}}, {"mode": "turbo"}])
def test_there_is_no_way_around(given: dict[str, Any]) -> None:
    """By name, by keyword, by replace: checked like a file."""
    with pytest.raises(ConfigError):
        Config(**given)
    with pytest.raises(ConfigError):
        Config.load(Config(), **given)
    with pytest.raises(ConfigError):
        dataclasses.replace(Config(), **given)


@pytest.mark.parametrize(
    ("section", "given"),
    [
        (RedisSettings, {"port": "x"}),
        (NatsSettings, {"replicas": 0}),
        (DatabaseSettings, {"listen": 3}),
        (CaptureSettings, {"old_values": 1}),
        (RetryPolicy, {"jitter": -1}),
    ],
)
def test_a_section_by_itself_is_checked_too(section: Any, given: dict[str, Any]) -> None:
    """With its place in the configuration in the message."""
    (key,) = given
    with pytest.raises(ConfigError, match=rf"^{section.path}\.{key} is "):
        section(**given)


def test_an_unset_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with both ways to mend it."""
    monkeypatch.delenv("REDIS_HOST_OF_SHOP", raising=False)
    text = message({"redis": {"host": "${REDIS_HOST_OF_SHOP}"}})
    assert "${REDIS_HOST_OF_SHOP}" in text
    assert "${REDIS_HOST_OF_SHOP:-default}" in text


def test_an_environment_variable_that_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error there is an error here, which names the variables, since nobody wrote the setting."""
    monkeypatch.setenv("SQLA_EVENTS_WORKERS", "4")
    assert "'workers'" in message(None)
    assert message(None).endswith("; the environment has SQLA_EVENTS_WORKERS")
    monkeypatch.delenv("SQLA_EVENTS_WORKERS")
    monkeypatch.setenv("SQLA_EVENTS_RETRY_POLICY", "5")
    monkeypatch.setenv("SQLA_EVENTS_RETRY_POLICY__MAX_RETRIES", "5")
    assert message(None).startswith("retry_policy is '5'; it must be a mapping")


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, not YAML, not UTF-8, not a mapping: said with the path, and without quoting what may be secret."""
    path = tmp_path / "c.yaml"
    assert f"config file {str(path)!r} cannot be read: No such file" in message(path)
    path.write_text("redis:\n  password: hunter2\n  host: [")
    assert f"config file {str(path)!r} is not YAML in line 3" in message(path)
    assert "hunter2" not in message(path)
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in message(path)
    path.write_text("- 1\n- 2\n")
    assert "holds a list; it must hold a mapping" in message(path)


@pytest.mark.parametrize(
    "given",
    [
        {"redis": {"url": 5, "pasword": "hunter2"}},
        {"redis": {"pasword": "hunter2"}},
        {"redis": {"password": ["hunter2"]}},
        {"redis": "redis://u:hunter2@h"},
        {"redis": [{"password": "hunter2"}]},
        {"nats": {"tokn": "x"}, "nats_token": "hunter2"},
        {"mode": "redis://u:hun@ter2hunter2@h"},
        {"mode": "postgresql://h/d?user=u&password=hunter2"},
        {"mode": "redis://u:hun/hunter2@h"},
        {"mode": "x://h?token=hunter2"},
    ],
)
def test_secrets_are_in_no_message(given: dict[str, Any]) -> None:
    """Not of a misspelled key, not of a URL in the wrong place."""
    assert "hunter2" not in message(given)


@pytest.mark.parametrize(
    "text", ["password: *hunter2", "password: !hunter2", "password: !hun'ter2 x", "host: [hunter2\nx: ]"]
)
def test_secrets_are_in_no_message_of_the_yaml_parser(text: str) -> None:
    """A password without quotes may be an alias or a tag to it, which it would quote."""
    told = message(f"redis:\n  {text}\n")
    assert "is not YAML in line" in told
    assert "ter2" not in told


def test_a_url_is_no_name_of_a_provider() -> None:
    """Config() does not take URLs apart, so the password would be in its repr."""
    for make in (Config, lambda **given: dataclasses.replace(Config(), **given)):
        with pytest.raises(ConfigError, match=r"Config\.load\(\)") as caught:
            make(provider="redis://u:hunter2@h")
        assert "hunter2" not in str(caught.value)


def test_numbers_and_dates_that_there_are_not() -> None:
    """Every error of reading is a ConfigError."""
    assert message({"poll_interval": 10**400}).startswith("poll_interval is 1000")
    assert message({"poll_interval": "9" * 400 + "s"}).startswith("poll_interval is '999")
    assert message({"capture": {"max_payload_bytes": "9" * 400 + "k"}}).startswith("capture.max_payload_bytes is")
    assert "not YAML" in message("retention: 2026-13-45\nmode: sync\n")
    assert "cannot be read: embedded null" in message("a\0b")
