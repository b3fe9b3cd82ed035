"""Where searches begin: contacts nearest to the target, or the bootstrap addresses when there are none."""

from __future__ import annotations

from dht.calls import Calls
from dht.config import Randomness
from dht.contacts import Endpoint
from dht.keys import Target
from dht.region import NEIGHBOURS, Region, estimate_size, region_of
from dht.routing import BUCKET_SIZE, RoutingTable
from dht.search import Start

PATHS_OF_A_PUT = 2  # disjoint: a liar on one does not decide where an item is kept


class Starts:
    """Makes the `Start` of each search out of what the node knows at the time."""

    def __init__(self, table: RoutingTable, calls: Calls, rng: Randomness, routers: tuple[Endpoint, ...]) -> None:
        self._table = table
        self._calls = calls
        self._rng = rng
        self.routers = routers

    def of_search(
        self, target: Target, now: float, *, routers: tuple[Endpoint, ...] = (), region: bool = False
    ) -> Start:
        """One path from the nearest contacts and ``routers``; with ``region`` also a sample of the target's region."""
        return self._start(target, now, routers=routers, region=self._area(target, sampled=True) if region else None)

    def of_put(self, target: Target, now: float, *, region: bool = False) -> Start:
        """Disjoint paths; with ``region`` also all of the target's region."""
        area = self._area(target, sampled=False) if region else None
        return self._start(target, now, paths=PATHS_OF_A_PUT, region=area)

    def network_size(self) -> float:
        """About how many other nodes there are."""
        own_id = self._table.own_id
        return estimate_size(own_id, self._table.closest(own_id, NEIGHBOURS))

    def _area(self, target: Target, *, sampled: bool) -> Region:
        return region_of(target, self.network_size(), draw=self._rng.random() if sampled else None)

    def _start(
        self,
        target: Target,
        now: float,
        *,
        routers: tuple[Endpoint, ...] = (),
        paths: int = 1,
        region: Region | None = None,
    ) -> Start:
        fallback = self.routers if self._table.is_cut_off else ()
        return Start(
            own_id=self._table.own_id,
            seeds=tuple(self._table.closest(target, paths * BUCKET_SIZE)),
            routers=routers or fallback,
            silent=self._calls.silent(now),
            paths=paths,
            region=region,
        )
