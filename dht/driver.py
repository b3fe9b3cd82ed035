"""The trio driver around one `Engine`: datagrams from and to a UDP socket, deadlines, and callers who wait."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import trio

from dht.engine import Engine
from dht.krpc import MAX_RECEIVED
from dht.outcomes import Outcome
from swarm.errors import ClosedError

RECEIVE_BATCH = 64  # datagrams taken per wake-up before other tasks get their turn

OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class _Waiter:
    """A caller that waits for its operation."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Outcome | None = None


class Driver:
    """Moves an engine. `receive_forever` and `run_timers` run in the owner's nursery until `close`."""

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self._engine = engine
        self._socket = sock
        self._wake = trio.Event()
        self._waiters: dict[int, _Waiter] = {}
        self.closed = False

    async def receive_forever(self) -> None:
        """Take datagrams from the socket to the engine."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(RECEIVE_BATCH):
                try:
                    data, addr = self._socket.recvfrom(MAX_RECEIVED + 1)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an ICMP report about something sent earlier; its timeout will tell
                self._engine.receive_datagram(data, addr[:2], trio.current_time())
            self._flush()

    async def run_timers(self) -> None:
        """Wake the engine at its deadlines."""
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._engine.next_deadline()):
                await self._wake.wait()
            now = trio.current_time()
            if now >= self._engine.next_deadline():
                self._engine.handle_timer(now)
                self._flush()

    def close(self) -> None:
        """Wake everybody who waits; they raise `ClosedError`."""
        self.closed = True
        for waiter in self._waiters.values():
            waiter.done.set()

    def _flush(self) -> None:
        for data, endpoint in self._engine.datagrams_to_send():
            try:
                self._socket.sendto(data, endpoint)
            except OSError:
                continue  # a full buffer or an impossible address is a lost datagram, which the engine expects
        for event in self._engine.events():
            waiter = self._waiters.get(event.operation)
            if waiter is not None:
                waiter.outcome = event.outcome
                waiter.done.set()
        self._wake.set()

    def tell(self, start: Callable[[float], None]) -> None:
        """Start what nobody waits for; nothing once it is closed."""
        if not self.closed:
            start(trio.current_time())
            self._flush()

    async def run(self, start: Callable[[float], int], kind: type[OutcomeT]) -> OutcomeT:
        """Start an operation and wait for its outcome."""
        if self.closed:
            raise ClosedError("this DHT node is closed; open another")
        operation = start(trio.current_time())
        waiter = self._waiters[operation] = _Waiter()
        try:
            self._flush()
            await waiter.done.wait()
        finally:
            del self._waiters[operation]
            if waiter.outcome is None:
                self._engine.abandon(operation)
        if waiter.outcome is None:
            raise ClosedError("this DHT node was closed before the network had answered; open another")
        assert isinstance(waiter.outcome, kind)  # noqa: S101  (each operation has one kind of outcome)
        return waiter.outcome
