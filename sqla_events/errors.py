"""What can go wrong, one class for each thing a caller would do differently about it.

SQLAlchemyEventsError            the root: catch it to catch everything of ours
├── ConfigError                  fix the configuration (also a ValueError)
├── SchemaError                  run the migration; the message names the command
├── EventError                   fix the event or the pattern (also a ValueError)
├── CaptureError                 a write could not be captured: its flush fails with it
├── ProviderError                something between us and the transport
│   ├── ProviderUnavailable      transient: back off and try again, for ever
│   └── PublishRejected          permanent, for this one event: it becomes a dead letter
├── LeaseLost                    another relay owns the partition: stop at once, write nothing
└── DeliveryFailed               publish_sync: a handler failed for good

Reject, RetryLater               not failures of ours: a *handler* raises them to say what happens next
"""

from __future__ import annotations


class SQLAlchemyEventsError(Exception):
    """The root of every error that this library raises."""


class ConfigError(SQLAlchemyEventsError, ValueError):
    """A setting is unknown, of the wrong type or out of range. The message names key, value and what is allowed."""


class SchemaError(SQLAlchemyEventsError):
    """The event tables are missing or outdated. The message names the command that creates or upgrades them."""


class EventError(SQLAlchemyEventsError, ValueError):
    """An event, a pattern or a payload value is not valid. The message says which part, which value and what to do."""


class CaptureError(SQLAlchemyEventsError):
    """A write could not be turned into an event, so its flush fails and nothing of it is committed."""


class ProviderError(SQLAlchemyEventsError):
    """A provider failed. Raise one of its two children where it matters whether trying again can help."""


class ProviderUnavailable(ProviderError):
    """The transport does not answer now. Nothing is lost: the log keeps the events until it does."""


class PublishRejected(ProviderError):
    """The transport will never take this event (too large, not encodable). It is buried and holds up nobody.

    ``event_id`` is the id of the event that was refused.
    """

    def __init__(self, event_id: str, reason: str) -> None:
        super().__init__(f"event {event_id} was rejected: {reason}")
        self.event_id = event_id
        self.reason = reason


class LeaseLost(SQLAlchemyEventsError):
    """A newer owner holds the partition. Whoever gets this must stop without committing anything more."""


class DeliveryFailed(SQLAlchemyEventsError):
    """``publish_sync`` waited for the handlers and one of them failed for good; the event is a dead letter."""


class Reject(Exception):
    """Raise it in a handler to say: never again. The event becomes a dead letter at once, without retries."""


class RetryLater(Exception):
    """Raise it in a handler to have the event again after ``delay`` seconds, without counting it as a failure."""

    def __init__(self, delay: float, reason: str = "") -> None:
        super().__init__(reason or f"handler asked for the event again in {delay:g} s")
        self.delay = delay
