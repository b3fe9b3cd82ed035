"""Nodes that come and go."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.world import Address, World


class Churn:
    """Replaces random nodes by newcomers, one at a time, at exponentially distributed intervals.

    ``share`` of the population goes within ``period`` seconds on average. Nodes in ``spared`` stay.
    """

    def __init__(
        self, world: World, newcomer: Callable[[], Address], *, share: float, period: float, spared: set[Address]
    ) -> None:
        self._world = world
        self._newcomer = newcomer
        self._share = share
        self._period = period
        self._spared = spared
        self._running = False
        self.replaced = 0

    def start(self) -> None:
        """Begin."""
        self._running = True
        self._schedule()

    def stop(self) -> None:
        """No more from now on."""
        self._running = False

    def _schedule(self) -> None:
        rate = self._share * len(self._world.addresses) / self._period
        if rate > 0:
            self._world.at(self._world.now + self._world.rng.expovariate(rate), self._replace)

    def _replace(self) -> None:
        if not self._running:
            return
        mortal = [address for address in self._world.addresses if address not in self._spared]
        if mortal:
            self._world.kill(self._world.rng.choice(mortal))
            self._newcomer()
            self.replaced += 1
        self._schedule()
