"""One adversary each: what it tries, and what it gets."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.allowance import UNPROVEN_BURST, UNPROVEN_RATE
from dht.config import EngineConfig
from dht.contacts import Contact, Endpoint
from dht.engine import Engine
from dht.items import ImmutableItem, sign_item
from dht.keys import NodeId, Target, is_secure_id, secure_id
from dht.krpc import MAX_RECEIVED, ErrorPacket, Packet, QueryPacket, ReplyPacket, parse
from dht.lookup import MAX_PER_PREFIX, Lookup
from dht.outcomes import ItemFound, Stored
from dht.prefixes import prefix_of
from dht.queries import AnnouncePeer, FindNode, Get, GetPeers, Ping, Query
from dht.replies import Reply
from dht.routing import MAX_PER_PREFIX_IN_BUCKET, RoutingTable
from dht.server import MAX_ANSWER
from dht.store import MAX_ITEMS_PER_PREFIX, MAX_PEERS_PER_PREFIX, MAX_TARGETS_PER_PREFIX
from dht.tokens import TOKEN_SIZE
from swarm.codec import encode
from swarm.errors import ProtocolError
from swarm.identity import Identity
from tests.dht.eclipse import measure
from tests.dht.strategies import PACKETS
from tests.sim.attackers import Babbler, Quiet, Slow
from tests.sim.kademlia import Kademlia, Liar

ATTACKER = Endpoint("45.9.9.9", 6881)
VICTIM = Endpoint("45.7.7.7", 53)
FRIEND = Endpoint("61.2.3.4", 6881)
TARGET = Target(b"\xab" * 20)
KEY = Identity(b"\x66" * 32)


def public(number: int) -> Endpoint:
    """A host in a /24 of its own."""
    return Endpoint(f"{30 + number // 65536}.{number // 256 % 256}.{number % 256}.7", 6881)


def contact(endpoint: Endpoint, seed: int = 0) -> Contact:
    """A contact whose id fits its address."""
    return Contact(secure_id(endpoint.host, random.Random(seed).randbytes(20)), endpoint)


def make_engine() -> Engine:
    host = "51.1.1.1"
    return Engine(EngineConfig(node_id=secure_id(host, bytes(20)), host=host), random.Random(1), 0.0)


class Asker:
    """Asks an engine and reads its answers, from any address: what whoever forges addresses can do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bytes_to: Counter[str] = Counter()

    def ask(self, query: Query, source: Endpoint, now: float = 0.0) -> Packet | None:
        sender = secure_id(source.host, bytes(20))
        packet = QueryPacket(transaction=b"tx", sender=sender, query=query, read_only=True)
        self.engine.receive_datagram(packet.pack(), source, now)
        answer = None
        for data, endpoint in self.engine.datagrams_to_send():
            assert len(data) <= MAX_ANSWER
            self.bytes_to[endpoint.host] += len(data)
            if endpoint == source:
                answer = parse(data)
        return answer

    def token(self, query: Query, source: Endpoint, now: float = 0.0) -> bytes:
        answer = self.ask(query, source, now)
        assert isinstance(answer, ReplyPacket)
        assert answer.reply.token is not None
        return answer.reply.token


class TestPeersThatDoNotHelp:
    """Silent, slow, babbling and lying peers among the nearest to every key cost a lookup only their slots."""

    NODES = 40

    def run(self, kind: str, seed: int) -> tuple[int, float]:
        network = Kademlia(seed)
        nodes = network.plant(self.NODES)
        rng = random.Random(seed)
        reader, writer, *rest = nodes
        for node in rest:
            network.engine(node)  # they are made when they are needed, and are to know each other as they are
        bad = rng.sample(rest, self.NODES // 3)
        for node in bad:
            engine = network.engine(node)
            network.kill(node)
            adversary = {
                "silent": Quiet(),
                "slow": Slow(engine, 5.0),
                "babbling": Babbler(seed),
                "lying": Liar(engine.node_id, lambda target: [contact(public(n), n) for n in range(8)]),
            }[kind]
            network.world.add(node, lambda now, adversary=adversary: adversary)  # type: ignore[misc]
        found, worst = 0, 0.0
        for number in range(6):
            item = ImmutableItem(encoded=encode(number))
            network.wait(writer, lambda e, now, item=item: e.put(item.target, lambda _: item, now), Stored)  # type: ignore[misc]
            begun = network.world.now
            outcome = network.wait(reader, lambda e, now, item=item: e.get(item.target, now), ItemFound)  # type: ignore[misc]
            found += outcome.item is not None
            worst = max(worst, network.world.now - begun)
        return found, worst

    @pytest.mark.parametrize("kind", ["silent", "slow", "babbling", "lying"])
    def test_a_third_of_them_hide_nothing_and_hang_nobody(self, kind: str) -> None:
        found, worst = self.run(kind, 5)
        assert found == 6
        assert worst < 2.0  # seconds of virtual time; a slow one answers after five


class TestEclipse:
    """Found again of ten items each with 20 and 100 Sybils around every key."""

    @pytest.mark.parametrize("sybils", [20, 100])
    def test_ids_that_do_not_fit_their_addresses_achieve_nothing(self, sybils: int) -> None:
        assert measure("intruders", sybils, region=False, keys=10).found == 10

    @pytest.mark.parametrize("sybils", [20, 100])
    def test_ids_that_fit_hide_what_is_stored_at_the_nearest_but_not_a_region(self, sybils: int) -> None:
        assert measure("grinders", sybils, region=False, keys=10).found < 5  # the attack is real
        assert measure("grinders", sybils, region=True, keys=10).found == 10


class TestOneNetworkOfMany:
    def test_a_bucket_takes_few_contacts_of_a_prefix_and_lookups_ask_few(self) -> None:
        table = RoutingTable(NodeId(bytes(20)), 0.0)
        block = [contact(Endpoint(f"45.9.9.{n}", 6881), n) for n in range(1, 250)]
        for member in block:
            table.replied(member, 0.0)
        assert max(table.fill) <= MAX_PER_PREFIX_IN_BUCKET
        lookup = Lookup(TARGET, NodeId(bytes(20)), block)
        assert len(lookup.next_contacts()) == MAX_PER_PREFIX
        assert lookup.next_contacts() == []

    def test_prefixes_of_the_dead_are_free_again(self) -> None:
        block = [contact(Endpoint(f"45.9.9.{n}", 6881), n) for n in range(1, 20)]
        lookup = Lookup(TARGET, NodeId(bytes(20)), block)
        first = lookup.next_contacts()
        for dead in first:
            lookup.timed_out(dead.endpoint, 1)
            lookup.timed_out(dead.endpoint, 2)
            lookup.failed(dead.endpoint)
        assert len(lookup.next_contacts()) == MAX_PER_PREFIX

    def test_ids_that_do_not_fit_are_no_contacts_and_come_last(self) -> None:
        table = RoutingTable(NodeId(bytes(20)), 0.0)
        misfit = Contact(NodeId(TARGET[:19] + b"\0"), public(1))
        assert not is_secure_id(misfit.node_id, misfit.endpoint.host)
        assert table.noticed(misfit, 0.0) is None
        assert table.replied(misfit, 0.0) is None
        assert len(table) == 0
        honest = [contact(public(n), n) for n in range(2, 12)]
        lookup = Lookup(TARGET, NodeId(bytes(20)), [misfit, *honest])
        asked = []
        while chosen := lookup.next_contacts():
            for one in chosen:
                asked.append(one)
                lookup.answered(one, [])
        assert misfit not in asked
        assert lookup.finished

    def test_a_misfit_alone_may_show_the_way_but_is_not_stored_at(self) -> None:
        misfit, honest = Contact(NodeId(TARGET[:19] + b"\0"), public(1)), contact(public(2), 2)
        lookup = Lookup(TARGET, NodeId(bytes(20)), [misfit])
        assert lookup.next_contacts() == [misfit]
        lookup.answered(misfit, [honest])
        assert lookup.next_contacts() == [honest]
        lookup.answered(honest, [])
        assert lookup.nearest() == [honest]


class TestPoisonedRouting:
    def test_bogus_nodes_displace_no_live_ones(self) -> None:
        engine = make_engine()
        asker = Asker(engine)
        number = engine.bootstrap([ATTACKER], 0.0)
        queue, now, bogus = engine.datagrams_to_send(), 0.0, 0
        live = [contact(public(n), n) for n in range(200, 208)]
        while not any(event.operation == number for event in engine.events()):
            answered = False
            for data, endpoint in queue:
                packet = parse(data)
                assert isinstance(packet, QueryPacket)
                if endpoint == ATTACKER:  # first the live ones, as is due, then nothing but noise
                    named = [*live, *(contact(public(300 + bogus + n), n) for n in range(12))]
                    bogus += 12
                elif endpoint in [one.endpoint for one in live]:
                    named = []
                else:
                    continue
                sender = secure_id(endpoint.host, random.Random(endpoint.port).randbytes(20))
                known = next((one.node_id for one in live if one.endpoint == endpoint), sender)
                reply = ReplyPacket(transaction=packet.transaction, sender=known, reply=Reply(nodes=tuple(named)))
                engine.receive_datagram(reply.pack(), endpoint, now)
                answered = True
            queue = engine.datagrams_to_send()
            if not answered and not queue:
                now = engine.next_deadline()
                engine.handle_timer(now)
                queue = engine.datagrams_to_send()
        assert now < 10.0
        found = asker.ask(FindNode(target=Target(engine.node_id)), FRIEND, now)
        assert isinstance(found, ReplyPacket)
        assert set(found.reply.nodes) <= {*live, contact(ATTACKER, 6881)}
        assert len(set(found.reply.nodes) & set(live)) >= 7

    def test_who_names_only_the_dead_is_not_believed_for_long(self) -> None:
        liar, honest = contact(public(1), 1), contact(public(2), 2)
        lookup = Lookup(TARGET, NodeId(bytes(20)), [liar, honest])
        lookup.next_contacts()
        lookup.answered(liar, [contact(public(n), n) for n in range(100, 120)])
        lookup.answered(honest, [])
        asked = 0
        while not lookup.finished:
            for dead in lookup.next_contacts():
                asked += 1
                for times in (1, 2):
                    lookup.timed_out(dead.endpoint, times)
                lookup.failed(dead.endpoint)
        assert asked <= 5  # of twenty

    def test_a_false_claim_does_not_hide_the_true_owner_of_an_id(self) -> None:
        owner = Contact(NodeId(b"o" * 20), Endpoint("10.0.0.1", 1))
        thieves = [Contact(owner.node_id, Endpoint("10.0.0.2", port)) for port in (1, 2)]
        lookup = Lookup(TARGET, NodeId(bytes(20)), [*thieves, owner])
        assert owner in lookup.next_contacts()


class TestStorageFlooding:
    def test_a_network_displaces_its_own_items_first(self) -> None:
        engine = make_engine()
        asker = Asker(engine)

        def put(text: bytes, source: Endpoint, now: float) -> None:
            item = ImmutableItem(encoded=encode(text))
            token = asker.token(Get(target=item.target), source, now)
            asker.ask(item.put(token), source, now)

        put(b"honest", FRIEND, 0.0)
        for number in range(2 * MAX_ITEMS_PER_PREFIX):
            source = Endpoint(f"45.9.9.{number % 250 + 1}", 6881)
            put(b"%d" % number, source, 1.0 + number)
        assert engine.statistics().items_stored == MAX_ITEMS_PER_PREFIX + 1
        answer = asker.ask(Get(target=Target.of_content(encode(b"honest"))), FRIEND, 1000.0)
        assert isinstance(answer, ReplyPacket)
        assert answer.reply.value == b"honest"

    def test_a_network_displaces_its_own_peers_and_info_hashes_first(self) -> None:
        engine = make_engine()
        asker = Asker(engine)

        def announce(target: Target, source: Endpoint, now: float) -> None:
            token = asker.token(GetPeers(info_hash=target), source, now)
            asker.ask(AnnouncePeer(info_hash=target, port=7000, token=token), source, now)

        announce(TARGET, FRIEND, 0.0)
        for host in range(1, 2 * MAX_PEERS_PER_PREFIX):
            announce(TARGET, Endpoint(f"45.9.9.{host}", 6881), host * 2.0)
        assert engine.statistics().peers_stored == MAX_PEERS_PER_PREFIX + 1
        for number in range(2 * MAX_TARGETS_PER_PREFIX):
            announce(Target(number.to_bytes(20, "big")), ATTACKER, 200.0 + number)
        assert engine.statistics().peers_stored <= MAX_PEERS_PER_PREFIX + 1 + MAX_TARGETS_PER_PREFIX
        answer = asker.ask(GetPeers(info_hash=TARGET), FRIEND, 800.0)
        assert isinstance(answer, ReplyPacket)
        assert Endpoint(FRIEND.host, 7000) in answer.reply.peers


class TestReflection:
    def test_forged_queries_send_a_victim_little(self) -> None:
        engine = make_engine()
        for n in range(8):
            engine._table.replied(contact(public(n), n), 0.0)
        asker = Asker(engine)
        item = sign_item(KEY, b"x" * 990, seq=1)
        asker.ask(item.put(asker.token(Get(target=item.target), FRIEND)), FRIEND)
        seconds = 20
        for number in range(100 * seconds):
            victim = Endpoint(f"45.7.7.{number % 200}", 53)  # the whole of its /24
            asker.ask(Get(target=item.target), victim, number / 100)
        sent = sum(size for host, size in asker.bytes_to.items() if host.startswith("45.7.7."))
        assert sent <= UNPROVEN_BURST + UNPROVEN_RATE * seconds
        assert engine.statistics().answers_withheld > 1000
        assert asker.ask(Get(target=item.target), FRIEND, float(seconds)) is not None  # others do not suffer

    def test_strangers_cause_no_more_pings_than_answers_and_no_repetitions(self) -> None:
        engine = make_engine()
        packet = QueryPacket(transaction=b"tx", sender=secure_id(VICTIM.host, bytes(20)), query=Ping())
        engine.receive_datagram(packet.pack(), VICTIM, 0.0)
        assert [endpoint for _, endpoint in engine.datagrams_to_send()] == [VICTIM, VICTIM]  # an answer and a ping
        while engine.next_deadline() < 30.0:
            engine.handle_timer(engine.next_deadline())
        assert engine.datagrams_to_send() == []


class TestTokenTheft:
    def test_a_token_is_good_for_one_address_and_one_target_and_a_while(self) -> None:
        engine = make_engine()
        asker = Asker(engine)
        token = asker.token(GetPeers(info_hash=TARGET), FRIEND)
        assert len(token) == TOKEN_SIZE

        def announce(token: bytes, source: Endpoint, target: Target = TARGET, now: float = 1.0) -> bool:
            answer = asker.ask(AnnouncePeer(info_hash=target, port=1, token=token), source, now)
            assert isinstance(answer, ErrorPacket | ReplyPacket)
            return isinstance(answer, ReplyPacket)

        assert not announce(token, ATTACKER)
        assert not announce(token, FRIEND, Target(b"o" * 20))
        assert not announce(bytes(TOKEN_SIZE), FRIEND)
        assert not announce(token[:-1], FRIEND)
        assert not announce(token + b"\0", FRIEND)
        assert engine.statistics().peers_stored == 0
        assert announce(token, Endpoint(FRIEND.host, 9))  # bound to the address, not the port
        for _ in range(2):
            engine.handle_timer(engine.next_deadline() + 300.0)
        assert not announce(token, FRIEND, now=700.0)


class TestMalformed:
    def test_oversized_and_broken_packets_are_counted_and_nothing_else(self) -> None:
        engine = make_engine()
        for data in (b"", b"d", b"x" * 65507, b"l" * 2000, b"d1:y1:qe", b"i1e", b"d1:t0:1:y1:re", bytes(MAX_RECEIVED)):
            engine.receive_datagram(data, ATTACKER, 0.0)
        assert engine.datagrams_to_send() == []
        assert engine.statistics().malformed == 8

    @settings(max_examples=300)
    @given(packet=PACKETS, data=st.data())
    def test_damaged_packets_never_raise_and_are_answered_briefly(self, packet: Packet, data: st.DataObject) -> None:
        raw = bytearray(packet.pack())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(raw) - 1))
            kind = data.draw(st.sampled_from(["flip", "cut", "double"]))
            if kind == "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            elif kind == "cut" and len(raw) > 1:
                del raw[at]
            else:
                raw[at:at] = raw[at : at + 20]
        engine = make_engine()
        engine.receive_datagram(bytes(raw), ATTACKER, 0.0)
        assert sum(len(sent) for sent, _ in engine.datagrams_to_send()) <= MAX_ANSWER + 100

    @given(raw=st.binary(max_size=200))
    def test_the_parser_raises_nothing_else(self, raw: bytes) -> None:
        try:
            parse(raw)
        except ProtocolError:
            return


def test_prefixes() -> None:
    assert prefix_of("45.9.9.9") == prefix_of("45.9.9.200") != prefix_of("45.9.8.9")
    assert prefix_of("2a00:1:2:3::1") == prefix_of("2a00:1:2:ffff::2") != prefix_of("2a00:1:3::1")
    assert prefix_of("127.0.0.1") is prefix_of("192.168.1.1") is prefix_of("fe80::1") is None
