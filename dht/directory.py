"""The typed directory on top of a node: which manifest a name means, and who serves it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from dht.adverts import Advertising
from dht.cards import CARD_SALT, Card
from dht.heartbeat import Advert
from dht.keys import Target
from dht.names import check_name, format_model_reference
from dht.node import Node
from dht.outcomes import RosterFound
from dht.roster import ENTRY_TTL, Entry, Filter, Shard, SignedEntry, roster_target
from dht.roster_store import HOT_ENTRIES
from swarm.errors import ProtocolError, SwarmError, UnknownModelError
from swarm.identity import Identity
from swarm.ids import InfoHash, ManifestId, PeerId
from swarm.records import CLOCK_TOLERANCE

MODEL_SALT = b"swarm/model/1/"
RPC_TAG = b"swarm-rpc/1"
LOOK_AGAIN = 8  # reads of shards for one of a top that was crowded
MORE_SHARDS = 4  # looked into where the sample at the top of a split roster has too few that fit


def model_salt(name: str) -> bytes:
    """The BEP 44 salt of a model's item: a name of 64 characters would not fit, so its SHA-1 stands for it."""
    return MODEL_SALT + hashlib.sha1(check_name(name).encode("ascii"), usedforsecurity=False).digest()


def rpc_target(manifest_id: ManifestId) -> Target:
    """Where those announce who serve a manifest, or a span of its model, over the peer protocol."""
    return Target.of_content(RPC_TAG + manifest_id)


class Directory:
    """Models, the workers that serve them and what these offer, found through a running `Node`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._adverts: dict[tuple[PeerId, ManifestId], Advertising] = {}
        self._begin: dict[ManifestId, int] = {}  # at which depth of the rosters to begin

    async def publish_model(self, publisher: Identity, name: str, manifest_id: ManifestId) -> int:
        """Make ``name`` under the publisher's key mean ``manifest_id``; returns the item's seq.

        The seq rises with each change; the same manifest published again keeps it. Kept alive while the node runs.
        """
        value: dict[bytes, bytes] = {b"m": bytes(manifest_id), b"n": check_name(name).encode("ascii")}
        item = await self._node.put_mutable(publisher, value, salt=model_salt(name), region=True)
        return item.seq

    async def find_model(self, publisher: PeerId, name: str) -> ManifestId:
        """The manifest that the publisher's ``name`` means now. Raises `UnknownModelError` if nobody knows it."""
        item = await self._node.get_mutable(publisher, model_salt(name), region=True)
        if item is None:
            reference = format_model_reference(publisher, name)
            raise UnknownModelError(f"no DHT node knows {reference}; check it, or ask its publisher to publish again")
        value = item.value
        manifest_id = value.get(b"m") if isinstance(value, dict) else None
        named = value.get(b"n") if isinstance(value, dict) else None
        if not isinstance(manifest_id, bytes) or len(manifest_id) != ManifestId.size or named != name.encode("ascii"):
            raise ProtocolError(
                f"publisher {publisher.short} signed an entry for {name} that names no manifest; tell them",
                peer_id=publisher,
            )
        return ManifestId(manifest_id)

    async def announce_manifest(self, manifest_id: ManifestId, rpc_port: int) -> None:
        """Announce that this host serves the manifest, or a span of its model, at TCP ``rpc_port``; repeated."""
        await self._node.announce_peer(rpc_target(manifest_id), rpc_port)

    def withdraw_manifest(self, manifest_id: ManifestId) -> None:
        """Announce it no more; nodes forget it within half an hour."""
        self._node.withdraw_peer(rpc_target(manifest_id))

    async def find_peers(self, manifest_id: ManifestId) -> list[tuple[str, int]]:
        """Where the manifest or spans of its model are served; some of these may be gone already."""
        return await self._node.get_peers(rpc_target(manifest_id))

    # Capacity ---------------------------------------------------------------------------------------------------

    async def advertise(
        self, identity: Identity, advert: Advert, refresh: Callable[[Advert], Advert] | None = None
    ) -> None:
        """Say what a worker offers now, and again every minute until `withdraw`; ``refresh`` brings it up to date.

        The worker is announced by `announce_manifest` as well. Advertising again replaces what was said.
        """
        former = self._adverts.pop((identity.peer_id, advert.manifest_id), None)
        if former is not None:
            former.stop()
        advertising = Advertising(self._node, identity, advert, refresh)
        await self.announce_manifest(advert.manifest_id, advert.port)
        await advertising.beat()
        self._adverts[identity.peer_id, advert.manifest_id] = advertising
        self._node.start_soon(advertising.run)

    def withdraw(self, worker: PeerId, manifest_id: ManifestId) -> None:
        """Say it no more, and tell those who keep it; never waits and never raises."""
        advertising = self._adverts.pop((worker, manifest_id), None)
        if advertising is not None:
            self.withdraw_manifest(manifest_id)
            advertising.withdraw()

    @asynccontextmanager
    async def advertised(
        self, identity: Identity, advert: Advert, refresh: Callable[[Advert], Advert] | None = None
    ) -> AsyncIterator[None]:
        """`advertise` while the block lasts."""
        await self.advertise(identity, advert, refresh)
        try:
            yield
        finally:
            self.withdraw(identity.peer_id, advert.manifest_id)

    async def find_workers(self, manifest_id: ManifestId, wanted: Filter | None = None) -> list[Entry]:
        """Workers of a model that ``wanted`` admits, at random and at most so many; each has signed its entry.

        Entries are up to three minutes old: some of the workers may be gone, and the live quote is what counts.
        Raises `UnreachableError` when no node answers.
        """
        wanted = wanted or Filter()
        found: dict[PeerId, Entry] = {}
        begin = self._begin.get(manifest_id, 0)
        top = await self._read_shard(manifest_id, Shard(begin, secrets.randbelow(1 << begin)), wanted, found)
        # A crowded top is left alone for a while; now and then it is looked at again.
        crowded = top.count > HOT_ENTRIES if begin == 0 else top.count and secrets.randbelow(LOOK_AGAIN)
        self._begin[manifest_id] = top.depth if crowded else 0
        if len(found) < wanted.how_many and top.depth:
            for prefix in secrets.SystemRandom().sample(range(1 << top.depth), min(MORE_SHARDS, 1 << top.depth)):
                await self._read_shard(manifest_id, Shard(top.depth, prefix), wanted, found)
                if len(found) >= wanted.how_many:
                    break
        return list(found.values())[: wanted.how_many]

    async def _read_shard(
        self, manifest_id: ManifestId, shard: Shard, wanted: Filter, found: dict[PeerId, Entry]
    ) -> RosterFound:
        outcome = await self._node.find_entries(roster_target(manifest_id, shard), wanted)
        for entry in authentic(outcome.entries, manifest_id, time.time()):
            found.setdefault(entry.worker, entry)
        return outcome

    async def put_card(self, identity: Identity, card: Card) -> None:
        """Publish what a worker says of itself at length; kept alive while the node runs."""
        await self._node.put_mutable(identity, card.value(), salt=CARD_SALT)

    async def find_card(self, worker: PeerId) -> Card | None:
        """A worker's card, None where nobody keeps one. Raises `ProtocolError` naming a worker that signed nonsense."""
        item = await self._node.get_mutable(worker, CARD_SALT)
        if item is None:
            return None
        try:
            return Card.read(item.value)
        except ProtocolError as error:
            raise ProtocolError(f"worker {worker.short} signed a card that is none; tell it", peer_id=worker) from error

    # Torrents ---------------------------------------------------------------------------------------------------

    async def announce_torrent(self, info_hash: InfoHash, port: int) -> None:
        """Announce that this host seeds the torrent at ``port``, under its truncated v2 info-hash (BEP 52)."""
        await self._node.announce_peer(info_hash, port)

    async def find_torrent_peers(self, info_hash: InfoHash) -> list[tuple[str, int]]:
        """Who shares the torrent."""
        return await self._node.get_peers(info_hash)


def authentic(entries: Iterable[SignedEntry], manifest_id: ManifestId, unix_now: float) -> list[Entry]:
    """Those that their workers signed for this model and that have not expired, within what clocks may differ."""
    good = []
    for signed in entries:
        try:
            entry = SignedEntry.read(signed.raw, manifest_id).entry
        except SwarmError:
            continue  # a storer passed on what nobody signed
        if unix_now - CLOCK_TOLERANCE <= entry.expiry <= unix_now + ENTRY_TTL + CLOCK_TOLERANCE:
            good.append(entry)
    return good
