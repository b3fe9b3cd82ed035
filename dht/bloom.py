"""BEP 33's Bloom filter: how many different addresses were announced, without naming one of them.

256 bytes, two bits per address. Filters of several nodes are joined by OR, so an address that several of them know
counts once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from dht.contacts import Endpoint

FILTER_SIZE = 256  # bytes
BITS = FILTER_SIZE * 8
HASHES = 2
MAX_ESTIMATE = 6000  # BEP 33: a filter beyond it says no more than "many"


class AddressFilter:
    """A set of addresses that can be joined and counted, not listed."""

    def __init__(self, raw: bytes = bytes(FILTER_SIZE)) -> None:
        """``raw`` is a filter as it travels, `FILTER_SIZE` bytes."""
        if len(raw) != FILTER_SIZE:
            raise ValueError(f"a filter has {FILTER_SIZE} bytes, not {len(raw)}")
        self._bits = int.from_bytes(raw, "little")

    @classmethod
    def of(cls, endpoints: Iterable[Endpoint]) -> AddressFilter:
        """The filter of these addresses; their ports do not count."""
        made = cls()
        for endpoint in endpoints:
            made.add(endpoint)
        return made

    def add(self, endpoint: Endpoint) -> None:
        """Count this address."""
        digest = hashlib.sha1(endpoint.packed_host, usedforsecurity=False).digest()
        for at in range(0, 2 * HASHES, 2):
            self._bits |= 1 << int.from_bytes(digest[at : at + 2], "little") % BITS

    def join(self, raw: bytes) -> None:
        """Count what another filter counted."""
        self._bits |= AddressFilter(raw)._bits

    def pack(self) -> bytes:
        """The filter as it travels."""
        return self._bits.to_bytes(FILTER_SIZE, "little")

    @property
    def estimate(self) -> float:
        """About how many addresses were counted (BEP 33's formula), at most `MAX_ESTIMATE`."""
        clear = BITS - self._bits.bit_count()
        if clear == 0:
            return float(MAX_ESTIMATE)
        return min(math.log(clear / BITS) / (HASHES * math.log(1 - 1 / BITS)), MAX_ESTIMATE)
