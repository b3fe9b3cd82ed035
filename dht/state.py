"""What a node remembers over a restart: its id, and nodes to join through. One small file, whole or not at all.

    format   1
    id       20 bytes
    nodes    compact contacts, IPv4 (BEP 5)
    nodes6   the same, IPv6 (BEP 32)
    sum      BLAKE2b-128 of the others' bencode

It is written beside and renamed over the old one. A file that cannot be read back is reported and passed over: a node
without memory joins like a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dht.contacts import Contact, pack_contacts, unpack_contacts
from dht.fields import read_bytes
from dht.keys import NodeId
from swarm.codec import decode, encode
from swarm.errors import ProtocolError, ResourceError

FORMAT = 1
MAX_FILE = 64 * 1024  # bytes: over a thousand contacts
MAX_CONTACTS = 64  # enough that a third of them answers after a long night; all are asked at once
SUM_SIZE = 16

_log = logging.getLogger("swarm.dht")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A node's id and its contacts, those nearest to it first."""

    node_id: NodeId
    contacts: tuple[Contact, ...] = ()

    def pack(self) -> bytes:
        """The file's content; contacts beyond `MAX_CONTACTS` are left out."""
        kept = self.contacts[:MAX_CONTACTS]
        body: dict[bytes, Any] = {
            b"format": FORMAT,
            b"id": self.node_id,
            b"nodes": pack_contacts(contact for contact in kept if not contact.endpoint.is_ipv6),
            b"nodes6": pack_contacts(contact for contact in kept if contact.endpoint.is_ipv6),
        }
        return encode(body | {b"sum": _sum(body)})

    @classmethod
    def unpack(cls, raw: bytes) -> SavedState:
        """Read the file's content. Raises `ProtocolError` for anything but what `pack` writes."""
        body = decode(raw, limit=MAX_FILE)
        if not isinstance(body, dict):
            raise ProtocolError("it is no dictionary")
        if body.get(b"format") != FORMAT:
            raise ProtocolError(f"it has format {body.get(b'format')!r}, not {FORMAT}")
        if body.pop(b"sum", None) != _sum(body):
            raise ProtocolError("its checksum does not fit")
        return cls(
            node_id=NodeId(read_bytes(body, b"id", exactly=NodeId.size)),
            contacts=(
                *unpack_contacts(read_bytes(body, b"nodes", most=MAX_FILE), ipv6=False),
                *unpack_contacts(read_bytes(body, b"nodes6", most=MAX_FILE), ipv6=True),
            ),
        )


def load_state(path: Path) -> SavedState | None:
    """The state in the file, None if there is none or it is damaged, which is logged.

    Raises `ResourceError` if it is there and may not be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceError(f"cannot read the DHT state {path}: {error.strerror}; check its permissions") from error
    try:
        return SavedState.unpack(raw)
    except ProtocolError as error:
        _log.warning("the DHT state %s is damaged (%s); this node begins without it", path, error.message)
        return None


def save_state(path: Path, state: SavedState) -> None:
    """Replace the file. Raises `ResourceError` if it cannot be written; then the old one is still there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(state.pack())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ResourceError(f"cannot write the DHT state {path}: {error.strerror}; check the folder") from error


def _sum(body: dict[bytes, Any]) -> bytes:
    return hashlib.blake2b(encode(body), digest_size=SUM_SIZE).digest()
