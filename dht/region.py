"""The region of a key: everybody who is near enough to it, not only the nearest.

An attacker can put its own nodes nearer to one key than everybody else and so hold all of its *nearest*. It cannot
push out those who are merely near. So what must not be censored is stored at every node of the region in which about
`MEMBERS` honest nodes are to be expected, and read from a sample of it (Sridhar et al., NDSS 2024). How large that
region is follows from how densely nodes stand around our own id, which an attacker on the key does not change. Its
nodes are found by looking up points spread over it: the answers around the key itself may name nobody but attackers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from dht.contacts import Contact
from dht.keys import BITS, NodeId, Target, distance

MEMBERS = 16  # honest nodes to be expected in a region: twice what a plain store reaches
SAMPLED = 2  # points that a read looks up besides the key
NEIGHBOURS = 16  # contacts nearest to us that the density is estimated from
SPACE = 1 << BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """How far a region goes from its key, and points to find its nodes by."""

    radius: int
    points: tuple[Target, ...]


def estimate_size(own_id: NodeId, contacts: Iterable[Contact]) -> float:
    """About how many nodes the network has, from how near the nearest stand to us: the i-th at about i / size."""
    distances = sorted(distance(contact.node_id, own_id) for contact in contacts)[:NEIGHBOURS]
    if not distances:
        return 1.0
    return max(len(distances), median(count * SPACE / far for count, far in enumerate(distances, start=1) if far))


def region_of(target: Target, size: float, *, draw: float | None = None) -> Region:
    """The region of ``target`` in a network of ``size`` nodes.

    With ``draw`` in [0, 1) given, only `SAMPLED` of its points, which ones depends on it: enough to read.
    """
    radius = min(SPACE, int(MEMBERS / size * SPACE))
    depth = BITS - (radius - 1).bit_length() if radius > 1 else BITS - 2
    step = max(BITS - depth - 2, 0)  # the two bits that divide the region into quarters
    own = int.from_bytes(target, "big")
    points = [Target((own ^ quarter << step).to_bytes(Target.size, "big")) for quarter in (1, 2, 3)]
    if draw is not None:
        first = int(draw * len(points))
        points = (points + points)[first : first + SAMPLED]
    return Region(radius=radius, points=tuple(points))
