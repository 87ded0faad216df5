"""What to capture, and what to do where an event cannot be written as it should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..event_type import check_type, type_of
from ..settings import BOOL, SIZE, TABLES, TEXTS, Kind, Section, one_of, optional, setting


def _read_schema(value: Any) -> str:
    check_type(type_of(value, "entity", "operation"))  # or nobody could read the events
    return str(value)


SCHEMA = Kind("the name of a schema, not empty", _read_schema)


@dataclass(frozen=True)
class CaptureSettings(Section):
    """What is captured, and what to do where an event cannot be written as it should."""

    path: ClassVar[str] = "capture"
    enable_create: bool = setting(BOOL, True, "Capture inserts.")
    enable_update: bool = setting(BOOL, True, "Capture updates.")
    enable_delete: bool = setting(BOOL, True, "Capture deletes.")
    enable_read: bool = setting(
        BOOL, False, "Also write an event for every entity that a session loads. High volume: off by default."
    )
    include: tuple[Any, ...] = setting(
        TABLES,
        (),
        "Only these: patterns over `schema.table` or `schema.table.operation`, mapped classes, or Tables. Empty: everything.",
    )
    exclude: tuple[Any, ...] = setting(TABLES, (), "Not these, in the same form; wins over `include`.")
    exclude_columns: tuple[str, ...] = setting(
        TEXTS,
        (),
        "Columns that never get into events: patterns over `schema.table.column`, or just `column`. "
        "Also by `Column(info={'sqla_events': 'exclude'})`.",
    )
    redact_columns: tuple[str, ...] = setting(
        TEXTS,
        (),
        "Columns whose values are replaced by `[redacted]`, in the same form. Also by `Column(info={'sqla_events': 'redact'})`.",
    )
    default_schema: str = setting(SCHEMA, "public", "The schema in the type of events on tables that name none.")
    old_values: str = setting(
        one_of("known", "always", "never"),
        "known",
        "`before` of updates and deletes: what is known without a query; always, where needed by RETURNING or a locking SELECT; or never.",
    )
    cascades: str = setting(
        one_of("events", "named", "ignore"),
        "events",
        "Rows that the database itself changes (ON DELETE CASCADE, SET NULL, SET DEFAULT, ON UPDATE): events of their own, "
        "for which the rows that a statement may reach are read before and after it; only named in the event of the deleted "
        "row; or ignored, where triggers see them.",
    )
    max_payload_bytes: int | None = setting(
        optional(SIZE), None, "A larger payload is an error or is truncated (`on_too_large`). null: no limit.", least=64
    )
    on_too_large: str = setting(
        one_of("error", "truncate"),
        "error",
        "What a payload over `max_payload_bytes` does: fail the flush, or shrink to key and column names.",
    )
    on_unencodable: str = setting(
        one_of("error", "placeholder"),
        "error",
        "What a value without a JSON form does: fail the flush, or become a marked placeholder.",
    )
    carry: bool = setting(
        BOOL,
        True,
        "PostgreSQL: a statement writes its events itself where that is exact, so that capture costs no round trip of its own. "
        "False: events go in statements of their own, as for extensions that cannot run a data-modifying WITH.",
    )
    on_gap: str = setting(
        one_of("warn", "raise", "ignore"),
        "warn",
        "What a write does that capture cannot see into (text SQL, some data-modifying CTEs).",
    )
