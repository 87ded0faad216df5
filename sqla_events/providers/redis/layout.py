"""How a stream is split: decided by whoever uses it first, the same for all from then on."""

from __future__ import annotations

from ...signals import logger
from .keys import Keys
from .link import Link


class Layout:
    """The keys of a stream, once the server has said into how many partitions it is split."""

    def __init__(self, link: Link, name: str, partitions: int) -> None:
        self._link = link
        self._wanted = Keys(name, partitions)
        self._known: Keys | None = None

    async def keys(self) -> Keys:
        """The keys as they are.

        :raises ProviderUnavailable: if the server does not answer.
        """
        if self._known is None:
            await self._link.call("set", self._wanted.split, self._wanted.partitions, nx=True)
            found = int(await self._link.call("get", self._wanted.split) or self._wanted.partitions)
            if found != self._wanted.partitions:
                logger.warning(
                    "the stream %r is split into %d partitions and keeps them; the setting 'partitions' is %d. "
                    "docs/redis.md says how to split it anew",
                    self._wanted.name,
                    found,
                    self._wanted.partitions,
                )
            self._known = Keys(self._wanted.name, found)
        return self._known
