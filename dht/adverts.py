"""A worker's adverts while it runs: heartbeats into the rosters, and the rendezvous that any mainline node carries."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

import trio

from dht.heartbeat import Advert, Heartbeat
from dht.node import Node
from dht.roster_queries import CapPut
from swarm.errors import SwarmError, UnreachableError
from swarm.identity import Identity

LEAVE_TIMEOUT = 3.0  # seconds for taking entries out on leaving; they expire by themselves soon after


class Advertising:
    """One worker's advert for one model, repeated until it is withdrawn."""

    def __init__(
        self, node: Node, identity: Identity, advert: Advert, refresh: Callable[[Advert], Advert] | None = None
    ) -> None:
        """``refresh`` makes what is said at a beat from what was said before: free slots change."""
        self._node = node
        self._advert = advert
        self._refresh = refresh
        self._heartbeat = Heartbeat(identity, advert.manifest_id, random.SystemRandom())
        self._scope = trio.CancelScope()

    async def beat(self) -> None:
        """Write once, deeper until the shard has room. Raises what `Node.store_entry` does."""
        if self._refresh is not None:
            self._advert = self._refresh(self._advert)
        place = (self._advert, self._host(), self._node.address[1])
        while True:
            stored = await self._node.store_entry(self._heartbeat.own(*place, time.time()))
            if not self._heartbeat.heard(stored.count, stored.depth):
                break
        await self._write_all(self._heartbeat.above(*place, time.time()))

    async def run(self) -> None:
        """Beat until withdrawn. A beat that fails is made up for by the next."""
        with self._scope:
            while True:
                await trio.sleep(self._heartbeat.pause())
                try:
                    await self.beat()
                except SwarmError:
                    continue  # nobody in reach now; entries outlive two lost beats

    def stop(self) -> None:
        """Say it no more; what stands expires."""
        self._scope.cancel()

    async def withdraw(self) -> None:
        """Stop, and take the entries out as far as their storers can be reached within a moment.

        Meant for leaving: a cancelled caller gets the moment too.
        """
        self._scope.cancel()
        host = self._advert.host or self._node.external_host
        if host is not None:
            with trio.move_on_after(LEAVE_TIMEOUT, shield=True):
                writes = self._heartbeat.withdrawal(self._advert, host, self._node.address[1], time.time())
                await self._write_all(writes)

    def _host(self) -> str:
        host = self._advert.host or self._node.external_host
        if host is None:
            raise UnreachableError("no DHT node has said at which address this one is seen; give the worker's --host")
        return host

    async def _write_all(self, writes: list[CapPut]) -> None:
        async with trio.open_nursery() as nursery:
            for write in writes:
                nursery.start_soon(self._write, write)

    async def _write(self, write: CapPut) -> None:
        with contextlib.suppress(SwarmError):  # one entry of several; the next beat repeats it, or it expires
            await self._node.store_entry(write)
