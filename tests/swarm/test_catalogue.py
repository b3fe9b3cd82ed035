from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.publish import Published, publish_folder
from swarm.catalogue import Catalogue
from swarm.errors import ResourceError, VerificationError
from swarm.identity import Identity
from swarm.manifest import SignedManifest
from tests.tiny_models import write_model

PUBLISHER = Identity(bytes(range(32)))
OTHER = Identity(bytes(32))


@pytest.fixture
async def published(tmp_path: Path) -> Published:
    return await publish_folder(write_model(tmp_path / "model"), name="tiny", publisher=PUBLISHER)


def revision(published: Published, number: int, created: int = 0) -> SignedManifest:
    manifest = published.signed.manifest
    return replace(manifest, revision=number, created=manifest.created + created).sign(PUBLISHER)


async def test_what_was_accepted_is_found_and_everything_that_goes_with_it(
    published: Published, tmp_path: Path
) -> None:
    catalogue = Catalogue(tmp_path / "store")
    assert catalogue.models() == []
    assert catalogue.find(PUBLISHER.peer_id, "tiny") is None
    catalogue.accept(published.signed, PUBLISHER.peer_id, "tiny")
    assert catalogue.objects(published.signed) is None, "the small files are not here yet"
    catalogue.keep(published.objects)
    assert Catalogue(tmp_path / "store").models() == [published.signed]
    assert catalogue.objects(published.signed) == published.objects
    content = published.signed.manifest.torrent
    (tmp_path / "store" / "objects" / content.hex()).write_bytes(b"damaged")
    assert catalogue.object(content) is None
    assert catalogue.objects(published.signed) is None


async def test_a_newer_revision_replaces_and_an_older_is_refused(published: Published, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "store")
    second, third = revision(published, 2), revision(published, 3)
    for signed in (second, third, third):
        catalogue.accept(signed, PUBLISHER.peer_id, "tiny")
    with pytest.raises(VerificationError, match="was revision 3 here before and now is 2: an old manifest"):
        catalogue.accept(second, PUBLISHER.peer_id, "tiny")
    with pytest.raises(VerificationError, match="an old manifest"):
        catalogue.accept(revision(published, 3, created=-1), PUBLISHER.peer_id, "tiny")
    catalogue.accept(revision(published, 3, created=1), PUBLISHER.peer_id, "tiny")
    assert [signed.manifest.revision for signed in catalogue.models()] == [3]


async def test_a_manifest_of_another_key_or_name_is_refused(published: Published, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "store")
    for publisher, name in ((OTHER.peer_id, "tiny"), (PUBLISHER.peer_id, "large")):
        with pytest.raises(VerificationError, match="another model's: refused"):
            catalogue.accept(published.signed, publisher, name)
    assert catalogue.models() == []


async def test_what_is_damaged_or_misplaced_is_as_if_it_were_not_there(published: Published, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "store")
    catalogue.accept(published.signed, PUBLISHER.peer_id, "tiny")
    place = tmp_path / "store" / "models" / str(PUBLISHER.peer_id)
    (place / "other").write_bytes(published.signed.encode())
    (place.parent / "notes").mkdir()
    assert catalogue.models() == [published.signed]
    (place / "tiny").write_bytes(published.signed.encode()[:-1])
    assert catalogue.models() == []


async def test_a_place_that_cannot_be_written_is_named(published: Published, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ResourceError, match="choose another home"):
        Catalogue(tmp_path / "store").accept(published.signed, PUBLISHER.peer_id, "tiny")
