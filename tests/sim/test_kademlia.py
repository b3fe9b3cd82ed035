"""DHT nodes on bad networks. A seed that fails says how to see it again."""

from __future__ import annotations

import pytest

from dht.contacts import Contact, Endpoint
from dht.engine import Engine
from dht.items import ImmutableItem, encode_value
from dht.keys import Target
from dht.outcomes import ItemFound, Outcome, RosterFound, RosterStored, Stored
from dht.roster import Filter, Shard, roster_target
from dht.roster_queries import CapPut
from tests.dht.adverts import MODEL, entry_of, worker
from tests.sim.attackers import Babbler, Quiet, Slow
from tests.sim.churn import Churn
from tests.sim.kademlia import Kademlia, surround
from tests.sim.links import Link, Links, geography, heavy_tailed
from tests.sim.world import Participant, reproduce, seeds

HERE = "tests/sim/test_kademlia.py"
ROUGH = Link(delay=geography(0.02, 0.1), loss=0.05, duplicates=0.02, late=0.02)


def put(network: Kademlia, at: Endpoint, value: bytes) -> Target:
    """Store a value; returns where."""
    item = ImmutableItem(encoded=encode_value(value))
    network.wait(at, lambda engine, now: engine.put(item.target, lambda _: item, now), Stored)
    return item.target


def find(network: Kademlia, at: Endpoint, target: Target) -> bool:
    """Whether a node finds it."""
    return network.wait(at, lambda engine, now: engine.get(target, now), ItemFound).item is not None


def near(network: Kademlia, at: Endpoint, target: Target) -> list[Contact]:
    """The nodes nearest to ``target`` that a node finds."""
    return list(network.wait(at, lambda engine, now: engine.find_node(target, now), Outcome).nearest)


def replacement(kind: str, former: Engine) -> Participant:
    """What takes a node's place."""
    if kind == "slow":
        return Slow(former, 2.0)
    return Quiet() if kind == "silent" else Babbler(9)


def live(seed: int, nodes: int = 12) -> Kademlia:
    """A little of everything."""
    network = Kademlia(seed, Links(ROUGH))
    everybody = network.grow(nodes)
    target = put(network, everybody[-1], b"v")
    network.kill(everybody[1])
    network.join((everybody[0],))
    network.world.pause(everybody[2])
    network.world.run(30.0)
    network.world.resume(everybody[2])
    find(network, everybody[3], target)
    return network


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = live(3), live(3)
    assert first.world.trace == second.world.trace
    assert first.world.sent == second.world.sent > 300
    assert first.world.trace != live(4).world.trace


def test_planted_nodes_find_each_other_as_grown_ones_do() -> None:
    network = Kademlia(1)
    nodes = network.plant(300)
    for number in range(10):
        target = Target(network.world.rng.randbytes(20))
        assert near(network, nodes[number * 29], target) == network.nearest(target)
    assert network.world.now < 5.0


def test_what_is_stored_is_found_from_both_sides_once_a_partition_heals() -> None:
    network = Kademlia(2)
    nodes = network.grow(12)
    before = put(network, nodes[0], b"before")
    cut = network.world.links.separate({node.host for node in nodes[6:]})
    network.world.run(120.0)
    inside = put(network, nodes[8], b"inside")
    assert find(network, nodes[10], inside)
    assert find(network, nodes[10], before)
    network.world.links.heal(cut)
    network.world.run(300.0)
    assert find(network, nodes[1], inside)


def test_a_clock_that_jumps_stops_nobody() -> None:
    network = Kademlia(5)
    nodes = network.grow(8)
    target = put(network, nodes[0], b"v")
    network.world.shift_clock(nodes[3], 3600.0)
    network.world.shift_clock(nodes[4], -3600.0)
    network.world.run(60.0)
    for node in nodes:
        assert find(network, node, target)


@pytest.mark.parametrize("kind", ["silent", "slow", "babbling"])
def test_bad_neighbours_cost_a_lookup_its_answers_and_not_its_end(kind: str) -> None:
    network = Kademlia(6)
    nodes = network.grow(20)
    target = put(network, nodes[0], b"v")
    for contact in network.nearest(target)[:4]:
        if contact.endpoint != nodes[0]:
            node = replacement(kind, network.engine(contact.endpoint))
            network.kill(contact.endpoint)
            network.world.add(contact.endpoint, lambda now, node=node: node)  # type: ignore[misc]
    begun = network.world.now
    reader = next(node for node in nodes[1:] if node not in {c.endpoint for c in network.nearest(target)[:4]})
    assert find(network, reader, target)
    assert network.world.now - begun < 3.0


def test_sybils_around_a_key_do_not_hide_what_lies_there() -> None:
    network = Kademlia(7)
    nodes = network.plant(200)
    target = put(network, nodes[0], b"v")
    for friend in surround(network, target, 20):
        for contact in network.nearest(target, 8):
            engine = network.engine(contact.endpoint)
            engine._table.replied(friend, network.world.now)
    assert find(network, nodes[100], target)


def test_rosters_follow_workers_that_come_and_go() -> None:
    network = Kademlia(8, Links(Link(loss=0.02)))
    nodes = network.grow(20)

    def say(number: int, seq: int, expiry: int = 2_000_000_000) -> None:
        entry = entry_of(number, host=nodes[number].host, dht_port=nodes[number].port, seq=seq, expiry=expiry)
        write = CapPut(manifest_id=MODEL, shard=Shard(), entry=entry.sign(worker(number), MODEL).raw, token=b"")
        network.wait(nodes[number], lambda engine, now: engine.cap_put(write, now), RosterStored)

    def known(reader: Endpoint) -> set[bytes]:
        wanted = Filter(how_many=16)
        outcome = network.wait(
            reader, lambda engine, now: engine.cap_get(roster_target(MODEL), wanted, now), RosterFound
        )
        return {signed.entry.worker for signed in outcome.entries}

    for number in range(6):
        say(number, 1)
    network.world.run(5.0)
    assert known(nodes[-1]) == {worker(number).peer_id for number in range(6)}
    say(0, 2, expiry=0)
    network.kill(nodes[1])
    for second in range(3):
        network.world.run(60.0)
        for number in (2, 3, 4, 5):
            say(number, second + 3)
    network.world.run(5.0)
    assert known(nodes[-1]) == {worker(number).peer_id for number in (2, 3, 4, 5)}


def survive(seed: int) -> str | None:
    """Thirty nodes through loss, partitions, pauses, jumping clocks and churn; what went wrong, or None."""
    network = Kademlia(seed, Links(Link(delay=heavy_tailed(0.05), loss=0.05, duplicates=0.05, late=0.05)))
    nodes = network.grow(30)
    world = network.world
    first = nodes[0]
    writer = nodes[5]
    target = put(network, writer, b"kept")
    churn = Churn(world, lambda: network.join((first,)), share=0.2, period=600.0, spared={first, writer})
    churn.start()
    for _ in range(4):
        some = [node for node in network.living if node not in (first, writer)]
        half = world.links.separate({node.host for node in world.rng.sample(some, len(some) // 2)})
        world.run(20.0)
        world.links.heal(half)
        oneway = world.links.silence({node.host for node in world.rng.sample(some, 3)})
        sleeper = world.rng.choice(some)
        if sleeper in world:
            world.pause(sleeper)
        world.run(30.0)
        world.links.heal(oneway)
        if sleeper in world:
            world.resume(sleeper)
        jumper = world.rng.choice(network.living)
        world.shift_clock(jumper, world.rng.choice([-3600.0, 3600.0]))
        world.run(100.0)
    churn.stop()
    world.run(120.0)
    for reader in world.rng.sample(network.living, 10):
        if not find(network, reader, target):
            return f"{reader} does not find what is kept"
    return None


def test_one_seed_of_the_long_test() -> None:
    assert survive(0) is None, reproduce(0, f"{HERE}::test_many_seeds")


@pytest.mark.slow
def test_many_seeds() -> None:
    for seed in seeds(50):
        wrong = survive(seed)
        assert wrong is None, f"{wrong}; {reproduce(seed, f'{HERE}::test_many_seeds')}"


@pytest.mark.slow
def test_ten_thousand_nodes() -> None:
    network = Kademlia(1)
    nodes = network.plant(10_000)
    exact = 0
    for _ in range(100):
        target = Target(network.world.rng.randbytes(20))
        reader = network.world.rng.choice(nodes)
        nearest = [contact for contact in network.nearest(target, 2) if contact.endpoint != reader]
        exact += near(network, reader, target)[0] == nearest[0]
    assert exact >= 99
