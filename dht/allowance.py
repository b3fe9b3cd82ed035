"""How many bytes a node sends to whom: nobody is to be flooded through it (reflection), nor to drain it.

A datagram's source can be forged. Until an address has proved that it is there, by answering a query or by a token
that it was sent, its /24 or /48 gets little; then much. A plain `get` of 95 bytes is answered with 287 to 1 400, so a
fixed ratio of answer to question would break the protocol: what is bounded is the bytes per second. Local addresses
are not bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dht.contacts import Endpoint
from dht.prefixes import prefix_of

UNPROVEN_RATE = 2048.0  # bytes per second and prefix: less than a modem, for a victim of forged queries
UNPROVEN_BURST = 16384.0  # bytes: a dozen full answers to newcomers of one network at once
PROVEN_RATE = 65536.0  # bytes per second and prefix: about a hundred answers
PROVEN_BURST = 262144.0
PROVEN_FOR = 600.0  # seconds an address counts as proven after it was heard
MAX_PREFIXES = 16384  # remembered: under 8 MB
MAX_PROVEN = 16384


@dataclass(slots=True)
class _Bucket:
    """Tokens left, in bytes, and when they were counted."""

    left: float
    counted: float

    def take(self, size: int, now: float, *, rate: float, burst: float) -> bool:
        self.left = min(burst, self.left + max(0.0, now - self.counted) * rate)
        self.counted = now
        if self.left < size:
            return False
        self.left -= size
        return True


class Allowance:
    """Token buckets of bytes per prefix, one for addresses that proved themselves and one for others."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[bytes, bool], _Bucket] = OrderedDict()
        self._proven: OrderedDict[str, float] = OrderedDict()

    def prove(self, endpoint: Endpoint, now: float) -> None:
        """Note that ``endpoint`` is where it says: it answered, or knew what was sent to it."""
        self._proven[endpoint.host] = now + PROVEN_FOR
        self._proven.move_to_end(endpoint.host)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def is_proven(self, endpoint: Endpoint, now: float) -> bool:
        """Whether its address has lately proved itself."""
        return self._proven.get(endpoint.host, now) > now

    def spend(self, endpoint: Endpoint, size: int, now: float) -> bool:
        """Whether ``size`` bytes that nobody of ours asked to be sent may go to ``endpoint``; they count as sent."""
        prefix = prefix_of(endpoint.host)
        if prefix is None:
            return True
        proven = self.is_proven(endpoint, now)
        rate, burst = (PROVEN_RATE, PROVEN_BURST) if proven else (UNPROVEN_RATE, UNPROVEN_BURST)
        bucket = self._buckets.setdefault((prefix, proven), _Bucket(burst, now))
        self._buckets.move_to_end((prefix, proven))
        if len(self._buckets) > MAX_PREFIXES:
            self._buckets.popitem(last=False)
        return bucket.take(size, now, rate=rate, burst=burst)
