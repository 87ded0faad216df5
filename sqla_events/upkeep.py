"""Upkeep of the log while a broker runs: what is old goes (events, batches), and range partitions are there before they are needed.

Every process of an application may do it; one at a time does.
"""

from __future__ import annotations

import asyncio
import time

from .bridge import Database
from .errors import ProviderUnavailable
from .log import ranges
from .log.retention import BEGINNING, Sweep, prune, retain
from .schema import Tables
from .signals import logger

LONGEST = 60.0
"""Seconds between two passes, at most."""
PRUNE_SECONDS = 3600.0
"""Between looks for batches that are too old to be of interest."""
BETWEEN = 0.01
"""Seconds between two steps: room for everybody else."""


async def keep_up(database: Database, tables: Tables, retention: float | None, size: int) -> None:
    """Look after the log for ever.

    :param retention: seconds that events are kept; None: for ever.
    :param size: numbers of a new range partition, where the log has such.
    """
    partitioned = await database.run(ranges.is_partitioned, tables.names)
    sweep, pruned_at = BEGINNING, -PRUNE_SECONDS
    while True:
        try:
            if time.monotonic() >= pruned_at + PRUNE_SECONDS:
                await database.run(prune, tables)
                pruned_at = time.monotonic()
            if partitioned:
                await _look_after_ranges(database, tables, retention, size)
            if retention is not None:
                sweep = await _sweep(database, tables, retention, sweep, partitioned)
        except ProviderUnavailable as error:
            logger.warning("the log's upkeep waits: %s", error)
        await asyncio.sleep(LONGEST if retention is None else min(LONGEST, retention / 10))


async def _look_after_ranges(database: Database, tables: Tables, retention: float | None, size: int) -> None:
    for name in await database.run(ranges.extend, tables, size):
        logger.info("range partition %s is ready", name)
    while retention is not None:
        dropped: str | None = await database.run(ranges.drop_oldest, tables, retention)
        if dropped is None:
            return
        logger.info("range partition %s was dropped", dropped)
        await asyncio.sleep(BETWEEN)


async def _sweep(database: Database, tables: Tables, retention: float, sweep: Sweep, partitioned: bool) -> Sweep:
    """One pass over the log; where it is partitioned, over the default partition."""
    while True:
        sweep = await database.run(retain, tables, retention, sweep, ranges.rest(tables) if partitioned else None)
        if sweep.over:
            return sweep
        await asyncio.sleep(BETWEEN)
