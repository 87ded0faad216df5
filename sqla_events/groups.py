"""The consumer groups of a broker: who subscribes to what, and whose events wait because somebody paused them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import Config
from .retry import RetryPolicy
from .subscription import Handler, Subscription, Subscriptions, is_coroutine_function, name_of, patterns_of


class Groups:
    """Subscriptions by group. A group that is not named is the configured one. The caller holds the broker's lock."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.by_name: dict[str, Subscriptions] = {}

    def add(
        self,
        handler: Handler,
        targets: Sequence[Any],
        group: str | None,
        name: str | None,
        policy: RetryPolicy | None,
        timeout: float | None,
        retry_on: tuple[type[BaseException], ...],
    ) -> str:
        """Subscribe a handler, with the configured policy and timeout where it has none; returns the group's name.

        :raises EventError: for a target that is neither a pattern nor a mapped class.
        :raises ConfigError: for a name that the group has already, or a timeout that cannot be kept.
        """
        group = self._name(group)
        subscriptions = self.by_name.setdefault(group, Subscriptions())
        name = name or subscriptions.free_name(name_of(handler))
        patterns = patterns_of(targets, self._config.capture.default_schema)
        if timeout is None and is_coroutine_function(handler):
            timeout = self._config.handler_timeout
        policy = policy or self._config.retry_policy
        subscriptions.add(Subscription(name, patterns, handler, group, policy, timeout, retry_on))
        return group

    def remove(self, handler: Handler, group: str | None) -> str:
        """Take every subscription of a handler out of a group; returns the group's name."""
        subscriptions = self._of(group)
        for subscription in [one for one in subscriptions if one.handler == handler]:  # a bound method is a new object each time
            subscriptions.remove(subscription.name)
        return self._name(group)

    def pause(self, subscription: Handler | str, group: str | None) -> None:
        """Hold back what is for this subscription, in this process.

        :raises ConfigError: if the group has none such.
        """
        subscriptions = self._of(group)
        subscriptions.paused.update(subscriptions.named(subscription))

    def resume(self, subscription: Handler | str, group: str | None) -> list[tuple[str, str]]:
        """Hold it back no longer; returns group and name of the subscriptions that were meant.

        :raises ConfigError: if the group has none such.
        """
        subscriptions = self._of(group)
        names = subscriptions.named(subscription)
        subscriptions.paused.difference_update(names)
        return [(self._name(group), name) for name in names]

    def targets(self, subscription: Handler | str, group: str | None) -> list[tuple[str, str]]:
        """Group and name of the subscriptions that are meant.

        A process without subscriptions in the group (the command line) takes a name as it is.

        :raises ConfigError: if the group has others, and none such.
        """
        known = self._of(group)
        names = [subscription] if isinstance(subscription, str) and not known else known.named(subscription)
        return [(self._name(group), name) for name in names]

    def _of(self, group: str | None) -> Subscriptions:
        return self.by_name.get(self._name(group), Subscriptions())

    def _name(self, group: str | None) -> str:
        return group or self._config.default_group
