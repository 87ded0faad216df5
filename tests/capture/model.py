"""A model with the column kinds and relationships that capture must get right."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, composite, mapped_column, relationship


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Shout(sa.types.TypeDecorator[str]):
    """Stored in upper case, seen in lower case: as an encrypted column, what the application sees is not what is stored."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value.upper() if value is not None else None

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value.lower() if value is not None else None


class Base(DeclarativeBase):
    pass


item_tags = sa.Table(
    "item_tags",
    Base.metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)

no_key = sa.Table("no_key", Base.metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.String(20)))


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


class Point:
    def __init__(self, x: int | None, y: int | None) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int | None, int | None]:
        return self.x, self.y


class Item(Base):
    """Every column kind, names that differ, defaults of every sort."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str | None] = mapped_column("lbl", sa.String(50))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    ratio: Mapped[float | None]
    made: Mapped[dt.datetime | None]
    day: Mapped[dt.date | None]
    clock: Mapped[dt.time | None]
    span: Mapped[dt.timedelta | None]
    ref: Mapped[uuid.UUID | None]
    color: Mapped[Color | None]
    blob: Mapped[bytes | None]
    doc: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON))
    raw: Mapped[Any] = mapped_column(sa.JSON(none_as_null=True), nullable=True)
    thing: Mapped[Any] = mapped_column(sa.PickleType, nullable=True)
    loud: Mapped[str | None] = mapped_column(Shout)
    count: Mapped[int] = mapped_column(default=3)
    state: Mapped[str] = mapped_column(sa.String(20), server_default="new")
    double: Mapped[int | None] = mapped_column(sa.Integer, sa.Computed("count * 2", persisted=True))
    touched: Mapped[int] = mapped_column(default=0, onupdate=lambda: 7)
    changed: Mapped[str | None] = mapped_column(sa.String(20), onupdate=sa.text("'changed'"))
    px: Mapped[int | None]
    py: Mapped[int | None]
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("items.id"))

    point: Mapped[Point] = composite("px", "py")
    tags: Mapped[list[Tag]] = relationship(secondary=item_tags)
    children: Mapped[list[Item]] = relationship(remote_side="Item.parent_id")


class Owner(Base):
    __tablename__ = "owners"
    id: Mapped[int] = mapped_column(primary_key=True)
    favourite_id: Mapped[int | None] = mapped_column(sa.ForeignKey("pets.id", name="favourite", use_alter=True))
    pets: Mapped[list[Pet]] = relationship(cascade="all, delete-orphan", foreign_keys="Pet.owner_id")
    favourite: Mapped[Pet | None] = relationship(foreign_keys=[favourite_id], post_update=True)


class Pet(Base):
    """Single-table inheritance, version counter."""

    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str | None] = mapped_column(sa.String(20))
    owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey("owners.id"))
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "pet", "version_id_col": version}  # noqa: RUF012


class Dog(Pet):
    tricks: Mapped[str | None] = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Person(Base):
    """Joined-table inheritance."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "person"}  # noqa: RUF012


class Manager(Person):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    level: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Seat(Base):
    """Composite natural key."""

    __tablename__ = "seats"
    row: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    guest: Mapped[str | None] = mapped_column(sa.String(20))


class Parent(Base):
    """The database itself deletes its children."""

    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)


class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id", ondelete="CASCADE"))
