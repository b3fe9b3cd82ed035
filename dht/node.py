"""A DHT node on a UDP socket: the trio driver around one `Engine`."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from dht.config import DhtConfig, EngineConfig, Randomness
from dht.contacts import Contact, Endpoint
from dht.engine import Engine
from dht.items import ImmutableItem, Item, MutableItem, encode_value, mutable_target, sign_item
from dht.keys import NodeId, Target, info_target, secure_id
from dht.krpc import MAX_RECEIVED
from dht.outcomes import ItemFound, Outcome, PeersFound, Stored
from dht.statistics import Statistics
from swarm.codec import Value
from swarm.errors import ClosedError, ResourceError, UnavailableError, UnreachableError, UsageError
from swarm.identity import Identity

RECEIVE_BATCH = 64  # datagrams taken per wake-up before other tasks get their turn
RECEIVE_BUFFER = 1 << 20  # bytes of kernel buffer: a lookup's answers arrive in bursts
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  (compared with, not listened on)

OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class _Waiter:
    """A caller that waits for its operation."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Outcome | None = None


class Node:
    """A running node; made by `open_node`. Its methods wait until the network has answered.

    They raise `UnreachableError` when nobody does, and `ClosedError` once the node is closed.
    """

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self._engine = engine
        self._socket = sock
        self._wake = trio.Event()
        self._waiters: dict[int, _Waiter] = {}
        self._closed = False
        self.address: tuple[str, int] = sock.getsockname()[:2]

    @property
    def node_id(self) -> NodeId:
        """The id this node is known by."""
        return self._engine.node_id

    def statistics(self) -> Statistics:
        """Figures for operators."""
        return self._engine.statistics()

    async def bootstrap(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Join the network of the nodes at ``addresses`` (numeric or by name), and come back to them when lost.

        Raises `UnreachableError` if none of them answers, or no name resolves.
        """
        addresses = list(addresses)
        if not addresses:
            raise UsageError("bootstrapping takes an address at least; give HOST:PORT of a running node")
        routers: list[Endpoint] = []
        unresolved: UnreachableError | None = None
        for host, port in addresses:
            try:
                routers += await self._resolve(host, port)
            except UnreachableError as error:
                unresolved = error  # the others may do
        if not routers and unresolved is not None:
            raise unresolved
        outcome = await self._run(lambda now: self._engine.bootstrap(routers, now), Outcome)
        if outcome.answered == 0:
            names = ", ".join(f"{host}:{port}" for host, port in addresses)
            raise UnreachableError(f"no DHT node answered at {names}; check the address or start one")
        self._engine.add_routers(routers)

    async def ping(self, address: tuple[str, int]) -> NodeId:
        """The id of the node at ``address``. Raises `UnreachableError` if none answers."""
        endpoint = (await self._resolve(*address))[0]
        outcome = await self._run(lambda now: self._engine.ping(endpoint, now), Outcome)
        if not outcome.nearest:
            raise UnreachableError(f"no DHT node answered at {endpoint}; check the address or start one")
        return outcome.nearest[0].node_id

    async def find_node(self, target: bytes) -> list[Contact]:
        """The reachable nodes nearest to a 20-byte ``target``, nearest first."""
        outcome = await self._run(lambda now: self._engine.find_node(Target(target), now), Outcome)
        self._check_heard(outcome)
        return list(outcome.nearest)

    async def get_peers(self, info_hash: bytes) -> list[tuple[str, int]]:
        """Everybody announced under ``info_hash``: 20 bytes, or a v2 `InfoHash`, which is truncated (BEP 5, 52)."""
        target = info_target(info_hash)
        outcome = await self._run(lambda now: self._engine.get_peers(target, now), PeersFound)
        if not outcome.peers:
            self._check_heard(outcome)
        return list(outcome.peers)

    async def announce_peer(self, info_hash: bytes, port: int) -> None:
        """Announce that this host serves ``info_hash`` at ``port``, now and every 10 to 15 minutes until `withdraw`."""
        if not 0 < port < 65536:
            raise UsageError(f"a port is from 1 to 65535, not {port}")
        target = info_target(info_hash)
        self._check_stored(await self._run(lambda now: self._engine.announce_peer(target, port, now), Stored))

    def withdraw_peer(self, info_hash: bytes) -> None:
        """Announce no more under ``info_hash``; what others know of it expires within half an hour."""
        self._engine.withdraw_peer(info_target(info_hash))

    async def put_immutable(self, value: Value) -> Target:
        """Store ``value`` (at most 1000 bytes bencoded) under its hash, now and every hour (BEP 44)."""
        item = ImmutableItem(encoded=encode_value(value))
        self._check_stored(await self._run(lambda now: self._engine.put(item.target, lambda _: item, now), Stored))
        return item.target

    async def get_immutable(self, target: bytes) -> Value | None:
        """The value whose hash is the 20-byte ``target``, or None if nobody has it."""
        item = await self._get(Target(target), b"")
        return item.value if isinstance(item, ImmutableItem) else None

    async def put_mutable(
        self, identity: Identity, value: Value, salt: bytes = b"", seq: int | None = None, cas: int | None = None
    ) -> MutableItem:
        """Store ``value`` under the key and ``salt``, now and every hour (BEP 44); returns the item as stored.

        Without ``seq`` it takes the next after the newest found, or keeps that one's if its value is the same. With
        ``cas`` it is stored only over an item of that seq. Raises `ConflictError` if ``seq`` or ``cas`` is out of date.
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
        outcome = await self._run(lambda now: self._engine.put(target, make_item, now, salt=salt, cas=cas), Stored)
        self._check_stored(outcome)
        assert isinstance(outcome.item, MutableItem)  # noqa: S101  (make_item makes no other)
        return outcome.item

    async def get_mutable(self, public_key: bytes, salt: bytes = b"") -> MutableItem | None:
        """The newest authentic item of ``public_key`` (32 bytes) with ``salt``, or None if nobody has one."""
        item = await self._get(mutable_target(public_key, salt), salt)
        return item if isinstance(item, MutableItem) else None

    # The driver -------------------------------------------------------------------------------------------------

    async def _receive_forever(self) -> None:
        """Take datagrams from the socket to the engine."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(RECEIVE_BATCH):
                try:
                    data, addr = self._socket.recvfrom(MAX_RECEIVED + 1)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an ICMP report about something sent earlier; its timeout will tell
                self._engine.receive_datagram(data, addr[:2], trio.current_time())
            self._flush()

    async def _run_timers(self) -> None:
        """Wake the engine at its deadlines."""
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._engine.next_deadline()):
                await self._wake.wait()
            now = trio.current_time()
            if now >= self._engine.next_deadline():
                self._engine.handle_timer(now)
                self._flush()

    def _close(self) -> None:
        """Wake everybody who waits; they raise `ClosedError`."""
        self._closed = True
        for waiter in self._waiters.values():
            waiter.done.set()

    def _flush(self) -> None:
        for data, endpoint in self._engine.datagrams_to_send():
            try:
                self._socket.sendto(data, endpoint)
            except OSError:
                continue  # a full buffer or an impossible address is a lost datagram, which the engine expects
        for event in self._engine.events():
            waiter = self._waiters.get(event.operation)
            if waiter is not None:
                waiter.outcome = event.outcome
                waiter.done.set()
        self._wake.set()

    async def _run(self, start: Callable[[float], int], kind: type[OutcomeT]) -> OutcomeT:
        """Start an operation and wait for its outcome."""
        if self._closed:
            raise ClosedError("this DHT node is closed; open another")
        operation = start(trio.current_time())
        waiter = self._waiters[operation] = _Waiter()
        try:
            self._flush()
            await waiter.done.wait()
        finally:
            del self._waiters[operation]
            if waiter.outcome is None:
                self._engine.abandon(operation)
        if waiter.outcome is None:
            raise ClosedError("this DHT node was closed before the network had answered; open another")
        assert isinstance(waiter.outcome, kind)  # noqa: S101  (each operation has one kind of outcome)
        return waiter.outcome

    async def _get(self, target: Target, salt: bytes) -> Item | None:
        outcome = await self._run(lambda now: self._engine.get(target, now, salt=salt), ItemFound)
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
        family = self._socket.family
        try:
            found = await trio.socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            raise UnreachableError(f"cannot resolve {host}; check the name and the address family") from error
        return list(dict.fromkeys(Endpoint(str(entry[4][0]), port) for entry in found))


@asynccontextmanager
async def open_node(config: DhtConfig | None = None) -> AsyncIterator[Node]:
    """Run a node while the block lasts, joined through ``config.bootstrap`` where that is given.

    Raises `ResourceError` if it cannot listen, `UnreachableError` if no bootstrap node answers.
    """
    config = config or DhtConfig()
    with _listen(config) as sock:
        node = Node(_make_engine(config), sock)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node._receive_forever)
                nursery.start_soon(node._run_timers)
                try:
                    if config.bootstrap:
                        await node.bootstrap(config.bootstrap)
                    yield node
                finally:
                    node._close()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The nursery wraps what the block raised; callers are to see it as they raised it.
            raised = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
            if len(raised) == 1:
                raise raised[0] from raised[0].__cause__
            raise


def _make_engine(config: DhtConfig) -> Engine:
    rng: Randomness = random.SystemRandom() if config.seed is None else random.Random(config.seed)  # noqa: S311
    host = config.external_host or (None if config.host in WILDCARDS else config.host)
    noise = rng.randbytes(NodeId.size)
    node_id = config.node_id or (NodeId(noise) if host is None else secure_id(host, noise))
    settings = EngineConfig(node_id=node_id, host=host, read_only=config.read_only)
    return Engine(settings, rng, trio.current_time())


def _listen(config: DhtConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        where = f"{config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE:
            raise ResourceError(f"UDP {where} is in use; stop the other program or choose another port") from error
        raise ResourceError(f"cannot listen on UDP {where}: {error.strerror}; choose another address") from error
    return sock
