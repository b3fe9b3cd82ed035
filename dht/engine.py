"""The DHT node without socket, clock or randomness of its own: datagrams and times in, datagrams and events out.

The owner calls `receive_datagram` and `handle_timer` (at `next_deadline`, or later), and after each call sends
`datagrams_to_send` and handles `events`. Operations are started by methods that return a number; the `Finished` event
with that number brings the outcome. All duties of a node happen in here: answering, the routing table's pings and
refreshes, expiry, rotation of token secrets, and publishing again what this node published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dht.calls import ATTEMPTS, Call, Calls
from dht.config import EngineConfig, Randomness
from dht.contacts import Contact, Endpoint
from dht.errors import ConflictError, RejectedQuery
from dht.items import Item
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, QueryPacket, ReplyPacket, parse
from dht.operations import (
    ItemSearch,
    Operation,
    PeerSearch,
    PingOperation,
    Request,
    Search,
    Start,
    announce,
    put,
)
from dht.outcomes import Outcome, Stored
from dht.publications import Announcement, Publication, Publications, PublishedItem, Publishing
from dht.queries import Ping
from dht.routing import BUCKET_SIZE, RoutingTable
from dht.server import Server, refusal
from dht.statistics import Counters, Statistics
from dht.store import ItemStore, PeerStore
from dht.tokens import ROTATION, SECRET_SIZE, Tokens
from dht.votes import AddressVotes
from swarm.errors import ProtocolError

TRANSACTION_SIZE = 4  # bytes: a forger off the path cannot guess one within a timeout
SWEEP_EVERY = 60.0  # seconds between looks for what is stale, doubtful or expired
MAX_PINGS = 64  # upkeep pings in flight: a flood of strangers must not become a flood of ours
REFRESHES_PER_SWEEP = 2


@dataclass(frozen=True, slots=True)
class Finished:
    """The operation of this number has an outcome."""

    operation: int
    outcome: Outcome


class Engine:
    """One DHT node. Times are seconds of any clock that does not go back."""

    def __init__(self, config: EngineConfig, rng: Randomness, now: float) -> None:
        self.config = config
        self._rng = rng
        self._table = RoutingTable(config.node_id, now)
        self._peers = PeerStore()
        self._items = ItemStore()
        self._tokens = Tokens(rng.randbytes(SECRET_SIZE))
        self._server = Server(self._table, self._peers, self._items, self._tokens, self._own_peers)
        self._calls = Calls()
        self._votes = AddressVotes()
        self._publications = Publications()
        self._counters = Counters()
        self._operations: dict[int, Operation] = {}
        self._unreported: set[int] = set()
        self._publishing: dict[int, Publishing] = {}
        self._pinging: set[Endpoint] = set()
        self._routers = config.routers
        self._next_operation = 0
        self._out: list[tuple[bytes, Endpoint]] = []
        self._events: list[Finished] = []
        self._rotate_at = now + ROTATION
        self._sweep_at = now + SWEEP_EVERY

    # What the owner calls ---------------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        """The id this node is known by."""
        return self.config.node_id

    @property
    def external_host(self) -> str | None:
        """The address others reach this node at, as configured or as most of them say."""
        return self.config.host or self._votes.host

    @property
    def is_first(self) -> bool:
        """Whether it joined through nobody: the first node of a network is its own storer while it is alone."""
        return not self._routers

    def add_routers(self, routers: Iterable[Endpoint]) -> None:
        """Remember addresses to begin from whenever no contact is left."""
        self._routers = tuple(dict.fromkeys([*self._routers, *routers]))

    def receive_datagram(self, data: bytes, addr: tuple[str, int], now: float) -> None:
        """Take one datagram from ``addr``. Never raises, whatever it holds."""
        endpoint = Endpoint(*addr)
        self._counters.received += 1
        try:
            packet = parse(data)
        except RejectedQuery as error:
            self._counters.malformed += 1
            if not self.config.read_only:
                self._send(refusal(error, error.transaction), endpoint)
            return
        except ProtocolError:
            self._counters.malformed += 1
            return
        if isinstance(packet, QueryPacket):
            self._take_query(packet, endpoint, now)
        elif isinstance(packet, ReplyPacket):
            self._take_reply(packet, endpoint, now)
        else:
            self._take_error(packet, endpoint, now)

    def datagrams_to_send(self) -> list[tuple[bytes, Endpoint]]:
        """Datagrams to send now, in order; each is given out once."""
        out, self._out = self._out, []
        return out

    def events(self) -> list[Finished]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def next_deadline(self) -> float:
        """When `handle_timer` has something to do."""
        times = (self._rotate_at, self._sweep_at, self._calls.next_deadline(), self._publications.next_due())
        return min(time for time in times if time is not None)

    def handle_timer(self, now: float) -> None:
        """Do what is due: retransmit, give up, rotate, expire, refresh, publish again."""
        for call in self._calls.due(now):
            self._retry(call, now)
        if now >= self._rotate_at:
            self._rotate_at = now + ROTATION
            self._tokens.rotate(self._rng.randbytes(SECRET_SIZE))
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            self._sweep(now)
        for publication in self._publications.take_due(now):
            self._publish_again(publication, now)

    # Operations -------------------------------------------------------------------------------------------------

    def ping(self, endpoint: Endpoint, now: float) -> int:
        """Ask one address whether a node is there."""
        return self._start(PingOperation(endpoint), now)

    def find_node(self, target: Target, now: float) -> int:
        """Find the nodes nearest to ``target``."""
        return self._start(Search(target, self._begin(target, now)), now)

    def bootstrap(self, routers: Iterable[Endpoint], now: float) -> int:
        """Join through ``routers``: ask them, and then whoever they name, for the nodes nearest to us."""
        target = Target(self.node_id)
        return self._start(Search(target, self._begin(target, now, tuple(routers))), now)

    def get_peers(self, target: Target, now: float) -> int:
        """Find the peers announced under ``target``; `PeersFound`."""
        return self._start(self._peer_search(target, now), now)

    def announce_peer(self, target: Target, port: int, now: float) -> int:
        """Announce that this node's host serves ``target`` at ``port``, now and every 10 to 15 minutes; `Stored`."""
        operation = announce(self._peer_search(target, now), port)
        return self._start(operation, now, Publishing(Announcement(target=target, port=port)))

    def get(self, target: Target, now: float, *, salt: bytes = b"") -> int:
        """Find the item under ``target``; ``salt`` is the mutable item's. `ItemFound`."""
        return self._start(self._item_search(target, salt, now), now)

    def put(
        self,
        target: Target,
        make_item: Callable[[Item | None], Item],
        now: float,
        *,
        salt: bytes = b"",
        cas: int | None = None,
    ) -> int:
        """Store an item under ``target``, now and every hour; `Stored`.

        ``make_item`` makes it from the newest one found there (a larger seq, say), and may raise a `SwarmError`.
        """
        operation = put(self._item_search(target, salt, now), make_item, cas)
        return self._start(operation, now, Publishing())

    def withdraw_peer(self, target: Target) -> None:
        """Announce no more under ``target``; what others keep expires within half an hour."""
        self._publications.remove(Announcement, target)

    def abandon(self, operation: int) -> None:
        """Forget an operation whose caller has gone."""
        self._operations.pop(operation, None)
        self._publishing.pop(operation, None)
        self._unreported.discard(operation)

    def statistics(self) -> Statistics:
        """Figures for operators."""
        return Statistics(
            contacts=len(self._table),
            peers_stored=len(self._peers),
            items_stored=len(self._items),
            publications=len(self._publications),
            operations=len(self._operations),
            calls_in_flight=len(self._calls),
            datagrams_received=self._counters.received,
            datagrams_sent=self._counters.sent,
            queries_answered=self._counters.answered,
            malformed=self._counters.malformed,
            timeouts=self._counters.timeouts,
        )

    # Receiving --------------------------------------------------------------------------------------------------

    def _take_query(self, packet: QueryPacket, endpoint: Endpoint, now: float) -> None:
        if packet.sender == self.node_id or self.config.read_only:
            return
        self._counters.answered += 1
        self._calls.heard(endpoint)
        self._send(self._server.answer(packet, endpoint, now), endpoint)
        if not packet.read_only:
            self._check(self._table.noticed(Contact(packet.sender, endpoint), now), now)

    def _take_reply(self, packet: ReplyPacket, endpoint: Endpoint, now: float) -> None:
        call = self._calls.answered(packet.transaction, endpoint, now)
        if call is None:
            return  # not ours, or too late
        if packet.external is not None:
            self._votes.add(endpoint, packet.external)
        self._pinging.discard(endpoint)
        self._check(self._table.replied(Contact(packet.sender, endpoint), now), now)
        operation = self._operation_of(call)
        if operation is not None:
            operation.replied(endpoint, packet)
            self._pump(call.operation, now)

    def _take_error(self, packet: ErrorPacket, endpoint: Endpoint, now: float) -> None:
        call = self._calls.answered(packet.transaction, endpoint, now)
        if call is None:
            return
        self._pinging.discard(endpoint)
        operation = self._operation_of(call)
        if operation is not None:
            operation.failed(endpoint, packet)
            self._pump(call.operation, now)

    # Sending ----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, endpoint: Endpoint) -> None:
        self._counters.sent += 1
        self._out.append((data, endpoint))

    def _transmit(self, call: Call, now: float) -> None:
        transaction = self._rng.randbytes(TRANSACTION_SIZE)
        while self._calls.knows(transaction):
            transaction = self._rng.randbytes(TRANSACTION_SIZE)
        self._calls.sent(call, transaction, now)
        packet = QueryPacket(
            transaction=transaction, sender=self.node_id, query=call.query, read_only=self.config.read_only
        )
        self._send(packet.pack(), call.endpoint)

    def _retry(self, call: Call, now: float) -> None:
        operation = self._operation_of(call)
        abandoned = call.operation is not None and operation is None
        if call.attempts > 1:
            self._calls.suspect(call.endpoint, now)
        if call.attempts < ATTEMPTS and not abandoned:
            self._transmit(call, now)
            if operation is not None:
                operation.timed_out(call.endpoint, call.attempts - 1)
                self._pump(call.operation, now)
            return
        self._calls.close(call)
        self._pinging.discard(call.endpoint)
        if call.attempts > 1:  # one lost datagram is no failure
            self._counters.timeouts += 1
            self._table.failed(call.endpoint)
        if operation is not None:
            operation.failed(call.endpoint, None)
            self._pump(call.operation, now)

    def _check(self, contact: Contact | None, now: float) -> None:
        """Ping the contact that the routing table wants to hear of."""
        if contact is None or contact.endpoint in self._pinging or len(self._pinging) >= MAX_PINGS:
            return
        self._pinging.add(contact.endpoint)
        self._transmit(self._calls.open(contact.endpoint, Ping(), None), now)

    # Operations in progress -------------------------------------------------------------------------------------

    def _start(self, operation: Operation, now: float, publishing: Publishing | None = None) -> int:
        self._next_operation += 1
        number = self._next_operation
        self._operations[number] = operation
        self._unreported.add(number)
        if publishing is not None:
            self._publishing[number] = publishing
        self._pump(number, now)
        return number

    def _operation_of(self, call: Call) -> Operation | None:
        return None if call.operation is None else self._operations.get(call.operation)

    def _pump(self, number: int | None, now: float) -> None:
        """Send what the operation wants sent, and report what it has to say."""
        if number is None:
            return
        operation = self._operations[number]
        requests: list[Request] = operation.requests()
        for request in requests:
            self._transmit(self._calls.open(request.endpoint, request.query, number), now)
        outcome = operation.outcome if number in self._unreported else None
        if outcome is not None:
            self._unreported.discard(number)
            if isinstance(outcome, Stored):
                self._keep_published(number, outcome, now)
            self._events.append(Finished(number, outcome))
        if operation.finished:
            del self._operations[number]

    def _begin(self, target: Target, now: float, routers: tuple[Endpoint, ...] = ()) -> Start:
        fallback = self._routers if self._table.is_cut_off else ()
        return Start(
            own_id=self.node_id,
            seeds=tuple(self._table.closest(target, BUCKET_SIZE)),
            routers=routers or fallback,
            silent=self._calls.silent(now),
        )

    def _peer_search(self, target: Target, now: float) -> PeerSearch:
        return PeerSearch(target, self._begin(target, now), self._server.peers_under(target, now))

    def _item_search(self, target: Target, salt: bytes, now: float) -> ItemSearch:
        return ItemSearch(target, self._begin(target, now), salt=salt, known=self._items.get(target, now))

    # Publishing -------------------------------------------------------------------------------------------------

    def _own_peers(self, target: Target) -> list[Endpoint]:
        port = self._publications.announced_port(target)
        host = self.external_host
        return [] if port is None or host is None else [Endpoint(host, port)]

    def _keep_published(self, number: int, outcome: Stored, now: float) -> None:
        publishing = self._publishing.pop(number)
        publication = publishing.publication
        if outcome.item is not None:
            publication = PublishedItem(item=outcome.item)
        if publication is None:
            return
        if isinstance(outcome.error, ConflictError):
            self._publications.remove(type(publication), publication.target)
            return
        if outcome.stored or (self.is_first and not outcome.answered) or publishing.again:
            self._publications.add(publication, holders=outcome.stored, now=now, draw=self._rng.random())
            if isinstance(publication, PublishedItem):
                self._keep_own(publication.item, now)

    def _keep_own(self, item: Item, now: float) -> None:
        try:
            self._items.put(item, now)
        except RejectedQuery:
            self._publications.remove(PublishedItem, item.target)  # a newer one reached our own store meanwhile

    def _publish_again(self, publication: Publication, now: float) -> None:
        target = publication.target
        if isinstance(publication, Announcement):
            operation = announce(self._peer_search(target, now), publication.port)
        else:
            item = publication.item
            salt = getattr(item, "salt", b"")
            operation = put(self._item_search(target, salt, now), lambda _: item)
        self._start(operation, now, Publishing(publication, again=True))

    # Upkeep -----------------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        self._peers.expire(now)
        self._items.expire(now)
        for contact in self._table.questionable(now):
            self._check(contact, now)
        for length in self._table.stale_buckets(now)[:REFRESHES_PER_SWEEP]:
            self.find_node(Target(self._table.refresh_target(length, self._rng.randbytes(NodeId.size), now)), now)
        if self._routers and self._table.is_cut_off:
            self.bootstrap(self._routers, now)
