"""A clock that never goes back, over one that may."""

from __future__ import annotations

import math


class SteadyClock:
    """Turns an owner's times into times that never decrease, and back.

    After a step back time goes on from where it stood; a step forward is taken as it is (a machine that slept).
    """

    def __init__(self, now: float) -> None:
        self._latest = now
        self._ahead = 0.0  # how far our time is ahead of the owner's

    def read(self, now: float) -> float:
        """The steady time at the owner's ``now``."""
        steady = now + self._ahead
        if steady < self._latest:
            self._ahead += self._latest - steady
            steady = self._latest
        self._latest = steady
        return steady

    def owners(self, steady: float) -> float:
        """The owner's time that a steady time stands for, or just after: reading it gives no earlier one."""
        owners = steady - self._ahead
        while owners + self._ahead < steady:  # rounded down: a timer set for it would come too early for ever
            owners = math.nextafter(owners, math.inf)
        return owners
