"""Trimming: what is over the length or the age that the settings name goes, once every group has acknowledged it."""

from __future__ import annotations

import asyncio
import time

from ...config import RedisSettings
from ...errors import ProviderUnavailable
from ...signals import logger
from .keys import Keys
from .link import Link, script

TRIM = script("trim")
TRIM_SECONDS = 1.0
"""Between two rounds, of whichever process."""


async def trim(link: Link, keys: Keys, settings: RedisSettings) -> int:
    """One round over every partition; returns how many entries went."""
    oldest = "" if settings.max_age is None else int((time.time() - settings.max_age) * 1000)
    length = "" if settings.max_len is None else -(-settings.max_len // keys.partitions)
    unread = "1" if settings.trim_unread else ""
    removed = 0
    for stream in keys.streams:
        while count := await link.run(TRIM, [stream], [length, oldest, unread]):
            removed += count
            await asyncio.sleep(0)  # in portions, with room for everybody else between them
    return removed


async def trim_for_ever(link: Link, keys: Keys, settings: RedisSettings) -> None:
    """A round now and then; one process at a time does it."""
    while True:
        try:
            if await link.call("set", keys.trimming, 1, nx=True, px=int(TRIM_SECONDS * 900)):
                await trim(link, keys, settings)
        except ProviderUnavailable as error:
            logger.debug("nothing trimmed: %s", error)
        await asyncio.sleep(TRIM_SECONDS)
