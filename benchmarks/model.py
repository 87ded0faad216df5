"""The table that the capture benchmark writes: ten columns of the usual kinds."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import Numeric, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The application's tables."""


class Columns:
    """One row of about 200 bytes."""

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(120))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    quantity: Mapped[int]
    active: Mapped[bool]
    ref: Mapped[uuid.UUID]
    created: Mapped[dt.datetime]
    due: Mapped[dt.date]
    note: Mapped[str | None]


class Item(Columns, Base):
    """The table as it is."""

    __tablename__ = "items"


def versioned(base: type[DeclarativeBase]) -> type[Columns]:
    """The same table, marked as SQLAlchemy-Continuum and PostgreSQL-Audit want it."""
    return type("Item", (Columns, base), {"__tablename__": "items", "__versioned__": {}})


_REF = uuid.UUID("12345678-1234-5678-1234-567812345678")


def values(number: int) -> dict[str, Any]:
    """Those of one row."""
    return {
        "id": number,
        "name": f"Item number {number}",
        "email": f"item-{number}@example.org",
        "price": Decimal(number % 1000) / 100,
        "quantity": number % 97,
        "active": number % 2 == 0,
        "ref": _REF,
        "created": dt.datetime(2026, 1, 1, 12, 0, 0, number % 1_000_000),
        "due": dt.date(2026, 6, 1),
        "note": "a note of some forty characters, no more",
    }


def item(number: int) -> Item:
    """A new row."""
    return Item(**values(number))
