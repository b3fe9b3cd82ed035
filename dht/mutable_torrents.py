"""Mutable torrents (BEP 46): a publisher's key names a torrent, and another one when the publisher says so.

The magnet link ``magnet:?xs=urn:btpk:KEY[&s=SALT]`` stands for the mutable item of that key and salt, and the item's
value is ``{"ih": info-hash}``. A v2 info-hash stands there truncated to 20 bytes, as everywhere in the DHT (BEP 52).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from dht.items import MAX_SALT, MutableItem, mutable_target
from dht.keys import Target, info_target
from dht.node import Node
from swarm.errors import ProtocolError, UsageError
from swarm.identity import Identity
from swarm.ids import PeerId

MAGNET = "magnet:?"
KEY_URN = "urn:btpk:"
INFO_HASH = b"ih"

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorrentLink:
    """The torrent that ``public_key`` publishes under ``salt``."""

    public_key: PeerId
    salt: bytes = b""

    def __post_init__(self) -> None:
        if len(self.salt) > MAX_SALT:
            raise UsageError(f"a salt has at most {MAX_SALT} bytes, not {len(self.salt)}; shorten it")

    @property
    def target(self) -> Target:
        """Where its item is kept."""
        return mutable_target(self.public_key, self.salt)

    @classmethod
    def parse(cls, magnet: str) -> TorrentLink:
        """Read a magnet link with ``xs=urn:btpk:`` and perhaps ``s=``, both hex. Raises `UsageError` for another."""
        head, query = magnet[: len(MAGNET)].lower(), magnet[len(MAGNET) :]
        fields = dict(reversed(parse_qsl(query)))  # of fields that stand twice, the first counts
        source, salt = fields.get("xs", ""), fields.get("s", "")
        key = source[len(KEY_URN) :]
        if head != MAGNET or source[: len(KEY_URN)].lower() != KEY_URN or len(key) != 2 * PeerId.size:
            raise UsageError(f"a mutable torrent is magnet:?xs={KEY_URN} and 64 hex digits, not {magnet!r}")
        if not _HEX.fullmatch(key) or not _HEX.fullmatch(salt):
            raise UsageError(f"the key and the salt of a magnet link are hex digits, not those of {magnet!r}")
        return cls(public_key=PeerId(bytes.fromhex(key)), salt=bytes.fromhex(salt))

    def __str__(self) -> str:
        salt = f"&s={self.salt.hex()}" if self.salt else ""
        return f"{MAGNET}xs={KEY_URN}{self.public_key.hex()}{salt}"


async def put_torrent(node: Node, publisher: Identity, info_hash: bytes, salt: bytes = b"") -> MutableItem:
    """Let the publisher's key and ``salt`` name the torrent from now on; returns the item as stored.

    ``info_hash`` has 20 bytes, or is a v2 `InfoHash`, which is truncated. Raises as `Node.put_mutable` does.
    """
    return await node.put_mutable(publisher, {INFO_HASH: bytes(info_target(info_hash))}, salt, region=True)


async def get_torrent(node: Node, link: TorrentLink) -> Target | None:
    """The 20-byte info-hash that the link names now, None if nobody knows.

    Raises `ProtocolError` naming the publisher where it signed something else.
    """
    item = await node.get_mutable(link.public_key, link.salt, region=True)
    if item is None:
        return None
    info_hash = item.value.get(INFO_HASH) if isinstance(item.value, dict) else None
    if not isinstance(info_hash, bytes) or len(info_hash) != Target.size:
        raise ProtocolError(
            f"publisher {link.public_key.short} signed an item that names no torrent; tell them",
            peer_id=link.public_key,
        )
    return Target(info_hash)
