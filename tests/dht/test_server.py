from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dht.allowance import Allowance
from dht.bloom import AddressFilter
from dht.contacts import Contact, Endpoint
from dht.items import ImmutableItem, sign_item
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, QueryPacket, ReplyPacket, parse
from dht.queries import AnnouncePeer, Family, FindNode, Get, GetPeers, Ping, Put, Query, SampleInfohashes, UnknownQuery
from dht.replies import Reply
from dht.roster_store import RosterStore
from dht.routing import RoutingTable
from dht.samples import MAX_SAMPLES, Sampler
from dht.server import MAX_ANSWER, MAX_PEERS_BESIDE_FILTERS, MAX_PEERS_PER_ANSWER, Holdings, Server
from dht.store import ItemStore, PeerStore
from dht.tokens import Tokens
from swarm.codec import encode
from swarm.identity import Identity

KEY = Identity(b"\x04" * 32)
RNG = random.Random(1)
ASKER = Endpoint("10.1.0.1", 4000)
ASKER6 = Endpoint("2001:db8::9", 4000)
TARGET = Target(b"t" * 20)
OWN_PEER = Endpoint("10.0.0.1", 7777)


class World:
    """A server with eight contacts, and what it serves from."""

    def __init__(self) -> None:
        self.table = RoutingTable(NodeId(bytes(20)), 0.0)
        for n in range(4):
            self.table.replied(Contact(NodeId(bytes([0x80 + n]) * 20), Endpoint(f"10.2.0.{n + 1}", 1)), 0.0)
            self.table.replied(Contact(NodeId(bytes([0x40 + n]) * 20), Endpoint(f"10.3.0.{n + 1}", 1)), 0.0)
        self.peers = PeerStore()
        self.items = ItemStore()
        self.announced: list[Endpoint] = []
        holdings = Holdings(
            peers=self.peers, items=self.items, rosters=RosterStore(RNG), sampler=Sampler(self.peers, RNG)
        )
        self.allowance = Allowance()
        self.server = Server(self.table, holdings, Tokens(b"secret"), self.allowance, lambda _: self.announced)

    def raw(self, query: Query, sender: Endpoint = ASKER) -> bytes:
        packet = QueryPacket(transaction=b"tx", sender=NodeId(b"q" * 20), query=query)
        return self.server.answer(packet, sender, 1.0)

    def ask(self, query: Query, sender: Endpoint = ASKER) -> Reply:
        packet = parse(self.raw(query, sender))
        assert isinstance(packet, ReplyPacket)
        assert (packet.sender, packet.transaction, packet.external) == (self.server.own_id, b"tx", sender)
        return packet.reply

    def refused(self, query: Query, sender: Endpoint = ASKER) -> int:
        packet = parse(self.raw(query, sender))
        assert isinstance(packet, ErrorPacket)
        return packet.error_code


@pytest.fixture
def world() -> World:
    return World()


def test_ping(world: World) -> None:
    assert world.ask(Ping()) == Reply()


def test_find_node_names_the_nearest(world: World) -> None:
    reply = world.ask(FindNode(target=TARGET))
    assert reply.nodes == tuple(world.table.closest(TARGET))
    assert len(reply.nodes) == 8


def test_contacts_of_the_kinds_that_are_wanted_else_of_the_askers_own(world: World) -> None:
    six = Contact(NodeId(b"\x20" * 20), Endpoint("2001:db8::1", 1))
    world.table.replied(six, 0.0)
    find, both = FindNode(target=Target(six.node_id)), (Family.IPV4, Family.IPV6)
    cases: list[tuple[Query, Endpoint, tuple[int, int]]] = [
        (find, ASKER, (8, 0)),
        (find, ASKER6, (0, 1)),
        (replace(find, want=(Family.IPV6,)), ASKER, (0, 1)),
        (replace(find, want=both), ASKER6, (8, 1)),
        (GetPeers(info_hash=find.target, want=both), ASKER, (8, 1)),
        (Get(target=find.target, want=both), ASKER, (8, 1)),
    ]
    for query, sender, counts in cases:
        reply = world.ask(query, sender)
        assert (len(reply.nodes), len(reply.nodes6)) == counts


def test_nobody_is_told_of_themselves(world: World) -> None:
    us = next(iter(world.table))
    reply = world.ask(FindNode(target=TARGET), us.endpoint)
    assert us not in reply.nodes
    assert len(reply.nodes) == 7


def test_unknown_methods_with_a_target_are_answered_like_find_node(world: World) -> None:
    assert world.ask(UnknownQuery(method=b"cap_get", target=TARGET)) == world.ask(FindNode(target=TARGET))
    assert world.refused(UnknownQuery(method=b"vote")) == 204


def test_announce_and_get_peers(world: World) -> None:
    token = world.ask(GetPeers(info_hash=TARGET)).token
    assert token is not None
    world.ask(AnnouncePeer(info_hash=TARGET, port=7000, token=token))
    world.ask(AnnouncePeer(info_hash=TARGET, port=1, token=token, implied_port=True))
    world.announced = [OWN_PEER]
    peers = world.ask(GetPeers(info_hash=TARGET)).peers
    assert peers == (OWN_PEER, Endpoint(ASKER.host, ASKER.port), Endpoint(ASKER.host, 7000))
    assert world.ask(GetPeers(info_hash=TARGET), ASKER6).peers == ()  # addresses of the asker's own kind


def test_announcing_takes_the_right_token(world: World) -> None:
    token = world.ask(GetPeers(info_hash=TARGET)).token or b""
    other = Target(b"o" * 20)
    assert world.refused(AnnouncePeer(info_hash=other, port=1, token=token)) == 203
    assert world.refused(AnnouncePeer(info_hash=TARGET, port=1, token=token), Endpoint("10.1.0.2", 4000)) == 203
    assert world.refused(AnnouncePeer(info_hash=TARGET, port=1, token=b"")) == 203
    assert len(world.peers) == 0


def test_immutable_items(world: World) -> None:
    item = ImmutableItem(encoded=encode(b"value"))
    before = world.ask(Get(target=item.target))
    assert before.value is None
    assert before.token is not None
    assert world.refused(Put(token=b"wrong", value=b"value")) == 203
    world.ask(item.put(before.token))
    after = world.ask(Get(target=item.target))
    assert after.value == b"value"
    assert len(after.nodes) == 8


def test_mutable_items(world: World) -> None:
    item = sign_item(KEY, b"value", salt=b"s", seq=5)
    token = world.ask(Get(target=item.target)).token or b""
    assert world.refused(item.put(b"wrong")) == 203
    world.ask(item.put(token))
    found = world.ask(Get(target=item.target))
    assert (found.value, found.seq, found.public_key, found.signature) == (b"value", 5, KEY.peer_id, item.signature)
    assert world.ask(Get(target=item.target, seq=4)).value == b"value"
    known = world.ask(Get(target=item.target, seq=5))
    assert (known.value, known.seq, known.signature) == (None, 5, None)
    assert world.refused(sign_item(KEY, b"older", salt=b"s", seq=4).put(token)) == 302
    assert world.refused(sign_item(KEY, b"newer", salt=b"s", seq=6).put(token, cas=4)) == 301


def test_full_answers_fit_a_datagram_and_values_outlast_nodes(world: World) -> None:
    item = sign_item(KEY, b"x" * 996, salt=b"s" * 64, seq=2**63 - 1)
    world.ask(item.put(world.ask(Get(target=item.target)).token or b""))
    reply = world.ask(Get(target=item.target))
    assert reply.value == b"x" * 996
    assert 0 < len(reply.nodes) < 8
    assert len(world.raw(Get(target=item.target))) <= MAX_ANSWER
    for n in range(MAX_PEERS_PER_ANSWER + 20):
        world.peers.add(TARGET, Endpoint("10.5.0.1", n + 1), 0.0)
        world.peers.add(TARGET, Endpoint("2001:db8::5", n + 1), 0.0)
    assert len(world.ask(GetPeers(info_hash=TARGET)).peers) == MAX_PEERS_PER_ANSWER
    assert len(world.raw(GetPeers(info_hash=TARGET))) <= MAX_ANSWER
    assert 50 < len(world.ask(GetPeers(info_hash=TARGET), ASKER6).peers) < MAX_PEERS_PER_ANSWER
    assert len(world.raw(GetPeers(info_hash=TARGET), ASKER6)) <= MAX_ANSWER


def test_a_scrape_counts_and_leaves_room_for_nodes(world: World) -> None:
    for n in range(200):
        world.peers.add(TARGET, Endpoint(f"10.5.0.{n}", 1), 0.0, seed=n < 50)
    reply = world.ask(GetPeers(info_hash=TARGET, scrape=True))
    assert reply.seeds is not None
    assert reply.downloaders is not None
    assert AddressFilter(reply.seeds).estimate == pytest.approx(50, rel=0.1)
    assert AddressFilter(reply.downloaders).estimate == pytest.approx(150, rel=0.1)
    assert len(reply.nodes) == 8
    assert len(reply.peers) == MAX_PEERS_BESIDE_FILTERS
    assert len(world.raw(GetPeers(info_hash=TARGET, scrape=True))) <= MAX_ANSWER
    assert world.ask(GetPeers(info_hash=TARGET)).seeds is None


def test_samples_fit_a_datagram_with_their_nodes(world: World) -> None:
    for n in range(300):
        world.peers.add(Target(n.to_bytes(20, "big")), OWN_PEER, 0.0)
    reply = world.ask(SampleInfohashes(target=TARGET))
    assert reply.samples is not None
    assert (len(reply.samples.info_hashes), reply.samples.total) == (MAX_SAMPLES, 300)
    assert len(reply.nodes) == 8
    assert len(world.raw(SampleInfohashes(target=TARGET))) <= MAX_ANSWER


def test_a_good_token_proves_an_address(world: World) -> None:
    outsider = Endpoint("61.2.3.4", 4000)
    token = world.ask(GetPeers(info_hash=TARGET), outsider).token or b""
    assert not world.allowance.is_proven(outsider, 1.0)
    world.ask(AnnouncePeer(info_hash=TARGET, port=1, token=token, seed=True), outsider)
    assert world.allowance.is_proven(outsider, 1.0)
    assert world.peers.get(TARGET, 1.0, seed=True) == [Endpoint("61.2.3.4", 1)]
