"""A small network of engines on virtual time: seeded loss and delay, the same trace for the same seed."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import TypeVar

from dht.config import EngineConfig
from dht.contacts import Endpoint
from dht.engine import Engine
from dht.keys import NodeId
from dht.outcomes import Outcome

OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Network:
    """Engines by endpoint, datagrams in flight, and a clock that jumps to whatever is next."""

    def __init__(self, seed: int, *, loss: float = 0.0, delay: tuple[float, float] = (0.005, 0.030)) -> None:
        self.now = 0.0
        self.engines: dict[Endpoint, Engine] = {}
        self.outcomes: dict[tuple[Endpoint, int], Outcome] = {}
        self.sent = 0
        self._rng = random.Random(seed)
        self._loss = loss
        self._delay = delay
        self._flying: list[tuple[float, int, bytes, Endpoint, Endpoint]] = []
        self._trace = hashlib.sha256()

    def add(self, *, routers: tuple[Endpoint, ...] = (), read_only: bool = False, ipv6: bool = False) -> Endpoint:
        """Start an engine on an address of its own; it joins through ``routers``."""
        number = len(self.engines) + 1
        host = f"2001:db8::{number:x}" if ipv6 else f"10.0.{number // 250}.{number % 250 + 1}"
        endpoint = Endpoint(host, 6881)
        node_id = NodeId(self._rng.randbytes(NodeId.size))
        rng = random.Random(self._rng.random())
        config = EngineConfig(node_id=node_id, routers=routers, read_only=read_only)
        self.engines[endpoint] = Engine(config, rng, self.now)
        if routers:
            self.wait(endpoint, lambda engine: engine.bootstrap(routers, self.now), Outcome)
        return endpoint

    def kill(self, endpoint: Endpoint) -> None:
        """Stop an engine without a word."""
        del self.engines[endpoint]

    def start(self, endpoint: Endpoint, operation: Callable[[Engine], int]) -> int:
        """Start an operation at one engine."""
        number = operation(self.engines[endpoint])
        self._drain(endpoint)
        return number

    def wait(
        self, endpoint: Endpoint, operation: Callable[[Engine], int], kind: type[OutcomeT], *, limit: float = 60.0
    ) -> OutcomeT:
        """Run the network until the operation has its outcome, at most ``limit`` virtual seconds."""
        number = self.start(endpoint, operation)
        end = self.now + limit
        while (endpoint, number) not in self.outcomes:
            assert self.now < end, "the operation hangs"
            self._step(end)
        outcome = self.outcomes.pop((endpoint, number))
        assert isinstance(outcome, kind)
        return outcome

    def run(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        end = self.now + seconds
        while self.now < end:
            self._step(end)

    @property
    def trace(self) -> str:
        """A digest of every datagram so far with its time and addresses."""
        return self._trace.hexdigest()

    def _step(self, end: float) -> None:
        timers = [(engine.next_deadline(), endpoint) for endpoint, engine in self.engines.items()]
        deadline, endpoint = min(timers)
        if self._flying and self._flying[0][0] <= min(deadline, end):
            self.now, _, data, source, target = heapq.heappop(self._flying)
            if target in self.engines:
                self.engines[target].receive_datagram(data, source, self.now)
                self._drain(target)
        elif deadline <= end:
            self.now = max(self.now, deadline)
            self.engines[endpoint].handle_timer(self.now)
            self._drain(endpoint)
        else:
            self.now = end

    def _drain(self, source: Endpoint) -> None:
        engine = self.engines[source]
        for data, target in engine.datagrams_to_send():
            self.sent += 1
            self._trace.update(repr((self.now, source, target, data)).encode())
            if self._rng.random() >= self._loss:
                arrival = self.now + self._rng.uniform(*self._delay)
                heapq.heappush(self._flying, (arrival, self.sent, data, source, target))
        for event in engine.events():
            self.outcomes[source, event.operation] = event.outcome
