"""Searches: lookups that collect what the answers carry. Nodes, peers, or the item under a target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dht.bloom import AddressFilter
from dht.contacts import Contact, Endpoint
from dht.items import ImmutableItem, Item, item_from_reply
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, ReplyPacket
from dht.lookup import Lookup
from dht.operations import Request
from dht.outcomes import ItemFound, Outcome, PeersFound
from dht.paths import Paths
from dht.queries import FindNode, Get, GetPeers, Query
from dht.region import Region
from dht.replies import Reply

AGREEING = 3  # storers that must show the same newest item before the caller is answered
MAX_PEERS_FOUND = 4096  # more than any caller can use; bounds what lying answers can add


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a search begins: our id, contacts of the routing table, and bootstrap addresses without known ids."""

    own_id: NodeId
    seeds: tuple[Contact, ...]
    routers: tuple[Endpoint, ...] = ()

    silent: frozenset[Endpoint] = frozenset()
    """Endpoints that are not worth waiting for."""

    paths: int = 1
    """How many disjoint paths it takes to the target."""

    region: Region | None = None
    """Where more than the nearest nodes are wanted: all there, or a sample."""


class Search:
    """A traversal towards a target. This one collects nothing but nodes (find_node).

    With a region, whoever was met in it on the way to another point is asked the search's own question at the end.
    """

    def __init__(self, target: Target, start: Start) -> None:
        self.target = target
        self._region = start.region
        points = start.region.points if start.region else ()
        self.paths = Paths(
            target,
            [Lookup(target, start.own_id, seeds, start.silent) for seeds in _deal(start.seeds, start.paths)],
            [Lookup(point, start.own_id, start.seeds, start.silent) for point in points],
        )
        self.tokens: dict[Endpoint, bytes] = {}
        self._asked: set[Endpoint] = set()  # the search's own question, not only the way to a point
        self._late: set[Endpoint] = set()  # asked it at the end, and waited for
        self._swept = start.region is None
        self._routers_to_ask = list(dict.fromkeys(start.routers))
        self._routers_pending = set(self._routers_to_ask)
        self._routers_overdue: set[Endpoint] = set()
        self._routers_asked = len(self._routers_to_ask)

    @property
    def outcome(self) -> Outcome | None:
        return self._outcome() if self.finished else None

    @property
    def finished(self) -> bool:
        return self._arrived and self._swept and not self._late

    @property
    def asked(self) -> int:
        """How many nodes were asked."""
        return max(self._routers_asked, self.paths.asked)

    def storers(self) -> list[Contact]:
        """Where to store: the nearest, or everybody met in the region."""
        near = self.paths.nearest()
        if self._region is not None:
            near += [contact for contact in self.paths.within(self._region.radius) if contact not in near]
        return near

    def requests(self) -> list[Request]:
        queries = dict.fromkeys(self._routers_to_ask, self._query())
        self._routers_to_ask = []
        for contact, towards in self.paths.next_contacts():
            own = towards == self.target
            queries.setdefault(contact.endpoint, self._query() if own else FindNode(target=Target(towards)))
            if own:
                self._asked.add(contact.endpoint)
        if not self._swept and self._arrived:
            self._swept = True
            self._late = {c.endpoint for c in self.storers() if c.endpoint not in self._asked}
            queries |= dict.fromkeys(sorted(self._late), self._query())
        return [Request(endpoint, query) for endpoint, query in queries.items()]

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        self._routers_pending.discard(endpoint)
        reply = packet.reply
        if endpoint in self._late:
            self._late.discard(endpoint)
        else:
            self.paths.answered(Contact(packet.sender, endpoint), reply.nodes6 if endpoint.is_ipv6 else reply.nodes)
        if reply.token is not None:
            self.tokens[endpoint] = reply.token
        self._collect(reply)

    def timed_out(self, endpoint: Endpoint, times: int) -> None:
        self._routers_overdue.add(endpoint)
        if times > 1:
            self._late.discard(endpoint)
        self.paths.timed_out(endpoint, times)

    def failed(self, endpoint: Endpoint, error: ErrorPacket | None) -> None:
        del error
        self._routers_pending.discard(endpoint)
        self._late.discard(endpoint)
        self.paths.failed(endpoint)

    @property
    def _arrived(self) -> bool:
        # A dead bootstrap address is waited for to the end only while nobody else answers.
        pending = self._routers_pending
        if self.paths.answered_count:
            pending = pending - self._routers_overdue
        return not pending and self.paths.finished

    def _query(self) -> Query:
        return FindNode(target=self.target)

    def _collect(self, reply: Reply) -> None:
        """Take what the answer carries."""

    def _outcome(self) -> Outcome:
        paths = self.paths
        return Outcome(asked=self.asked, answered=paths.answered_count, nearest=tuple(paths.nearest()))


class PeerSearch(Search):
    """Everybody announced under an info-hash: the caller waits for the whole traversal, for completeness."""

    def __init__(self, target: Target, start: Start, known: Iterable[Endpoint] = (), *, scrape: bool = False) -> None:
        """``known`` are peers that our own store holds. With ``scrape`` peers are counted too (BEP 33)."""
        super().__init__(target, start)
        self._peers = dict.fromkeys(known)
        self._scrape = scrape
        self._seeds, self._downloaders = AddressFilter(), AddressFilter()

    def _query(self) -> Query:
        return GetPeers(info_hash=self.target, scrape=self._scrape)

    def _collect(self, reply: Reply) -> None:
        if len(self._peers) < MAX_PEERS_FOUND:
            self._peers.update(dict.fromkeys(reply.peers))
        if reply.seeds is not None:
            self._seeds.join(reply.seeds)
        if reply.downloaders is not None:
            self._downloaders.join(reply.downloaders)

    def _outcome(self) -> PeersFound:
        base = super()._outcome()
        return PeersFound(
            asked=base.asked,
            answered=base.answered,
            nearest=base.nearest,
            peers=tuple(self._peers),
            seeds=self._seeds.estimate,
            downloaders=self._downloaders.estimate,
        )


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


def _deal(contacts: tuple[Contact, ...], hands: int) -> list[tuple[Contact, ...]]:
    """Contacts dealt out in turn, so that each path begins with some of the nearest."""
    return [contacts[hand::hands] for hand in range(hands)]
