"""The clock, the nodes, and whatever is on its way. The same seed and calls give the same trace.

A node is anything with the interface of a pure engine. It is made when it is first needed, so that ten thousand of
them cost what they do and not what they might. After every call of a node the world takes what it wants sent, hands
its events on, and notes when it wants to be woken:

    running ──pause──> paused ──resume──> running       datagrams wait meanwhile, as in a stopped process's socket
       └─────kill─────────┴──────> gone ──add──> running
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar

from tests.sim.links import Links

Address: TypeAlias = tuple[str, int]
T = TypeVar("T")

BACKLOG = 256  # datagrams that wait for a paused node: about what a socket buffer holds
NEVER = float("inf")


class Participant(Protocol):
    """What the world needs of a node; `dht.Engine` is one. Times are the node's own clock."""

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """A datagram arrived."""

    def datagrams_to_send(self) -> Iterable[tuple[bytes, Address]]:
        """What to send now."""

    def events(self) -> Iterable[Any]:
        """What happened, for whoever runs the node."""

    def next_deadline(self) -> float | None:
        """When it wants to be woken."""

    def handle_timer(self, now: float) -> None:
        """It is woken."""


class _Slot:
    """A place in the world, with the node in it once it is made."""

    __slots__ = ("address", "ahead", "alive", "armed", "backlog", "make", "node", "paused")

    def __init__(self, address: Address, make: Callable[[float], Participant], ahead: float) -> None:
        self.address = address
        self.make = make
        self.node: Participant | None = None
        self.alive = True
        self.paused = False
        self.backlog: deque[tuple[bytes, Address]] = deque(maxlen=BACKLOG)
        self.armed = NEVER
        self.ahead = ahead


class World:
    """Nodes at addresses, and virtual time in seconds."""

    def __init__(self, seed: int, links: Links | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.rng = random.Random(seed)
        self.links = links or Links()
        self.sent = 0
        self.sent_bytes = 0
        self.delivered = 0
        self.on_event: Callable[[Address, Any], None] = lambda address, event: None
        self.on_send: Callable[[Address, Address, bytes], None] | None = None
        self._slots: dict[Address, _Slot] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def trace(self) -> str:
        """A digest of every datagram sent so far, with its time and addresses."""
        return self._trace.hexdigest()

    @property
    def addresses(self) -> list[Address]:
        """Where nodes live, paused ones included."""
        return list(self._slots)

    def __contains__(self, address: Address) -> bool:
        return address in self._slots

    # Nodes ------------------------------------------------------------------------------------------------------

    def add(self, address: Address, make: Callable[[float], Participant], *, ahead: float = 0.0) -> None:
        """A node at ``address``, made by ``make(its time)`` when it is first needed; its clock runs ``ahead``."""
        if address in self._slots:
            raise ValueError(f"{address} is taken")
        self._slots[address] = _Slot(address, make, ahead)

    def kill(self, address: Address) -> None:
        """End a node without a word."""
        self._slots.pop(address).alive = False

    def pause(self, address: Address) -> None:
        """Stop a node; its clock goes on."""
        self._slots[address].paused = True

    def resume(self, address: Address) -> None:
        """Let it go on, with what arrived meanwhile."""
        slot = self._slots[address]
        slot.paused = False
        while slot.backlog:
            data, source = slot.backlog.popleft()
            self._node(slot).receive_datagram(data, source, self.now + slot.ahead)
        self._wake(slot)

    def shift_clock(self, address: Address, seconds: float) -> None:
        """A node's clock jumps."""
        slot = self._slots[address]
        slot.ahead += seconds
        slot.armed = NEVER
        if slot.node is not None:
            self._drain(slot)

    def node(self, address: Address) -> Participant:
        """The node at ``address``. Whoever calls it so that it sends something uses `call` instead."""
        return self._node(self._slots[address])

    def call(self, address: Address, action: Callable[[Any, float], T]) -> T:
        """``action(node, its time)``, and then what follows from it."""
        slot = self._slots[address]
        result = action(self._node(slot), self.now + slot.ahead)
        self._drain(slot)
        return result

    # Time -------------------------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a later time."""
        self._push(max(time, self.now), action)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, done: Callable[[], bool], limit: float) -> bool:
        """Let time pass until ``done()``, at most ``limit`` seconds; whether it is done."""
        end = self.now + limit
        while not done():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return done()
            self._step()
        return True

    # Inside -----------------------------------------------------------------------------------------------------

    def _push(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._heap, (time, next(self._order), action, arguments))

    def _step(self) -> None:
        self.now, _, action, arguments = heapq.heappop(self._heap)
        action(*arguments)

    def _node(self, slot: _Slot) -> Participant:
        if slot.node is None:
            slot.node = slot.make(self.now + slot.ahead)
            self._drain(slot)
        return slot.node

    def _arrive(self, data: bytes, source: Address, target: Address) -> None:
        slot = self._slots.get(target)
        if slot is None:
            return
        if slot.paused:
            slot.backlog.append((data, source))
            return
        self.delivered += 1
        self._node(slot).receive_datagram(data, source, self.now + slot.ahead)
        self._drain(slot)

    def _wake(self, slot: _Slot) -> None:
        slot.armed = NEVER
        if not slot.alive or slot.paused or slot.node is None:
            return
        deadline = slot.node.next_deadline()
        if deadline is not None and deadline <= self.now + slot.ahead:
            slot.node.handle_timer(self.now + slot.ahead)
        self._drain(slot)

    def _timer(self, slot: _Slot, time: float) -> None:
        if slot.armed == time:
            self._wake(slot)

    def _drain(self, slot: _Slot) -> None:
        node, source = slot.node, slot.address
        assert node is not None
        for data, target in node.datagrams_to_send():
            self._send(data, source, (target[0], target[1]))
        for event in node.events():
            self.on_event(source, event)
        deadline = node.next_deadline()
        if deadline is None:
            return
        # An earlier wake-up than is armed gets an entry of its own; a later one is seen when the armed one comes.
        wake = max(deadline - slot.ahead, self.now)
        while wake + slot.ahead < deadline:  # rounded down: it would be too early for ever
            wake = math.nextafter(wake, math.inf)
        if wake < slot.armed:
            slot.armed = wake
            self._push(wake, self._timer, slot, wake)

    def _send(self, data: bytes, source: Address, target: Address) -> None:
        self.sent += 1
        self.sent_bytes += len(data)
        self._trace.update(f"{self.now:.9f}{source}{target}{len(data)}".encode() + data)
        if self.on_send is not None:
            self.on_send(source, target, data)
        for delay in self.links.fates(source[0], target[0], self.rng):
            self._push(self.now + delay, self._arrive, data, source, target)


def seeds(count: int) -> range:
    """Seeds for a test to go through: ``SIM_SEED=n`` takes only that one."""
    chosen = os.environ.get("SIM_SEED")
    return range(count) if chosen is None else range(int(chosen), int(chosen) + 1)


def reproduce(seed: int, test: str) -> str:
    """The command that runs a failed seed again; ``test`` is pytest's name of it, from the repository's root."""
    return f"reproduce with: SIM_SEED={seed} python -m pytest '{test}'"
