"""One connection per neighbour pair, kept while it is in use, whichever side has called.

A worker's stages and a client's calls share it; each opens streams of its own on the connection.
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


class Links:
    """The open connections by peer id. Made by `open_links`."""

    def __init__(self, nursery: trio.Nursery, identity: Identity, handler: Handler | None) -> None:
        self._nursery = nursery
        self._identity = identity
        self._handler = handler
        self._peers: dict[PeerId, Peer] = {}
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
        return self._peers.setdefault(outcome.peer_id, outcome)

    def find(self, peer_id: PeerId) -> Peer | None:
        """The open connection to a peer, if there is one."""
        peer = self._peers.get(peer_id)
        return peer if peer is not None and peer.is_open else None

    async def adopt(self, peer: Peer) -> None:
        """Share a connection that the other side has called, until it closes."""
        if self.find(peer.peer_id) is None:
            self._peers[peer.peer_id] = peer
        await peer.wait_closed()
        self._forget(peer)

    async def _hold(
        self, host: str, port: int, peer_id: PeerId | None, *, task_status: trio.TaskStatus[Peer | SwarmError]
    ) -> None:
        started = False
        try:
            async with open_peer(host, port, self._identity, expected=peer_id, handler=self._handler) as peer:
                if self.find(peer.peer_id) is None:
                    self._peers[peer.peer_id] = peer
                started = True
                task_status.started(peer)
                await peer.wait_closed()
                self._forget(peer)
        except SwarmError as error:
            if not started:
                task_status.started(error)

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
