"""DHT engines on a simulated network: joined one by one as in life, or planted with the contacts they would have."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

from dht.config import EngineConfig
from dht.contacts import Contact, Endpoint
from dht.engine import Engine, Finished
from dht.errors import RejectedQuery
from dht.keys import BITS, NodeId, Target, distance, secure_id
from dht.krpc import QueryPacket, ReplyPacket, parse
from dht.outcomes import Outcome
from dht.replies import Reply
from dht.routing import BUCKET_SIZE
from swarm.errors import ProtocolError
from tests.sim.addresses import AddressBook
from tests.sim.attackers import Quiet
from tests.sim.links import Links
from tests.sim.world import Address, World

OutcomeT = TypeVar("OutcomeT", bound=Outcome)
Operation = Callable[[Engine, float], int]


class Kademlia:
    """A world of DHT nodes, each on a network of its own unless an address is given."""

    def __init__(self, seed: int, links: Links | None = None) -> None:
        self.world = World(seed, links)
        self.book = AddressBook()
        self.outcomes: dict[tuple[Address, int], tuple[float, Outcome]] = {}
        self.contacts: dict[Address, Contact] = {}
        self.joined: dict[Address, float] = {}
        self.world.on_event = self._note

    @property
    def living(self) -> list[Endpoint]:
        """Where engines live."""
        return [Endpoint(*address) for address in self.contacts if address in self.world]

    def engine(self, address: Address) -> Engine:
        """The engine at ``address``; what makes it send something goes through `start`."""
        node = self.world.node(address)
        assert isinstance(node, Engine)
        return node

    def join(
        self, routers: tuple[Endpoint, ...] = (), *, address: Address | None = None, read_only: bool = False
    ) -> Endpoint:
        """A node that joins through ``routers`` from now on."""
        contact = self._contact(address)
        endpoint = contact.endpoint
        config = EngineConfig(node_id=contact.node_id, host=endpoint.host, routers=routers, read_only=read_only)
        self.world.add(endpoint, self._maker(config))
        if routers:
            self.start(endpoint, lambda engine, now: engine.bootstrap(routers, now))
        else:
            self.engine(endpoint)
        return endpoint

    def grow(self, count: int, *, every: float = 0.1) -> list[Endpoint]:
        """A network of so many nodes that join one after the other through the first."""
        first = self.join()
        nodes = [first]
        for _ in range(count - 1):
            nodes.append(self.join((first,)))
            self.world.run(every)
        self.world.run(5.0)
        return nodes

    def plant(self, count: int) -> list[Endpoint]:
        """So many nodes that know each other as if they had been there for hours; each is made when it is needed."""
        contacts = sorted((self._contact() for _ in range(count)), key=lambda contact: contact.node_id)
        keys = [int.from_bytes(contact.node_id, "big") for contact in contacts]

        def make(contact: Contact, now: float) -> Engine:
            config = EngineConfig(node_id=contact.node_id, host=contact.endpoint.host, routers=routers)
            engine = self._maker(config)(now)
            chance = random.Random(f"{self.world.seed} knows {contact.endpoint}")
            for known in _known(contacts, keys, contact, chance):
                engine._table.replied(known, now)
            return engine

        routers = tuple(contact.endpoint for contact in contacts[:3])
        for contact in contacts:
            self.world.add(contact.endpoint, lambda now, contact=contact: make(contact, now))  # type: ignore[misc]
        return [contact.endpoint for contact in contacts]

    def kill(self, address: Address) -> None:
        """End a node without a word."""
        self.world.kill(address)

    def start(self, address: Address, operation: Operation) -> int:
        """Start an operation; returns its number."""
        return self.world.call(address, operation)

    def wait(self, address: Address, operation: Operation, kind: type[OutcomeT], *, limit: float = 60.0) -> OutcomeT:
        """Start an operation and let time pass until its outcome."""
        key = address, self.start(address, operation)
        assert self.world.run_until(lambda: key in self.outcomes, limit), "the operation hangs"
        _, outcome = self.outcomes.pop(key)
        assert isinstance(outcome, kind)
        return outcome

    def nearest(self, target: bytes, count: int = BUCKET_SIZE) -> list[Contact]:
        """The living nodes that are nearest to ``target`` in truth."""
        living = [contact for address, contact in self.contacts.items() if address in self.world]
        return sorted(living, key=lambda contact: distance(contact.node_id, target))[:count]

    def _contact(self, address: Address | None = None) -> Contact:
        endpoint = Endpoint(*(address or self.book.alone()))
        node_id = secure_id(endpoint.host, self.world.rng.randbytes(NodeId.size))
        contact = self.contacts[endpoint] = Contact(node_id, endpoint)
        self.joined[endpoint] = self.world.now
        return contact

    def _maker(self, config: EngineConfig) -> Callable[[float], Engine]:
        chance = random.Random(f"{self.world.seed} {config.node_id}")
        return lambda now: Engine(config, chance, now)

    def _note(self, address: Address, event: Finished) -> None:
        self.outcomes[address, event.operation] = self.world.now, event.outcome


def _known(contacts: list[Contact], keys: list[int], own: Contact, chance: random.Random) -> list[Contact]:
    """Up to a bucket of every prefix length, as a table holds them; the deepest buckets are complete."""
    known: list[Contact] = []
    low, high, mine = 0, 1 << BITS, int.from_bytes(own.node_id, "big")
    first, last = 0, len(keys)
    while last - first > 1:
        middle = (low + high) // 2
        split = bisect_left(keys, middle, first, last)
        if mine < middle:
            other, (first, last), high = range(split, last), (first, split), middle
        else:
            other, (first, last), low = range(first, split), (split, last), middle
        known.extend(contacts[at] for at in chance.sample(other, min(BUCKET_SIZE, len(other))))
    return known


class Liar(Quiet):
    """A DHT node that names its friends, whatever it is asked for, and keeps nothing."""

    def __init__(self, node_id: NodeId, friends: Callable[[bytes], list[Contact]]) -> None:
        super().__init__()
        self._node_id = node_id
        self._friends = friends

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        try:
            packet = parse(data)
        except (ProtocolError, RejectedQuery):
            return
        if isinstance(packet, QueryPacket):
            target = getattr(packet.query, "target", None) or Target(self._node_id)
            reply = Reply(nodes=tuple(self._friends(target)[:BUCKET_SIZE]), token=b"liar")
            answer = ReplyPacket(transaction=packet.transaction, sender=self._node_id, reply=reply)
            self.out.append((answer.pack(), addr))


def surround(network: Kademlia, target: bytes, count: int) -> list[Contact]:
    """Sybils with ids next to ``target``, from few networks, that know nobody but each other (BEP 42 ignored)."""
    tail = int.from_bytes(target, "big")
    block = network.book.block()
    friends = [
        Contact(NodeId((tail ^ (number + 1)).to_bytes(NodeId.size, "big")), Endpoint(*next(block)))
        for number in range(count)
    ]
    for friend in friends:
        network.world.add(friend.endpoint, lambda now, friend=friend: Liar(friend.node_id, lambda _: friends))  # type: ignore[misc]
    return friends
