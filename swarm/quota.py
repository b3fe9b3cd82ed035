"""The free quota: tokens that a worker gives away, so that a first call needs no wallet. Pure; ``now`` is seconds.

Three buckets fill with time, and a call must find room in all of them: one per identity, one per IP prefix (/24 or
/64, as whoever has a network has all of it), and one for everybody together. The share of an identity therefore cannot
be multiplied by making keys, nor by addresses of one network, and the whole never exceeds its part of the worker.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from swarm.errors import UsageError

MAX_BUCKETS = 65_536  # of each kind, a few MB; who was away longest is forgotten first, and then has a full bucket
PREFIX_V4 = 24
PREFIX_V6 = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """A bucket of ``capacity`` tokens that fills up evenly in ``seconds``."""

    capacity: int
    seconds: float

    def __post_init__(self) -> None:
        if self.capacity < 0 or self.seconds <= 0:
            raise UsageError("a bucket holds 0 tokens or more and fills in more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaConfig:
    """How much is free."""

    identity: Refill = Refill(capacity=2_000, seconds=24 * 3600)
    prefix: Refill = Refill(capacity=8_000, seconds=24 * 3600)
    whole: Refill = Refill(capacity=50_000, seconds=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a call may use, and when to ask again if that is nothing."""

    tokens: int
    retry_after: float
    """Seconds until there is one token at least; 0 if there is some now, infinite if there never is."""


class FreeQuota:
    """What is left of the free tokens, by identity and network."""

    def __init__(self, config: QuotaConfig, now: float) -> None:
        self.config = config
        self._whole = _Bucket(config.whole, now)
        self._identities: OrderedDict[Hashable, _Bucket] = OrderedDict()
        self._prefixes: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def take(self, identity: bytes, address: str, tokens: int, now: float) -> Grant:
        """Take up to ``tokens`` for a caller: all, or what there is, or nothing. What is not used is given back."""
        buckets = self._of(identity, address, now)
        granted = min(tokens, *(bucket.level(now) for bucket in buckets))
        if granted < 1:
            return Grant(tokens=0, retry_after=max(bucket.wait(now) for bucket in buckets))
        for bucket in buckets:
            bucket.change(-granted, now)
        return Grant(tokens=granted, retry_after=0.0)

    def give_back(self, identity: bytes, address: str, tokens: int, now: float) -> None:
        """Return what a call did not use."""
        for bucket in self._of(identity, address, now):
            bucket.change(tokens, now)

    def _of(self, identity: bytes, address: str, now: float) -> tuple[_Bucket, _Bucket, _Bucket]:
        mine = _find(self._identities, identity, self.config.identity, now)
        network = _find(self._prefixes, prefix_of(address), self.config.prefix, now)
        return mine, network, self._whole


class _Bucket:
    """Tokens that come with time."""

    __slots__ = ("_level", "_refill", "_since")

    def __init__(self, refill: Refill, now: float) -> None:
        self._refill = refill
        self._level = float(refill.capacity)
        self._since = now

    def level(self, now: float) -> int:
        """Whole tokens in it."""
        self._fill(now)
        return int(self._level)

    def wait(self, now: float) -> float:
        """Seconds until there is one."""
        self._fill(now)
        if self._refill.capacity < 1:
            return float("inf")
        return max(0.0, 1 - self._level) * self._refill.seconds / self._refill.capacity

    def change(self, tokens: int, now: float) -> None:
        """Add or take."""
        self._fill(now)
        self._level = min(float(self._refill.capacity), self._level + tokens)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._since)  # a clock that goes back takes nothing
        self._level = min(
            float(self._refill.capacity), self._level + passed * self._refill.capacity / self._refill.seconds
        )
        self._since = max(self._since, now)


def prefix_of(address: str) -> str:
    """The network that an address counts under. Raises `UsageError` for what is no numeric address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError as error:
        raise UsageError(f"{address[:80]!r} is not a numeric address") from error
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    length = PREFIX_V4 if found.version == 4 else PREFIX_V6
    return str(ipaddress.ip_network((found, length), strict=False))


def _find(buckets: OrderedDict[Hashable, _Bucket], key: Hashable, refill: Refill, now: float) -> _Bucket:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = buckets[key] = _Bucket(refill, now)
        if len(buckets) > MAX_BUCKETS:
            buckets.popitem(last=False)
    buckets.move_to_end(key)
    return bucket
