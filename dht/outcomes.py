"""How operations end. Each outcome says how many nodes were asked and answered, so that silence can be told apart."""

from __future__ import annotations

from dataclasses import dataclass

from dht.contacts import Contact, Endpoint
from dht.items import Item
from dht.keys import Target
from swarm.errors import SwarmError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an operation ended. ``nearest`` are the contacts that answered, nearest to the target first."""

    asked: int
    answered: int
    nearest: tuple[Contact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersFound(Outcome):
    """Peers that were announced under an info-hash, in no particular order."""

    peers: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFound(Outcome):
    """The item under a target: the newest authentic one, or None."""

    item: Item | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Outcome):
    """An announcement or item was offered to the nearest nodes: how many of them kept it.

    ``item`` is what was put, None for an announcement; ``error`` says why it was not offered, or was refused by all.
    """

    target: Target
    stored: int
    item: Item | None = None
    error: SwarmError | None = None
