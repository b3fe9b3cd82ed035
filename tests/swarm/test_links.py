"""One connection for a pair of peers, whoever calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio

from swarm import links as links_module
from swarm.errors import UnreachableError, VerificationError
from swarm.events import Received
from swarm.identity import Identity
from swarm.links import Links, open_links
from swarm.messages import CloseSession, GetQuote, OpenLink, SessionClosed
from swarm.peer import Peer, Stream, serve_peers
from tests.client.quotes import MANIFEST

HOST = "127.0.0.1"
LOW, HIGH = sorted([Identity(b"a" * 32), Identity(b"b" * 32)], key=lambda identity: identity.peer_id)


class Side:
    """A peer with links and a port; it remembers the connections that came."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.came: list[Peer] = []
        self.links: Links | None = None
        self.port = 0
        self.hold = trio.Event()
        """While it is not set, connections that come are not adopted."""
        self.hold.set()

    async def handle(self, peer: Peer, stream: Stream, request: Received) -> None:
        """Answer a question at once, a session when it is closed."""
        if isinstance(request.message, OpenLink):
            await stream.receive()
        assert peer.is_open
        await stream.send(SessionClosed(), fin=True)

    async def adopt(self, peer: Peer) -> None:
        """Hear of a connection."""
        self.came.append(peer)
        await self.hold.wait()
        await self.mine.adopt(peer)

    @property
    def mine(self) -> Links:
        """Its links."""
        assert self.links is not None
        return self.links

    async def call(self, other: Side) -> Peer:
        """The connection to the other side."""
        return await self.mine.connect(HOST, other.port, other.identity.peer_id)


@asynccontextmanager
async def open_sides(*identities: Identity) -> AsyncIterator[list[Side]]:
    """Peers that serve, with links."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        sides = []
        for identity in identities:
            side = Side(identity)
            side.links = await stack.enter_async_context(open_links(identity, side.handle))
            side.port = await nursery.start(
                partial(serve_peers, side.handle, identity, host=HOST, port=0, on_peer=side.adopt)
            )
            sides.append(side)
        yield sides


async def ask(peer: Peer) -> None:
    """See that it works."""
    await peer.request(GetQuote(MANIFEST), SessionClosed)


async def until(side: Side, count: int) -> None:
    """Wait for so many connections that came."""
    with trio.fail_after(20):
        while len(side.came) < count:
            await trio.lowlevel.checkpoint()


async def test_a_connection_is_kept_and_shared() -> None:
    async with open_sides(LOW, HIGH) as (low, high):
        peers: list[Peer] = []

        async def call() -> None:
            peers.append(await low.call(high))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
        assert len({id(peer) for peer in peers}) == 1
        assert await low.call(high) is peers[0]
        assert len(low.mine) == 1
        await until(high, 1)
        await ask(peers[0])
        assert len(high.came) == 1


@pytest.mark.parametrize(("caller", "called"), [(LOW, HIGH), (HIGH, LOW)])
async def test_a_connection_that_came_is_used_the_other_way(caller: Identity, called: Identity) -> None:
    async with open_sides(caller, called) as (first, second):
        peer = await first.call(second)
        await ask(peer)
        back = await second.call(first)
        assert back is second.came[0]
        await ask(back)
        assert first.came == []


@pytest.mark.parametrize("busy", [False, True])
async def test_calls_that_cross_end_in_one_connection(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    monkeypatch.setattr(links_module, "LINGER", 0.01)
    async with open_sides(LOW, HIGH) as (low, high):
        low.hold, high.hold = trio.Event(), trio.Event()
        theirs = await high.call(low)
        ours = await low.call(high)
        assert theirs is not ours
        await until(low, 1)
        await until(high, 1)
        work = None
        if busy:
            work = theirs.open_stream()
            await work.send(OpenLink(b"s" * 16, 0))  # type: ignore[arg-type]
            await ask(theirs)  # the stream is there
        low.hold.set()
        high.hold.set()
        with trio.fail_after(20):
            while high.mine.find(low.identity.peer_id) is not high.came[0]:
                await trio.lowlevel.checkpoint()
            assert low.mine.find(high.identity.peer_id) is ours  # what the lower key has called
            if work is not None:
                await ask(ours)
                assert theirs.is_open  # until its work is done
                await work.send(CloseSession(0), fin=True)
                await work.expect(SessionClosed)
                work.finish()
            await theirs.wait_closed()
            await low.came[0].wait_closed()
        assert (len(low.mine), len(high.mine)) == (1, 1)
        assert await high.call(low) is high.came[0]
        await ask(high.came[0])
        await ask(ours)


async def test_an_address_that_leads_to_a_known_peer_costs_no_second_connection() -> None:
    async with open_sides(LOW, HIGH) as (low, high):
        known = await low.call(high)
        for _ in range(3):
            assert await low.mine.connect(HOST, high.port) is known  # called, recognised, closed
        await until(high, 4)
        with trio.fail_after(20):
            for peer in high.came[1:]:
                await peer.wait_closed()
        assert high.came[0].is_open
        assert (len(low.mine), len(high.mine)) == (1, 1)
        await ask(known)


async def test_a_connection_that_ended_is_replaced() -> None:
    async with open_sides(LOW, HIGH) as (low, high):
        first = await low.call(high)
        await until(high, 1)
        await high.came[0]._hang_up()
        with trio.fail_after(20):
            await first.wait_closed()
        assert low.mine.find(high.identity.peer_id) is None
        second = await low.call(high)
        assert second is not first
        await ask(second)


async def test_nobody_and_somebody_else() -> None:
    async with open_sides(LOW, HIGH) as (low, high):
        with pytest.raises(UnreachableError):
            await low.mine.connect(HOST, 1, high.identity.peer_id)
        with pytest.raises(VerificationError, match="another key"):
            await low.mine.connect(HOST, high.port, low.identity.peer_id)
        assert len(low.mine) == 0
        await ask(await low.call(high))


async def test_links_end_with_their_block() -> None:
    async with open_sides(HIGH) as (high,):
        async with open_links(LOW) as links:
            peer = await links.connect(HOST, high.port)
            assert peer.peer_id == high.identity.peer_id
        assert not peer.is_open
