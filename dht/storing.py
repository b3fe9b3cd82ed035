"""Stores: a search, and then what is to be kept goes to the nodes that it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from dht.contacts import Endpoint
from dht.errors import ConflictError
from dht.items import CAS_MISMATCH, STALE_SEQ, Item, MutableItem
from dht.keys import Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.operations import Request
from dht.outcomes import Stored
from dht.queries import AnnouncePeer, Query
from dht.search import ItemSearch, PeerSearch, Search
from swarm.errors import SwarmError

Offer: TypeAlias = Callable[[Endpoint, bytes], Query]  # a storer and its token -> what it is asked to store


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
            for contact in self._search.storers()
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


def announce(search: PeerSearch, port: int, *, seed: bool = False) -> Store:
    """Announce ``port`` to the nodes that ``search`` finds, as a ``seed`` if it has everything."""

    def queries() -> Offer:
        return lambda _, token: AnnouncePeer(info_hash=search.target, port=port, token=token, seed=seed)

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
