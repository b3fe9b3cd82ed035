from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from client.publish import Published, publish_folder
from swarm.catalogue import Catalogue
from swarm.cli import main
from swarm.identity import Identity
from swarm.metadata import TorrentMetadata
from swarm.pieces import PieceMap
from swarm.store import Store
from tests.tiny_models import write_model

PUBLISHER = Identity(bytes(range(32)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SWARM_HOME", raising=False)
    return tmp_path / "home"


@pytest.fixture
def stored(home: Path, tmp_path: Path) -> tuple[Published, Store]:
    """A model of two files in the home's store, all of it checked."""
    published = trio.run(publish, tmp_path / "model")
    store = Store(home / "store")
    catalogue = Catalogue(home / "store")
    catalogue.accept(published.signed, PUBLISHER.peer_id, "tiny")
    catalogue.keep(published.objects)
    metadata = TorrentMetadata.decode(published.torrent)
    pieces = range(PieceMap.of(metadata).total)
    lease = store.lease(metadata, pieces)
    for path, file in zip(lease.paths, metadata.files, strict=True):
        path.write_bytes((published.folder / file.name).read_bytes())
    lease.keep(pieces)
    lease.close()
    return published, store


async def publish(folder: Path) -> Published:
    return await publish_folder(write_model(folder, shards=2), name="tiny", publisher=PUBLISHER)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_store_is_listed(stored: tuple[Published, Store], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, store = stored
    assert run("store", "ls", "--home", str(home), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["used"] == store.used() > 0
    sizes = {file.root.hex(): file.size for file in published.signed.manifest.files}
    assert {file["root"]: file["checked"] for file in found["files"]} == sizes
    assert all(file["models"] == [f"{PUBLISHER.peer_id}/tiny"] and not file["in_use"] for file in found["files"])
    assert run("store", "ls", "--home", str(home)) == 0
    captured = capsys.readouterr()
    assert "tiny" in captured.out
    assert "no" in captured.out.splitlines()[2]
    assert f"{store.used():,} bytes" in captured.err


def test_what_is_wrong_on_the_disk_is_found_named_and_forgotten(
    stored: tuple[Published, Store], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, store = stored
    assert run("store", "verify", "--home", str(home)) == 0
    assert capsys.readouterr().err.count("all right") == 2
    metadata = TorrentMetadata.decode(published.torrent)
    path = store.path_of(metadata.files[1].root)
    with path.open("r+b") as stream:
        stream.seek(3 * metadata.piece_length + 7)
        stream.write(b"\xff\xfe")
    assert run("store", "verify", "--home", str(home)) == 7
    assert f"the first {path.name}, piece 3; check the disk" in capsys.readouterr().err
    everything = PieceMap.of(metadata)
    lease = store.lease(metadata, range(everything.total))
    assert set(range(everything.total)) - lease.have == {everything.first(1) + 3}
    lease.close()


def test_what_no_model_needs_is_removed_and_what_is_in_use_stays(
    stored: tuple[Published, Store], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, store = stored
    assert run("store", "gc", "--home", str(home)) == 0
    assert "0 files removed" in capsys.readouterr().err
    (home / "store" / "models" / str(PUBLISHER.peer_id) / "tiny").unlink()
    lease = store.lease(TorrentMetadata.decode(published.torrent), {0})
    assert run("store", "gc", "--home", str(home), "--json") == 0
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert removed == [published.signed.manifest.files[1].root.hex()]
    assert [file.root for file in store.files()] == [published.signed.manifest.files[0].root]
    lease.close()


def test_known_models_are_listed(
    stored: tuple[Published, Store], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, _ = stored
    assert run("models", "--home", str(home), "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["models"]
    assert entry["model"] == f"{PUBLISHER.peer_id}/tiny"
    assert entry["here"] == entry["size"] == sum(file.size for file in published.signed.manifest.files)
    assert (entry["revision"], entry["layers"], entry["peers"]) == (1, 12, None)
    assert run("models", "--home", str(home)) == 0
    assert "tiny" in capsys.readouterr().out
    assert run("models", "--home", str(home / "empty")) == 0
    assert "no model is known here yet" in capsys.readouterr().err
