"""What becomes of a datagram: delay, loss, duplicates, reordering, partitions."""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

Delay: TypeAlias = Callable[[str, str, random.Random], float]
"""Seconds from one host to another, one way."""


def uniform(low: float, high: float) -> Delay:
    """Any delay between the two, for each datagram anew."""
    return lambda source, target, rng: low + (high - low) * rng.random()


def normal(mean: float, deviation: float) -> Delay:
    """Bell-shaped, never below a tenth of the mean."""
    return lambda source, target, rng: max(mean / 10, rng.gauss(mean, deviation))


def heavy_tailed(median: float, sigma: float = 0.5) -> Delay:
    """Log-normal: most near the median, some far above it."""
    return lambda source, target, rng: median * math.exp(rng.gauss(0.0, sigma))


def geography(low: float, high: float, jitter: float = 0.1) -> Delay:
    """A delay that belongs to the two hosts, the same both ways, and ``jitter`` of it more at most."""

    def delay(source: str, target: str, rng: random.Random) -> float:
        pair = f"{min(source, target)} {max(source, target)}".encode()
        base = low + (high - low) * (zlib.crc32(pair) / 2**32)
        return base * (1 + jitter * rng.random())

    return delay


NEAR = uniform(0.005, 0.030)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How datagrams fare between two hosts. Shares are from 0 to 1."""

    delay: Delay = NEAR
    loss: float = 0.0
    duplicates: float = 0.0
    """The share that arrives twice, each copy with a delay of its own."""
    late: float = 0.0
    """The share that arrives after ten times its delay, behind what was sent later."""


class Links:
    """The link between any two hosts; partitions forbid some of them for a time."""

    def __init__(self, default: Link | None = None) -> None:
        self.default = default or Link()
        self._own: dict[str, Link] = {}
        self._partitions: dict[int, Callable[[str, str], bool]] = {}
        self._numbers = itertools.count()

    def set_host(self, host: str, link: Link) -> None:
        """The link of everything from and to ``host``."""
        self._own[host] = link

    def fates(self, source: str, target: str, rng: random.Random) -> list[float]:
        """The delays after which copies of a datagram arrive: none if it is lost."""
        for cut in self._partitions.values():
            if cut(source, target):
                return []
        link = self.default
        if self._own:
            link = self._own.get(target) or self._own.get(source) or link
        if link.loss and rng.random() < link.loss:
            return []
        copies = 2 if link.duplicates and rng.random() < link.duplicates else 1
        delays = [link.delay(source, target, rng) for _ in range(copies)]
        if link.late and rng.random() < link.late:
            delays[-1] *= 10
        return delays

    def cut(self, severed: Callable[[str, str], bool]) -> int:
        """Lose every datagram for which ``severed(source, target)``; returns a number for `heal`."""
        number = next(self._numbers)
        self._partitions[number] = severed
        return number

    def separate(self, some: Collection[str]) -> int:
        """Cut ``some`` hosts off from all others."""
        inside = frozenset(some)
        return self.cut(lambda source, target: (source in inside) != (target in inside))

    def silence(self, some: Collection[str]) -> int:
        """One way only: what ``some`` hosts send to others is lost, what others send to them arrives."""
        inside = frozenset(some)
        return self.cut(lambda source, target: source in inside and target not in inside)

    def heal(self, number: int) -> None:
        """End a partition."""
        del self._partitions[number]
