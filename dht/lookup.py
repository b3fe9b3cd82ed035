"""Iterative lookup: whom to ask next, and when enough has been heard.

Candidates stand in order of distance. Up to `ALPHA` of the nearest that have not been asked are asked at a time, as
long as fewer than `WIDTH` nearer ones have answered. What a peer can do to a lookup is bounded by its slot:

    fresh ──asked──> asked ──first timeout──> slow ──second timeout──> overdue ──last timeout──> failed
                       └───────────┴───────── answered ──────────────────┘

A *slow* candidate gives its slot to the next one but is still waited for. An *overdue* one is not waited for any more
unless nobody answers at all; a late answer of it still counts. Those known to be silent are overdue from the start.

What others say is not believed further than this:
- an id that does not fit its address (BEP 42) stands behind all that do, and is never stored at;
- of one /24 or /48 at most `MAX_PER_PREFIX` are asked, as long as they answer;
- of one source whose first `LIAR_AFTER` names all stay silent, the rest is asked only if nobody else answers;
- an id may be claimed by up to `MAX_CLAIMS` endpoints: a false claim must not hide the true one.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, distance, is_secure_id
from dht.prefixes import prefix_of
from dht.routing import BUCKET_SIZE

ALPHA = 5  # queries in flight at the top of the list, as libtorrent's aggressive lookups do
WIDTH = BUCKET_SIZE  # how many of the nearest must answer
MAX_CANDIDATES = 512  # far more than a lookup among millions of nodes asks; bounds what lying answers can add
MAX_NODES_PER_ANSWER = 20  # libtorrent sends 8, others up to 16
MAX_PER_PREFIX = 3  # of the eight nearest: one owner of a /24 never has most of them
MAX_CLAIMS = 3
LIAR_AFTER = 4  # with a third of all nodes dead, one honest source in 81 is misjudged, and others name what it names
MAX_SOURCES = 4  # remembered per candidate


class State(enum.Enum):
    """Where a candidate stands."""

    FRESH = enum.auto()
    ASKED = enum.auto()
    SLOW = enum.auto()
    OVERDUE = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


GIVEN_UP = (State.OVERDUE, State.FAILED)


@dataclass(slots=True)
class Candidate:
    """A contact, who named it (nobody: our own table), and how far the lookup got with it."""

    rank: tuple[bool, int]  # whether its id does not fit its address, and its distance
    contact: Contact
    prefix: bytes | None
    sources: set[Endpoint] = field(default_factory=set)
    state: State = State.FRESH

    @property
    def fits(self) -> bool:
        """Whether its address may have its id (BEP 42)."""
        return not self.rank[0]


@dataclass(slots=True)
class _Record:
    """What became of those whom one source named."""

    answered: int = 0
    silent: int = 0

    @property
    def is_liars(self) -> bool:
        return self.silent >= LIAR_AFTER and not self.answered


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
        self._claims: Counter[NodeId] = Counter()
        self._records: dict[Endpoint, _Record] = {}
        self.learn(seeds)

    @property
    def asked(self) -> int:
        """How many candidates were asked."""
        return sum(candidate.state is not State.FRESH for candidate in self._candidates)

    @property
    def answered_count(self) -> int:
        """How many candidates answered."""
        return sum(candidate.state is State.ANSWERED for candidate in self._candidates)

    def learn(self, contacts: Iterable[Contact], source: Endpoint | None = None) -> None:
        """Add contacts that the routing table, or the answer of ``source``, named."""
        for contact in contacts:
            known = self._by_endpoint.get(contact.endpoint)
            if known is not None and known.contact == contact:
                if source is None:
                    known.sources.clear()
                elif known.sources and len(known.sources) < MAX_SOURCES:
                    known.sources.add(source)
            elif known is None and contact.node_id != self._own_id and self._claims[contact.node_id] < MAX_CLAIMS:
                self._add(self._candidate(contact, source))
        while len(self._candidates) > MAX_CANDIDATES:
            if not self._drop_farthest_fresh():
                break

    def next_contacts(self) -> list[Contact]:
        """Contacts to ask now; they count as asked."""
        chosen: list[Contact] = []
        in_flight = answered = 0
        for candidate in self._eligible():
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
            candidate = self._candidate(contact, None)
            if self._claims[contact.node_id] < MAX_CLAIMS:
                self._add(candidate)
        elif candidate.contact.node_id != contact.node_id:
            self._rename(candidate, contact)
        candidate.state = State.ANSWERED
        for source in candidate.sources:
            self._records.setdefault(source, _Record()).answered += 1
        self.learn(list(nodes)[:MAX_NODES_PER_ANSWER], contact.endpoint)

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """Note that ``endpoint`` let ``times`` transmissions pass."""
        candidate = self._by_endpoint.get(endpoint)
        if candidate is not None and candidate.state in (State.ASKED, State.SLOW):
            if candidate.state is State.ASKED:
                for source in candidate.sources:
                    self._records.setdefault(source, _Record()).silent += 1
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
        for candidate in self._eligible():
            if candidate.state is State.ANSWERED:
                answered += 1
                if answered >= WIDTH:
                    return True
            elif candidate.state is State.OVERDUE:
                overdue += 1
            elif candidate.state is not State.FAILED:
                return False
        return answered > 0 or overdue == 0

    def nearest(self, count: int = WIDTH) -> list[Contact]:
        """Up to ``count`` contacts that answered and may be stored at, nearest first."""
        answered = [c.contact for c in self._eligible() if c.state is State.ANSWERED and c.fits]
        return answered[:count]

    def state_of(self, endpoint: Endpoint) -> State | None:
        """Where ``endpoint`` stands, None if it is no candidate."""
        candidate = self._by_endpoint.get(endpoint)
        return None if candidate is None else candidate.state

    def take_over(self, endpoint: Endpoint, state: State) -> None:
        """Let ``endpoint``, if it is a candidate, stand where another lookup has it."""
        candidate = self._by_endpoint.get(endpoint)
        if candidate is not None:
            candidate.state = state

    def _eligible(self) -> Iterator[Candidate]:
        """Candidates nearest first, without those beyond their prefix's share and those that only liars name.

        While nobody answered, those only liars name come last: there is nobody else to believe.
        """
        held: Counter[bytes] = Counter()
        doubtful = []
        for candidate in self._candidates:
            if candidate.state is State.FRESH and self._is_doubtful(candidate):
                doubtful.append(candidate)
                continue
            if candidate.prefix is not None and candidate.state not in GIVEN_UP:
                if held[candidate.prefix] >= MAX_PER_PREFIX:
                    continue
                held[candidate.prefix] += 1
            yield candidate
        if doubtful and not self.answered_count:
            yield from doubtful

    def _is_doubtful(self, candidate: Candidate) -> bool:
        if not candidate.sources or not self._records:
            return False
        return all((record := self._records.get(source)) and record.is_liars for source in candidate.sources)

    def _candidate(self, contact: Contact, source: Endpoint | None) -> Candidate:
        host = contact.endpoint.host
        rank = (not is_secure_id(contact.node_id, host), distance(contact.node_id, self.target))
        return Candidate(rank, contact, prefix_of(host), set() if source is None else {source})

    def _add(self, candidate: Candidate) -> None:
        insort(self._candidates, candidate, key=lambda c: c.rank)
        self._by_endpoint[candidate.contact.endpoint] = candidate
        self._claims[candidate.contact.node_id] += 1

    def _remove(self, candidate: Candidate) -> None:
        self._candidates.remove(candidate)
        del self._by_endpoint[candidate.contact.endpoint]
        self._claims[candidate.contact.node_id] -= 1

    def _rename(self, candidate: Candidate, contact: Contact) -> None:
        # It restarted, or lies about its id: it stands where the id it answers with belongs.
        self._remove(candidate)
        candidate.contact = contact
        candidate.rank = self._candidate(contact, None).rank
        if self._claims[contact.node_id] < MAX_CLAIMS and contact.node_id != self._own_id:
            self._add(candidate)

    def _drop_farthest_fresh(self) -> bool:
        for candidate in reversed(self._candidates):
            if candidate.state is State.FRESH:
                self._remove(candidate)
                return True
        return False
