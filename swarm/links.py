"""One connection per neighbour pair, kept while it is in use, whichever side has called.

A worker's stages and a client's calls share it; each opens streams of its own on the connection. When both sides call
at once there are two for a while: both take the one that the lower key has called, and the other is closed by whoever
called it once it is idle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.nurseries import open_nursery
from swarm.peer import Handler, Peer, open_peer

LINGER = 1.0  # seconds between two looks at a connection that is to be closed; a stream may be on its way to it


class Links:
    """The open connections by peer id. Made by `open_links`."""

    def __init__(self, nursery: trio.Nursery, identity: Identity, handler: Handler | None) -> None:
        self._nursery = nursery
        self._identity = identity
        self._handler = handler
        self._peers: dict[PeerId, Peer] = {}
        self._called: dict[Peer, trio.CancelScope] = {}  # those that this side called, and what closes them
        self._dialing: dict[tuple[PeerId | None, str, int], trio.Event] = {}

    def __len__(self) -> int:
        return sum(peer.is_open for peer in self._peers.values())

    async def connect(self, host: str, port: int, peer_id: PeerId | None = None) -> Peer:
        """The connection to ``peer_id``, called at ``host:port`` if there is none.

        Without a peer id the address is always called, and the key found there is taken.
        Raises `UnreachableError` or `VerificationError`.
        """
        key = (peer_id, host, port)
        while key in self._dialing:
            await self._dialing[key].wait()
        if peer_id is not None and (peer := self.find(peer_id)) is not None:
            return peer
        self._dialing[key] = trio.Event()
        try:
            outcome: Peer | SwarmError = await self._nursery.start(self._hold, host, port, peer_id)
        finally:
            self._dialing.pop(key).set()
        if isinstance(outcome, SwarmError):
            raise outcome
        return outcome

    def find(self, peer_id: PeerId) -> Peer | None:
        """The open connection to a peer, if there is one."""
        peer = self._peers.get(peer_id)
        return peer if peer is not None and peer.is_open else None

    async def adopt(self, peer: Peer) -> None:
        """Share a connection that the other side has called, until it closes."""
        known = self.find(peer.peer_id)
        if known is None:
            self._peers[peer.peer_id] = peer
        elif known in self._called and peer.peer_id < self._identity.peer_id:
            self._peers[peer.peer_id] = peer
            self._nursery.start_soon(self._retire, known, self._called[known])
        await peer.wait_closed()
        self._forget(peer)

    async def _hold(
        self, host: str, port: int, peer_id: PeerId | None, *, task_status: trio.TaskStatus[Peer | SwarmError]
    ) -> None:
        started = False
        try:
            async with open_peer(host, port, self._identity, expected=peer_id, handler=self._handler) as peer:
                started = True
                known = self.find(peer.peer_id)
                task_status.started(known or peer)
                if known is not None:  # it was called at another address, or has called meanwhile
                    return
                self._peers[peer.peer_id] = peer
                with trio.CancelScope() as scope:
                    self._called[peer] = scope
                    try:
                        await peer.wait_closed()
                    finally:
                        del self._called[peer]
                        self._forget(peer)
        except SwarmError as error:
            if not started:
                task_status.started(error)

    async def _retire(self, peer: Peer, scope: trio.CancelScope) -> None:
        """Close a connection that no new stream will be opened on, once two looks have found it idle."""
        looks = 0
        while peer.is_open and looks < 2:
            await trio.sleep(LINGER)
            looks = 0 if peer.streams else looks + 1
        scope.cancel()

    def _forget(self, peer: Peer) -> None:
        if self._peers.get(peer.peer_id) is peer:
            del self._peers[peer.peer_id]


@asynccontextmanager
async def open_links(identity: Identity, handler: Handler | None = None) -> AsyncIterator[Links]:
    """Connections that last until the block is left. ``handler`` serves streams that the called peers open."""
    async with open_nursery() as nursery:
        try:
            yield Links(nursery, identity, handler)
        finally:
            nursery.cancel_scope.cancel()
