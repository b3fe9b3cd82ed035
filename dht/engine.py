"""The DHT node without socket, clock or randomness of its own: datagrams and times in, datagrams and events out.

The owner calls `receive_datagram` and `handle_timer` (at `next_deadline`, or later), and after each call sends
`datagrams_to_send` and handles `events`. Operations are started by methods that return a number; the `Finished` event
with that number brings the outcome. All duties of a node happen in here: answering, the routing table's pings and
refreshes, expiry, rotation of token secrets, and publishing again what this node published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dht.calls import Call
from dht.clock import SteadyClock
from dht.config import EngineConfig, Randomness
from dht.contacts import Contact, Endpoint
from dht.errors import RejectedQuery
from dht.items import Item
from dht.keys import NodeId, Target, is_local, is_secure_id, secure_id
from dht.krpc import ErrorPacket, QueryPacket, ReplyPacket, parse
from dht.operations import DirectQuery, Operation, Request
from dht.outcomes import Outcome
from dht.outgoing import Outgoing
from dht.publications import Announcement, Publication, Publications, Publishing
from dht.publisher import Publisher
from dht.queries import Query
from dht.roster import Filter
from dht.roster_queries import CapGet, CapPut
from dht.roster_search import RosterPut, RosterSearch
from dht.roster_store import RosterStore
from dht.routing import RoutingTable
from dht.running import Finished, Running
from dht.samples import Sampler
from dht.search import ItemSearch, PeerSearch, Search, Start
from dht.server import Holdings, Server, refusal
from dht.starts import Starts
from dht.statistics import Latency, Meters, Statistics
from dht.store import ItemStore, PeerStore
from dht.storing import announce, put
from dht.tokens import ROTATION, SECRET_SIZE, Tokens
from dht.votes import AddressVotes
from swarm.errors import ProtocolError

SWEEP_EVERY = 60.0  # seconds between looks for what is stale, doubtful or expired
REFRESHES_PER_SWEEP = 2
SPARES_PER_SWEEP = 8  # replacements pinged, nearest to us first: those a lookup for our neighbourhood will need

__all__ = ["Engine", "Finished"]


class Engine:
    """One DHT node. Times are seconds of any clock; when it goes back, the node's own time stands still."""

    def __init__(self, config: EngineConfig, rng: Randomness, now: float) -> None:
        self.config = config
        self._clock = SteadyClock(now)
        self._rng = rng
        self._table = RoutingTable(config.node_id, now)
        self._peers = PeerStore()
        self._items = ItemStore()
        self._rosters = RosterStore(rng)
        self._tokens = Tokens(rng.randbytes(SECRET_SIZE))
        self._meters = Meters()
        self._outgoing = Outgoing(config.node_id, rng, self._meters, read_only=config.read_only)
        sampler = Sampler(self._peers, rng)
        holdings = Holdings(peers=self._peers, items=self._items, rosters=self._rosters, sampler=sampler)
        self._server = Server(self._table, holdings, self._tokens, self._outgoing.allowance, self._own_peers)
        self._votes = AddressVotes()
        self._publications = Publications()
        self._publisher = Publisher(self._publications, self._items, rng)
        self._running = Running(self._ask, self._report, self._meters)
        self._starts = Starts(self._table, self._outgoing.calls, rng, config.routers)
        self._rotate_at = now + ROTATION
        self._sweep_at = now + SWEEP_EVERY

    # What the owner calls ---------------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        """The id this node is known by now; it changes when the address that others see asks for another (BEP 42)."""
        return self._table.own_id

    @property
    def external_host(self) -> str | None:
        """The address others reach this node at, as configured or as most of them say."""
        agreed = self._votes.agreed
        if self.config.host is None or (agreed is not None and is_local(self.config.host) and not is_local(agreed)):
            return agreed or self._votes.host
        return self.config.host

    @property
    def is_first(self) -> bool:
        """Whether it joined through nobody: the first node of a network is its own storer while it is alone."""
        return not self._starts.routers

    @property
    def contacts(self) -> list[Contact]:
        """The routing table's nodes that can be relied on, nearest to us first."""
        return [] if self._table.is_cut_off else self._table.closest(self.node_id, len(self._table))

    def add_routers(self, routers: Iterable[Endpoint]) -> None:
        """Remember addresses to begin from whenever no contact is left."""
        self._starts.routers = tuple(dict.fromkeys([*self._starts.routers, *routers]))

    def receive_datagram(self, data: bytes, addr: tuple[str, int], now: float) -> None:
        """Take one datagram from ``addr``. Never raises, whatever it holds."""
        now = self._clock.read(now)
        endpoint = Endpoint(*addr)
        self._meters.received += 1
        try:
            packet = parse(data)
        except RejectedQuery as error:
            self._meters.malformed += 1
            if not self.config.read_only:
                self._outgoing.answer(refusal(error, error.transaction), endpoint, now)
            return
        except ProtocolError:
            self._meters.malformed += 1
            return
        if isinstance(packet, QueryPacket):
            self._take_query(packet, endpoint, now)
        elif isinstance(packet, ReplyPacket):
            self._take_reply(packet, endpoint, now)
        else:
            self._take_error(packet, endpoint, now)

    def datagrams_to_send(self) -> list[tuple[bytes, Endpoint]]:
        """Datagrams to send now, in order; each is given out once."""
        return self._outgoing.take()

    def events(self) -> list[Finished]:
        """What happened since the last call."""
        return self._running.events()

    def next_deadline(self) -> float:
        """When `handle_timer` has something to do, by the owner's clock."""
        due = (self._outgoing.calls.next_deadline(), self._publications.next_due())
        times = (self._rotate_at, self._sweep_at, *(time for time in due if time is not None))
        return self._clock.owners(min(times))

    def handle_timer(self, now: float) -> None:
        """Do what is due: retransmit, give up, rotate, expire, refresh, publish again."""
        now = self._clock.read(now)
        for call in self._outgoing.calls.due(now):
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

    def ask(self, endpoint: Endpoint, query: Query, now: float) -> int:
        """Ask one address one thing; `Told`."""
        return self._start(DirectQuery(endpoint, query), self._clock.read(now))

    def find_node(self, target: Target, now: float) -> int:
        """Find the nodes nearest to ``target``."""
        return self._seek(target, self._clock.read(now))

    def bootstrap(self, routers: Iterable[Endpoint], now: float, remembered: Iterable[Contact] = ()) -> int:
        """Join through ``routers``: ask them, and then whoever they name, for the nodes nearest to us.

        ``remembered`` contacts of an earlier life are asked like contacts, and pinged all at once to get back in.
        """
        now = self._clock.read(now)
        target, remembered = Target(self.node_id), tuple(remembered)
        start = self._starts.of_search(target, now, routers=tuple(routers))
        number = self._start(Search(target, replace(start, seeds=(*start.seeds, *remembered))), now)
        for contact in remembered:
            self._check(contact, now)
        return number

    def get_peers(self, target: Target, now: float, *, scrape: bool = False, region: bool = False) -> int:
        """Find the peers announced under ``target``, count them (BEP 33), ask in its region; `PeersFound`."""
        now = self._clock.read(now)
        start = self._starts.of_search(target, now, region=region)
        return self._start(PeerSearch(target, start, self._server.peers_under(target, now), scrape=scrape), now)

    def announce_peer(self, announcement: Announcement, now: float) -> int:
        """Announce that this node's host serves a target at a port, now and every 10 to 15 minutes; `Stored`."""
        return self._announce(announcement, self._clock.read(now), Publishing(publication=announcement))

    def get(self, target: Target, now: float, *, salt: bytes = b"", region: bool = False) -> int:
        """Find the item under ``target``; ``salt`` is the mutable item's. `ItemFound`."""
        now = self._clock.read(now)
        search = self._item_search(target, salt, self._starts.of_search(target, now, region=region), now)
        return self._start(search, now)

    def put(
        self,
        target: Target,
        make_item: Callable[[Item | None], Item],
        now: float,
        *,
        salt: bytes = b"",
        cas: int | None = None,
        region: bool = False,
    ) -> int:
        """Store an item under ``target``, now and every hour, with ``region`` at everybody near it; `Stored`.

        ``make_item`` makes it from the newest one found there (a larger seq, say), and may raise a `SwarmError`.
        """
        now = self._clock.read(now)
        search = self._item_search(target, salt, self._starts.of_put(target, now, region=region), now)
        return self._start(put(search, make_item, cas), now, Publishing(region=region))

    def cap_get(self, target: Target, wanted: Filter, now: float) -> int:
        """Find workers in the roster under ``target``; `RosterFound`."""
        now = self._clock.read(now)
        return self._start(self._roster_search(target, wanted, now), now)

    def cap_put(self, query: CapPut, now: float, *, at_one: bool = False) -> int:
        """Offer an entry, once, to the storers of its roster or ``at_one`` of them; `RosterStored`. Fills in tokens."""
        now = self._clock.read(now)
        search = self._roster_search(query.target, Filter(how_many=0), now)
        self._rosters.put(query, now, own=True)
        return self._start(RosterPut(search, query, self._rng.random() if at_one else None), now)

    def cap_withdraw(self, query: CapPut, storers: Iterable[tuple[Endpoint, bytes]], now: float) -> None:
        """Put an entry that takes an earlier one back at those who keep that; nobody waits for what they say."""
        now = self._clock.read(now)
        self._rosters.put(query, now, own=True)
        for endpoint, token in storers:
            self._start(DirectQuery(endpoint, replace(query, token=token)), now)

    def withdraw_peer(self, target: Target) -> None:
        """Announce no more under ``target``; what others keep expires within half an hour."""
        self._publications.remove(Announcement, target)

    def abandon(self, operation: int) -> None:
        """Forget an operation whose caller has gone."""
        self._running.abandon(operation)
        self._publisher.forget(operation)

    def statistics(self) -> Statistics:
        """Figures for operators."""
        meters, calls = self._meters, self._outgoing.calls
        return Statistics(
            contacts=len(self._table),
            buckets=self._table.fill,
            replacements=self._table.replacements,
            network_size=round(self._starts.network_size()) + 1,
            peers_stored=len(self._peers),
            items_stored=len(self._items),
            publications=len(self._publications),
            operations=len(self._running),
            calls_in_flight=len(calls),
            datagrams_received=meters.received,
            datagrams_sent=meters.sent,
            queries_answered=meters.answered,
            answers_withheld=meters.withheld,
            malformed=meters.malformed,
            timeouts=meters.timeouts,
            lookups=meters.lookups,
            lookups_failed=meters.lookups_failed,
            lookup_latency=Latency.of(meters.durations),
            round_trip=Latency.of(calls.round_trips.overall),
        )

    # Receiving --------------------------------------------------------------------------------------------------

    def _take_query(self, packet: QueryPacket, endpoint: Endpoint, now: float) -> None:
        if packet.sender == self.node_id or self.config.read_only:
            return
        self._meters.answered += 1
        self._outgoing.calls.heard(endpoint)
        self._outgoing.answer(self._server.answer(packet, endpoint, now), endpoint, now)
        for unproven in self._rosters.take_pings():
            self._outgoing.ping(unproven, now, stranger=True)
        if not packet.read_only:
            self._check(self._table.noticed(Contact(packet.sender, endpoint), now), now, stranger=True)

    def _take_reply(self, packet: ReplyPacket, endpoint: Endpoint, now: float) -> None:
        call = self._take_answer(packet.transaction, endpoint, now)
        if call is None:
            return
        if packet.external is not None:
            self._votes.add(endpoint, packet.external)
            self._suit_address(now)
        self._rosters.answered(endpoint)
        self._check(self._table.replied(Contact(packet.sender, endpoint), now), now)
        self._running.replied(call.operation, endpoint, packet, now)

    def _take_error(self, packet: ErrorPacket, endpoint: Endpoint, now: float) -> None:
        call = self._take_answer(packet.transaction, endpoint, now)
        if call is not None:
            self._running.failed(call.operation, endpoint, packet, now)

    def _take_answer(self, transaction: bytes, endpoint: Endpoint, now: float) -> Call | None:
        """The call that this answers, None if it is not ours, or comes too late."""
        call = self._outgoing.calls.answered(transaction, endpoint, now)
        if call is not None:
            self._outgoing.pinged(endpoint)
            self._outgoing.allowance.prove(endpoint, now)
        return call

    def _suit_address(self, now: float) -> None:
        """Take an id that fits the address others see, once they agree on one that ours does not fit (BEP 42)."""
        host = self.external_host
        if self.config.fixed_id or host is None or host != self._votes.agreed or is_secure_id(self.node_id, host):
            return
        own_id = secure_id(host, self._rng.randbytes(NodeId.size))
        self._table.move_to(own_id, now)
        self._outgoing.own_id = own_id
        self._seek(Target(own_id), now)  # the neighbours are others now

    # Sending ----------------------------------------------------------------------------------------------------

    def _ask(self, request: Request, number: int, now: float) -> None:
        self._outgoing.ask(request.endpoint, request.query, number, now)

    def _retry(self, call: Call, now: float) -> None:
        abandoned = call.operation is not None and not self._running.knows(call.operation)
        if call.attempts > 1:
            self._outgoing.calls.suspect(call.endpoint, now)
        if call.may_repeat and not abandoned:
            self._outgoing.transmit(call, now)
            self._running.timed_out(call.operation, call.endpoint, call.attempts - 1, now)
            return
        self._outgoing.calls.close(call)
        self._outgoing.pinged(call.endpoint)
        if call.attempts > 1:  # one lost datagram is no failure
            self._meters.timeouts += 1
            self._table.failed(call.endpoint)
        self._running.failed(call.operation, call.endpoint, None, now)

    def _check(self, contact: Contact | None, now: float, *, stranger: bool = False) -> None:
        """Ping the contact that the routing table wants to hear of."""
        if contact is not None:
            self._outgoing.ping(contact.endpoint, now, stranger=stranger)

    # Operations in progress -------------------------------------------------------------------------------------

    def _start(self, operation: Operation, now: float, publishing: Publishing | None = None) -> int:
        number = self._running.begin(operation, now)
        if publishing is not None:
            self._publisher.follow(number, publishing)
        self._running.pump(number, now)
        return number

    def _seek(self, target: Target, now: float, routers: tuple[Endpoint, ...] = ()) -> int:
        return self._start(Search(target, self._starts.of_search(target, now, routers=routers)), now)

    def _item_search(self, target: Target, salt: bytes, start: Start, now: float) -> ItemSearch:
        return ItemSearch(target, start, salt=salt, known=self._items.get(target, now))

    def _roster_search(self, target: Target, wanted: Filter, now: float) -> RosterSearch:
        known = self._rosters.get(CapGet(target=target, wanted=wanted), now)
        return RosterSearch(target, self._starts.of_search(target, now), wanted, known)

    # Publishing -------------------------------------------------------------------------------------------------

    def _own_peers(self, target: Target) -> list[Endpoint]:
        port = self._publications.announced_port(target)
        host = self.external_host
        return [] if port is None or host is None else [Endpoint(host, port)]

    def _announce(self, announcement: Announcement, now: float, publishing: Publishing) -> int:
        target = announcement.target
        start = self._starts.of_put(target, now, region=announcement.region)
        search = PeerSearch(target, start, self._server.peers_under(target, now))
        return self._start(announce(search, announcement.port, seed=announcement.seed), now, publishing)

    def _report(self, number: int, outcome: Outcome, now: float) -> None:
        self._publisher.settle(number, outcome, now, alone=self.is_first)

    def _publish_again(self, publication: Publication, now: float) -> None:
        if isinstance(publication, Announcement):
            self._announce(publication, now, Publishing(publication=publication, again=True))
            return
        item, again = publication.item, Publishing(publication=publication, region=publication.region, again=True)
        start = self._starts.of_put(item.target, now, region=publication.region)
        search = self._item_search(item.target, getattr(item, "salt", b""), start, now)
        self._start(put(search, lambda _: item), now, again)

    # Upkeep -----------------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        self._peers.expire(now)
        self._items.expire(now)
        self._rosters.expire(now)
        for contact in [*self._table.questionable(now), *self._table.spares(now)[:SPARES_PER_SWEEP]]:
            self._check(contact, now)
        for length in self._table.stale_buckets(now)[:REFRESHES_PER_SWEEP]:
            self._seek(Target(self._table.refresh_target(length, self._rng.randbytes(NodeId.size), now)), now)
        if self._starts.routers and self._table.is_cut_off:
            self._seek(Target(self.node_id), now, self._starts.routers)
