"""Random models, and random sessions that write them in every way that SQLAlchemy has, for test_machine.py."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import Session, backref, column_property, registry, relationship

from tests.capture.model import Shout


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a model looks like."""

    key: str
    inheritance: str
    children: str
    tags: str
    version: bool
    eager_defaults: Any


shapes = st.builds(
    Shape,
    key=st.sampled_from(["number", "text", "pair"]),
    inheritance=st.sampled_from(["none", "single", "joined", "concrete"]),
    children=st.sampled_from(["nullify", "orphan", "passive cascade", "passive null"]),
    tags=st.sampled_from(["keyed", "keyless"]),
    version=st.booleans(),
    eager_defaults=st.sampled_from([True, False, "auto"]),
)

KEYS = {
    "number": [("id", sa.Integer)],
    "text": [("id", sa.String(10))],
    "pair": [("a", sa.String(5)), ("b", sa.Integer)],
}


def key_value(shape: Shape, number: int) -> dict[str, Any]:
    values = {"number": {"id": number}, "text": {"id": f"ké{number}"}, "pair": {"a": "xy"[number % 2], "b": number // 2}}
    return values[shape.key]


@lru_cache(maxsize=256)
def model(shape: Shape) -> SimpleNamespace:
    """Classes and metadata of a shape."""
    mapping = registry()
    metadata = mapping.metadata
    keys = KEYS[shape.key]
    nodes = sa.Table("nodes", metadata, *(sa.Column(name, kind, primary_key=True, autoincrement=False) for name, kind in keys), *_columns(shape))
    leaves = _leaves(shape, metadata, keys)
    tags = sa.Table("tags", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(10)))
    keyed = shape.tags == "keyed"
    links = sa.Table(
        "links", metadata,
        *(sa.Column(f"node_{name}", kind, primary_key=keyed) for name, kind in keys),
        sa.Column("tag_id", sa.ForeignKey("tags.id", ondelete="CASCADE"), primary_key=keyed),
        sa.ForeignKeyConstraint([f"node_{name}" for name, _ in keys], [f"nodes.{name}" for name, _ in keys], onupdate="CASCADE"),
    )  # fmt: skip
    made = SimpleNamespace(metadata=metadata, nodes=nodes, leaves=leaves, tags=tags, links=links)
    made.Node, made.Leaf, made.Tag = (type(name, (), {}) for name in ("Node", "Leaf", "Tag"))
    made.Special = type("Special", (made.Node,) if shape.inheritance in {"single", "joined"} else (), {})
    mapping.map_imperatively(made.Tag, tags)
    mapping.map_imperatively(made.Leaf, leaves)
    _map_nodes(shape, mapping, made, metadata)
    mapping.configure()
    return made


def _columns(shape: Shape) -> list[sa.Column[Any]]:
    version = [sa.Column("version", sa.Integer, nullable=False)] if shape.version else []
    return [
        sa.Column("kind", sa.String(10), server_default="node"),
        sa.Column("lbl", sa.String(20)),
        sa.Column("amount", sa.Integer, default=3),
        sa.Column("state", sa.String(10), server_default="new"),
        sa.Column("twice", sa.Integer, sa.Computed("amount * 2", persisted=True)),
        sa.Column("touched", sa.Integer, default=0, onupdate=lambda: 7),
        sa.Column("changed", sa.String(20), onupdate=sa.text("'changed'")),
        sa.Column("price", sa.Numeric(8, 2)),
        sa.Column("doc", MutableDict.as_mutable(sa.JSON(none_as_null=True))),
        sa.Column("loud", Shout),
        *version,
    ]


def _leaves(shape: Shape, metadata: sa.MetaData, keys: list[tuple[str, Any]]) -> sa.Table:
    action = {"passive cascade": "CASCADE", "passive null": "SET NULL"}.get(shape.children)
    return sa.Table(
        "leaves", metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(f"node_{name}", kind) for name, kind in keys),
        sa.Column("note", sa.String(10)),
        sa.Column("above_id", sa.ForeignKey("leaves.id", ondelete="CASCADE")),
        sa.ForeignKeyConstraint(
            [f"node_{name}" for name, _ in keys], [f"nodes.{name}" for name, _ in keys], ondelete=action, onupdate="CASCADE"
        ),
    )  # fmt: skip


def _map_nodes(shape: Shape, mapping: registry, made: SimpleNamespace, metadata: sa.MetaData) -> None:
    nodes, inheritance = made.nodes, shape.inheritance
    cascade = {"nullify": "save-update, merge", "orphan": "all, delete-orphan"}.get(shape.children, "all")
    passive = shape.children.startswith("passive")
    polymorphic = {"polymorphic_on": nodes.c.kind, "polymorphic_identity": "node"} if inheritance in {"single", "joined"} else {}
    versioned = {"version_id_col": nodes.c.version} if shape.version else {}
    mapping.map_imperatively(
        made.Node, nodes, eager_defaults=shape.eager_defaults, **polymorphic, **versioned,
        properties={
            "label": nodes.c.lbl,
            "leaves": relationship(made.Leaf, cascade=cascade, passive_deletes=passive, passive_updates=True, backref="node"),
            "tags": relationship(made.Tag, secondary=made.links, backref=backref("nodes", passive_deletes=True), passive_updates=True),
        },
    )  # fmt: skip
    if inheritance == "single":
        mapping.map_imperatively(made.Special, inherits=made.Node, polymorphic_identity="special")
    elif inheritance == "joined":
        keys = [name for name, _ in KEYS[shape.key]]
        table = sa.Table(
            "specials", metadata, *(sa.Column(name, nodes.c[name].type, primary_key=True) for name in keys), sa.Column("extra", sa.Integer),
            sa.ForeignKeyConstraint(keys, [nodes.c[name] for name in keys], onupdate="CASCADE", ondelete="CASCADE"),
        )  # fmt: skip
        mapping.map_imperatively(made.Special, table, inherits=made.Node, polymorphic_identity="special")
    else:
        table = sa.Table("apart", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("lbl", sa.String(20)))
        mapping.map_imperatively(made.Special, table, properties={"label": column_property(table.c.lbl)})


def pick(session: Session, entity: Any, number: int) -> Any:
    """One of the rows; None if there are none."""
    found = session.scalars(sa.select(entity).order_by(*sa.inspect(entity).primary_key)).all()
    return found[number % len(found)] if found else None
