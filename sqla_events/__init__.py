"""sqla_events: every committed SQLAlchemy change becomes an event, delivered in order and without loss.

    broker = install_crud_hooks(engine, {"provider": "memory"})

    @broker.subscribe("public.users.*")
    def handler(event): ...

    broker.start()
"""

from .broker import Broker
from .config import Config
from .context import event_context
from .errors import (
    CaptureError,
    ConfigError,
    DeliveryFailed,
    EventError,
    LeaseLost,
    ProviderError,
    ProviderUnavailable,
    PublishRejected,
    Reject,
    RetryLater,
    SchemaError,
    SQLAlchemyEventsError,
)
from .event import Event, Operation, Source, Status
from .inspection import EventFilter
from .install import connect, install_crud_hooks
from .retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "Broker",
    "CaptureError",
    "Config",
    "ConfigError",
    "DeliveryFailed",
    "Event",
    "EventError",
    "EventFilter",
    "LeaseLost",
    "Operation",
    "ProviderError",
    "ProviderUnavailable",
    "PublishRejected",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "SQLAlchemyEventsError",
    "SchemaError",
    "Source",
    "Status",
    "connect",
    "event_context",
    "install_crud_hooks",
]
