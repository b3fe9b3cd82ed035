"""What happens on a connection, as `swarm.protocol` reports it, and the states it can be in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swarm.errors import SwarmError
from swarm.ids import PeerId
from swarm.messages import AnyMessage


class Role(Enum):
    """Which side of the TLS connection this is."""

    CALLER = "caller"
    CALLED = "called"


class State(Enum):
    """See the theory of operation in `swarm.protocol`."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Opened:
    """The greeting is done: both keys are proven."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class Received:
    """A whole message. ``first`` marks the one that opens a stream of the peer's; ``fin`` the last of its direction."""

    stream: int
    message: AnyMessage
    raw: memoryview
    first: bool
    fin: bool
    size: int
    """Bytes to give back with `Connection.consumed` once the message has been dealt with."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer ended its direction of a stream without another message."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer dropped a stream."""

    stream: int
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; ``error`` says why, None for a goodbye."""

    error: SwarmError | None


Event = Opened | Received | Ended | Reset | Closed
