"""A DHT node on a UDP socket: the trio driver around one `Engine`."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dht.config import DhtConfig
from dht.contacts import Contact, Endpoint
from dht.driver import Driver
from dht.engine import Engine
from dht.items import MAX_SALT, ImmutableItem, Item, MutableItem, encode_value, mutable_target, sign_item
from dht.keys import NodeId, Target, info_target
from dht.opening import listen, make_engine
from dht.outcomes import (
    ItemFound,
    Outcome,
    PeersFound,
    RosterFound,
    RosterStored,
    SampledInfohashes,
    Stored,
    SwarmSize,
    Told,
)
from dht.publications import Announcement
from dht.queries import Ping, Query, SampleInfohashes
from dht.roster import Filter
from dht.roster_queries import CapPut
from dht.state import SavedState, load_state, save_state
from dht.statistics import Statistics
from swarm.codec import Value
from swarm.errors import ClosedError, ResourceError, UnavailableError, UnreachableError, UsageError
from swarm.identity import Identity
from swarm.ids import PeerId

SAVE_EVERY = 300.0  # seconds: what a crash may forget of a table that changes over hours

_log = logging.getLogger("swarm.dht")


class Node:
    """A running node; made by `open_node`. Its methods wait until the network has answered.

    They raise `UnreachableError` when nobody does, and `ClosedError` once the node is closed.
    """

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self._engine = engine
        self._driver = Driver(engine, sock)
        self._run = self._driver.run
        self._family = sock.family
        self._nursery: trio.Nursery | None = None
        self._remembered: tuple[Contact, ...] = ()
        self.address: tuple[str, int] = sock.getsockname()[:2]

    @property
    def node_id(self) -> NodeId:
        """The id this node is known by."""
        return self._engine.node_id

    @property
    def external_host(self) -> str | None:
        """The numeric address that others reach this node at, as configured or as most of them say."""
        return self._engine.external_host

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task of this node's while it is open; it must not raise."""
        if self._driver.closed or self._nursery is None:
            raise ClosedError("this DHT node is closed; open another")
        self._nursery.start_soon(task)

    def statistics(self) -> Statistics:
        """Figures for operators."""
        return self._engine.statistics()

    def save(self, path: Path) -> None:
        """Write down the node's id and whom it knows. Raises `ResourceError` if the file cannot be written."""
        contacts = tuple(self._engine.contacts) or self._remembered  # whom it knew earlier is better than nobody
        save_state(path, SavedState(node_id=self.node_id, contacts=contacts))

    async def bootstrap(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Join the network of the nodes at ``addresses`` (numeric or by name), and come back to them when lost.

        Raises `UnreachableError` if none of them answers, or no name resolves.
        """
        addresses = list(addresses)
        if not addresses:
            raise UsageError("bootstrapping takes an address at least; give HOST:PORT of a running node")
        await self._join(addresses)

    async def ping(self, address: tuple[str, int]) -> NodeId:
        """The id of the node at ``address``. Raises `UnreachableError` if none answers."""
        return (await self._ask(address, Ping())).nearest[0].node_id

    async def sample_infohashes(self, address: tuple[str, int], target: bytes | None = None) -> SampledInfohashes:
        """Some of the info-hashes that the node at ``address`` keeps peers of, and nodes near ``target`` (BEP 51).

        Raises `UnreachableError` if none answers, `UnavailableError` if it does not show any.
        """
        towards = Target(self.node_id if target is None else target)
        told = await self._ask(address, SampleInfohashes(target=towards))
        if told.reply is None or told.reply.samples is None:
            raise UnavailableError(f"the DHT node at {address[0]}:{address[1]} shows no info-hashes; ask another")
        reply, samples = told.reply, told.reply.samples
        return SampledInfohashes(
            info_hashes=samples.info_hashes,
            total=samples.total,
            interval=samples.interval,
            contacts=reply.nodes + reply.nodes6,
        )

    async def find_node(self, target: bytes) -> list[Contact]:
        """The reachable nodes nearest to a 20-byte ``target``, nearest first."""
        outcome = await self._run(lambda now: self._engine.find_node(_target(target), now), Outcome)
        self._check_heard(outcome)
        return list(outcome.nearest)

    async def get_peers(self, info_hash: bytes, *, region: bool = False) -> list[tuple[str, int]]:
        """Everybody announced under ``info_hash``: 20 bytes, or a v2 `InfoHash`, which is truncated (BEP 5, 52).

        With ``region`` not only the nearest nodes are asked: for what was announced with it.
        """
        target = info_target(info_hash)
        outcome = await self._run(lambda now: self._engine.get_peers(target, now, region=region), PeersFound)
        if not outcome.peers:
            self._check_heard(outcome)
        return list(outcome.peers)

    async def scrape(self, info_hash: bytes) -> SwarmSize:
        """About how many addresses are announced under ``info_hash``, counted without naming them (BEP 33)."""
        target = info_target(info_hash)
        outcome = await self._run(lambda now: self._engine.get_peers(target, now, scrape=True), PeersFound)
        self._check_heard(outcome)
        return SwarmSize(seeds=round(outcome.seeds), downloaders=round(outcome.downloaders))

    async def announce_peer(self, info_hash: bytes, port: int, *, seed: bool = False, region: bool = False) -> None:
        """Announce that this host serves ``info_hash`` at ``port``, now and every 10 to 15 minutes.

        As a ``seed`` if it has everything (BEP 33); with ``region`` to every node near the key, not the nearest alone.
        """
        if not 0 < port < 65536:
            raise UsageError(f"a port is from 1 to 65535, not {port}")
        announcement = Announcement(target=info_target(info_hash), port=port, seed=seed, region=region)
        self._check_stored(await self._run(lambda now: self._engine.announce_peer(announcement, now), Stored))

    def withdraw_peer(self, info_hash: bytes) -> None:
        """Announce no more under ``info_hash``; what others know of it expires within half an hour."""
        self._engine.withdraw_peer(info_target(info_hash))

    async def put_immutable(self, value: Value, *, region: bool = False) -> Target:
        """Store ``value`` (at most 1000 bytes bencoded) under its hash, now and every hour (BEP 44).

        With ``region`` it goes to every node near the key: whoever would censor it must hold them all.
        """
        item = ImmutableItem(encoded=encode_value(value))
        outcome = await self._run(lambda now: self._engine.put(item.target, lambda _: item, now, region=region), Stored)
        self._check_stored(outcome)
        return item.target

    async def get_immutable(self, target: bytes, *, region: bool = False) -> Value | None:
        """The value whose hash is the 20-byte ``target``, or None if nobody has it.

        With ``region`` not only the nearest nodes are asked: for what was put with it.
        """
        item = await self._get(_target(target), b"", region=region)
        return item.value if isinstance(item, ImmutableItem) else None

    async def put_mutable(
        self,
        identity: Identity,
        value: Value,
        salt: bytes = b"",
        seq: int | None = None,
        cas: int | None = None,
        *,
        region: bool = False,
    ) -> MutableItem:
        """Store ``value`` under the key and ``salt``, now and every hour (BEP 44); returns the item as stored.

        Without ``seq`` it takes the next after the newest found, or keeps that one's if its value is the same. With
        ``cas`` it is stored only over an item of that seq. Raises `ConflictError` if ``seq`` or ``cas`` is out of date.
        With ``region`` it goes to every node near the key: whoever would censor it must hold them all.
        """

        def make_item(current: Item | None) -> Item:
            if seq is not None:
                return sign_item(identity, value, salt=salt, seq=seq)
            if not isinstance(current, MutableItem):
                return first
            if current.encoded == first.encoded:
                return current
            return sign_item(identity, value, salt=salt, seq=current.seq + 1)

        first = sign_item(identity, value, salt=salt, seq=1 if seq is None else seq)  # refuses what is too large
        target = first.target
        outcome = await self._run(
            lambda now: self._engine.put(target, make_item, now, salt=salt, cas=cas, region=region), Stored
        )
        self._check_stored(outcome)
        assert isinstance(outcome.item, MutableItem)  # noqa: S101  (make_item makes no other)
        return outcome.item

    async def get_mutable(self, public_key: bytes, salt: bytes = b"", *, region: bool = False) -> MutableItem | None:
        """The newest authentic item of ``public_key`` (32 bytes) with ``salt``, or None if nobody has one.

        With ``region`` not only the nearest nodes are asked: for what was put with it.
        """
        if len(public_key) != PeerId.size:
            raise UsageError(f"a public key has {PeerId.size} bytes, not {len(public_key)}")
        if len(salt) > MAX_SALT:
            raise UsageError(f"a salt has at most {MAX_SALT} bytes, not {len(salt)}; no item has this one")
        item = await self._get(mutable_target(public_key, salt), salt, region=region)
        return item if isinstance(item, MutableItem) else None

    async def find_entries(self, target: Target, wanted: Filter) -> RosterFound:
        """Some of the workers in the roster under ``target``; their signatures are not checked yet."""
        outcome = await self._run(lambda now: self._engine.cap_get(target, wanted, now), RosterFound)
        if not outcome.entries:
            self._check_heard(outcome)
        return outcome

    async def store_entry(self, query: CapPut, *, at_one: bool = False) -> RosterStored:
        """Offer an entry to the storers of its roster, or to one of them, once; its token is filled in."""
        outcome = await self._run(lambda now: self._engine.cap_put(query, now, at_one=at_one), RosterStored)
        self._check_stored(outcome)
        return outcome

    def withdraw_entry(self, query: CapPut, storers: Iterable[tuple[Endpoint, bytes]]) -> None:
        """Take an entry back at ``storers``, with the tokens they gave. Waits for nothing: this node may be leaving."""
        self._driver.tell(lambda now: self._engine.cap_withdraw(query, storers, now))

    async def _join(self, addresses: Sequence[tuple[str, int]], remembered: Sequence[Contact] = ()) -> None:
        """Join through whoever answers first. Silence is an error unless nothing but old contacts was asked."""
        ipv6 = self._family == socket.AF_INET6
        self._remembered = tuple(contact for contact in remembered if contact.endpoint.is_ipv6 == ipv6)
        remembered = self._remembered
        if not addresses and not remembered:
            return
        routers: list[Endpoint] = []
        unresolved: UnreachableError | None = None
        for host, port in addresses:
            try:
                routers += await self._resolve(host, port)
            except UnreachableError as error:
                unresolved = error  # the others may do
        if not routers and not remembered and unresolved is not None:
            raise unresolved
        outcome = await self._run(lambda now: self._engine.bootstrap(routers, now, remembered), Outcome)
        if outcome.answered == 0 and addresses:
            names = ", ".join(f"{host}:{port}" for host, port in addresses)
            raise UnreachableError(f"no DHT node answered at {names}; check the address or start one")
        if outcome.answered == 0:
            _log.warning("none of %d remembered DHT nodes answered; this node is alone", len(remembered))
        self._engine.add_routers(routers)

    async def _save_forever(self, path: Path) -> None:
        """Save the state every few minutes; what the disk does not take is tried again."""
        while True:
            await trio.sleep(SAVE_EVERY)
            try:
                self.save(path)
            except ResourceError as error:
                _log.warning("%s", error.message)

    async def _ask(self, address: tuple[str, int], query: Query) -> Told:
        endpoint = (await self._resolve(*address))[0]
        told = await self._run(lambda now: self._engine.ask(endpoint, query, now), Told)
        if not told.answered:
            raise UnreachableError(f"no DHT node answered at {endpoint}; check the address or start one")
        if not told.nearest:
            raise UnavailableError(f"the DHT node at {endpoint} refused {query.method.decode()}; ask another")
        return told

    async def _get(self, target: Target, salt: bytes, *, region: bool = False) -> Item | None:
        outcome = await self._run(lambda now: self._engine.get(target, now, salt=salt, region=region), ItemFound)
        if outcome.item is None:
            self._check_heard(outcome)
        return outcome.item

    def _check_heard(self, outcome: Outcome) -> None:
        if outcome.asked and not outcome.answered and not self._engine.is_first:
            raise UnreachableError(f"none of {outcome.asked} DHT nodes answered; check the network and the bootstrap")

    def _check_stored(self, outcome: Stored) -> None:
        if outcome.error is not None:
            raise outcome.error
        if outcome.stored:
            return
        self._check_heard(outcome)
        if outcome.answered:
            raise UnavailableError(f"none of {outcome.answered} DHT nodes would store it; try again later")

    async def _resolve(self, host: str, port: int) -> list[Endpoint]:
        family = self._family
        try:
            found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise UnreachableError(f"cannot resolve {host}; check the name and the address family") from error
        return list(dict.fromkeys(Endpoint(str(entry[4][0]), port) for entry in found))


def _target(raw: bytes) -> Target:
    if len(raw) != Target.size:
        raise UsageError(f"a target has {Target.size} bytes, not {len(raw)}")
    return Target(raw)


@asynccontextmanager
async def open_node(config: DhtConfig | None = None) -> AsyncIterator[Node]:
    """Run a node while the block lasts, joined through ``config.bootstrap`` and whom it remembers.

    Raises `ResourceError` if it cannot listen or keep its state, `UnreachableError` if no bootstrap node answers.
    """
    config = config or DhtConfig()
    saved = None if config.state_path is None else load_state(config.state_path)
    with listen(config) as sock:
        node = Node(make_engine(config, saved, trio.current_time()), sock)
        try:
            async with trio.open_nursery() as nursery:
                node._nursery = nursery
                nursery.start_soon(node._driver.receive_forever)
                nursery.start_soon(node._driver.run_timers)
                try:
                    await node._join(config.bootstrap, () if saved is None else saved.contacts)
                    if config.state_path is not None:
                        node.save(config.state_path)
                        nursery.start_soon(node._save_forever, config.state_path)
                    yield node
                    if config.state_path is not None:
                        node.save(config.state_path)
                finally:
                    node._driver.close()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The nursery wraps what the block raised; callers are to see it as they raised it.
            raised = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
            if len(raised) == 1:
                raise raised[0] from raised[0].__cause__
            raise
