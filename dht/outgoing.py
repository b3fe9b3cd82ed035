"""Datagrams on their way out: queries and their retransmission, upkeep pings, and answers within their allowance."""

from __future__ import annotations

from dht.allowance import Allowance
from dht.calls import Call, Calls
from dht.config import Randomness
from dht.contacts import Endpoint
from dht.keys import NodeId
from dht.krpc import QueryPacket
from dht.queries import Ping, Query
from dht.statistics import Meters

TRANSACTION_SIZE = 4  # bytes: a forger off the path cannot guess one within a timeout
MAX_PINGS = 64  # upkeep pings in flight: a flood of strangers must not become a flood of ours


class Outgoing:
    """What a node sends. Queries of its operations go as they come; whatever strangers cause is bounded."""

    def __init__(self, own_id: NodeId, rng: Randomness, meters: Meters, *, read_only: bool) -> None:
        self.own_id = own_id
        self.calls = Calls()
        self.allowance = Allowance()
        self._rng = rng
        self._meters = meters
        self._read_only = read_only
        self._pinging: set[Endpoint] = set()
        self._waiting: list[tuple[bytes, Endpoint]] = []

    def take(self) -> list[tuple[bytes, Endpoint]]:
        """Datagrams to send now, in order; each is given out once."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def answer(self, data: bytes, endpoint: Endpoint, now: float) -> None:
        """Answer ``endpoint``, unless its network has had enough."""
        if self.allowance.spend(endpoint, len(data), now):
            self._send(data, endpoint)
        else:
            self._meters.withheld += 1

    def ask(self, endpoint: Endpoint, query: Query, operation: int | None, now: float) -> None:
        """Send a query of ours, and keep it in flight."""
        self.transmit(self.calls.open(endpoint, query, operation), now)

    def transmit(self, call: Call, now: float) -> None:
        """Send a call once more."""
        self._send(self._packet(call, now), call.endpoint)

    def ping(self, endpoint: Endpoint, now: float, *, stranger: bool) -> None:
        """Ping for upkeep. A ``stranger`` that caused it may have forged its address, so that counts as an answer."""
        if endpoint in self._pinging or len(self._pinging) >= MAX_PINGS:
            return
        call = self.calls.open(endpoint, Ping(), None, once=stranger and not self.allowance.is_proven(endpoint, now))
        data = self._packet(call, now)
        if stranger and not self.allowance.spend(endpoint, len(data), now):
            self.calls.close(call)
            self._meters.withheld += 1
            return
        self._pinging.add(endpoint)
        self._send(data, endpoint)

    def pinged(self, endpoint: Endpoint) -> None:
        """Note that a ping of ``endpoint`` is over, one way or the other."""
        self._pinging.discard(endpoint)

    def _packet(self, call: Call, now: float) -> bytes:
        transaction = self._rng.randbytes(TRANSACTION_SIZE)
        while self.calls.knows(transaction):
            transaction = self._rng.randbytes(TRANSACTION_SIZE)
        self.calls.sent(call, transaction, now)
        query = call.query
        return QueryPacket(transaction=transaction, sender=self.own_id, query=query, read_only=self._read_only).pack()

    def _send(self, data: bytes, endpoint: Endpoint) -> None:
        self._meters.sent += 1
        self._waiting.append((data, endpoint))
