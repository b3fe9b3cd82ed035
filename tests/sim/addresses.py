"""Where nodes live: hosts in /24 blocks of what looks like the public internet."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator

FIRST = 20 << 24  # 20.0.0.0 and what follows: public, so that limits per network apply
LAST = 90 << 24
HOSTS = range(1, 255)
PORT = 6881


class AddressBook:
    """Hands out addresses that nobody has yet."""

    def __init__(self) -> None:
        # A stride that visits all blocks, far apart one after the other: ids by BEP 42 follow the high bits.
        blocks = (LAST - FIRST) >> 8
        self._blocks = (FIRST + (number * 7919 % blocks << 8) for number in itertools.count(1))

    def block(self) -> Iterator[tuple[str, int]]:
        """The addresses of a fresh /24."""
        network = next(self._blocks)
        prefix = f"{network >> 24}.{network >> 16 & 255}.{network >> 8 & 255}"
        return ((f"{prefix}.{host}", PORT) for host in HOSTS)

    def alone(self) -> tuple[str, int]:
        """One address in a fresh /24."""
        hosts = list(self.block())
        return hosts[zlib.crc32(hosts[0][0].encode()) % len(hosts)]

    def ports(self, count: int) -> list[tuple[str, int]]:
        """So many addresses that differ by their port alone: what one host can pretend to be."""
        host, port = self.alone()
        return [(host, port + number) for number in range(count)]
