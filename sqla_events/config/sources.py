"""What a configuration is read from: YAML, a mapping, the environment, a provider's URL."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..settings import Section, as_mapping, shown

PREFIX = "SQLA_EVENTS_"


def given_by(source: Any) -> Mapping[str, Any]:
    """The settings that a source gives; None is the environment.

    :raises ConfigError: for a file that cannot be read, text that is not YAML, or what is no source.
    """
    if source is None:
        return _environment()
    if isinstance(source, Mapping):
        return _unwrapped(source)
    if isinstance(source, str) and "\n" in source:
        return _yaml(source, "the YAML text")
    if isinstance(source, str) and "://" in source:
        return from_url({"provider": source})  # what it says stays where an override names another provider
    if isinstance(source, (str, os.PathLike)):
        return _file(Path(source))
    raise ConfigError(
        f"config is {shown(source)}; "
        "it must be a Config, a mapping, the path of a YAML file, YAML text, a provider URL or None"
    )


_SCHEMES = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "nats": "nats",
    "tls": "nats",
    "ws": "nats",
    "wss": "nats",
    "postgresql": "database",
    "sqlite": "database",
}
"""The provider that a URL means; another scheme is the name of its provider."""


def from_url(given: Mapping[str, Any]) -> dict[str, Any]:
    """``provider`` as a URL, taken apart: the provider's name, and the URL in its section."""
    url = str(given["provider"])
    scheme = url.partition("://")[0].lower().partition("+")[0]
    name = _SCHEMES.get(scheme, scheme)
    values = {**given, "provider": name}
    if scheme == name == "database":
        return values
    return merged(values, {name: {"url": url}} if name in ("redis", "nats", "database") else {"provider_url": url})


def merged(given: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Both; an override wins, one for a section adds to what the section has."""
    both = dict(given)
    for key, value in overrides.items():
        held = both.get(key)
        held = as_mapping(held) if isinstance(held, Section) else held
        both[key] = {**held, **value} if isinstance(value, Mapping) and isinstance(held, Mapping) else value
    return both


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
    for name in variables():
        outer, _, inner = name.removeprefix(PREFIX).lower().partition("__")
        holder, key = (given.setdefault(outer, {}), inner) if inner else (given, outer)
        if isinstance(holder, dict):
            holder[key] = os.environ[name]
    return given


def variables() -> list[str]:
    """Names of the environment variables that are settings."""
    return sorted(name for name in os.environ if name.startswith(PREFIX))
