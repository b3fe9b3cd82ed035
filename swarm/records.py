"""Signed statements of workers: the quote, a worker's live answer to "what do you offer for this model now?".

A quote is canonical bencode under the worker's peer key. The client gives it back when it opens a session, so a
worker holds to its price without remembering whom it told; its SHA-256 is the `terms_hash` of the vouchers that pay
under it. It binds the peer key to the account that is paid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from swarm import codec
from swarm.errors import ProtocolError, VerificationError
from swarm.identity import Identity, domain_tag, verify_record
from swarm.ids import Address, ManifestId, PeerId
from swarm.receipts import Price

QUOTE_TAG = domain_tag("swarm-quote/v1")
MAX_QUOTE = 2048  # bytes; a quote travels in every answer and back in every session
QUOTE_SECONDS = 300  # how long an offer holds; also bounds what a wrong clock can do
CLOCK_TOLERANCE = 300  # seconds by which peers' clocks may differ
MAX_TEXT = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a worker offers now. Rates are measured, in thousandths of a token per second for its whole span."""

    worker: PeerId
    manifest_id: ManifestId
    start: int
    stop: int
    price: Price
    account: Address
    """Who is paid: the worker's account on the chain, zero when it serves for nothing."""
    chain_id: int
    contract: Address
    window: int
    """Tokens that a voucher must prepay."""
    device: str
    """torch's name: cpu, cuda, mps, xpu."""
    device_name: str
    memory_bytes: int
    host: str
    """Where it takes calls; empty for "where you asked"."""
    port: int
    free_slots: int
    """Sessions that it would still take."""
    free_positions: int
    """Positions of its whole span that still fit in its key-value memory."""
    queue: int
    """Steps waiting for the device."""
    decode_rate: int
    prefill_rate: int
    context: int
    issued: int
    """Unix seconds."""
    valid_until: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 0xFFFF:
            raise ProtocolError(f"a quote's span [{self.start}, {self.stop}) is empty or out of range")
        counts = ("chain_id", "window", "memory_bytes", "free_slots", "free_positions", "queue", "context")
        for name in (*counts, "decode_rate", "prefill_rate"):
            if getattr(self, name) < 0:
                raise ProtocolError(f"a quote's {name} is negative")
        if not 0 <= self.port <= 65535:
            raise ProtocolError(f"a quote's port {self.port} is none")
        if max(len(self.device), len(self.device_name), len(self.host)) > MAX_TEXT:
            raise ProtocolError("a quote's device has too long a name")
        if not (self.device + self.device_name + self.host).isprintable():
            raise ProtocolError("a quote's texts are for people, and one of them is not printable")
        if not 0 < self.valid_until - self.issued <= QUOTE_SECONDS:
            raise ProtocolError("a quote is valid for too long or not at all")

    def pack(self) -> bytes:
        """The record that is signed."""
        return codec.encode(
            {
                b"account": self.account,
                b"chain": self.chain_id,
                b"context": self.context,
                b"contract": self.contract,
                b"decode": self.decode_rate,
                b"device": self.device.encode(),
                b"free": self.free_positions,
                b"host": self.host.encode(),
                b"issued": self.issued,
                b"manifest": self.manifest_id,
                b"memory": self.memory_bytes,
                b"name": self.device_name.encode(),
                b"port": self.port,
                b"prefill": self.prefill_rate,
                b"price": [self.price.per_1k_input, self.price.per_1k_output],
                b"queue": self.queue,
                b"slots": self.free_slots,
                b"span": [self.start, self.stop],
                b"until": self.valid_until,
                b"window": self.window,
                b"worker": self.worker,
            }
        )

    @classmethod
    def unpack(cls, record: bytes) -> Self:
        """Read a record. Raises `ProtocolError` unless it is exactly one."""
        value = codec.decode(record, limit=MAX_QUOTE)
        if not isinstance(value, dict):
            raise ProtocolError("not a quote")
        try:
            per_1k_input, per_1k_output = value[b"price"]
            start, stop = value[b"span"]
            quote = cls(
                worker=PeerId(value[b"worker"]),
                manifest_id=ManifestId(value[b"manifest"]),
                start=start,
                stop=stop,
                price=Price(per_1k_input=per_1k_input, per_1k_output=per_1k_output),
                account=Address(value[b"account"]),
                chain_id=value[b"chain"],
                contract=Address(value[b"contract"]),
                window=value[b"window"],
                device=value[b"device"].decode(),
                device_name=value[b"name"].decode(),
                memory_bytes=value[b"memory"],
                host=value[b"host"].decode(),
                port=value[b"port"],
                free_slots=value[b"slots"],
                free_positions=value[b"free"],
                queue=value[b"queue"],
                decode_rate=value[b"decode"],
                prefill_rate=value[b"prefill"],
                context=value[b"context"],
                issued=value[b"issued"],
                valid_until=value[b"until"],
            )
            same = quote.pack() == record
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ProtocolError("not a quote") from error
        if not same:
            raise ProtocolError("a quote with fields that this version does not know")
        return quote

    def sign(self, identity: Identity) -> SignedQuote:
        """Sign with the worker's peer key."""
        record = self.pack()
        return SignedQuote(quote=self, record=record, signature=identity.sign_record(QUOTE_TAG, record))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote as it travels."""

    quote: Quote
    record: bytes
    signature: bytes

    @property
    def terms_hash(self) -> bytes:
        """What a voucher under these terms names, 32 bytes."""
        return hashlib.sha256(self.record).digest()

    @classmethod
    def read(cls, record: bytes, signature: bytes, *, sender: PeerId, now: float) -> Self:
        """Check a quote that ``sender`` stands for at ``now`` (Unix seconds).

        Raises `ProtocolError`, or `VerificationError` when it is somebody else's, badly signed or out of date.
        """
        quote = Quote.unpack(record)
        if quote.worker != sender:
            raise VerificationError(f"peer {sender.short} passed on another worker's quote", peer_id=sender)
        verify_record(sender, QUOTE_TAG, record, signature)
        if not quote.issued - CLOCK_TOLERANCE <= now <= quote.valid_until + CLOCK_TOLERANCE:
            raise VerificationError(
                f"peer {sender.short}'s quote is out of date; ask again, and check both clocks if it stays so",
                peer_id=sender,
            )
        return cls(quote=quote, record=record, signature=signature)
