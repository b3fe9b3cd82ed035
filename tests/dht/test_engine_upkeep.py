"""What an engine does in the long run: its address, restarts, clocks, spares, figures."""

from __future__ import annotations

import random

import pytest

from dht.config import EngineConfig
from dht.contacts import Endpoint
from dht.engine import Engine
from dht.keys import NodeId, is_secure_id, secure_id
from dht.krpc import QueryPacket, ReplyPacket, parse
from dht.queries import Ping
from dht.replies import Reply
from tests.dht.test_engine import STRANGER, TARGET, get_value, make_engine, make_network

VOTERS = [f"{20 + n}.1.1.1" for n in range(6)]


class TestOurAddress:
    """BEP 42: an id that fits the address which others see."""

    def told(self, *, fixed: bool, hosts: list[str], seen: str = "51.7.7.7") -> Engine:
        """An engine that so many nodes told where they see it."""
        config = EngineConfig(node_id=NodeId(b"n" * 20), fixed_id=fixed)
        engine = Engine(config, random.Random(1), 0.0)
        for host in hosts:
            voter = Endpoint(host, 1)
            engine.ask(voter, Ping(), 0.0)
            for data, endpoint in engine.datagrams_to_send():
                if endpoint == voter:
                    reply = ReplyPacket(
                        transaction=parse(data).transaction,
                        sender=secure_id(host, bytes(20)),
                        reply=Reply(),
                        external=Endpoint(seen, 9),
                    )
                    engine.receive_datagram(reply.pack(), voter, 0.1)
        return engine

    def test_it_takes_an_id_that_fits_once_enough_agree(self) -> None:
        assert self.told(fixed=False, hosts=VOTERS[:3]).node_id == b"n" * 20
        engine = self.told(fixed=False, hosts=VOTERS[:4])
        assert is_secure_id(engine.node_id, "51.7.7.7")
        assert engine.external_host == "51.7.7.7"
        assert engine.statistics().contacts == 4  # they are known by their places in the new table
        assert engine.statistics().operations >= 1  # and the new neighbours are looked up

    def test_a_given_id_stays_and_so_does_one_that_fits(self) -> None:
        assert self.told(fixed=True, hosts=VOTERS).node_id == b"n" * 20
        assert self.told(fixed=False, hosts=VOTERS, seen="192.168.1.5").node_id == b"n" * 20

    def test_one_network_has_one_vote(self) -> None:
        liars = [f"20.1.1.{n}" for n in range(1, 30)]
        assert self.told(fixed=False, hosts=liars).node_id == b"n" * 20

    def test_new_queries_and_answers_carry_the_new_id(self) -> None:
        engine = self.told(fixed=False, hosts=VOTERS)
        engine.datagrams_to_send()
        engine.ask(STRANGER, Ping(), 1.0)
        ((data, _),) = engine.datagrams_to_send()
        packet = parse(data)
        assert isinstance(packet, QueryPacket)
        assert packet.sender == engine.node_id


class TestRestart:
    def test_a_node_that_remembers_is_back_in_one_round(self) -> None:
        network, nodes = make_network(30)
        network.run(120.0)
        old = nodes[17]
        contacts = network.engines[old].contacts
        node_id = network.engines[old].node_id
        network.kill(old)
        network.run(30.0)
        engine = network.engines[old] = Engine(EngineConfig(node_id=node_id), random.Random(9), network.now)
        network.start(old, lambda e: e.bootstrap((), network.now, contacts))
        network.run(0.06)  # one round trip: the network's delay is up to 30 ms each way
        assert engine.statistics().contacts >= len(contacts) - 1


class TestClockThatJumps:
    @pytest.mark.parametrize("jump", [-1048576.0, -4096.0, 65536.0])
    def test_timers_and_questions_go_on(self, jump: float) -> None:
        engine = make_engine()
        for now in (0.0, 64.0, 128.0):
            engine.handle_timer(now)
        engine.handle_timer(128.0 + jump)
        deadline = engine.next_deadline()
        assert deadline <= 128.0 + jump + 60.0  # the next sweep is not put off until the old time comes again
        number = engine.ask(STRANGER, Ping(), deadline)
        ((asked, _),) = engine.datagrams_to_send()
        reply = ReplyPacket(transaction=parse(asked).transaction, sender=NodeId(b"s" * 20), reply=Reply())
        engine.receive_datagram(reply.pack(), STRANGER, deadline + 0.125)
        assert number in [event.operation for event in engine.events()]
        figures = engine.statistics().round_trip
        assert figures is not None
        assert figures.p50 == 0.125

    def test_a_day_asleep_costs_no_contacts(self) -> None:
        network, nodes = make_network(4)
        network.run(5.0)
        engine = network.engines.pop(nodes[2])
        known = engine.statistics().contacts
        engine.handle_timer(network.now + 86400.0)
        assert engine.statistics().contacts == known >= 2
        for data, endpoint in engine.datagrams_to_send():
            network.engines[endpoint].receive_datagram(data, nodes[2], network.now)
        assert engine.next_deadline() < network.now + 86401.0  # it asks who is still there


class TestSpares:
    def test_replacements_are_kept_alive(self) -> None:
        network, nodes = make_network(24)
        network.run(60.0)
        engine = network.engines[nodes[0]]
        assert engine.statistics().replacements > 0
        dead = nodes[12:]
        for node in dead:
            network.kill(node)
        network.run(1800.0)
        spares = [entry.contact.endpoint for bucket in engine._table._buckets for entry in bucket.cache]
        assert not set(spares) & set(dead)
        assert engine.statistics().contacts == sum(engine.statistics().buckets) <= 11


class TestStatistics:
    def test_lookups_are_counted_and_timed(self) -> None:
        network, nodes = make_network(10)
        get_value(network, nodes[4], TARGET)
        figures = network.engines[nodes[4]].statistics()
        assert figures.lookups >= 2
        assert figures.lookups_failed == 0
        assert figures.lookup_latency is not None
        assert figures.round_trip is not None
        assert 0.01 <= figures.round_trip.p50 <= figures.round_trip.p95 <= 0.06
        assert figures.round_trip.p50 <= figures.lookup_latency.p95
        assert 5 <= figures.network_size <= 20
