"""What stands around a statement on PostgreSQL that writes its events itself: see ``within``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import ride
from .exact import TIMESTAMPTZ, Exact, exact
from .forms import Parts, literal, object_of, special_types, unquoted
from .outbox import OWN, SHARED
from .plan import Plan, changed_keys, moves
from .ride import OLD

ROWS = "sqla_events_rows"
"""What the statement is called in its WITH."""

PARAMETERS = (*SHARED, "types", "seed")

FLOAT_LETTERS = 20
"""By how many a float that PostgreSQL writes may differ in length from Python's."""


@dataclass
class Frame:
    """What stands around one compiled statement."""

    returning: str
    rest: str
    """With a place for each parameter: the columns that events share, the sidecar, and what their ids have in common."""
    ride: tuple[str, ...]
    special: bool
    """The sidecar depends on the row."""
    zoned: bool
    """It tells times in the time zone of the session."""
    rows: int | None = None
    """How many the statement wrote when it ran last, if it has. Of few, it goes the other way as long as they are few."""


class Framing:
    """Puts a frame together."""

    def __init__(self, plan: Plan, context: Any, stored: Mapping[str, str | None], before: bool) -> None:
        self._plan, self._context, self._codec = plan, context, plan.codec
        changed = changed_keys(plan) if plan.verb == "update" else frozenset()
        self._stored = stored
        self._double = context.dialect.identifier_preparer._double_percents
        keys = plan.codec.all_keys
        has_old = plan.verb == "update" and any(key.startswith(OLD) for key in ride.whole(plan, context.dialect))
        self.changed = [key for key in keys if key in changed]
        needed = [key for key in keys if plan.verb != "update" or key in changed or key in plan.codec.key]
        olds = [OLD + key for key in (keys if not plan.codec.key else needed)] if has_old else []
        self.ride = (*needed, *olds)
        self.places = {key: f"c{number}" for number, key in enumerate(self.ride)}
        self._exacts = self._exact(stored, shown=True)
        self._key_exacts = self._exact(stored, shown=False)
        self._sides = self._which(has_old, before)

    def _exact(self, stored: Mapping[str, str | None], *, shown: bool) -> dict[str, Exact | None]:
        dialect, columns = self._context.dialect, self._codec.columns if shown else self._codec.key_codecs
        return {key: exact(codec, dialect, stored.get(codec.name) or "", shown=shown) for key, codec in columns.items()}

    def _which(self, has_old: bool, before: bool) -> dict[str, list[str]]:
        """Side of the payload -> what of ``ride`` it shows."""
        verb, own = self._plan.verb, list(self._codec.all_keys)
        if verb == "create":
            sides = {"after": own}
        elif verb == "delete":
            sides = {"before": own}
        else:
            olds = self.changed if self._codec.key else own
            sides = {"before": [OLD + key for key in olds] if has_old else [], "after": self.changed}
        if not before:
            sides.pop("before", None)
        shown = self._codec.columns
        return {side: [key for key in keys if key.removeprefix(OLD) in shown] for side, keys in sides.items()}

    @property
    def _old_key(self) -> list[str]:
        """The key before the write, of what rides."""
        return [OLD + key if OLD + key in self.places else key for key in self._codec.key]

    @property
    def covered(self) -> bool:
        """Whether every value that events need has an exact form."""
        shown = {key.removeprefix(OLD) for keys in (self._shown_key(), *self._sides.values()) for key in keys}
        return all(self._exacts[key] for key in shown) and all(self._key_exacts.values())

    def _changed_types(self) -> str:
        """Whether a column has another type now than when it was looked up; one row tells."""
        kinds = ((place, self._stored.get(str(self._plan.table.columns[key.removeprefix(OLD)].name))) for key, place in self.places.items()
                 if not self._is_json(key))  # fmt: skip
        tests = " OR ".join(f"pg_typeof({place}) <> {literal(kind)}::regtype" for place, kind in kinds if kind not in (None, "enum"))
        return f"coalesce((SELECT {tests or 'false'} FROM {ROWS} LIMIT 1), false)"

    def _is_json(self, key: str) -> bool:
        codec = self._codec.columns.get(key.removeprefix(OLD))
        return codec is not None and codec.as_text

    def frame(self, log: str, limit: int | None) -> Frame | None:
        """All of it; None where rows might come back that have to keep their place in the order."""
        doubts = self._doubts()
        if not self.ride:
            return None
        if (doubts or limit is not None) and self._plan.verb == "update" and moves(self._plan):
            return None
        columns = ride.columns(self._plan, self._context, ride.compiled_target(self._context), self.ride)
        returning = ", ".join(f"{column} AS {place}" for column, place in zip(columns, self.places.values(), strict=True))
        zoned = self._context.dialect.driver == "psycopg" and TIMESTAMPTZ in self._stored.values()
        return Frame(f"RETURNING {returning}", self._rest(log, limit, doubts), self.ride, bool(self._special_types()), zoned)

    def _doubts(self) -> list[str]:
        found: dict[str, None] = {}
        for key in dict.fromkeys((*self._old_key, *(key for keys in self._sides.values() for key in keys))):
            plain = key.removeprefix(OLD)
            for one in (self._exacts.get(plain), self._key_exacts.get(plain)):
                if one is not None and one.doubt is not None:
                    found[f"coalesce({one.doubt(self.places[key])}, false)"] = None
        return list(found)

    # SQL ---------------------------------------------------------------------------------------------------------

    def _parts(self, keys: Sequence[str]) -> Parts:
        return [(self._exacts[key.removeprefix(OLD)].form, self.places[key]) for key in keys]  # type: ignore[union-attr]

    def _payload(self) -> str:
        sides = "".join(f""" || ',"{side}":' || {object_of(self._parts(keys))}""" for side, keys in self._sides.items())
        return f"""'{{"key":' || {object_of(self._parts(self._shown_key()))}{sides} || '}}'"""

    def _key_text(self) -> str:
        if not self._codec.key:
            return "'*'"
        forms = [(self._key_exacts[one.removeprefix(OLD)].form, self.places[one]) for one in self._old_key]  # type: ignore[union-attr]
        if len(forms) > 1:
            return "'[' || " + " || ',' || ".join(form.text(value) for form, value in forms) + " || ']'"
        (one,) = (self._key_exacts[key] for key in self._codec.key)
        value = self.places[self._old_key[0]]
        return one.key(value) if one.key else unquoted(one.form.json(value))  # type: ignore[union-attr]

    def _special_types(self) -> list[str]:
        return special_types({side: self._parts(keys) for side, keys in {"key": self._shown_key(), **self._sides}.items()})

    def _shown_key(self) -> list[str]:
        return [one for one in self._old_key if one.removeprefix(OLD) in self._codec.columns]

    def _rest(self, log: str, limit: int | None, doubts: list[str]) -> str:
        """What follows the statement, to be formatted with the places of the parameters."""
        payload, source, doubt, between = self._payload(), ROWS, " OR ".join((self._changed_types(), *doubts)), ""
        if limit is not None:
            floats = [key for keys in self._sides.values() for key in keys if "float" in self._exacts[key.removeprefix(OLD)].form.special]  # type: ignore[union-attr]
            longest = limit - FLOAT_LETTERS * len(floats)
            doubt += f" OR octet_length(payload) > {longest}"
            between = f", {ROWS}_said AS (SELECT *, {payload} AS payload FROM {ROWS})"
            payload, source = "payload", f"{ROWS}_said"
        values = {
            **{name: _place(name) for name in SHARED},
            "id": _ID, "key": self._key_text(), "payload": f"({payload})::json", "types": f"{_place('types')}::json",
        }  # fmt: skip
        if special := self._special_types():
            values["types"] = f"nullif('{{' || substr({' || '.join((_place('types'), *special))}, 2) || '}}', '{{}}')::json"
        names = ", ".join(f'"{name}"' for name in (*OWN, *SHARED))
        insert = f"INSERT INTO {log} ({names}) SELECT {', '.join(values[name] for name in (*OWN, *SHARED))} FROM {source}"
        columns = ", ".join(self.places.values())
        return self._formattable(
            f"{between}, {ROWS}_written AS ({insert} WHERE NOT ({doubt})) "
            f"SELECT total, travels, {columns} FROM (SELECT count(*) AS total FROM {ROWS}) AS counted "
            f"LEFT JOIN (SELECT true AS travels, {columns} FROM {source} WHERE {doubt}) AS doubted ON true"
        )

    def _formattable(self, sql: str) -> str:
        if self._double:
            sql = sql.replace("%", "%%")
        sql = sql.replace("{", "{{").replace("}", "}}")
        for number, name in enumerate(PARAMETERS):
            sql = sql.replace(_place(name), f"{{{number}}}")
        return sql


def _place(name: str) -> str:
    """Of a parameter, as long as nobody knows how the driver calls it; nothing in the database has such a character."""
    return f"\0{name}\0"


_ID = (
    "(lpad(to_hex((date_part('epoch', clock_timestamp()) * 1000)::bigint), 12, '0') || "
    f"{_place('seed')} || lpad(to_hex((random() * 4503599627370495)::bigint), 13, '0'))::uuid"
)
"""A UUID of version 7: milliseconds, random bits of Python's for the statement, 52 of PostgreSQL's for the row.

``gen_random_uuid()`` asks the kernel: 3 to 8 microseconds; this takes 0.6. Sessions that have called ``setseed`` alike differ
in Python's.
"""
