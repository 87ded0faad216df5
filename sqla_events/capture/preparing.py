"""Before a statement: how its rows will be known, and what has to ride along for that; or that it writes its events itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from . import gaps, pipeline, ride, upserts
from .carried import Carrier
from .cascades import Cascades
from .marks import Marks
from .plan import Plan, moves
from .select import present_rows
from .within import Writer


class Preparation:
    """Gets one engine's statements ready."""

    def __init__(
        self, on_gap: gaps.OnGap | None, cascades: Cascades | None, marks: Marks, writer: Writer | None, carrier: Carrier | None
    ) -> None:
        self._on_gap = on_gap
        self._cascades = cascades
        self._marks = marks
        self._writer = writer
        self._carrier = carrier

    def prepared(
        self, connection: Connection, plan: Plan, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        """Decide how the rows will be known, and let ride along what that needs; or let the statement write their events."""
        plan.translate = context.execution_options.get("schema_translate_map")
        if plan.codec.reaches and self._cascades is not None and plan.verb in plan.codec.reaches:
            plan.reached = self._cascades.look(connection, plan, context)
        if not (executemany or plan.program.unsaid or plan.program.uncounted) and (plan.shape.given or plan.shape.by_key):
            if plan.program.carries and self._carrier is not None and not self._marks.known:
                return self._carrier.carried(connection, plan, sql, parameters, context)
            plan.sole = plan.shape.verb != "create" and plan.reached is None and not plan.codec.triggered
            return sql, parameters  # one row, and its parameters tell what it is
        by_driver = executemany and context.execute_style.name != "INSERTMANYVALUES"
        _decide(plan, context, executemany, by_driver)
        if by_driver and not plan.own:
            return sql, parameters
        if self._writer is not None and self._writer.may(plan, context, executemany):
            plan.within = self._writer.within(connection, plan, sql, parameters, context)
            if plan.within is not None:
                return plan.within.sql, plan.within.parameters
        plan.look_before = self._looks_before(plan, context)
        if plan.look_before and not by_driver and not self._look_before(connection, plan, sql, context):
            return sql, parameters
        if plan.shape.upsert and plan.standing is None and not ride.old_rides(plan, context.dialect):
            self._find_standing(connection, plan, context)
        ridden = ride.along(plan, sql, context)
        if plan.whole and not plan.ride:
            self._blind(plan, sql)
        return ridden, parameters

    def _find_standing(self, connection: Connection, plan: Plan, context: Any) -> None:
        moves = upserts.moves_key(plan)
        if plan.want_old or moves:
            plan.standing = upserts.standing(connection, plan, context)
        if moves and plan.standing is None:
            self.missed(plan, "an upsert that changes the key of a row")

    def _looks_before(self, plan: Plan, context: Any) -> bool:
        wanted = plan.verb == "update" and plan.whole and (plan.want_old or moves(plan))
        return wanted and not ride.old_rides(plan, context.dialect)

    def _look_before(self, connection: Connection, plan: Plan, sql: str, context: Any) -> bool:
        """Read the rows; False where that cannot be, and nothing else tells them."""
        plan.before = present_rows(connection, plan, context, context.compiled_parameters[0])
        if plan.before is None and moves(plan):
            self._blind(plan, sql)
            return False
        return True

    def _blind(self, plan: Plan, sql: str) -> None:
        plan.whole = plan.own = False
        plan.blind = True
        if self._on_gap is not None and plan.table.name not in self._marks.known:
            self._on_gap(plan.table.schema, str(plan.table.name), sql, "a statement whose rows the database does not return")

    def missed(self, plan: Plan, reason: str) -> None:
        """Report rows that no event will tell of."""
        if self._on_gap is not None:
            self._on_gap(plan.table.schema, str(plan.table.name), str(plan.statement), reason)


def _decide(plan: Plan, context: Any, executemany: bool, by_driver: bool) -> None:
    """How the rows of the statement get known: whole, put together from what is told, or by running its sets ourselves."""
    shape, program, dialect = plan.shape, plan.program, context.dialect
    unsaid = bool(program.unsaid) or program.uncounted
    sqlite = dialect.name == "sqlite"
    if shape.verb == "create":
        plan.whole = not shape.given or (executemany and (unsaid or not (by_driver or shape.sorted)))
        plan.own = by_driver and (sqlite or plan.whole)
    elif shape.by_key:
        plan.whole = False
        moves_key = any(key in program.given or key in program.moved for key in plan.codec.key)
        alone = unsaid or not shape.exact or shape.verb == "delete" or moves_key  # each set has to tell what it did
        plan.own = by_driver and (sqlite or alone or dialect.driver == "asyncpg" or pipeline.is_open(context.cursor, dialect))
    else:
        keys = plan.codec.key
        plan.whole, plan.own = True, by_driver
        plan.moves_key = any(key in program.moved or key in program.given for key in keys)
