"""Sybils around a key, and how often what was stored there is found all the same.

    python -m tests.dht.eclipse         prints the rate for each kind of attacker, plain and with a region

The attackers lie to everybody: they name only each other, say that they keep what they are given, and keep nothing.
Those of `intruders` ignore BEP 42 and take ids right beside the key. Those of `grinders` have 8 192 addresses of a /18
and choose among all ids that BEP 42 allows them: more than most attackers have, and more than BEP 42 and
limits per prefix can stop.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

from dht.contacts import Contact, Endpoint
from dht.items import ImmutableItem
from dht.keys import NodeId, Target, distance, secure_id
from dht.outcomes import ItemFound, Stored
from swarm.codec import encode
from tests.sim.kademlia import Kademlia, Liar, Operation, surround

NODES = 200
HOSTS = [f"94.17.{third}.{fourth}" for third in range(64) for fourth in range(0, 256, 2)]


@cache
def ground_ids() -> list[tuple[int, str]]:
    """The 24 leading bits that the hosts may have in their ids, in order."""
    return sorted(
        (int.from_bytes(secure_id(host, bytes(19) + bytes([last]))[:3], "big"), host)
        for host in HOSTS
        for last in range(8)
    )


def grinders(network: Kademlia, target: bytes, count: int) -> list[Contact]:
    """Sybils whose ids fit their addresses, the nearest to ``target`` that so many addresses can get."""
    ids = ground_ids()
    middle = bisect_left(ids, (int.from_bytes(target[:3], "big"), ""))
    near = ids[max(0, middle - 8 * count) : middle + 8 * count]
    near.sort(key=lambda pair: pair[0] ^ int.from_bytes(target[:3], "big"))
    hosts = list(dict.fromkeys(host for _, host in near))[:count]
    friends = []
    for host in hosts:
        ids_of_host = (secure_id(host, target[:19] + bytes([last])) for last in range(8))
        best = min(ids_of_host, key=lambda node_id: distance(node_id, target))
        friends.append(Contact(NodeId(best), Endpoint(host, 6881)))
    for friend in friends:
        network.world.add(friend.endpoint, lambda now, friend=friend: Liar(friend.node_id, lambda _: friends))  # type: ignore[misc]
    return friends


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of the items were found again, and what finding took."""

    found: int
    tried: int
    messages: float  # datagrams per read


def measure(kind: str, sybils: int, *, region: bool, keys: int, seed: int = 1) -> Rate:
    """Let Sybils settle around each key and make themselves known, then store an item there and read it elsewhere."""
    network = Kademlia(seed)
    nodes = network.plant(NODES)
    rng = random.Random(seed)
    found = messages = 0
    for number in range(keys):
        item = ImmutableItem(encoded=encode(b"%s %d" % (kind.encode(), number)))
        around = surround if kind == "intruders" else grinders
        friends = around(network, item.target, sybils)
        _introduce(network, friends, item.target)
        writer, reader = rng.sample(nodes, 2)
        network.wait(writer, _putting(item, region=region), Stored)
        network.kill(writer)  # it neither answers for itself nor publishes again
        nodes.remove(writer)
        before = network.engine(reader).statistics()
        outcome = network.wait(reader, _getting(item, region=region), ItemFound)
        network.world.run(5.0)
        after = network.engine(reader).statistics()
        messages += after.datagrams_sent - before.datagrams_sent
        found += outcome.item is not None
        for friend in friends:
            network.kill(friend.endpoint)
    return Rate(found, keys, messages / keys)


def _putting(item: ImmutableItem, *, region: bool) -> Operation:
    return lambda engine, now: engine.put(item.target, lambda _: item, now, region=region)


def _getting(item: ImmutableItem, *, region: bool) -> Operation:
    return lambda engine, now: engine.get(item.target, now, region=region)


def _introduce(network: Kademlia, friends: list[Contact], target: Target) -> None:
    """Let the nodes nearest to the key know the Sybils, as they would after asking around."""
    for neighbour in network.nearest(target, 24):
        engine = network.engine(neighbour.endpoint)
        for friend in friends:
            engine._table.replied(friend, network.world.now)


def main() -> None:
    """Print the table."""
    print(f"{NODES} nodes; found again, and datagrams that a read sends")
    for kind in ("intruders", "grinders"):
        for sybils in (20, 100):
            for region in (False, True):
                rate = measure(kind, sybils, region=region, keys=20)
                print(
                    f"{kind:10} {sybils:4} Sybils, {'region' if region else 'plain':6}: "
                    f"{rate.found}/{rate.tried}, {rate.messages:.0f} datagrams"
                )


if __name__ == "__main__":
    main()
