"""DHT figures that need more nodes than a machine has: on the simulated network of tests/sim, in virtual time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from benchmarks.dht_loopback import quantile
from dht.contacts import Endpoint
from dht.directory import authentic
from dht.engine import Engine
from dht.heartbeat import BEAT, Advert, Heartbeat
from dht.items import ImmutableItem, encode_value
from dht.keys import Target
from dht.outcomes import ItemFound, Outcome, RosterFound, Stored
from dht.roster import ENTRY_TTL, Filter, Shard, roster_target
from dht.roster_queries import CapPut
from swarm.identity import Identity
from swarm.ids import ManifestId
from swarm.receipts import Price
from tests.sim.churn import Churn
from tests.sim.kademlia import Kademlia
from tests.sim.links import Link, Links, geography, uniform

ONE_WAY = 0.025  # seconds: with it fixed, a lookup's time in round trips is the number of its hops in a row
CHURN_PERIOD = 600.0  # seconds in which a share of the nodes is replaced
SETTLED = 60.0  # seconds after which a newcomer counts as one who looks things up
LAYERS = 80
MODEL = ManifestId(b"b" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """Lookups of stored items on a network that loses datagrams and nodes. Times are virtual seconds."""

    nodes: int
    loss: float
    churn: float
    lookups: int
    found: int
    replaced: int
    p50: float
    p95: float

    @property
    def success(self) -> float:
        """Percent of lookups that found what was stored."""
        return 100 * self.found / self.lookups


def measure_survival(
    nodes: int, lookups: int, *, loss: float, churn: float, items: int = 50, seed: int = 1
) -> Survival:
    """Store items from nodes that stay, let ``churn`` of the others be replaced every ten minutes, and look up."""
    network = Kademlia(seed, Links(Link(delay=geography(0.01, 0.08), loss=loss)))
    planted = network.plant(nodes)
    world = network.world
    publishers = planted[:: max(1, nodes // 10)][:10]
    targets = [_put(network, publishers[number % len(publishers)], b"item %d" % number) for number in range(items)]
    process = Churn(
        world, lambda: network.join((planted[0],)), share=churn, period=CHURN_PERIOD, spared={*publishers, planted[0]}
    )
    if churn:
        process.start()
    world.run(max(SETTLED, CHURN_PERIOD / 2))
    times: list[float] = []
    found = 0
    for number in range(lookups):
        world.run(2 * CHURN_PERIOD / lookups)
        reader = world.rng.choice([node for node in network.living if world.now - network.joined[node] >= SETTLED])
        number_of, begun = _start_get(network, reader, targets[number % len(targets)]), world.now
        key = (reader, number_of)
        if not world.run_until(lambda key=key: key in network.outcomes, 60.0):  # type: ignore[misc]
            continue  # the reader itself went
        ended, outcome = network.outcomes.pop(key)
        assert isinstance(outcome, ItemFound)
        found += outcome.item is not None
        times.append(ended - begun)
    return Survival(
        nodes=nodes, loss=loss, churn=churn, lookups=len(times), found=found, replaced=process.replaced,
        p50=quantile(times, 0.5), p95=quantile(times, 0.95),
    )  # fmt: skip


def _put(network: Kademlia, at: Endpoint, value: bytes) -> Target:
    item = ImmutableItem(encoded=encode_value(value))
    network.wait(at, lambda engine, now: engine.put(item.target, lambda _: item, now), Stored)
    return item.target


def _start_get(network: Kademlia, at: Endpoint, target: Target) -> int:
    return network.start(at, lambda engine, now: engine.get(target, now))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Lookups for random targets among so many nodes, nothing lost. ``hops`` are round trips one after the other."""

    nodes: int
    hops: float
    hops_p95: float
    queries: float
    exact: float
    """Percent of lookups that found the truly nearest node."""


def measure_scale(nodes: int, lookups: int, seed: int = 1) -> Scale:
    """Round trips and queries of a lookup at this size."""
    network = Kademlia(seed, Links(Link(delay=uniform(ONE_WAY, ONE_WAY))))
    planted = network.plant(nodes)
    rng, hops, queries, exact = random.Random(seed), [], [], 0
    for _ in range(lookups):
        target, reader = Target(rng.randbytes(20)), rng.choice(planted)
        begun = network.world.now
        outcome = network.wait(reader, _find(target), Outcome)
        hops.append((network.world.now - begun) / (2 * ONE_WAY))
        queries.append(outcome.asked)
        nearest = next(c for c in network.nearest(target, 2) if c.endpoint != reader)
        exact += outcome.nearest[0] == nearest
        network.world.run(0.5)
    return Scale(
        nodes=nodes, hops=mean(hops), hops_p95=quantile(hops, 0.95), queries=mean(queries), exact=100 * exact / lookups
    )


def _find(target: Target) -> Callable[[Engine, float], int]:
    return lambda engine, now: engine.find_node(target, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterFigures:
    """Finding eight workers that serve ten given layers, among so many. Times are virtual, datagrams the reader's."""

    workers: int
    depth: int
    reads: int
    satisfied: float
    """Percent of reads in which the one lookup brought eight."""
    p50: float
    p95: float
    asked: float
    """Nodes asked when the eight were known; the traversal goes on behind."""
    extra_datagrams: int
    """The most that any read sent after its lookup."""
    sent: float
    received: float
    bytes_sent: float
    bytes_received: float
    plain_asked: float
    """Nodes that a plain lookup of the same key asks (find_node)."""


def measure_roster(workers: int, nodes: int, reads: int, seed: int = 1) -> RosterFigures:
    """Write what heartbeats write to the nodes nearest to each shard, and read from anywhere."""
    network = Kademlia(seed, Links(Link(delay=geography(0.01, 0.08))))
    planted = network.plant(nodes)
    rng = random.Random(seed)
    depth = max(0, (max(1, workers // 200) - 1).bit_length())
    _write_rosters(network, workers, depth, rng)
    times, asked, satisfied, extra, plain = [], [], 0, 0, []
    traffic = {"sent": 0, "received": 0, "bytes_sent": 0, "bytes_received": 0}
    for _ in range(reads):
        reader, start = rng.choice(planted), rng.randrange(LAYERS - 10)
        wanted = Filter(span=(start, start + 10), whole=True, how_many=8)
        _count(network, reader, traffic)
        begun, found, shards = network.world.now, set(), [Shard()]
        before = traffic["sent"]
        for turn in range(5):  # as `Directory.find_workers` does
            outcome = network.wait(reader, _ask(shards.pop(), wanted), RosterFound)
            if turn == 0:
                times.append(network.world.now - begun)
                asked.append(outcome.asked)
                before = traffic["sent"]
            found |= {e.worker for e in authentic(outcome.entries, MODEL, network.world.now) if wanted.admits(e)}
            if len(found) >= wanted.how_many:
                break
            shards = [Shard(depth, rng.randrange(1 << depth))]
        satisfied += turn == 0
        extra = max(extra, traffic["sent"] - before)
        network.world.run(1.0)  # the traversal completes behind
        network.world.on_send = None
        plain.append(network.wait(reader, _find(roster_target(MODEL)), Outcome).asked)
    assert network.world.now < ENTRY_TTL, "the entries expired while they were read; give fewer reads"
    return RosterFigures(
        workers=workers, depth=depth, reads=reads, satisfied=100 * satisfied / reads, p50=quantile(times, 0.5),
        p95=quantile(times, 0.95), asked=mean(asked), extra_datagrams=extra, sent=traffic["sent"] / reads,
        received=traffic["received"] / reads, bytes_sent=traffic["bytes_sent"] / reads,
        bytes_received=traffic["bytes_received"] / reads, plain_asked=mean(plain),
    )  # fmt: skip


def _ask(shard: Shard, wanted: Filter) -> Callable[[Engine, float], int]:
    return lambda engine, now: engine.cap_get(roster_target(MODEL, shard), wanted, now)


def _count(network: Kademlia, reader: Endpoint, traffic: dict[str, int]) -> None:
    def note(source: tuple[str, int], target: tuple[str, int], data: bytes) -> None:
        for name, place in (("sent", source), ("received", target)):
            if place == reader:
                traffic[name] += 1
                traffic[f"bytes_{name}"] += len(data)

    network.world.on_send = note


def _write_rosters(network: Kademlia, workers: int, depth: int, rng: random.Random) -> None:
    near: dict[Target, list[Engine]] = {}

    def write(put: CapPut, *, at_one: bool = False) -> None:
        if put.target not in near:
            near[put.target] = [network.engine(contact.endpoint) for contact in network.nearest(put.target)]
        for engine in [rng.choice(near[put.target])] if at_one else near[put.target]:
            engine._rosters.put(put, network.world.now, own=True)

    for number in range(workers):
        identity = Identity(hashlib.sha256(b"worker %d" % number).digest())
        heartbeat = Heartbeat(identity, MODEL, rng)
        heartbeat.depth = depth
        start = rng.randrange(LAYERS - 9)
        advert = Advert(
            manifest_id=MODEL, port=7000, start=start, stop=min(LAYERS, start + rng.randrange(10, 40)),
            price=Price(per_1k_input=1, per_1k_output=2), free_slots=rng.randrange(8),
        )  # fmt: skip
        place = (f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.9", 6881, 0.0)
        for _ in range(round(ENTRY_TTL / BEAT)):  # entries of earlier beats still stand
            sample = heartbeat.sample(advert, *place)
            if sample is not None:
                write(sample, at_one=True)
        write(heartbeat.own(advert, *place))
