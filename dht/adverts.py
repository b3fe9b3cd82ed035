"""A worker's adverts while it runs: heartbeats into the rosters, and the rendezvous that any mainline node carries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import trio

from dht.contacts import Endpoint
from dht.heartbeat import Advert, Heartbeat
from dht.keys import Target
from dht.node import Node
from dht.outcomes import RosterStored
from dht.roster_queries import CapPut
from swarm.errors import SwarmError, UnreachableError
from swarm.identity import Identity

MAX_STORERS = 24  # remembered of one shard: those of the last beats, whose entries still stand


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
        self._storers: dict[Target, dict[Endpoint, bytes]] = {}  # with the tokens they gave, the latest last
        self._scope = trio.CancelScope()

    async def beat(self) -> None:
        """Write once, deeper until the shard has room. Raises what `Node.store_entry` does."""
        if self._refresh is not None:
            self._advert = self._refresh(self._advert)
        place = (self._advert, self._host(), self._node.address[1])
        while True:
            stored = await self._store(self._heartbeat.own(*place, time.time()))
            if not self._heartbeat.heard(stored.count, stored.depth):
                break
        sample = self._heartbeat.sample(*place, time.time())
        if sample is not None:
            await self._store(sample, at_one=True)

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

    def withdraw(self) -> None:
        """Stop, and tell those who keep an entry to forget it. Waits for nothing: the process may be leaving."""
        self._scope.cancel()
        host = self._advert.host or self._node.external_host
        if host is None:
            return
        for write in self._heartbeat.withdrawal(self._advert, host, self._node.address[1], time.time()):
            self._node.withdraw_entry(write, self._storers.get(write.target, {}).items())

    async def _store(self, write: CapPut, *, at_one: bool = False) -> RosterStored:
        stored = await self._node.store_entry(write, at_one=at_one)
        kept = self._storers.setdefault(write.target, {})
        for endpoint, token in stored.storers:
            kept.pop(endpoint, None)
            kept[endpoint] = token
        while len(kept) > MAX_STORERS:
            del kept[next(iter(kept))]
        return stored

    def _host(self) -> str:
        host = self._advert.host or self._node.external_host
        if host is None:
            raise UnreachableError("no DHT node has said at which address this one is seen; give the worker's --host")
        return host
