"""Figures of a node for operators."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

LOOKUPS_REMEMBERED = 256


@dataclass(slots=True)
class Meters:
    """What the engine counts as it goes."""

    received: int = 0
    sent: int = 0
    answered: int = 0
    withheld: int = 0
    malformed: int = 0
    timeouts: int = 0
    lookups: int = 0
    lookups_failed: int = 0
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=LOOKUPS_REMEMBERED))

    def looked_up(self, seconds: float, *, answered: bool) -> None:
        """Note that a search or store told its caller the outcome."""
        self.lookups += 1
        if answered:
            self.durations.append(seconds)
        else:
            self.lookups_failed += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long something took lately, in seconds."""

    p50: float
    p95: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Latency | None:
        """The percentiles of ``samples``: the smallest that 50 and 95 % do not exceed. None without any."""
        ordered = sorted(samples)
        if not ordered:
            return None
        return cls(p50=ordered[_rank(ordered, 50)], p95=ordered[_rank(ordered, 95)])


def _rank(ordered: list[float], percent: int) -> int:
    return -(-len(ordered) * percent // 100) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A snapshot. Counts of datagrams, queries, lookups and timeouts run from the start of the node."""

    contacts: int
    """Nodes in the routing table."""

    buckets: tuple[int, ...]
    """How full the routing table is: nodes per bucket of at most eight, from the farthest half of the key space on."""

    replacements: int
    """Nodes that wait to take the place of one that goes."""

    network_size: int
    """About how many nodes the network has, from how densely they stand around this one."""

    peers_stored: int
    """Peers kept for others, over all info-hashes."""

    items_stored: int
    """BEP 44 items kept, own ones included."""

    publications: int
    """Announcements and items that this node keeps alive."""

    operations: int
    """Operations in progress."""

    calls_in_flight: int
    """Queries that wait for an answer."""

    datagrams_received: int
    """Datagrams that arrived."""

    datagrams_sent: int
    """Datagrams that were handed to the socket."""

    queries_answered: int
    """Queries that were answered, refusals included."""

    answers_withheld: int
    """Answers and pings not sent because their network had had its share."""

    malformed: int
    """Datagrams that were no KRPC packet, or a query that broke the rules."""

    timeouts: int
    """Queries of ours that were given up."""

    lookups: int
    """Searches and stores that told their outcome, refreshes included."""

    lookups_failed: int
    """Those of them that nobody answered."""

    lookup_latency: Latency | None
    """From the start of a search or store to its outcome, over the last ones that anybody answered."""

    round_trip: Latency | None
    """From a query to its answer, over the last ones."""
