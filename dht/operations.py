"""What a node does of its own accord: pings, searches, and stores at the end of a search.

An operation is a state machine without clock or socket. The engine sends what `requests` returns, reports what became
of it, and asks again until the operation is finished. ``outcome`` may be there earlier: the caller gets it at once
while the rest of the traversal completes behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from dht.contacts import Contact, Endpoint
from dht.errors import ConflictError
from dht.items import (
    CAS_MISMATCH,
    STALE_SEQ,
    ImmutableItem,
    Item,
    MutableItem,
    item_from_reply,
)
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.lookup import Lookup
from dht.outcomes import ItemFound, Outcome, PeersFound, Stored
from dht.queries import AnnouncePeer, FindNode, Get, GetPeers, Ping, Query
from dht.replies import Reply
from swarm.errors import SwarmError

AGREEING = 3  # storers that must show the same newest item before the caller is answered
MAX_PEERS_FOUND = 4096  # more than any caller can use; bounds what lying answers can add


@dataclass(frozen=True, slots=True)
class Request:
    """A query to send to an endpoint."""

    endpoint: Endpoint
    query: Query


Offer: TypeAlias = Callable[[Endpoint, bytes], Query]  # a storer and its token -> what it is asked to store


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


class PingOperation:
    """One ping."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sent = False
        self.outcome: Outcome | None = None

    @property
    def finished(self) -> bool:
        return self.outcome is not None

    def requests(self) -> list[Request]:
        if self._sent:
            return []
        self._sent = True
        return [Request(self._endpoint, Ping())]

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        self.outcome = Outcome(asked=1, answered=1, nearest=(Contact(packet.sender, endpoint),))

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        """Nothing to do before the last one."""

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        del endpoint
        self.outcome = Outcome(asked=1, answered=0 if error is None else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a search begins: our id, contacts of the routing table, and bootstrap addresses without known ids.

    ``silent`` are endpoints that are not worth waiting for.
    """

    own_id: NodeId
    seeds: tuple[Contact, ...]
    routers: tuple[Endpoint, ...] = ()
    silent: frozenset[Endpoint] = frozenset()


class Search:
    """A lookup that collects what the answers carry. This one collects nothing but nodes (find_node)."""

    def __init__(self, target: Target, start: Start) -> None:
        self.target = target
        self.lookup = Lookup(target, start.own_id, start.seeds, start.silent)
        self.tokens: dict[Endpoint, bytes] = {}
        self._routers_to_ask = list(dict.fromkeys(start.routers))
        self._routers_pending = set(self._routers_to_ask)
        self._routers_overdue: set[Endpoint] = set()
        self._routers_asked = len(self._routers_to_ask)

    @property
    def outcome(self) -> Outcome | None:
        return self._outcome() if self.finished else None

    @property
    def finished(self) -> bool:
        # A dead bootstrap address is waited for to the end only while nobody else answers.
        pending = self._routers_pending
        if self.lookup.answered_count:
            pending = pending - self._routers_overdue
        return not pending and self.lookup.finished

    @property
    def asked(self) -> int:
        """How many nodes were asked."""
        return max(self._routers_asked, self.lookup.asked)

    def requests(self) -> list[Request]:
        endpoints = self._routers_to_ask + [contact.endpoint for contact in self.lookup.next_contacts()]
        self._routers_to_ask = []
        return [Request(endpoint, self._query()) for endpoint in dict.fromkeys(endpoints)]

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        self._routers_pending.discard(endpoint)
        reply = packet.reply
        nodes = reply.nodes6 if endpoint.is_ipv6 else reply.nodes
        self.lookup.answered(Contact(packet.sender, endpoint), nodes)
        if reply.token is not None:
            self.tokens[endpoint] = reply.token
        self._collect(reply)

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        self._routers_overdue.add(endpoint)
        self.lookup.timed_out(endpoint, times)

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        del error
        self._routers_pending.discard(endpoint)
        self.lookup.failed(endpoint)

    def _query(self) -> Query:
        return FindNode(target=self.target)

    def _collect(self, reply: Reply) -> None:
        """Take what the answer carries."""

    def _outcome(self) -> Outcome:
        lookup = self.lookup
        return Outcome(asked=self.asked, answered=lookup.answered_count, nearest=tuple(lookup.nearest()))


class PeerSearch(Search):
    """Everybody announced under an info-hash: the caller waits for the whole traversal, for completeness."""

    def __init__(self, target: Target, start: Start, known: Iterable[Endpoint] = ()) -> None:
        """``known`` are peers that our own store holds."""
        super().__init__(target, start)
        self._peers = dict.fromkeys(known)

    def _query(self) -> Query:
        return GetPeers(info_hash=self.target)

    def _collect(self, reply: Reply) -> None:
        if len(self._peers) < MAX_PEERS_FOUND:
            self._peers.update(dict.fromkeys(reply.peers))

    def _outcome(self) -> PeersFound:
        base = super()._outcome()
        return PeersFound(asked=base.asked, answered=base.answered, nearest=base.nearest, peers=tuple(self._peers))


class ItemSearch(Search):
    """The newest authentic item under a target. The caller is answered by the first immutable one, or by `AGREEING`
    storers that show the same mutable one while none showed a newer.
    """

    def __init__(self, target: Target, start: Start, *, salt: bytes = b"", known: Item | None = None) -> None:
        """``known`` is the item that our own store holds; it counts as one storer."""
        super().__init__(target, start)
        self._salt = salt
        self.item = known
        self.seqs: dict[Endpoint, int] = {}  # what each storer holds
        self._agreeing = 0 if known is None else 1

    @property
    def outcome(self) -> Outcome | None:
        settled = isinstance(self.item, ImmutableItem) or self._agreeing >= AGREEING
        return self._outcome() if settled or self.finished else None

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        if packet.reply.seq is not None:
            self.seqs[endpoint] = packet.reply.seq
        super().replied(endpoint, packet)

    def _query(self) -> Query:
        return Get(target=self.target)

    def _collect(self, reply: Reply) -> None:
        found = item_from_reply(reply, self.target, self._salt)
        if isinstance(found, ImmutableItem):
            self.item = found
            return
        if found is None or isinstance(self.item, ImmutableItem):
            return
        if found == self.item:  # the signature too, so it need not be checked again
            self._agreeing += 1
        elif (self.item is None or found.seq > self.item.seq) and found.is_authentic():
            self.item, self._agreeing = found, 1

    def _outcome(self) -> ItemFound:
        base = super()._outcome()
        return ItemFound(asked=base.asked, answered=base.answered, nearest=base.nearest, item=self.item)


class Store:
    """A search, and then a store query to each of the nearest that answered with a token."""

    def __init__(self, search: Search, queries: Callable[[], Offer]) -> None:
        """``queries`` is called once the search is finished; what it returns makes each storer's query.

        It may raise a `SwarmError`, which becomes the outcome.
        """
        self._search = search
        self._queries = queries
        self._storing = False
        self._waiting: set[Endpoint] = set()
        self._open: set[Endpoint] = set()
        self._stored = 0
        self._refusals: list[ErrorPacket] = []
        self._error: SwarmError | None = None
        self.item: Item | None = None

    @property
    def target(self) -> Target:
        """Where it is stored."""
        return self._search.target

    @property
    def outcome(self) -> Stored | None:
        if not self._storing or self._waiting:
            return None
        base = self._search.outcome
        assert base is not None  # noqa: S101  (the search is finished before storing begins)
        return Stored(
            asked=base.asked, answered=base.answered, nearest=base.nearest, target=self.target, stored=self._stored,
            item=self.item, error=self._error or self._refusal(),
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return self._storing and not self._open

    def requests(self) -> list[Request]:
        if self._storing:
            return []
        requests = self._search.requests()
        if not self._search.finished:
            return requests
        self._storing = True
        try:
            query = self._queries()
        except SwarmError as error:
            self._error = error
            return requests
        tokens = self._search.tokens
        offers = [
            Request(contact.endpoint, query(contact.endpoint, tokens[contact.endpoint]))
            for contact in self._search.lookup.nearest()
            if contact.endpoint in tokens
        ]
        self._waiting = {request.endpoint for request in offers}
        self._open = set(self._waiting)
        return requests + offers

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        if not self._storing:
            self._search.replied(endpoint, packet)
        elif endpoint in self._open:
            self._stored += 1
            self._settle(endpoint)

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        if not self._storing:
            self._search.timed_out(endpoint, times)
        elif times > 1:
            self._waiting.discard(endpoint)  # the caller does not wait for the last transmission

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        if not self._storing:
            self._search.failed(endpoint, error)
        elif endpoint in self._open:
            if error is not None:
                self._refusals.append(error)
            self._settle(endpoint)

    def _settle(self, endpoint: Endpoint) -> None:
        self._waiting.discard(endpoint)
        self._open.discard(endpoint)

    def _refusal(self) -> SwarmError | None:
        if self._stored:
            return None
        codes = {refusal.error_code for refusal in self._refusals}
        if CAS_MISMATCH in codes:
            return ConflictError("the item was changed since it was read; get it and put again", current_seq=None)
        if STALE_SEQ in codes:
            return ConflictError("a newer item is stored; get it and put with a larger seq", current_seq=None)
        return None


def announce(search: PeerSearch, port: int) -> Store:
    """Announce ``port`` to the nodes that ``search`` finds."""

    def queries() -> Offer:
        return lambda _, token: AnnouncePeer(info_hash=search.target, port=port, token=token)

    return Store(search, queries)


def put(search: ItemSearch, make_item: Callable[[Item | None], Item], cas: int | None = None) -> Store:
    """Put at the nodes that ``search`` finds what ``make_item`` makes of the newest item seen on the way there.

    With ``cas`` given, only if that is the newest seq. Storers that lag behind are then offered it over what they
    themselves hold: a plain cas would leave them behind for ever.
    """

    def queries() -> Offer:
        current = search.item
        item = make_item(current)
        if isinstance(item, MutableItem) and isinstance(current, MutableItem):
            _check_succession(current, item, cas)
        store.item = item
        return lambda endpoint, token: item.put(token, None if cas is None else search.seqs.get(endpoint))

    store = Store(search, queries)
    return store


def _check_succession(current: MutableItem, item: MutableItem, cas: int | None) -> None:
    if cas is not None and cas != current.seq:
        raise ConflictError(
            f"the stored item has seq {current.seq}, not {cas}; get it and put again", current_seq=current.seq
        )
    if item.seq < current.seq or (item.seq == current.seq and item.encoded != current.encoded):
        raise ConflictError(
            f"the stored item has seq {current.seq}; put with a larger seq than {item.seq}", current_seq=current.seq
        )
