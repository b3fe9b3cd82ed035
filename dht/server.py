"""The answering side: what a node replies to each query (BEP 5, 42, 44)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import MutableItem, item_from_put, mutable_target
from dht.keys import NodeId, Target
from dht.krpc import PROTOCOL_ERROR, UNKNOWN_METHOD, ErrorPacket, QueryPacket, ReplyPacket
from dht.queries import AnnouncePeer, FindNode, Get, GetPeers, Ping, Put, Query
from dht.replies import Reply
from dht.routing import RoutingTable
from dht.store import ItemStore, PeerStore
from dht.tokens import Tokens

MAX_ANSWER = 1400  # bytes: fits every path's MTU; nodes give way before values
MAX_PEERS_PER_ANSWER = 100  # 800 bytes of compact IPv4 peers, as libtorrent sends


class Server:
    """Answers queries out of the routing table and the stores; announces and puts go into the stores."""

    def __init__(
        self,
        table: RoutingTable,
        peers: PeerStore,
        items: ItemStore,
        tokens: Tokens,
        own_peers: Callable[[Target], Iterable[Endpoint]],
    ) -> None:
        """``own_peers`` gives the endpoints that this node itself announces under a target."""
        self._table = table
        self._peers = peers
        self._items = items
        self._tokens = tokens
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
                return self._near(target, sender)
            case GetPeers(info_hash=target):
                peers = self.peers_under(target, now)
                fitting = [peer for peer in peers if peer.is_ipv6 == sender.is_ipv6][:MAX_PEERS_PER_ANSWER]
                near = self._near(target, sender)
                return replace(near, peers=tuple(fitting), token=self._tokens.issue(sender, target))
            case Get(target=target):
                return self._get(query, target, sender, now)
            case AnnouncePeer(info_hash=target):
                self._check_token(query.token, sender, target)
                port = sender.port if query.implied_port else query.port
                self._peers.add(target, Endpoint(sender.host, port), now)
                return Reply()
            case Put():
                return self._put(query, sender, now)
            case _:
                if query.target is None:
                    raise RejectedQuery("unknown method", krpc_code=UNKNOWN_METHOD)
                return self._near(query.target, sender)

    def peers_under(self, target: Target, now: float) -> list[Endpoint]:
        """Peers known here, this node's own announcement first."""
        return list(dict.fromkeys([*self._own_peers(target), *self._peers.get(target, now)]))

    def _near(self, target: Target, sender: Endpoint) -> Reply:
        near = [contact for contact in self._table.closest(target) if contact.endpoint != sender]
        return Reply(
            nodes=tuple(contact for contact in near if not contact.endpoint.is_ipv6),
            nodes6=tuple(contact for contact in near if contact.endpoint.is_ipv6),
        )

    def _get(self, query: Get, target: Target, sender: Endpoint, now: float) -> Reply:
        near = self._near(target, sender)
        base = replace(near, token=self._tokens.issue(sender, target))
        item = self._items.get(target, now)
        if item is None:
            return base
        if isinstance(item, MutableItem) and query.seq is not None and item.seq <= query.seq:
            return replace(base, seq=item.seq)  # the asker has this one already
        found = item.reply()
        return replace(found, nodes=base.nodes, nodes6=base.nodes6, token=base.token)

    def _put(self, query: Put, sender: Endpoint, now: float) -> Reply:
        # The token first: it costs a hash, a signature costs fifty times that.
        if query.public_key is not None:
            self._check_token(query.token, sender, mutable_target(query.public_key, query.salt))
            item = item_from_put(query)
        else:
            item = item_from_put(query)
            self._check_token(query.token, sender, item.target)
        self._items.put(item, now, cas=query.cas)
        return Reply()

    def _check_token(self, token: bytes, sender: Endpoint, target: Target) -> None:
        if not self._tokens.accepts(token, sender, target):
            raise RejectedQuery("bad token", krpc_code=PROTOCOL_ERROR)


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
        else:
            break  # a full item without nodes is 1 216 bytes
        answer = replace(answer, reply=reply)
        data = answer.pack()
    return data
