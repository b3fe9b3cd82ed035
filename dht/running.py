"""Operations in progress: what each wants sent is sent, what it hears is passed on, its outcome is reported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dht.contacts import Endpoint
from dht.krpc import ErrorPacket, ReplyPacket
from dht.operations import Operation, Request
from dht.outcomes import Outcome
from dht.search import Search
from dht.statistics import Meters
from dht.storing import Store


@dataclass(frozen=True, slots=True)
class Finished:
    """The operation of this number has an outcome."""

    operation: int
    outcome: Outcome


class Running:
    """Operations by number. ``ask`` sends a request of one of them; ``report`` is told of each outcome."""

    def __init__(
        self,
        ask: Callable[[Request, int, float], None],
        report: Callable[[int, Outcome, float], None],
        meters: Meters,
    ) -> None:
        self._ask = ask
        self._report = report
        self._meters = meters
        self._operations: dict[int, Operation] = {}
        self._begun: dict[int, float] = {}  # those whose outcome was not reported yet
        self._last = 0
        self._events: list[Finished] = []

    def __len__(self) -> int:
        return len(self._operations)

    def begin(self, operation: Operation, now: float) -> int:
        """Take on an operation, and give it its number; `pump` starts it."""
        self._last += 1
        self._operations[self._last] = operation
        self._begun[self._last] = now
        return self._last

    def knows(self, number: int | None) -> bool:
        """Whether an operation is still in progress."""
        return number in self._operations

    def replied(self, number: int | None, endpoint: Endpoint, packet: ReplyPacket, now: float) -> None:
        """Pass on an answer to a query of this operation."""
        operation = self._find(number)
        if operation is not None:
            operation.replied(endpoint, packet)
            self.pump(number, now)

    def timed_out(self, number: int | None, endpoint: Endpoint, times: int, now: float) -> None:
        """Pass on that ``times`` transmissions were let pass."""
        operation = self._find(number)
        if operation is not None:
            operation.timed_out(endpoint, times)
            self.pump(number, now)

    def failed(self, number: int | None, endpoint: Endpoint, error: ErrorPacket | None, now: float) -> None:
        """Pass on a refusal, or that an endpoint was given up (None)."""
        operation = self._find(number)
        if operation is not None:
            operation.failed(endpoint, error)
            self.pump(number, now)

    def abandon(self, number: int) -> None:
        """Forget an operation whose caller has gone."""
        self._operations.pop(number, None)
        self._begun.pop(number, None)

    def events(self) -> list[Finished]:
        """Outcomes since the last call."""
        events, self._events = self._events, []
        return events

    def _find(self, number: int | None) -> Operation | None:
        return None if number is None else self._operations.get(number)

    def pump(self, number: int | None, now: float) -> None:
        """Send what the operation wants sent, and report what it has to say."""
        operation = self._find(number)
        if operation is None or number is None:
            return
        for request in operation.requests():
            self._ask(request, number, now)
        outcome = operation.outcome if number in self._begun else None
        if outcome is not None:
            begun = self._begun.pop(number)
            if isinstance(operation, Search | Store):
                self._meters.looked_up(now - begun, answered=outcome.answered > 0)
            self._report(number, outcome, now)
            self._events.append(Finished(number, outcome))
        if operation.finished:
            del self._operations[number]
