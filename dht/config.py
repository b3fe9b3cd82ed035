"""How a DHT node, and the engine inside it, are set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dht.contacts import Endpoint
from dht.keys import NodeId
from swarm.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtConfig:
    """Settings of one node; every field has a default that works for a node on this machine."""

    host: str = "127.0.0.1"
    """The local address to listen on; ``0.0.0.0`` or ``::`` for all. Its kind (IPv4, IPv6) is the node's."""

    port: int = 0
    """The UDP port to listen on; 0 takes a free one."""

    bootstrap: tuple[tuple[str, int], ...] = ()
    """Nodes to join through, as (host or name, port). Empty for the first node of a network."""

    read_only: bool = False
    """Ask only and answer nothing (BEP 43): for short-lived clients and for nodes that cannot be reached."""

    node_id: NodeId | None = None
    """The node's id, never changed. None takes the saved one, or a random one that suits ``host``; it changes if others
    see this node at an address that it does not suit (BEP 42)."""

    state_path: Path | None = None
    """The file to keep the node's id and contacts in over restarts; a node that finds one there joins through it.
    Written every few minutes and at the end; a damaged one is reported and passed over. None keeps nothing."""

    external_host: str | None = None
    """The numeric address that others reach this node at, where it is known; None believes what most of them say."""

    seed: int | None = None
    """Seeds all random choices, for tests and simulations only; None uses the operating system's randomness."""

    def __post_init__(self) -> None:
        for host, port in ((self.host, self.port), *self.bootstrap):
            if not host or not 0 <= port < 65536:
                raise UsageError(f"{host}:{port} is no address; give HOST:PORT with a port up to 65535")
        if any(port == 0 for _, port in self.bootstrap):
            raise UsageError("a bootstrap address needs a port from 1 to 65535")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What one engine is."""

    node_id: NodeId
    """The id it is known by, at first."""

    fixed_id: bool = False
    """Keep that id whatever address others see (it may then be distrusted, BEP 42)."""

    host: str | None = None
    """The numeric address that others reach it at, where that is known; else it believes what they say."""

    read_only: bool = False
    """Ask only, answer nothing, and say so (BEP 43)."""

    routers: tuple[Endpoint, ...] = ()
    """Addresses to begin from whenever no contact is known."""


class Randomness(Protocol):
    """What the engine needs of a `random.Random`: seeded in simulations, the system's in production."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def randbytes(self, n: int, /) -> bytes:
        """``n`` random bytes."""
