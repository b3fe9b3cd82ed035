from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.config import EngineConfig
from dht.contacts import Contact, Endpoint
from dht.engine import Engine
from dht.errors import ConflictError
from dht.items import ImmutableItem, Item, MutableItem, sign_item
from dht.keys import NodeId, Target, distance
from dht.krpc import ErrorPacket, QueryPacket, ReplyPacket, parse
from dht.outcomes import ItemFound, Outcome, PeersFound, Stored
from dht.publications import Announcement
from dht.queries import Ping
from dht.replies import Reply
from dht.store import ITEM_TTL
from swarm.codec import encode
from swarm.identity import Identity
from tests.dht.network import Network

STRANGER = Endpoint("10.9.9.9", 4444)
KEY = Identity(b"\x07" * 32)
TARGET = Target(b"\xab" * 20)
INTEGERS = st.integers(-(2**63), 2**63)
MAX_ANSWER_TO_MALFORMED = 200  # bytes: what a forged source can make us send for a broken query


def make_engine(*, read_only: bool = False) -> Engine:
    config = EngineConfig(node_id=NodeId(b"n" * 20), read_only=read_only)
    return Engine(config, random.Random(1), 0.0)


def put_value(network: Network, at: Endpoint, value: bytes) -> Stored:
    item = ImmutableItem(encoded=encode(value))
    return network.wait(at, lambda e: e.put(item.target, lambda _: item, network.now), Stored)


def get_value(network: Network, at: Endpoint, target: Target) -> Item | None:
    return network.wait(at, lambda e: e.get(target, network.now), ItemFound).item


def find_near(network: Network, at: Endpoint, target: Target) -> tuple[Contact, ...]:
    return network.wait(at, lambda e: e.find_node(target, network.now), Outcome).nearest


def put_signed(network: Network, at: Endpoint, seq: int, value: bytes, *, cas: int | None = None) -> Stored:
    item = sign_item(KEY, value, salt=b"s", seq=seq)
    return network.wait(at, lambda e: e.put(item.target, lambda _: item, network.now, salt=b"s", cas=cas), Stored)


def get_signed(network: Network, at: Endpoint) -> MutableItem | None:
    target = sign_item(KEY, b"", salt=b"s", seq=0).target
    item = network.wait(at, lambda e: e.get(target, network.now, salt=b"s"), ItemFound).item
    assert item is None or isinstance(item, MutableItem)
    return item


def make_network(count: int, seed: int = 1, *, loss: float = 0.0) -> tuple[Network, list[Endpoint]]:
    network = Network(seed, loss=loss)
    first = network.add()
    return network, [first, *(network.add(routers=(first,)) for _ in range(count - 1))]


class TestAlone:
    def test_the_first_node_stores_for_itself(self) -> None:
        network = Network(1)
        node = network.add()
        outcome = put_value(network, node, b"v")
        assert (outcome.asked, outcome.stored, outcome.error) == (0, 0, None)
        found = get_value(network, node, outcome.target)
        assert found is not None
        assert found.value == b"v"

    def test_what_it_stored_alone_is_found_by_the_next(self) -> None:
        network = Network(1)
        first = network.add()
        target = put_value(network, first, b"v").target
        network.wait(first, lambda e: e.announce_peer(Announcement(target=TARGET, port=99), network.now), Stored)
        second = network.add(routers=(first,))
        found = get_value(network, second, target)
        assert found is not None
        network.run(1.0)  # the newcomer is pinged, and tells the first its address
        peers = network.wait(second, lambda e: e.get_peers(TARGET, network.now), PeersFound).peers
        assert peers == (Endpoint(first.host, 99),)

    def test_a_node_whose_only_contact_died_still_ends_quickly(self) -> None:
        network, (first, second) = make_network(2)
        network.run(1.0)
        network.kill(first)
        begun = network.now
        outcome = network.wait(second, lambda e: e.get(TARGET, network.now), ItemFound)
        assert (outcome.item, outcome.answered) == (None, 0)
        assert outcome.asked == 1
        assert network.now - begun < 3.0


class TestSmallNetworks:
    @pytest.mark.parametrize("count", [2, 3, 6])
    def test_everybody_finds_what_anybody_stored(self, count: int) -> None:
        network, nodes = make_network(count)
        for node in nodes:
            target = put_value(network, node, str(node).encode()).target
            network.wait(node, lambda e: e.announce_peer(Announcement(target=TARGET, port=7000), network.now), Stored)
            for reader in nodes:
                found = get_value(network, reader, target)
                assert found is not None
                assert found.value == str(node).encode()
        for reader in nodes:
            peers = network.wait(reader, lambda e: e.get_peers(TARGET, network.now), PeersFound).peers
            assert sorted(peers) == sorted(Endpoint(node.host, 7000) for node in nodes)

    def test_ipv6_networks_work_alike(self) -> None:
        network = Network(1)
        first = network.add(ipv6=True)
        others = [network.add(routers=(first,), ipv6=True) for _ in range(3)]
        target = put_value(network, others[0], b"six").target
        network.wait(others[1], lambda e: e.announce_peer(Announcement(target=TARGET, port=7000), network.now), Stored)
        assert get_value(network, others[2], target) is not None
        peers = network.wait(others[2], lambda e: e.get_peers(TARGET, network.now), PeersFound).peers
        assert peers == (Endpoint(others[1].host, 7000),)

    def test_a_read_only_node_uses_the_network_but_is_no_part_of_it(self) -> None:
        network, (first, second) = make_network(2)
        reader = network.add(routers=(first,), read_only=True)
        target = put_value(network, reader, b"v").target
        assert get_value(network, second, target) is not None
        network.run(5.0)
        near = find_near(network, second, TARGET)
        assert {contact.endpoint for contact in near} == {first}

    def test_a_restarted_node_is_known_by_its_new_id(self) -> None:
        network, nodes = make_network(3)
        network.run(1.0)
        network.kill(nodes[0])
        fresh = Engine(EngineConfig(node_id=NodeId(b"r" * 20)), random.Random(5), network.now)
        network.engines[nodes[0]] = fresh
        near = find_near(network, nodes[1], TARGET)
        assert Contact(fresh.node_id, nodes[0]) in near

    def test_a_node_that_lost_all_contacts_comes_back_through_its_routers(self) -> None:
        network, (first, second) = make_network(2)
        network.run(1.0)
        old = network.engines.pop(first)
        for _ in range(4):  # enough silence to give the contact up
            network.wait(second, lambda e: e.get(TARGET, network.now), ItemFound)
        network.engines[first] = old
        outcome = network.wait(second, lambda e: e.get(TARGET, network.now), ItemFound)
        assert outcome.answered == 1


class TestMutableItems:
    def test_the_larger_seq_is_read_by_all(self) -> None:
        network, nodes = make_network(4)
        put_signed(network, nodes[0], 1, b"one")
        assert put_signed(network, nodes[1], 2, b"two").stored == 3
        for node in nodes:
            found = get_signed(network, node)
            assert found is not None
            assert (found.seq, found.value) == (2, b"two")

    def test_a_stale_seq_and_a_failed_cas_are_conflicts(self) -> None:
        network, nodes = make_network(4)
        put_signed(network, nodes[0], 5, b"five")
        for outcome in (
            put_signed(network, nodes[1], 4, b"four"),
            put_signed(network, nodes[1], 5, b"another five"),
            put_signed(network, nodes[1], 6, b"six", cas=4),
        ):
            assert isinstance(outcome.error, ConflictError)
            assert outcome.error.current_seq == 5
            assert outcome.stored == 0
        assert put_signed(network, nodes[1], 6, b"six", cas=5).error is None

    def test_the_same_item_again_is_welcome(self) -> None:
        network, nodes = make_network(3)
        put_signed(network, nodes[0], 1, b"one")
        assert put_signed(network, nodes[0], 1, b"one").stored == 2

    def test_a_superseded_publication_is_given_up(self) -> None:
        network, nodes = make_network(3)
        put_signed(network, nodes[0], 1, b"one")
        put_signed(network, nodes[1], 2, b"two")
        network.run(200.0)  # both were due again by now
        assert network.engines[nodes[0]].statistics().publications == 0
        assert network.engines[nodes[1]].statistics().publications == 1


class TestUpkeep:
    def test_publications_outlive_their_storers_memory(self) -> None:
        network, nodes = make_network(4)
        target = put_value(network, nodes[3], b"v").target
        network.wait(nodes[3], lambda e: e.announce_peer(Announcement(target=TARGET, port=7000), network.now), Stored)
        network.run(ITEM_TTL + 300.0)
        assert get_value(network, nodes[1], target) is not None
        peers = network.wait(nodes[1], lambda e: e.get_peers(TARGET, network.now), PeersFound).peers
        assert peers == (Endpoint(nodes[3].host, 7000),)

    def test_a_withdrawn_peer_is_forgotten_within_half_an_hour(self) -> None:
        network, nodes = make_network(3)
        network.wait(nodes[2], lambda e: e.announce_peer(Announcement(target=TARGET, port=7000), network.now), Stored)
        network.engines[nodes[2]].withdraw_peer(TARGET)
        network.run(1801.0)
        peers = network.wait(nodes[1], lambda e: e.get_peers(TARGET, network.now), PeersFound).peers
        assert peers == ()
        network.run(60.0)
        assert network.engines[nodes[0]].statistics().peers_stored == 0

    def test_items_of_a_dead_publisher_expire(self) -> None:
        network, nodes = make_network(3)
        target = put_value(network, nodes[2], b"v").target
        network.kill(nodes[2])
        network.run(7100.0)
        assert get_value(network, nodes[1], target) is not None
        network.run(200.0)
        assert get_value(network, nodes[1], target) is None

    def test_an_idle_network_stays_connected_and_quiet(self) -> None:
        network, nodes = make_network(6)
        network.run(10.0)
        before = network.sent
        network.run(3600.0)
        assert all(engine.statistics().contacts == 5 for engine in network.engines.values())
        assert (network.sent - before) / 3600.0 / len(nodes) < 0.5  # datagrams per second and node


class TestDatagrams:
    def test_a_query_is_answered_and_its_sender_pinged_before_it_is_a_contact(self) -> None:
        engine = make_engine()
        ping = QueryPacket(transaction=b"aa", sender=NodeId(b"s" * 20), query=Ping())
        engine.receive_datagram(ping.pack(), STRANGER, 1.0)
        (answer, to), (probe, probed) = engine.datagrams_to_send()
        assert to == probed == STRANGER
        expected = ReplyPacket(transaction=b"aa", sender=engine.node_id, reply=Reply(), external=STRANGER)
        assert parse(answer) == expected
        assert engine.statistics().contacts == 0
        asked = parse(probe)
        reply = ReplyPacket(transaction=asked.transaction, sender=NodeId(b"s" * 20), reply=Reply())
        engine.receive_datagram(reply.pack(), Endpoint("10.9.9.8", 4444), 1.1)  # not from where it was sent
        assert engine.statistics().contacts == 0
        engine.receive_datagram(reply.pack(), STRANGER, 1.1)
        assert engine.statistics().contacts == 1
        assert engine.datagrams_to_send() == []

    def test_a_ping_nobody_answers_is_sent_three_times_and_then_given_up(self) -> None:
        engine = make_engine()
        number = engine.ask(STRANGER, Ping(), 0.0)
        times = [0.0]
        while not (events := engine.events()):
            engine.datagrams_to_send()
            times.append(engine.next_deadline())
            engine.handle_timer(times[-1])
        assert [event.operation for event in events] == [number]
        assert events[0].outcome.answered == 0
        assert times == pytest.approx([0.0, 0.5, 1.25, 2.375])

    def test_a_late_answer_to_the_first_transmission_counts(self) -> None:
        engine = make_engine()
        engine.ask(STRANGER, Ping(), 0.0)
        ((first, _),) = engine.datagrams_to_send()
        engine.handle_timer(0.5)
        reply = ReplyPacket(transaction=parse(first).transaction, sender=NodeId(b"s" * 20), reply=Reply())
        engine.receive_datagram(reply.pack(), STRANGER, 0.6)
        (event,) = engine.events()
        assert event.outcome.nearest == (Contact(NodeId(b"s" * 20), STRANGER),)

    def test_a_read_only_node_is_silent(self) -> None:
        engine = make_engine(read_only=True)
        ping = QueryPacket(transaction=b"aa", sender=NodeId(b"s" * 20), query=Ping())
        engine.receive_datagram(ping.pack(), STRANGER, 1.0)
        engine.receive_datagram(b"d1:q4:ping1:t2:aa1:y1:qe", STRANGER, 1.0)
        assert engine.datagrams_to_send() == []

    def test_a_broken_query_is_told_so(self) -> None:
        engine = make_engine()
        engine.receive_datagram(b"d1:ad2:id3:abce1:q4:ping1:t2:aa1:y1:qe", STRANGER, 1.0)
        ((answer, _),) = engine.datagrams_to_send()
        packet = parse(answer)
        assert isinstance(packet, ErrorPacket)
        assert packet.error_code == 203

    def test_an_abandoned_operation_sends_no_more(self) -> None:
        engine = make_engine()
        number = engine.ask(STRANGER, Ping(), 0.0)
        engine.datagrams_to_send()
        engine.abandon(number)
        engine.handle_timer(0.5)
        assert engine.datagrams_to_send() == []
        assert engine.events() == []
        assert engine.statistics().calls_in_flight == 0

    @given(data=st.binary(max_size=1500))
    def test_arbitrary_bytes_never_raise(self, data: bytes) -> None:
        engine = make_engine()
        engine.receive_datagram(data, STRANGER, 1.0)
        assert engine.datagrams_to_send() == []  # random bytes are no query

    @settings(max_examples=100)
    @given(
        query=st.dictionaries(
            st.sampled_from([b"a", b"q", b"t", b"y", b"r", b"e", b"ro"]),
            st.one_of(
                st.sampled_from([b"q", b"r", b"e", b"ping", b"put", b"get", b"find_node", b"announce_peer"]),
                INTEGERS,
                st.binary(max_size=100),
                st.lists(INTEGERS, max_size=3),
                st.dictionaries(
                    st.sampled_from([b"id", b"target", b"info_hash", b"v", b"k", b"sig", b"seq", b"token", b"port"]),
                    st.one_of(INTEGERS, st.binary(max_size=1200), st.binary(min_size=20, max_size=20)),
                ),
            ),
        )
    )
    def test_half_right_packets_never_raise_and_are_answered_briefly(self, query: dict[bytes, object]) -> None:
        engine = make_engine()
        data = encode(query)
        engine.receive_datagram(data, STRANGER, 1.0)
        broken = engine.statistics().malformed == 1
        for answer, to in engine.datagrams_to_send():
            assert to == STRANGER
            if broken:
                assert len(answer) <= MAX_ANSWER_TO_MALFORMED


class TestLossyNetwork:
    COUNT = 30

    def run_workload(self, seed: int, lookups: int) -> tuple[Network, int]:
        network, nodes = make_network(self.COUNT, seed, loss=0.10)
        found = 0
        for number in range(lookups):
            value = b"value %d" % number
            target = put_value(network, nodes[number], value).target
            item = get_value(network, nodes[-1 - number], target)
            found += item is not None and item.value == value
        return network, found

    def test_lookups_succeed_at_ten_percent_loss(self) -> None:
        _, found = self.run_workload(3, 20)
        assert found == 20

    def test_the_same_seed_gives_the_same_trace(self) -> None:
        first, second, other = (self.run_workload(seed, 3)[0] for seed in (4, 4, 5))
        assert first.trace == second.trace
        assert first.trace != other.trace

    def test_a_search_finds_the_nodes_that_are_nearest(self) -> None:
        network, nodes = make_network(self.COUNT, 6, loss=0.10)
        rng = random.Random(6)
        hits = 0
        for _ in range(20):
            target = Target(rng.randbytes(20))
            near = find_near(network, nodes[7], target)
            ids = sorted(
                (engine.node_id for at, engine in network.engines.items() if at != nodes[7]),
                key=lambda node_id: distance(node_id, target),
            )
            hits += near[0].node_id == ids[0]
        assert hits >= 19

    def test_a_third_of_the_nodes_may_die(self) -> None:
        network, nodes = make_network(self.COUNT, 8, loss=0.01)
        targets = [put_value(network, nodes[2], b"value %d" % n).target for n in range(10)]
        for node in nodes[20:]:
            network.kill(node)
        times = []
        for target in targets:
            begun = network.now
            assert get_value(network, nodes[1], target) is not None
            times.append(network.now - begun)
        assert max(times) < 2.0
