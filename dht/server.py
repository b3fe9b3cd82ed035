"""The answering side: what a node replies to each query (BEP 5, 32, 33, 42, 44, 51)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dht.allowance import Allowance
from dht.bloom import AddressFilter
from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import MutableItem, item_from_put, mutable_target
from dht.keys import NodeId, Target
from dht.krpc import PROTOCOL_ERROR, UNKNOWN_METHOD, ErrorPacket, QueryPacket, ReplyPacket
from dht.queries import (
    AnnouncePeer,
    Family,
    FindNode,
    Get,
    GetPeers,
    Ping,
    Put,
    Query,
    SampleInfohashes,
    Want,
)
from dht.replies import Reply
from dht.roster_queries import CapGet, CapPut
from dht.roster_store import RosterStore
from dht.routing import BUCKET_SIZE, RoutingTable
from dht.samples import Sampler
from dht.store import ItemStore, PeerStore
from dht.tokens import Tokens

MAX_ANSWER = 1400  # bytes: fits every path's MTU; nodes give way before values
MAX_PEERS_PER_ANSWER = 100  # 800 bytes of compact IPv4 peers, as libtorrent sends
MAX_PEERS_BESIDE_FILTERS = 32  # where two filters take 512 bytes (BEP 33), so that nodes have their place too


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a node keeps for others."""

    peers: PeerStore
    items: ItemStore
    rosters: RosterStore
    sampler: Sampler


class Server:
    """Answers queries out of the routing table and the stores; announces and puts go into the stores."""

    def __init__(
        self,
        table: RoutingTable,
        holdings: Holdings,
        tokens: Tokens,
        allowance: Allowance,
        own_peers: Callable[[Target], Iterable[Endpoint]],
    ) -> None:
        """``own_peers`` gives the endpoints that this node itself announces under a target."""
        self._table = table
        self._peers = holdings.peers
        self._items = holdings.items
        self._rosters = holdings.rosters
        self._sampler = holdings.sampler
        self._tokens = tokens
        self._allowance = allowance
        self._own_peers = own_peers

    @property
    def own_id(self) -> NodeId:
        """The id that answers carry."""
        return self._table.own_id

    def answer(self, packet: QueryPacket, sender: Endpoint, now: float) -> bytes:
        """The datagram that answers ``packet``, at most `MAX_ANSWER` bytes."""
        try:
            reply = self._reply(packet.query, sender, now)
        except RejectedQuery as error:
            return refusal(error, packet.transaction)
        answer = ReplyPacket(transaction=packet.transaction, sender=self.own_id, reply=reply, external=sender)
        return _pack_within_limit(answer)

    def _reply(self, query: Query, sender: Endpoint, now: float) -> Reply:
        match query:
            case Ping():
                return Reply()
            case FindNode(target=target):
                return self._near(target, sender, query.want)
            case GetPeers():
                return self._get_peers(query, sender, now)
            case Get():
                return self._get(query, sender, now)
            case SampleInfohashes(target=target):
                return replace(self._near(target, sender, query.want), samples=self._sampler.draw(now))
            case AnnouncePeer(info_hash=target):
                self._check_token(query.token, sender, target, now)
                port = sender.port if query.implied_port else query.port
                self._peers.add(target, Endpoint(sender.host, port), now, seed=query.seed)
                return Reply()
            case Put():
                return self._put(query, sender, now)
            case CapGet(target=target):
                near = self._near(target, sender)
                token = self._tokens.issue(sender, target)
                return replace(near, token=token, roster=self._rosters.get(query, now))
            case CapPut():
                self._check_token(query.token, sender, query.target, now)
                self._rosters.put(query, now)
                return Reply()
            case _:
                if query.target is None:
                    raise RejectedQuery("unknown method", krpc_code=UNKNOWN_METHOD)
                return self._near(query.target, sender, query.want)

    def peers_under(self, target: Target, now: float) -> list[Endpoint]:
        """Peers known here, this node's own announcement first."""
        return list(dict.fromkeys([*self._own_peers(target), *self._peers.get(target, now)]))

    def _near(self, target: Target, sender: Endpoint, want: Want = ()) -> Reply:
        families = want or ((Family.IPV6,) if sender.is_ipv6 else (Family.IPV4,))
        near = [contact for contact in self._table.closest(target, 2 * BUCKET_SIZE) if contact.endpoint != sender]
        named = {
            family: tuple(contact for contact in near if contact.endpoint.is_ipv6 == (family is Family.IPV6))
            for family in families
        }
        return Reply(
            nodes=named.get(Family.IPV4, ())[:BUCKET_SIZE],
            nodes6=named.get(Family.IPV6, ())[:BUCKET_SIZE],
        )

    def _get_peers(self, query: GetPeers, sender: Endpoint, now: float) -> Reply:
        target = query.info_hash
        peers = [peer for peer in self.peers_under(target, now) if peer.is_ipv6 == sender.is_ipv6]
        near = self._near(target, sender, query.want)
        token = self._tokens.issue(sender, target)
        if not query.scrape:
            return replace(near, peers=tuple(peers[:MAX_PEERS_PER_ANSWER]), token=token)
        return replace(
            near,
            peers=tuple(peers[:MAX_PEERS_BESIDE_FILTERS]),
            token=token,
            seeds=AddressFilter.of(self._peers.get(target, now, seed=True)).pack(),
            downloaders=AddressFilter.of(self._peers.get(target, now, seed=False)).pack(),
        )

    def _get(self, query: Get, sender: Endpoint, now: float) -> Reply:
        base = replace(self._near(query.target, sender, query.want), token=self._tokens.issue(sender, query.target))
        item = self._items.get(query.target, now)
        if item is None:
            return base
        if isinstance(item, MutableItem) and query.seq is not None and item.seq <= query.seq:
            return replace(base, seq=item.seq)  # the asker has this one already
        found = item.reply()
        return replace(found, nodes=base.nodes, nodes6=base.nodes6, token=base.token)

    def _put(self, query: Put, sender: Endpoint, now: float) -> Reply:
        # The token first: it costs a hash, a signature costs fifty times that.
        if query.public_key is not None:
            self._check_token(query.token, sender, mutable_target(query.public_key, query.salt), now)
            item = item_from_put(query)
        else:
            item = item_from_put(query)
            self._check_token(query.token, sender, item.target, now)
        self._items.put(item, now, cas=query.cas, storer=sender)
        return Reply()

    def _check_token(self, token: bytes, sender: Endpoint, target: Target, now: float) -> None:
        if not self._tokens.accepts(token, sender, target):
            raise RejectedQuery("bad token", krpc_code=PROTOCOL_ERROR)
        self._allowance.prove(sender, now)  # only its address was sent this token


def refusal(error: RejectedQuery, transaction: bytes) -> bytes:
    """The error datagram for a refused query: short whatever was asked."""
    return ErrorPacket(transaction=transaction, error_code=error.krpc_code, message=error.message[:80]).pack()


def _pack_within_limit(answer: ReplyPacket) -> bytes:
    """Encode, leaving out the farthest nodes, then the last peers, until the datagram fits."""
    data = answer.pack()
    while len(data) > MAX_ANSWER:
        reply = answer.reply
        if reply.nodes or reply.nodes6:
            reply = replace(reply, nodes=reply.nodes[:-1], nodes6=reply.nodes6[:-1])
        elif reply.peers:
            reply = replace(reply, peers=reply.peers[:-1])
        elif reply.roster is not None and reply.roster.entries:
            reply = replace(reply, roster=reply.roster.without_last())
        else:
            break  # a full item without nodes is 1 216 bytes
        answer = replace(answer, reply=reply)
        data = answer.pack()
    return data
