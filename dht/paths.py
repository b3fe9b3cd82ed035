"""Several lookups at once that share what they ask: disjoint paths to one target, and points of a region.

No endpoint is asked twice. A *disjoint* path learns only from those it asked itself, so that a liar misleads no other
path; where its own list comes to an endpoint that another path asked, it takes the result and not the hearsay. Lookups
towards other points learn from everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dht.contacts import Contact, Endpoint
from dht.keys import distance
from dht.lookup import MAX_PER_PREFIX, WIDTH, Lookup, State
from dht.prefixes import prefix_of


class Paths:
    """Lookups towards ``target`` that keep to themselves, and lookups towards other points."""

    def __init__(self, target: bytes, disjoint: Sequence[Lookup], points: Sequence[Lookup] = ()) -> None:
        self.target = target
        self._disjoint = disjoint
        self._points = points
        self._all = (*disjoint, *points)
        self._owners: dict[Endpoint, Lookup] = {}
        self._answered: dict[Endpoint, Contact] = {}

    @property
    def asked(self) -> int:
        """How many endpoints were asked."""
        return len(self._owners)

    @property
    def answered_count(self) -> int:
        """How many endpoints answered."""
        return len(self._answered)

    @property
    def finished(self) -> bool:
        """Whether every lookup is."""
        return all(lookup.finished for lookup in self._all)

    def next_contacts(self) -> list[tuple[Contact, bytes]]:
        """Contacts to ask now, each with what its lookup looks for."""
        chosen = []
        for lookup in self._all:
            taken = True
            while taken:  # an endpoint of another lookup frees its slot, unless that one waits for it
                taken = False
                for contact in lookup.next_contacts():
                    owner = self._owners.setdefault(contact.endpoint, lookup)
                    if owner is lookup:
                        chosen.append((contact, lookup.target))
                    else:
                        lookup.take_over(contact.endpoint, owner.state_of(contact.endpoint) or State.FAILED)
                        taken = True
        return chosen

    def answered(self, contact: Contact, nodes: Iterable[Contact]) -> None:
        """Note an answer, given under the id in ``contact``, and the nodes it names."""
        self._answered[contact.endpoint] = contact
        owner = self._owners.get(contact.endpoint)
        nodes = list(nodes)
        for lookup in self._all:
            if owner is None or owner is lookup or lookup in self._points:
                lookup.answered(contact, nodes)
            elif lookup.state_of(contact.endpoint) is not None:
                lookup.answered(contact, ())

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """Note that ``endpoint`` let ``times`` transmissions pass."""
        for lookup in self._all:
            lookup.timed_out(endpoint, times)

    def failed(self, endpoint: Endpoint) -> None:
        """Note that ``endpoint`` was given up, or refused."""
        for lookup in self._all:
            lookup.failed(endpoint)

    def nearest(self) -> list[Contact]:
        """Up to `WIDTH` contacts that answered and may be stored at, nearest to the target first."""
        return self._merge(self._disjoint)[:WIDTH]

    def within(self, radius: int) -> list[Contact]:
        """All contacts that answered, may be stored at, and are nearer to the target than ``radius``."""
        return [c for c in self._merge(self._all) if distance(c.node_id, self.target) < radius]

    def _merge(self, lookups: Sequence[Lookup]) -> list[Contact]:
        if len(lookups) == 1:
            return lookups[0].nearest(len(self._answered))
        found = {contact for lookup in lookups for contact in lookup.nearest(len(self._answered))}
        held: Counter[bytes] = Counter()
        merged = []
        for contact in sorted(found, key=lambda c: distance(c.node_id, self.target)):
            prefix = prefix_of(contact.endpoint.host)
            if prefix is not None:
                held[prefix] += 1
                if held[prefix] > MAX_PER_PREFIX:
                    continue
            merged.append(contact)
        return merged
