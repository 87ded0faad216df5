"""What listens to the shop: five handlers of one consumer group, two of which have a bad day."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..broker import Broker
from ..event import Event
from .tally import Tally

PATTERNS = {
    "audit": ("*",),
    "welcome": ("public.shop_users.create",),
    "payment": ("public.shop_orders.create",),
    "shipping": ("public.shop_orders.create",),
    "stock": ("public.shop_order*.create", "public.shop_products.*"),
    "mail": ("shop.mail.*",),
}
"""Subscriptions by name. Every process of the group subscribes alike."""

FAILING_TOTAL = 1300
"""The payment of an order of this total works at the third attempt."""

SETTINGS = {
    "provider": "memory",
    "consumer_group": "shop",
    "poll_interval": 0.05,
    "lease": 1.0,
    "retry_policy": {"max_retries": 2, "initial_delay": 0.15, "max_delay": 1.0, "jitter": 0.0},
    "database": {"table_name": "shop_log"},
}


class Handlers:
    """The handlers; ``say`` prints what they do, ``pause`` is how many seconds each call takes."""

    def __init__(self, tally: Tally, say: Callable[[str], Any], pause: float = 0.0) -> None:
        self.tally = tally
        self.say = say
        self.pause = pause
        self.carrier_answers = True
        self._attempts: Counter[tuple[str, str]] = Counter()

    def subscribe(self, broker: Broker) -> None:
        """Subscribe every one of them under its patterns."""
        for name, patterns in PATTERNS.items():
            broker.subscribe(*patterns, handler=self._handler(name), name=name)

    def _handler(self, name: str) -> Callable[[Event], None]:
        act: Callable[[Event], str] = getattr(self, f"_{name}")

        def handler(event: Event) -> None:
            self._attempts[name, str(event.id)] += 1
            what = act(event)
            if self.pause:
                time.sleep(self.pause)
            self.say(f"      {name:<8} <- {event.type} #{event.key or '-'}: {what}")
            self.tally.note(name, event)

        return handler

    def _audit(self, event: Event) -> str:
        who = f"user_id={event.user_id}" if event.user_id is not None else "nobody named"
        about = f", {event.metadata}" if event.metadata else ""
        changed = f" {event.before} -> {event.after}" if event.operation == "update" else ""
        return f"by {who}{about}{changed}"

    def _welcome(self, event: Event) -> str:
        return f"welcome, {event.after['name']}!"

    def _payment(self, event: Event) -> str:
        attempt = self._attempts["payment", str(event.id)]
        if event.after["total"] == FAILING_TOTAL and attempt < 3:
            raise TimeoutError("the payment gateway timed out")
        return f"charged {event.after['total'] / 100:.2f}" + (f" at attempt {attempt}" if attempt > 1 else "")

    def _shipping(self, event: Event) -> str:
        if not self.carrier_answers:
            raise ConnectionError("the carrier does not answer")
        if event.after["address"] is None:
            raise ValueError("the order has no address")
        return f"parcel to {event.after['address']}"

    def _stock(self, event: Event) -> str:
        return f"stock looks at {event.entity}"

    def _mail(self, event: Event) -> str:
        return f"mail {event.payload!r}"
