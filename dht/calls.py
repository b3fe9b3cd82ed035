"""Queries in flight: transaction ids, adaptive timeouts, retransmission.

A call is sent up to three times. The first wait is max(150 ms, 2 × the 95th percentile of that peer's round trips);
each further wait is half as long again. Every transmission has a transaction id of its own, so that an answer tells
which one it belongs to and the measured round trip is exact; an answer to any of them ends the call.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from dht.contacts import Endpoint
from dht.queries import Query

MIN_TIMEOUT = 0.150  # seconds: below it a busy event loop looks like a lost packet
MAX_TIMEOUT = 2.0  # seconds: a peer slower than this costs more than it gives
FIRST_TIMEOUT = 0.500  # seconds: for the first calls of a node that has measured nothing yet
WIDENING = 1.5
ATTEMPTS = 3  # at 10 % loss each way, 0.7 % of live peers look dead
SAMPLES_PER_PEER = 16
SAMPLES_OVERALL = 64
SILENT_FOR = 120.0  # seconds a suspect is asked but not waited for: others go on naming it meanwhile
MAX_SILENT = 1024
MAX_PEERS_MEASURED = 4096  # round trips remembered: under 1 MB


class RoundTrips:
    """Measured round trips per endpoint and overall, in seconds."""

    def __init__(self) -> None:
        self._by_endpoint: OrderedDict[Endpoint, deque[float]] = OrderedDict()
        self._overall: deque[float] = deque(maxlen=SAMPLES_OVERALL)

    def add(self, endpoint: Endpoint, seconds: float) -> None:
        """Note one round trip."""
        samples = self._by_endpoint.setdefault(endpoint, deque(maxlen=SAMPLES_PER_PEER))
        samples.append(seconds)
        self._overall.append(seconds)
        self._by_endpoint.move_to_end(endpoint)
        if len(self._by_endpoint) > MAX_PEERS_MEASURED:
            self._by_endpoint.popitem(last=False)

    @property
    def overall(self) -> tuple[float, ...]:
        """The last ones, whoever answered."""
        return tuple(self._overall)

    def timeout(self, endpoint: Endpoint) -> float:
        """How long to wait for ``endpoint`` before asking again."""
        samples = self._by_endpoint.get(endpoint) or self._overall
        if not samples:
            return FIRST_TIMEOUT
        return min(max(MIN_TIMEOUT, 2 * percentile_95(samples)), MAX_TIMEOUT)


def percentile_95(samples: deque[float]) -> float:
    """The smallest sample that at least 95 % of ``samples`` do not exceed."""
    ordered = sorted(samples)
    return ordered[-(-len(ordered) * 95 // 100) - 1]


@dataclass(slots=True)
class Call:
    """One query to one endpoint on behalf of one operation (or of none, for upkeep)."""

    endpoint: Endpoint
    query: Query
    operation: int | None
    timeout: float
    once: bool = False
    deadline: float = 0.0
    sent: dict[bytes, float] = field(default_factory=dict)  # transaction id -> when it was sent

    @property
    def attempts(self) -> int:
        """How many times it was sent."""
        return len(self.sent)

    @property
    def may_repeat(self) -> bool:
        """Whether it is to be sent again when its wait is over."""
        return not self.once and self.attempts < ATTEMPTS


class Calls:
    """All calls in flight, found by transaction id or by deadline."""

    def __init__(self) -> None:
        self.round_trips = RoundTrips()
        self._silent: OrderedDict[Endpoint, float] = OrderedDict()  # until when, earliest first
        self._by_transaction: dict[bytes, Call] = {}
        self._deadlines: list[tuple[float, bytes]] = []  # a heap; an entry counts while its transaction is the latest

    def __len__(self) -> int:
        return len({id(call) for call in self._by_transaction.values()})

    def open(self, endpoint: Endpoint, query: Query, operation: int | None, *, once: bool = False) -> Call:
        """A call that was not sent yet; one that is sent ``once`` is not repeated."""
        return Call(endpoint, query, operation, self.round_trips.timeout(endpoint), once)

    def knows(self, transaction: bytes) -> bool:
        """Whether ``transaction`` is in use."""
        return transaction in self._by_transaction

    def sent(self, call: Call, transaction: bytes, now: float) -> None:
        """Note that ``call`` went out as ``transaction``; from the second time on, the wait widens."""
        if call.sent:
            call.timeout = min(call.timeout * WIDENING, MAX_TIMEOUT)
        call.sent[transaction] = now
        call.deadline = now + call.timeout
        self._by_transaction[transaction] = call
        heapq.heappush(self._deadlines, (call.deadline, transaction))

    def answered(self, transaction: bytes, endpoint: Endpoint, now: float) -> Call | None:
        """The call that ``transaction`` belongs to, closed; None unless the answer comes from where it was sent."""
        call = self._by_transaction.get(transaction)
        if call is None or call.endpoint != endpoint:
            return None
        self.round_trips.add(endpoint, max(0.0, now - call.sent[transaction]))
        self.heard(endpoint)
        self.close(call)
        return call

    def heard(self, endpoint: Endpoint) -> None:
        """Note a sign of life."""
        self._silent.pop(endpoint, None)

    def suspect(self, endpoint: Endpoint, now: float) -> None:
        """Note that ``endpoint`` let several transmissions pass."""
        self._silent[endpoint] = now + SILENT_FOR
        self._silent.move_to_end(endpoint)
        if len(self._silent) > MAX_SILENT:
            self._silent.popitem(last=False)

    def silent(self, now: float) -> frozenset[Endpoint]:
        """Suspects of the last two minutes that gave no sign of life since."""
        while self._silent and next(iter(self._silent.values())) <= now:
            self._silent.popitem(last=False)
        return frozenset(self._silent)

    def due(self, now: float) -> list[Call]:
        """Calls whose wait is over. Each is to be sent again or closed."""
        due = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, transaction = heapq.heappop(self._deadlines)
            call = self._by_transaction.get(transaction)
            if call is not None and call.deadline == deadline:
                due.append(call)
        return due

    def close(self, call: Call) -> None:
        """Forget the call; whatever still arrives for it is ignored."""
        for transaction in call.sent:
            self._by_transaction.pop(transaction, None)

    def next_deadline(self) -> float | None:
        """When `due` has something next."""
        while self._deadlines:
            deadline, transaction = self._deadlines[0]
            call = self._by_transaction.get(transaction)
            if call is not None and call.deadline == deadline:
                return deadline
            heapq.heappop(self._deadlines)
        return None
