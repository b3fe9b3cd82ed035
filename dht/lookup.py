"""Iterative lookup: whom to ask next, and when enough has been heard.

Candidates stand in order of distance. Up to `ALPHA` of the nearest that have not been asked are asked at a time, as
long as fewer than `WIDTH` nearer ones have answered. What a peer can do to a lookup is bounded by its slot:

    fresh ──asked──> asked ──first timeout──> slow ──second timeout──> overdue ──last timeout──> failed
                       └───────────┴───────── answered ──────────────────┘

A *slow* candidate gives its slot to the next one but is still waited for. An *overdue* one is not waited for any more
unless nobody answers at all; a late answer of it still counts. Those known to be silent are overdue from the start.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, distance
from dht.routing import BUCKET_SIZE

ALPHA = 5  # queries in flight at the top of the list, as libtorrent's aggressive lookups do
WIDTH = BUCKET_SIZE  # how many of the nearest must answer
MAX_CANDIDATES = 128  # far more than a lookup among millions of nodes asks; bounds what lying answers can add
MAX_NODES_PER_ANSWER = 20  # libtorrent sends 8, others up to 16


class State(enum.Enum):
    """Where a candidate stands."""

    FRESH = enum.auto()
    ASKED = enum.auto()
    SLOW = enum.auto()
    OVERDUE = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True)
class Candidate:
    """A contact and how far the lookup got with it."""

    distance: int
    contact: Contact
    state: State = State.FRESH


class Lookup:
    """One traversal towards ``target``. Every endpoint is asked at most once, whatever ids it claims."""

    def __init__(
        self, target: bytes, own_id: NodeId, seeds: Iterable[Contact], silent: frozenset[Endpoint] = frozenset()
    ) -> None:
        """``silent`` are endpoints that lately left everything unanswered."""
        self.target = target
        self._silent = silent
        self._own_id = own_id
        self._candidates: list[Candidate] = []
        self._by_endpoint: dict[Endpoint, Candidate] = {}
        self._ids: set[NodeId] = set()
        self.learn(seeds)

    @property
    def asked(self) -> int:
        """How many candidates were asked."""
        return sum(candidate.state is not State.FRESH for candidate in self._candidates)

    @property
    def answered_count(self) -> int:
        """How many candidates answered."""
        return sum(candidate.state is State.ANSWERED for candidate in self._candidates)

    def learn(self, contacts: Iterable[Contact]) -> None:
        """Add contacts that an answer or the routing table named."""
        for contact in contacts:
            if contact.node_id == self._own_id or contact.node_id in self._ids:
                continue
            if contact.endpoint in self._by_endpoint:
                continue
            self._add(Candidate(distance(contact.node_id, self.target), contact))
        while len(self._candidates) > MAX_CANDIDATES:
            if not self._drop_farthest_fresh():
                break

    def next_contacts(self) -> list[Contact]:
        """Contacts to ask now; they count as asked."""
        chosen: list[Contact] = []
        in_flight = answered = 0
        for candidate in self._candidates:
            if answered >= WIDTH or in_flight >= ALPHA:
                break
            if candidate.state is State.ANSWERED:
                answered += 1
            elif candidate.state is State.ASKED:
                in_flight += 1
            elif candidate.state is State.FRESH:
                chosen.append(candidate.contact)
                if candidate.contact.endpoint in self._silent:
                    candidate.state = State.OVERDUE
                else:
                    candidate.state = State.ASKED
                    in_flight += 1
        return chosen

    def answered(self, contact: Contact, nodes: Iterable[Contact]) -> None:
        """Note an answer, given under the id in ``contact``, and the nodes it names."""
        candidate = self._by_endpoint.get(contact.endpoint)
        if candidate is None:  # a bootstrap node, asked by address before its id was known
            candidate = Candidate(distance(contact.node_id, self.target), contact)
            if contact.node_id not in self._ids:
                self._add(candidate)
        elif candidate.contact.node_id != contact.node_id:
            self._rename(candidate, contact)
        candidate.state = State.ANSWERED
        self.learn(list(nodes)[:MAX_NODES_PER_ANSWER])

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """Note that ``endpoint`` let ``times`` transmissions pass."""
        candidate = self._by_endpoint.get(endpoint)
        if candidate is not None and candidate.state in (State.ASKED, State.SLOW):
            candidate.state = State.SLOW if times == 1 else State.OVERDUE

    def failed(self, endpoint: Endpoint) -> None:
        """Note that ``endpoint`` was given up, or refused."""
        candidate = self._by_endpoint.get(endpoint)
        if candidate is not None and candidate.state is not State.ANSWERED:
            candidate.state = State.FAILED

    @property
    def finished(self) -> bool:
        """Whether the nearest `WIDTH` that can be reached have answered."""
        answered = overdue = 0
        for candidate in self._candidates:
            if candidate.state is State.ANSWERED:
                answered += 1
                if answered >= WIDTH:
                    return True
            elif candidate.state is State.OVERDUE:
                overdue += 1
            elif candidate.state is not State.FAILED:
                return False
        return answered > 0 or overdue == 0

    def nearest(self) -> list[Contact]:
        """Up to `WIDTH` contacts that answered, nearest first."""
        answered = [c.contact for c in self._candidates if c.state is State.ANSWERED]
        return answered[:WIDTH]

    def _add(self, candidate: Candidate) -> None:
        insort(self._candidates, candidate, key=lambda c: c.distance)
        self._by_endpoint[candidate.contact.endpoint] = candidate
        self._ids.add(candidate.contact.node_id)

    def _remove(self, candidate: Candidate) -> None:
        self._candidates.remove(candidate)
        del self._by_endpoint[candidate.contact.endpoint]
        self._ids.discard(candidate.contact.node_id)

    def _rename(self, candidate: Candidate, contact: Contact) -> None:
        # It restarted, or lies about its id: it stands where the id it answers with belongs.
        self._remove(candidate)
        candidate.contact = contact
        candidate.distance = distance(contact.node_id, self.target)
        if contact.node_id not in self._ids and contact.node_id != self._own_id:
            self._add(candidate)

    def _drop_farthest_fresh(self) -> bool:
        for candidate in reversed(self._candidates):
            if candidate.state is State.FRESH:
                self._remove(candidate)
                return True
        return False
