"""How operations end. Each outcome says how many nodes were asked and answered, so that silence can be told apart."""

from __future__ import annotations

from dataclasses import dataclass

from dht.contacts import Contact, Endpoint
from dht.items import Item
from dht.keys import Target
from dht.replies import Reply
from dht.roster import SignedEntry
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

    seeds: float = 0.0
    """About how many addresses announced that they have everything, where that was asked (BEP 33)."""

    downloaders: float = 0.0
    """About how many others announced, where that was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Outcome):
    """What one node answered when it was asked directly; None for silence or a refusal."""

    reply: Reply | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterFound(Outcome):
    """Entries of a roster, a few from each of several storers in turn; their signatures are the caller's to check.

    ``count`` is how many the storers keep of it, ``depth`` the one its writers use: the medians of what they say.
    """

    entries: tuple[SignedEntry, ...]
    count: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterStored(Stored):
    """An entry was offered to a roster, which held ``count`` before. ``storers`` are with the tokens they gave."""

    count: int
    depth: int
    storers: tuple[tuple[Endpoint, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSize:
    """How many addresses are announced under an info-hash, estimated from Bloom filters (BEP 33)."""

    seeds: int
    downloaders: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledInfohashes:
    """What one node shows of the info-hashes it keeps peers of (BEP 51), and nodes to ask next."""

    info_hashes: tuple[Target, ...]
    """Some of them, drawn at random."""

    total: int
    """How many it says there are in all."""

    interval: int
    """Seconds before which asking it again is no use."""

    contacts: tuple[Contact, ...]
    """Nodes it knows near the target that was named."""
