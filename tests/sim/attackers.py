"""Nodes that misbehave in any protocol. Those that lie in a particular one stand with that one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from tests.sim.world import Address, Participant


class Quiet:
    """Takes everything and does nothing: the base of the others."""

    def __init__(self) -> None:
        self.out: list[tuple[bytes, Address]] = []

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """Nothing."""

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        out, self.out = self.out, []
        return out

    def events(self) -> Iterable[Any]:
        return ()

    def next_deadline(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None:
        """Nothing."""


class Babbler(Quiet):
    """Answers everything with noise, some of it made from what it was sent."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        answer = bytearray(data if self._rng.random() < 0.5 else self._rng.randbytes(self._rng.randrange(1, 1500)))
        answer[self._rng.randrange(len(answer))] ^= 1 << self._rng.randrange(8)
        self.out.append((bytes(answer), addr))


class Slow(Quiet):
    """A node that does everything right, so many seconds late."""

    def __init__(self, node: Participant, seconds: float) -> None:
        super().__init__()
        self._node = node
        self._seconds = seconds
        self._late: list[tuple[float, bytes, Address]] = []

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self._late.append((now + self._seconds, data, addr))

    def datagrams_to_send(self) -> list[tuple[bytes, Address]]:
        return list(self._node.datagrams_to_send())

    def events(self) -> Iterable[Any]:
        return self._node.events()

    def next_deadline(self) -> float | None:
        times = [self._node.next_deadline(), self._late[0][0] if self._late else None]
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> None:
        while self._late and self._late[0][0] <= now:
            _, data, addr = self._late.pop(0)
            self._node.receive_datagram(data, addr, now)
        deadline = self._node.next_deadline()
        if deadline is not None and deadline <= now:
            self._node.handle_timer(now)


class Flooder(Quiet):
    """Sends what ``make(number)`` makes to one victim, ``rate`` times a second."""

    def __init__(self, victim: Address, rate: float, make: Callable[[int], bytes], now: float) -> None:
        super().__init__()
        self._victim = victim
        self._every = 1 / rate
        self._make = make
        self._next = now
        self._number = 0

    def next_deadline(self) -> float | None:
        return self._next

    def handle_timer(self, now: float) -> None:
        while self._next <= now:
            self.out.append((self._make(self._number), self._victim))
            self._number += 1
            self._next += self._every
