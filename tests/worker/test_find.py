from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from client.publish import Published, publish_folder
from swarm.catalogue import Catalogue
from swarm.errors import UnavailableError, UnknownModelError, VerificationError
from swarm.identity import Identity
from swarm.ids import ContentHash, ManifestId
from swarm.manifest import SignedManifest
from tests.tiny_models import write_model
from worker.find import find_model

PUBLISHER = Identity(bytes(range(32)))
REFERENCE = f"{PUBLISHER.peer_id}/tiny"


@dataclass
class Swarm:
    """What `dht.sources.Sources` offers, from one published model; ``signed`` None is a swarm that is gone."""

    objects: dict[ContentHash, bytes]
    signed: SignedManifest | None
    asked: list[ContentHash] = field(default_factory=list)

    async def model(self, reference: str) -> SignedManifest:
        await trio.lowlevel.checkpoint()
        if self.signed is None:
            raise UnknownModelError("no DHT node knows it")
        return self.signed

    async def object(self, manifest_id: ManifestId, wanted: ContentHash) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(wanted)
        return self.objects[wanted]


@pytest.fixture
async def published(tmp_path: Path) -> Published:
    return await publish_folder(write_model(tmp_path / "model"), name="tiny", publisher=PUBLISHER)


async def test_what_is_known_is_not_asked_for_again_and_outlives_the_swarm(
    published: Published, tmp_path: Path
) -> None:
    swarm = Swarm(published.objects, published.signed)
    catalogue = Catalogue(tmp_path / "store")
    assert await find_model(REFERENCE, swarm, catalogue) == (published.signed, published.objects)  # type: ignore[arg-type]
    assert len(swarm.asked) == len(published.objects) - 1, "all but the manifest"
    swarm.asked.clear()
    assert await find_model(f"swarm://{REFERENCE}", swarm, catalogue) == (published.signed, published.objects)  # type: ignore[arg-type]
    swarm.signed = None
    assert await find_model(REFERENCE, swarm, catalogue) == (published.signed, published.objects)  # type: ignore[arg-type]
    assert swarm.asked == []
    with pytest.raises(UnavailableError, match="no DHT node"):
        await find_model(REFERENCE, swarm, Catalogue(tmp_path / "empty"))  # type: ignore[arg-type]


async def test_an_older_manifest_and_one_of_another_key_are_refused(published: Published, tmp_path: Path) -> None:
    newer = replace(published.signed.manifest, revision=2).sign(PUBLISHER)
    catalogue = Catalogue(tmp_path / "store")
    swarm = Swarm(published.objects, newer)
    signed, _ = await find_model(REFERENCE, swarm, catalogue)  # type: ignore[arg-type]
    assert signed.manifest.revision == 2
    swarm.signed = published.signed
    with pytest.raises(VerificationError, match="an old manifest is being served"):
        await find_model(REFERENCE, swarm, catalogue)  # type: ignore[arg-type]
    stranger = Identity(bytes(32))
    swarm.signed = replace(published.signed.manifest, publisher=stranger.peer_id).sign(stranger)
    with pytest.raises(VerificationError, match="another model's"):
        await find_model(REFERENCE, swarm, catalogue)  # type: ignore[arg-type]
