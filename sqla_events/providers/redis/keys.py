"""Names of keys. All carry one hash tag, so a script that touches several of them runs on one node of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from zlib import crc32

from ...errors import ConfigError


def order(entry: bytes) -> tuple[int, int]:
    """What ids of entries are sorted by."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)


@dataclass(frozen=True)
class Keys:
    """The keys of one stream, which is split into ``partitions``.

    >>> keys = Keys("shop", 2)
    >>> keys.stream(0), keys.stream(1), keys.dead
    ('shop', '{shop}:1', '{shop}:dead')
    """

    name: str
    partitions: int = 1

    def __post_init__(self) -> None:
        if not self.name or (re.search("[{}]", self.name) and not re.fullmatch(r"[^{}]*\{[^{}]+\}[^{}]*", self.name)):
            raise ConfigError(
                f"redis.stream_name is {self.name!r}; it must be text, with at most one part in braces (a hash tag)"
            )

    @property
    def _root(self) -> str:
        return self.name if "{" in self.name else f"{{{self.name}}}"

    def stream(self, partition: int) -> str:
        """The entries of a partition."""
        return self.name if partition == 0 else f"{self._root}:{partition}"

    @property
    def streams(self) -> list[str]:
        """Of every partition."""
        return [self.stream(partition) for partition in range(self.partitions)]

    def partition_of(self, lane: str) -> int:
        """Where the messages of a lane are."""
        return crc32(lane.encode()) % self.partitions if self.partitions > 1 else 0

    def relays(self, group: str) -> str:
        """Of how many partitions a relay is."""
        return f"{self._root}:relay:{group}"

    def relay(self, group: str, partition: int, partitions: int) -> str:
        """A relay's position, and what fences it."""
        return f"{self._root}:relay:{group}:{partition}/{partitions}"

    def leases(self, group: str) -> str:
        """Which consumers have the partitions of a group."""
        return f"{self._root}:leases:{group}"

    def consumers(self, group: str) -> str:
        """Who wants to have some."""
        return f"{self._root}:consumers:{group}"

    def retries(self, group: str, partition: int) -> str:
        """Failed attempts by entry."""
        return f"{self._root}:retries:{group}:{partition}"

    @property
    def dead(self) -> str:
        """Dead letters of every group."""
        return f"{self._root}:dead"

    @property
    def split(self) -> str:
        """How many partitions there are."""
        return f"{self._root}:partitions"

    @property
    def trimming(self) -> str:
        """Who trims now."""
        return f"{self._root}:trimming"
