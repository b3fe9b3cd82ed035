"""The models that a home knows: the newest signed manifest of each name, and the small files that go with it.

    models/PUBLISHER/NAME   a signed manifest
    objects/HASH            its torrent, tokenizer and template files

What is here needs no peer to be found again, and an older manifest is never taken for a newer one, whoever serves it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from swarm.errors import ResourceError, SwarmError, VerificationError
from swarm.ids import ContentHash, PeerId
from swarm.manifest import MAX_MANIFEST, Manifest, SignedManifest

MODELS = "models"
OBJECTS = "objects"


class Catalogue:
    """Manifests and objects under one folder. Everything blocks; call it in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, publisher: PeerId, name: str) -> SignedManifest | None:
        """The newest manifest known under a name; None if there is none, or it is damaged."""
        return self._read(self._place(publisher, name), publisher, name)

    def models(self) -> list[SignedManifest]:
        """All that are known, in order of publisher and name."""
        found: list[SignedManifest] = []
        for folder in sorted((self.path / MODELS).glob("*")):
            try:
                publisher = PeerId.parse(folder.name)
            except ValueError:
                continue
            read = (self._read(path, publisher, path.name) for path in sorted(folder.iterdir()))
            found.extend(signed for signed in read if signed is not None)
        return found

    def accept(self, signed: SignedManifest, publisher: PeerId, name: str) -> None:
        """Take a manifest that was found under a name, and remember it.

        Raises `VerificationError` if another key signed it, if it is another model's, or if it is older than the one
        that is known.
        """
        manifest = signed.manifest
        if manifest.publisher != publisher or manifest.name != name:
            raise VerificationError(f"the manifest found for {publisher.short}/{name} is another model's: refused")
        known = self.find(publisher, name)
        if known is not None and _age(manifest) < _age(known.manifest):
            raise VerificationError(
                f"{publisher.short}/{name} was revision {known.manifest.revision} here before and now is "
                f"{manifest.revision}: an old manifest is being served; tell its publisher to publish again"
            )
        if known is None or known.manifest_id != signed.manifest_id:
            _write_whole(self._place(publisher, name), signed.encode())

    def keep(self, objects: Mapping[ContentHash, bytes]) -> None:
        """Keep small files by their hash."""
        for content, data in objects.items():
            path = self._object(content)
            if not path.exists():
                _write_whole(path, data)

    def object(self, content: ContentHash) -> bytes | None:
        """A small file; None if it is not here, or damaged."""
        try:
            data = self._object(content).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == content else None

    def objects(self, signed: SignedManifest) -> dict[ContentHash, bytes] | None:
        """All files of a model but its weights; None unless every one is here."""
        found = {ContentHash(signed.manifest_id): signed.encode()}
        for content in (signed.manifest.torrent, *(content for _, content in signed.manifest.objects)):
            data = self.object(content)
            if data is None:
                return None
            found[content] = data
        return found

    def _place(self, publisher: PeerId, name: str) -> Path:
        return self.path / MODELS / str(publisher) / name

    def _object(self, content: ContentHash) -> Path:
        return self.path / OBJECTS / content.hex()

    def _read(self, path: Path, publisher: PeerId, name: str) -> SignedManifest | None:
        try:
            with path.open("rb") as stream:
                signed = SignedManifest.decode(stream.read(MAX_MANIFEST + 1))
        except (OSError, SwarmError):
            return None
        manifest = signed.manifest
        return signed if (manifest.publisher, manifest.name) == (publisher, name) else None


def _age(manifest: Manifest) -> tuple[int, int]:
    """What rises: the revision; where a publisher has lost count, the time of publication."""
    return manifest.revision, manifest.created


def _write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}; free some space or choose another home") from error
