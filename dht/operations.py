"""What a node does of its own accord, as state machines without clock or socket.

The engine sends what `requests` returns, reports what became of it, and asks again until the operation is finished.
``outcome`` may be there earlier: the caller gets it at once while the rest completes behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dht.contacts import Contact, Endpoint
from dht.krpc import ErrorPacket, ReplyPacket
from dht.outcomes import Outcome, Told
from dht.queries import Query


@dataclass(frozen=True, slots=True)
class Request:
    """A query to send to an endpoint."""

    endpoint: Endpoint
    query: Query


class Operation(Protocol):
    """What the engine drives."""

    @property
    def outcome(self) -> Outcome | None:
        """What the caller gets, once it is known."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to send or to wait for."""

    def requests(self) -> list[Request]:
        """What to send now."""

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        """``endpoint`` answered."""

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """``endpoint`` let ``times`` transmissions pass; another one is on its way."""

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        """``endpoint`` refused, or was given up (None)."""


class DirectQuery:
    """One query to one endpoint."""

    def __init__(self, endpoint: Endpoint, query: Query) -> None:
        self._request = Request(endpoint, query)
        self._sent = False
        self.outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        return self.outcome is not None

    def requests(self) -> list[Request]:
        if self._sent:
            return []
        self._sent = True
        return [self._request]

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        self.outcome = Told(asked=1, answered=1, nearest=(Contact(packet.sender, endpoint),), reply=packet.reply)

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """Nothing to do before the last one."""

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        del endpoint
        self.outcome = Told(asked=1, answered=0 if error is None else 1, reply=None)
