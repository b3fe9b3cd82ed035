"""Ed25519 keys: peers, publishers and spenders. The one module that imports nacl.

Whatever is signed for later proof is a canonical record: the signature covers a 15-byte domain tag followed by the
SHA-256 of the record, 47 bytes in all, so that a verifier in a contract hashes exactly one SHA-512 block and no
signature made for one purpose can be shown for another. BEP 44 items and the caller's proof inside TLS sign raw
bytes, as their specifications ask; the spending key never does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from swarm.errors import ResourceError, VerificationError
from swarm.ids import PeerId

TAG_SIZE = 15
SIGNATURE_SIZE = 64
SEED_SIZE = 32


def domain_tag(text: str) -> bytes:
    """The 15-byte tag for ``text``: ASCII, padded with zeros."""
    raw = text.encode("ascii")
    if not 0 < len(raw) <= TAG_SIZE:
        raise ValueError(f"a domain tag has 1 to {TAG_SIZE} characters, not {len(raw)}: {text!r}")
    return raw.ljust(TAG_SIZE, b"\0")


def record_message(tag: bytes, record: bytes) -> bytes:
    """The 47 bytes that are signed for ``record``: the tag and the record's SHA-256."""
    if len(tag) != TAG_SIZE:
        raise ValueError(f"a domain tag is {TAG_SIZE} bytes, not {len(tag)}")
    return tag + hashlib.sha256(record).digest()


class Identity:
    """A private Ed25519 key with the peer id it stands for."""

    __slots__ = ("_key", "peer_id")

    def __init__(self, seed: bytes) -> None:
        """``seed`` is the 32-byte RFC 8032 private key."""
        self._key = SigningKey(seed)
        self.peer_id = PeerId(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the operating system's randomness."""
        return cls(os.urandom(SEED_SIZE))

    @classmethod
    def load(cls, path: Path, *, create: bool = True) -> Self:
        """Read the key at ``path`` (32 raw bytes, mode 0600), making it first if it is not there.

        Raises `ResourceError` if the file cannot be read or written, has another size, or others may read it.
        """
        try:
            if create and not path.exists():
                _write_private(path, os.urandom(SEED_SIZE))
            seed = path.read_bytes()
            mode = path.stat().st_mode
        except OSError as error:
            raise ResourceError(f"cannot use the key file {path}: {error.strerror}; check the folder") from error
        if os.name == "posix" and mode & 0o077:
            raise ResourceError(f"the key file {path} can be read by others; run: chmod 600 {path}")
        if len(seed) != SEED_SIZE:
            raise ResourceError(f"the key file {path} is damaged ({len(seed)} bytes, not 32); restore or remove it")
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The private key, 32 bytes. Needed to make a certificate; goes nowhere else."""
        return bytes(self._key)

    def sign_record(self, tag: bytes, record: bytes) -> bytes:
        """Sign a canonical record under a domain tag; 64 bytes."""
        return self._key.sign(record_message(tag, record)).signature

    def sign_raw(self, message: bytes) -> bytes:
        """Sign bytes as they are (BEP 44 items, the caller's proof); 64 bytes. Never with a spending key."""
        return self._key.sign(message).signature


def verify_raw(signer: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``signer``'s over ``message`` as it is."""
    if len(signer) != PeerId.size or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        VerifyKey(signer).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def verify_record(signer: PeerId, tag: bytes, record: bytes, signature: bytes) -> None:
    """Raise `VerificationError` naming ``signer`` unless it signed ``record`` under ``tag``."""
    if not verify_raw(signer, record_message(tag, record), signature):
        name = tag.rstrip(b"\0").decode("ascii", "replace")
        raise VerificationError(f"peer {signer.short} did not sign this {name} record; it was refused", peer_id=signer)


def _write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, whole or not at all; a file that is already there is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        # A link, unlike a rename, never replaces: of two processes that make the key at once, both use the first.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(part)
    finally:
        part.unlink()
