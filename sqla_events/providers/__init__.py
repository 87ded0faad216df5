"""Providers by name: those that are installed under the entry point group ``sqla_events.providers``, ours among them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import ConfigError
from ..provider import Provider, ProviderContext

GROUP = "sqla_events.providers"

OURS = {
    "memory": "sqla_events.providers.memory:MemoryProvider",
    "database": "sqla_events.providers.database:DatabaseProvider",
    "redis": "sqla_events.providers.redis:RedisProvider",
    "nats": "sqla_events.providers.nats:NatsProvider",
}
"""Known also where the package's metadata is not installed (a source tree on the path)."""


def load(config: Any, context: ProviderContext) -> Provider:
    """Make the provider that the configuration names: ``factory(config, context)``.

    :raises ConfigError: if nothing is installed under the name, or what it needs is not installed.
    """
    return _factory(config.provider)(config, context)  # type: ignore[no-any-return]


def _factory(name: str) -> Any:
    installed = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    target = {**OURS, **installed}.get(name)
    if target is None:
        raise ConfigError(f"provider is {name!r}; installed are {', '.join(sorted({**OURS, **installed}))}")
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"provider {name!r} needs the package {error.name}; install it: pip install 'sqla-events[{name}]'") from error
