"""BEP 44 items: immutable values under their hash, and mutable ones under a key, signed and numbered.

An item keeps its value as canonical bencode, so that nobody can change it under its signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

from dht.errors import RejectedQuery
from dht.fields import MAX_SEQ
from dht.keys import Target
from dht.krpc import PROTOCOL_ERROR
from dht.queries import Put
from dht.replies import Reply
from swarm.codec import Value, decode, encode
from swarm.errors import ProtocolError, UsageError
from swarm.identity import Identity, verify_raw
from swarm.ids import PeerId

MAX_VALUE = 1000  # bytes, bencoded: BEP 44's limit, so that an item fits a datagram
MAX_SALT = 64  # bytes: BEP 44's limit

VALUE_TOO_BIG = 205
INVALID_SIGNATURE = 206
SALT_TOO_BIG = 207
CAS_MISMATCH = 301
STALE_SEQ = 302


@dataclass(frozen=True, slots=True, kw_only=True)
class ImmutableItem:
    """A value stored under the SHA-1 of its bencoded form."""

    encoded: bytes

    def __post_init__(self) -> None:
        _check_value(self.encoded)

    @property
    def target(self) -> Target:
        """Where the item is kept."""
        return Target.of_content(self.encoded)

    @property
    def value(self) -> Value:
        """The value itself, decoded anew."""
        return decode(self.encoded, limit=MAX_VALUE)

    def put(self, token: bytes, cas: int | None = None) -> Put:
        """The query that stores the item; ``cas`` means nothing to an immutable one."""
        del cas
        return Put(token=token, value=self.value)

    def reply(self) -> Reply:
        """The fields that answer a `Get`."""
        return Reply(value=self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class MutableItem:
    """A value under SHA-1(``public_key`` ‖ ``salt``); a larger ``seq`` replaces a smaller."""

    public_key: PeerId
    seq: int
    encoded: bytes
    signature: bytes
    salt: bytes = b""

    def __post_init__(self) -> None:
        _check_value(self.encoded)
        if len(self.salt) > MAX_SALT:
            raise UsageError(f"a salt has at most {MAX_SALT} bytes, not {len(self.salt)}; shorten it")
        if not 0 <= self.seq <= MAX_SEQ:
            raise UsageError(f"a sequence number is between 0 and 2**63 - 1, not {self.seq}")

    @property
    def target(self) -> Target:
        """Where the item is kept."""
        return mutable_target(self.public_key, self.salt)

    @property
    def value(self) -> Value:
        """The value itself, decoded anew."""
        return decode(self.encoded, limit=MAX_VALUE)

    def is_authentic(self) -> bool:
        """Whether the key's owner signed this value with this salt and seq."""
        return verify_raw(self.public_key, signed_bytes(self.salt, self.seq, self.encoded), self.signature)

    def put(self, token: bytes, cas: int | None = None) -> Put:
        """The query that stores the item, only over an item of seq ``cas`` where that is given."""
        return Put(
            token=token, value=self.value, public_key=self.public_key, salt=self.salt, seq=self.seq,
            signature=self.signature, cas=cas,
        )  # fmt: skip

    def reply(self) -> Reply:
        """The fields that answer a `Get`."""
        return Reply(value=self.value, public_key=self.public_key, seq=self.seq, signature=self.signature)


Item: TypeAlias = ImmutableItem | MutableItem


def mutable_target(public_key: bytes, salt: bytes = b"") -> Target:
    """Where the mutable items of ``public_key`` with ``salt`` are kept (BEP 44)."""
    return Target(hashlib.sha1(public_key + salt, usedforsecurity=False).digest())


def signed_bytes(salt: bytes, seq: int, encoded: bytes) -> bytes:
    """What BEP 44 signs: pieces of bencode, salt first where there is one."""
    head = b"4:salt%d:%s" % (len(salt), salt) if salt else b""
    return head + b"3:seqi%de1:v" % seq + encoded


def encode_value(value: Value) -> bytes:
    """The bencoded form of a value of ours. Raises `UsageError` where BEP 44 or the packet format cannot carry it."""
    try:
        encode([[value]])  # as deep as it stands in a packet
    except ProtocolError as error:
        raise UsageError(f"the DHT cannot carry this value: {error.message}; change it") from error
    encoded = encode(value)
    _check_value(encoded)
    return encoded


def sign_item(identity: Identity, value: Value, *, salt: bytes = b"", seq: int) -> MutableItem:
    """Make a signed mutable item. Raises `UsageError` for a value or salt that is too large."""
    encoded = encode_value(value)
    signature = identity.sign_raw(signed_bytes(salt, seq, encoded))
    return MutableItem(public_key=identity.peer_id, seq=seq, encoded=encoded, signature=signature, salt=salt)


def item_from_put(put: Put) -> Item:
    """The item a `Put` asks us to keep. Raises `RejectedQuery` with the code that BEP 44 gives its fault."""
    encoded = encode(put.value)
    if len(encoded) > MAX_VALUE:
        raise RejectedQuery(f"value of {len(encoded)} bytes is over {MAX_VALUE}", krpc_code=VALUE_TOO_BIG)
    if len(put.salt) > MAX_SALT:
        raise RejectedQuery(f"salt of {len(put.salt)} bytes is over {MAX_SALT}", krpc_code=SALT_TOO_BIG)
    if put.public_key is None:
        return ImmutableItem(encoded=encoded)
    if put.seq is None or put.signature is None:
        raise RejectedQuery("a mutable item has seq and sig", krpc_code=PROTOCOL_ERROR)
    item = MutableItem(
        public_key=PeerId(put.public_key), seq=put.seq, encoded=encoded, signature=put.signature, salt=put.salt
    )
    if not item.is_authentic():
        raise RejectedQuery("invalid signature", krpc_code=INVALID_SIGNATURE)
    return item


def item_from_reply(reply: Reply, target: Target, salt: bytes = b"") -> Item | None:
    """The item an answer carries, if it is one that belongs under ``target``; its signature is not yet checked.

    A reply that carries none, or one that could not be kept there, gives None.
    """
    if reply.value is None:
        return None
    encoded = encode(reply.value)
    if len(encoded) > MAX_VALUE:
        return None
    if Target.of_content(encoded) == target:
        return ImmutableItem(encoded=encoded)
    if reply.public_key is None or reply.seq is None or reply.signature is None:
        return None
    if mutable_target(reply.public_key, salt) != target:
        return None
    return MutableItem(
        public_key=PeerId(reply.public_key), seq=reply.seq, encoded=encoded, signature=reply.signature, salt=salt
    )


def _check_value(encoded: bytes) -> None:
    if len(encoded) > MAX_VALUE:
        raise UsageError(f"a DHT value has at most {MAX_VALUE} bytes bencoded, not {len(encoded)}; store less")
