"""Publishing: a model folder becomes a signed manifest, a torrent and the objects that are served by hash.

Needs neither torch nor libtorrent, and writes nothing into the model folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from swarm.errors import ModelFolderError, ProtocolError, ResourceError, SwarmError, UsageError
from swarm.identity import Identity
from swarm.ids import ContentHash
from swarm.manifest import Manifest, ModelFile, SignedManifest, is_model_name
from swarm.metadata import TorrentMetadata, choose_piece_length
from swarm.model_folder import ModelFolder, hash_file, open_model_folder

OBJECTS = "objects"
MODELS = "models"

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model ready to be seeded and announced."""

    signed: SignedManifest
    torrent: bytes
    objects: dict[ContentHash, bytes]
    """Everything clients and workers ask for by hash: the manifest, the torrent, tokenizer and template files."""
    folder: Path
    """Where the safetensors files lie."""


async def publish_folder(
    folder: Path,
    *,
    name: str,
    publisher: Identity,
    out: Path | None = None,
    progress: Report | None = None,
) -> Published:
    """Describe and sign the model in ``folder`` under ``name``; ``progress`` is told (bytes hashed, bytes in all).

    With ``out``, everything but the weights is written there: ``objects/HASH`` and, last, ``models/NAME.manifest``.
    Publishing an unchanged folder again gives the same manifest; a changed one the next revision.

    Raises `ModelFolderError` for a folder that cannot be published, `ResourceError` if ``out`` cannot be written.
    """
    check_name(name)
    model = await trio.to_thread.run_sync(open_model_folder, folder)
    torrent = await _make_torrent(model, progress or _quiet)
    try:
        raw = torrent.encode()
        blobs = {ContentHash(hashlib.sha256(data).digest()): data for data in (*model.objects.values(), raw)}
        earlier = await trio.to_thread.run_sync(_earlier, out, name, publisher)
        signed = _sign(model, torrent, name, publisher, earlier)
    except ProtocolError as error:
        raise ModelFolderError(f"{folder} cannot be published: {error}") from error
    blobs[ContentHash(signed.manifest_id)] = signed.encode()
    published = Published(signed=signed, torrent=raw, objects=blobs, folder=folder)
    if out is not None:
        await trio.to_thread.run_sync(_write, published, out)
    return published


def load_published(out: Path, name: str, folder: Path) -> Published:
    """What `publish_folder` wrote to ``out`` under ``name``, verified again; ``folder`` holds the weights.

    Raises `ResourceError` if it is not there or damaged.
    """
    check_name(name)
    path = out / MODELS / f"{name}.manifest"
    try:
        signed = SignedManifest.decode(path.read_bytes())
        manifest = signed.manifest
        wanted = (manifest.torrent, ContentHash(signed.manifest_id), *(content for _, content in manifest.objects))
        objects = {content: (out / OBJECTS / content.hex()).read_bytes() for content in wanted}
    except OSError as error:
        raise ResourceError(f"cannot read what was published as {name}: {error}; publish the folder again") from error
    except SwarmError as error:
        raise ResourceError(f"{path} is damaged: {error}; publish the folder again") from error
    for content, data in objects.items():
        if hashlib.sha256(data).digest() != content:
            raise ResourceError(f"{out / OBJECTS / content.hex()} is damaged; publish the folder again")
    return Published(signed=signed, torrent=objects[manifest.torrent], objects=objects, folder=folder)


async def _make_torrent(model: ModelFolder, report: Report) -> TorrentMetadata:
    """Hash every file in a thread; a cancelled publication stops at the next report."""
    piece_length = choose_piece_length(smallest=model.smallest_layer, total=model.size)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        trio.from_thread.run_sync(report, done, model.size)

    files = [await trio.to_thread.run_sync(hash_file, model, file, piece_length, on_bytes) for file in model.files]
    try:
        return TorrentMetadata(files=tuple(files), piece_length=piece_length)
    except ProtocolError as error:
        raise ModelFolderError(f"{model.path} cannot be published: {error}") from error


def _sign(
    model: ModelFolder, torrent: TorrentMetadata, name: str, publisher: Identity, earlier: SignedManifest | None
) -> SignedManifest:
    files = tuple(
        ModelFile(name=file.name, size=file.size, root=hashed.root, header=file.header)
        for file, hashed in zip(model.files, torrent.files, strict=True)
    )
    objects = {key: ContentHash(hashlib.sha256(data).digest()) for key, data in model.objects.items()}

    def describe(revision: int, created: int) -> Manifest:
        return Manifest.describe(
            name=name,
            revision=revision,
            publisher=publisher.peer_id,
            config=model.config,
            files=files,
            torrent=torrent,
            objects=objects,
            licence=model.licence,
            created=created,
        )

    if earlier is None:
        return describe(1, int(time.time())).sign(publisher)
    if describe(earlier.manifest.revision, earlier.manifest.created) == earlier.manifest:
        return earlier
    return describe(earlier.manifest.revision + 1, int(time.time())).sign(publisher)


def _earlier(out: Path | None, name: str, publisher: Identity) -> SignedManifest | None:
    """What this publisher published last under the name, if it can still be read."""
    path = None if out is None else out / MODELS / f"{name}.manifest"
    if path is None or not path.exists():
        return None
    try:
        signed = SignedManifest.decode(path.read_bytes())
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}; check the folder") from error
    except SwarmError as error:
        raise ResourceError(f"{path} is damaged: {error}; remove it and publish again") from error
    return signed if signed.manifest.publisher == publisher.peer_id else None


def _write(published: Published, out: Path) -> None:
    """Each file whole or not at all, the manifest last: whoever finds it finds everything it names."""
    try:
        (out / OBJECTS).mkdir(parents=True, exist_ok=True)
        (out / MODELS).mkdir(parents=True, exist_ok=True)
        for content, data in published.objects.items():
            _write_whole(out / OBJECTS / content.hex(), data)
        signed = published.signed
        _write_whole(out / MODELS / f"{signed.manifest.name}.manifest", signed.encode())
    except OSError as error:
        raise ResourceError(f"cannot write to {out}: {error.strerror}; free some space or choose another") from error


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_name(name: str) -> None:
    """Raise `UsageError` for a text that cannot name a model."""
    if not is_model_name(name):
        raise UsageError(f"{name[:80]!r} cannot name a model; use 1 to 64 of a-z, 0-9, dot, dash and underscore")


def _quiet(done: int, total: int) -> None:
    """Nobody wants to know."""
