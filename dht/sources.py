"""Manifests and other objects of a model, from whoever announces it: found in the DHT, fetched by hash, verified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from dht.directory import Directory
from dht.names import parse_model_reference
from dht.roster import Filter
from swarm.errors import SwarmError, UnavailableError, VerificationError
from swarm.ids import ContentHash, ManifestId, PeerId
from swarm.links import Links
from swarm.manifest import SignedManifest
from swarm.objects import fetch_object
from swarm.peer import Peer

AT_ONCE = 16  # peers called at the same time
PEER_TIMEOUT = 20.0  # seconds for one peer to connect and answer

Ask: TypeAlias = Callable[[Peer], Awaitable[bool]]
"""What is done with a peer; True ends the round."""


class Sources:
    """What announced peers serve. One per process, over its connections."""

    def __init__(self, directory: Directory, links: Links) -> None:
        self._directory = directory
        self._links = links

    async def model(self, reference: str) -> SignedManifest:
        """The manifest that ``PUBLISHER/NAME`` means now.

        Raises `UnknownModelError`, `UnavailableError`, or `VerificationError` for one that another key signed.
        """
        publisher, name = parse_model_reference(reference)
        signed = await self.manifest(await self._directory.find_model(publisher, name))
        if signed.manifest.publisher != publisher or signed.manifest.name != name:
            raise VerificationError(f"the manifest found for {reference} is another model's; it was refused")
        return signed

    async def manifest(self, manifest_id: ManifestId) -> SignedManifest:
        """The manifest, its signature and content checked. Raises `UnavailableError` when nobody serves it."""
        raw = await self.object(manifest_id, ContentHash(manifest_id))
        return SignedManifest.decode(raw)

    async def object(self, manifest_id: ManifestId, wanted: ContentHash) -> bytes:
        """An object of a model from the first announced peer that has it, checked against its hash.

        Raises `UnavailableError` when nobody is announced or nobody who is has it.
        """
        found: list[bytes] = []
        failures: list[SwarmError] = []

        async def take(peer: Peer) -> bool:
            found.append(await fetch_object(peer, wanted))
            return True

        await self.ask_all(manifest_id, take, failures)
        if not found:
            tried = f"; the last of {len(failures)} said: {failures[-1].message}" if failures else ""
            raise UnavailableError(
                f"nobody who can be reached serves object {wanted.short} of model {manifest_id.short}{tried}; "
                "start its publisher or a seeder"
            )
        return found[0]

    async def ask_all(self, manifest_id: ManifestId, ask: Ask, failures: list[SwarmError] | None = None) -> None:
        """Connect to every peer announced for a manifest and run ``ask`` on each, several at once.

        An ``ask`` that returns True ends the round. What peers do wrong is collected in ``failures`` and ends nothing.
        """
        addresses = await self._directory.find_peers(manifest_id)
        await self._ask_each([(host, port, None) for host, port in dict.fromkeys(addresses)], ask, failures)

    async def ask_workers(
        self, manifest_id: ManifestId, wanted: Filter, ask: Ask, failures: list[SwarmError] | None = None
    ) -> None:
        """The same with workers that advertise what is wanted. Only who holds the advertised key is asked."""
        workers = await self._directory.find_workers(manifest_id, wanted)
        await self._ask_each([(entry.host, entry.port, entry.worker) for entry in workers], ask, failures)

    async def _ask_each(
        self, places: Sequence[tuple[str, int, PeerId | None]], ask: Ask, failures: list[SwarmError] | None
    ) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(host: str, port: int, peer_id: PeerId | None, scope: trio.CancelScope) -> None:
            try:
                async with limit:
                    with trio.fail_after(PEER_TIMEOUT):
                        peer = await self._links.connect(host, port, peer_id)
                        if await ask(peer):
                            scope.cancel()
            except trio.TooSlowError:
                note(UnavailableError(f"{host}:{port} took more than {PEER_TIMEOUT:.0f} s"))
            except SwarmError as error:
                note(error)

        def note(error: SwarmError) -> None:
            if failures is not None:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for place in places:
                nursery.start_soon(one, *place, nursery.cancel_scope)
