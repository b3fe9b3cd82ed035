from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from client.publish import load_published, publish_folder
from swarm.errors import ModelFolderError, ResourceError, UsageError
from swarm.identity import Identity
from swarm.manifest import SignedManifest
from tests.tiny_models import write_model

ALICE, BOB = Identity(bytes(range(32))), Identity(bytes(32))


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


async def test_what_is_published_is_complete_and_named_by_its_hash(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", shards=2)
    before = listing(folder)
    seen: list[tuple[int, int]] = []
    published = await publish_folder(
        folder,
        name="tiny",
        publisher=ALICE,
        out=tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    manifest = published.signed.manifest
    assert listing(folder) == before
    assert {key: hashlib.sha256(data).digest() for key, data in published.objects.items()} == {
        key: bytes(key) for key in published.objects
    }
    assert published.objects.keys() == {
        published.signed.manifest_id,
        manifest.torrent,
        *dict(manifest.objects).values(),
    }
    assert SignedManifest.decode(published.objects[published.signed.manifest_id]) == published.signed
    assert manifest.check_torrent(published.torrent).piece_length == manifest.piece_length
    assert load_published(tmp_path / "out", "tiny", folder) == published
    total = sum(file.size for file in manifest.files)
    assert seen[-1] == (total, total)
    assert manifest.licence == "apache-2.0"


async def test_without_an_output_folder_nothing_is_written(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = listing(tmp_path)
    await publish_folder(folder, name="tiny", publisher=ALICE)
    assert listing(tmp_path) == before


async def test_two_publishers_of_the_same_files_share_one_torrent(tmp_path: Path) -> None:
    first = await publish_folder(write_model(tmp_path / "a", shards=2), name="one", publisher=ALICE)
    second = await publish_folder(write_model(tmp_path / "b", shards=2), name="two", publisher=BOB)
    assert first.torrent == second.torrent
    assert first.signed.manifest.info_hash == second.signed.manifest.info_hash
    assert first.signed.manifest_id != second.signed.manifest_id


async def test_the_revision_rises_when_something_changed(tmp_path: Path) -> None:
    folder, out = write_model(tmp_path / "model"), tmp_path / "out"
    first = await publish_folder(folder, name="tiny", publisher=ALICE, out=out)
    again = await publish_folder(folder, name="tiny", publisher=ALICE, out=out)
    assert again == first
    (folder / "tokenizer.json").write_text("{}")
    changed = await publish_folder(folder, name="tiny", publisher=ALICE, out=out)
    assert [item.signed.manifest.revision for item in (first, changed)] == [1, 2]
    assert changed.torrent == first.torrent
    other = await publish_folder(folder, name="other", publisher=ALICE, out=out)
    assert other.signed.manifest.revision == 1


async def test_links_are_published_as_the_files_they_lead_to(tmp_path: Path) -> None:
    blobs = write_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    direct = await publish_folder(blobs, name="tiny", publisher=ALICE)
    linked = await publish_folder(snapshot, name="tiny", publisher=ALICE)
    assert linked.torrent == direct.torrent


@pytest.mark.parametrize("name", ["", "Tiny", "a/b", "..", "a" * 65, "a b", "a\n"])
async def test_a_bad_name_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        await publish_folder(tmp_path, name=name, publisher=ALICE)
    with pytest.raises(UsageError, match="name"):
        load_published(tmp_path, name, tmp_path)


async def test_a_bad_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelFolderError, match="truncated"):
        await publish_folder(folder, name="tiny", publisher=ALICE, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ResourceError, match="cannot write"):
        await publish_folder(folder, name="tiny", publisher=ALICE, out=tmp_path / "out")


async def test_damage_to_what_was_published_is_noticed(tmp_path: Path) -> None:
    folder, out = write_model(tmp_path / "model"), tmp_path / "out"
    published = await publish_folder(folder, name="tiny", publisher=ALICE, out=out)
    torrent = out / "objects" / published.signed.manifest.torrent.hex()
    torrent.write_bytes(published.torrent[:-1] + b"x")
    with pytest.raises(ResourceError, match="damaged"):
        load_published(out, "tiny", folder)
    torrent.unlink()
    with pytest.raises(ResourceError, match="publish the folder again"):
        load_published(out, "tiny", folder)
    (out / "models" / "tiny.manifest").write_bytes(b"de")
    with pytest.raises(ResourceError, match="damaged"):
        await publish_folder(folder, name="tiny", publisher=ALICE, out=out)


async def test_a_cancelled_publication_stops_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with trio.CancelScope() as scope:
        await publish_folder(
            folder, name="tiny", publisher=ALICE, out=tmp_path / "out", progress=lambda done, total: scope.cancel()
        )
    assert scope.cancelled_caught
    assert not (tmp_path / "out").exists()


def test_publishing_needs_neither_torch_nor_libtorrent() -> None:
    code = "import sys, client.publish; sys.exit(bool({'torch', 'libtorrent', 'safetensors'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
