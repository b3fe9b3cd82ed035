"""Finding the model that a worker is to serve: its manifest, and all that goes with it but the weights."""

from __future__ import annotations

import trio

from dht.names import parse_model_reference
from dht.sources import Sources
from swarm.catalogue import Catalogue
from swarm.errors import UnavailableError
from swarm.ids import ContentHash
from swarm.manifest import SignedManifest


async def find_model(
    reference: str, sources: Sources, catalogue: Catalogue
) -> tuple[SignedManifest, dict[ContentHash, bytes]]:
    """The manifest that ``PUBLISHER/NAME`` means now, and every object that is served with it.

    What is known already is not asked for again; a model whose publisher cannot be reached is what it was last.
    Raises `VerificationError` for an older manifest than the one that is known, or one that another key signed,
    `UnknownModelError` and `UnavailableError` for what neither the swarm nor this home knows.
    """
    publisher, name = parse_model_reference(reference)
    try:
        signed = await sources.model(reference)
    except UnavailableError:
        known = await trio.to_thread.run_sync(catalogue.find, publisher, name)
        objects = None if known is None else await trio.to_thread.run_sync(catalogue.objects, known)
        if known is None or objects is None:
            raise
        return known, objects
    await trio.to_thread.run_sync(catalogue.accept, signed, publisher, name)
    objects = {ContentHash(signed.manifest_id): signed.encode()}
    for content in (signed.manifest.torrent, *(content for _, content in signed.manifest.objects)):
        data = await trio.to_thread.run_sync(catalogue.object, content)
        objects[content] = data if data is not None else await sources.object(signed.manifest_id, content)
    await trio.to_thread.run_sync(catalogue.keep, objects)
    return signed, objects
