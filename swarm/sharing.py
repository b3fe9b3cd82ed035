"""Who of several that join at once asks the seed for which piece, so that it uploads each about once.

Left alone, workers that load their layers in the same order all ask the seed for the same pieces: eight of them take
five copies out of it. Super-seeding would spread the pieces, but in an order of its own and to workers that serve
other layers, too. So each worker computes, from the peer ids that it sees, who fetches which piece from the seed (the
lowest hash of peer id and piece: rendezvous hashing), fetches its own share of a layer first, and takes the rest from
the others. Nobody has to agree on anything: where two see other peers, a piece is uploaded twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

TOP_PRIORITY = 7  # libtorrent's highest, and the only one that goes strictly before all others
NEXT, LATER = 3, 2  # below 4 libtorrent weighs by rarity: what only the seed has still goes before what others have


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A connected peer, as far as sharing goes."""

    peer_id: bytes
    pieces: frozenset[int]
    fetching: bool
    """It still wants something; a seed, or a worker that has its span, does not."""


def crowd_of(me: bytes, neighbours: Iterable[Neighbour], wanted: AbstractSet[int]) -> tuple[bytes, ...]:
    """Those who share the work on ``wanted``, myself included: who fetches, and has none of it or some of the same."""
    sharing = {me}
    for neighbour in neighbours:
        if neighbour.fetching and (not neighbour.pieces or not neighbour.pieces.isdisjoint(wanted)):
            sharing.add(neighbour.peer_id)
    return tuple(sorted(sharing))


def owner_of(piece: int, crowd: Sequence[bytes]) -> bytes:
    """Who of the crowd fetches the piece from the seed."""
    number = piece.to_bytes(4, "big")
    return min(crowd, key=lambda peer: hashlib.blake2b(peer + number, digest_size=8).digest())


def shared_priorities(
    total: int, tiers: Sequence[AbstractSet[int]], own: AbstractSet[int], elsewhere: AbstractSet[int]
) -> list[int]:
    """Priority per piece of ``total``, for a worker that shares the unfinished pieces in ``tiers`` with others.

    ``own`` are those that it fetches from the seed, earlier tiers first; ``elsewhere`` those that others have. What
    is neither waits (0) as long as there are own ones to fetch, then nobody waits for an owner that does not come.
    """
    priorities = [0] * total
    level = TOP_PRIORITY
    for tier in tiers:
        mine = tier & own
        for piece in tier - mine:
            if piece in elsewhere or not own:
                priorities[piece] = max(priorities[piece], 1)
        for piece in mine:
            priorities[piece] = max(priorities[piece], level)
        if mine:
            level = NEXT if level == TOP_PRIORITY else LATER
    return priorities
