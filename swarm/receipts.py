"""Vouchers and receipts: the two signed records of a paid call, in their final fixed-width layout.

A **voucher** is the client's cumulative promise to one worker on one channel; the contract checks its signature, so
its layout is the contract's: big-endian, EVM widths. A **receipt** records one call at one stage and is signed by
both sides; its hash is a leaf under the `receipts_root` of the channel's next voucher. Money is in base units of the
settlement token; prices are base units per 1000 tokens and layer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from swarm.errors import ProtocolError
from swarm.identity import SIGNATURE_SIZE, Identity, domain_tag, record_message, verify_record
from swarm.ids import Address, CallId, ManifestId, PeerId, SessionId
from swarm.merkle import HASH_SIZE, leaf_hash

VOUCHER_TAG = domain_tag("swarm-pay/v1")
RECEIPT_TAG = domain_tag("swarm-rcpt/v1")
WINDOW_TOKENS = 64  # tokens a voucher prepays, and so the most that either side can lose

UINT64_MAX = 2**64 - 1
UINT128_MAX = 2**128 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one layer costs, in base units per 1000 tokens."""

    per_1k_input: int
    per_1k_output: int

    def __post_init__(self) -> None:
        _in_range("per_1k_input", self.per_1k_input, UINT64_MAX)
        _in_range("per_1k_output", self.per_1k_output, UINT64_MAX)

    def amount(self, *, layers: int, input_tokens: int, output_tokens: int) -> int:
        """What ``layers`` layers cost for these tokens, rounded up to a whole base unit."""
        milli = layers * (input_tokens * self.per_1k_input + output_tokens * self.per_1k_output)
        return -(-milli // 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What names a channel: the contract, its two parties on chain, and the epoch that rises at every re-open."""

    chain_id: int
    contract: Address
    client: Address
    worker: Address
    epoch: int

    def __post_init__(self) -> None:
        _in_range("chain_id", self.chain_id, 2**256 - 1)
        _in_range("epoch", self.epoch, UINT64_MAX)

    def pack(self) -> bytes:
        """The first 100 bytes of a voucher: chain_id 32 | contract 20 | client 20 | worker 20 | epoch 8."""
        return b"".join(
            (
                self.chain_id.to_bytes(32, "big"),
                self.contract,
                self.client,
                self.worker,
                self.epoch.to_bytes(8, "big"),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """chain_id 32 | contract 20 | client 20 | worker 20 | epoch 8 | nonce 8 | cumulative 16 | receipts_root 32 |
    terms_hash 32: 188 bytes."""

    SIZE: ClassVar[int] = 188

    channel: Channel
    nonce: int
    cumulative: int
    receipts_root: bytes
    terms_hash: bytes

    def __post_init__(self) -> None:
        _in_range("nonce", self.nonce, UINT64_MAX)
        _in_range("cumulative", self.cumulative, UINT128_MAX)
        _is_hash("receipts_root", self.receipts_root)
        _is_hash("terms_hash", self.terms_hash)

    def pack(self) -> bytes:
        """The record that is hashed and signed."""
        return b"".join(
            (
                self.channel.pack(),
                self.nonce.to_bytes(8, "big"),
                self.cumulative.to_bytes(16, "big"),
                self.receipts_root,
                self.terms_hash,
            )
        )

    @classmethod
    def unpack(cls, record: bytes) -> Voucher:
        """Read a record. Raises `ProtocolError` unless it is exactly one."""
        if len(record) != cls.SIZE:
            raise ProtocolError(f"a voucher is {cls.SIZE} bytes, not {len(record)}")
        channel = Channel(
            chain_id=int.from_bytes(record[:32], "big"),
            contract=Address(record[32:52]),
            client=Address(record[52:72]),
            worker=Address(record[72:92]),
            epoch=int.from_bytes(record[92:100], "big"),
        )
        return cls(
            channel=channel,
            nonce=int.from_bytes(record[100:108], "big"),
            cumulative=int.from_bytes(record[108:124], "big"),
            receipts_root=record[124:156],
            terms_hash=record[156:188],
        )

    def sign(self, spending: Identity) -> SignedVoucher:
        """Sign with the client's spending key."""
        return SignedVoucher(voucher=self, signature=spending.sign_record(VOUCHER_TAG, self.pack()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVoucher:
    """A voucher with the spending key's signature over it."""

    voucher: Voucher
    signature: bytes

    def __post_init__(self) -> None:
        if len(self.signature) != SIGNATURE_SIZE:
            raise ProtocolError(f"a signature is {SIGNATURE_SIZE} bytes, not {len(self.signature)}")

    def message(self) -> bytes:
        """The 47 bytes under the signature, as the contract rebuilds them."""
        return record_message(VOUCHER_TAG, self.voucher.pack())

    def verify(self, spending_key: PeerId) -> None:
        """Raise `VerificationError` unless ``spending_key`` signed it."""
        verify_record(spending_key, VOUCHER_TAG, self.voucher.pack(), self.signature)


_RECEIPT = struct.Struct("!32s32s32s16s16sIHH32s32s32s32sIIIQQ16s16s20s20sQQQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One call at one stage. 388 bytes, big-endian, in the order of the fields.

    manifest 32 | client 32 | worker 32 | session 16 | call 16 | epoch 4 | start 2 | stop 2 | request_hash 32 |
    input_root 32 | output_root 32 | fingerprint_root 32 | input_tokens 4 | output_tokens 4 | rebuilt_tokens 4 |
    per_1k_input 8 | per_1k_output 8 | amount 16 | cumulative 16 | client_account 20 | worker_account 20 |
    channel_epoch 8 | started_ms 8 | finished_ms 8
    """

    SIZE: ClassVar[int] = _RECEIPT.size

    manifest_id: ManifestId
    client: PeerId
    """The client's peer key, which signs the receipt (the spending key signs vouchers alone)."""
    worker: PeerId
    session_id: SessionId
    call_id: CallId
    chain_epoch: int
    start: int
    stop: int
    request_hash: bytes
    input_root: bytes
    output_root: bytes
    fingerprint_root: bytes
    input_tokens: int
    output_tokens: int
    rebuilt_tokens: int
    """Prompt and output tokens replayed after a repair, billed at the input price."""
    price: Price
    amount: int
    cumulative: int
    """What this channel has earned in all, this call included."""
    client_account: Address
    worker_account: Address
    channel_epoch: int
    started_ms: int
    finished_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 0xFFFF:
            raise ProtocolError(f"a receipt's span [{self.start}, {self.stop}) is empty or out of range")
        for name in ("request_hash", "input_root", "output_root", "fingerprint_root"):
            _is_hash(name, getattr(self, name))
        for name in ("chain_epoch", "input_tokens", "output_tokens", "rebuilt_tokens"):
            _in_range(name, getattr(self, name), 2**32 - 1)
        for name in ("channel_epoch", "started_ms", "finished_ms"):
            _in_range(name, getattr(self, name), UINT64_MAX)
        for name in ("amount", "cumulative"):
            _in_range(name, getattr(self, name), UINT128_MAX)
        if self.amount != self.due():
            raise ProtocolError(
                f"a receipt's amount {self.amount} is not what its tokens and price give ({self.due()})"
            )

    def due(self) -> int:
        """What the token counts cost at the price."""
        return self.price.amount(
            layers=self.stop - self.start,
            input_tokens=self.input_tokens + self.rebuilt_tokens,
            output_tokens=self.output_tokens,
        )

    def pack(self) -> bytes:
        """The record that both sides sign."""
        return _RECEIPT.pack(
            self.manifest_id,
            self.client,
            self.worker,
            self.session_id,
            self.call_id,
            self.chain_epoch,
            self.start,
            self.stop,
            self.request_hash,
            self.input_root,
            self.output_root,
            self.fingerprint_root,
            self.input_tokens,
            self.output_tokens,
            self.rebuilt_tokens,
            self.price.per_1k_input,
            self.price.per_1k_output,
            self.amount.to_bytes(16, "big"),
            self.cumulative.to_bytes(16, "big"),
            self.client_account,
            self.worker_account,
            self.channel_epoch,
            self.started_ms,
            self.finished_ms,
        )

    @classmethod
    def unpack(cls, record: bytes) -> Receipt:
        """Read a record. Raises `ProtocolError` unless it is exactly one, with an amount that adds up."""
        if len(record) != cls.SIZE:
            raise ProtocolError(f"a receipt is {cls.SIZE} bytes, not {len(record)}")
        f = _RECEIPT.unpack(record)
        return cls(
            manifest_id=ManifestId(f[0]),
            client=PeerId(f[1]),
            worker=PeerId(f[2]),
            session_id=SessionId(f[3]),
            call_id=CallId(f[4]),
            chain_epoch=f[5],
            start=f[6],
            stop=f[7],
            request_hash=f[8],
            input_root=f[9],
            output_root=f[10],
            fingerprint_root=f[11],
            input_tokens=f[12],
            output_tokens=f[13],
            rebuilt_tokens=f[14],
            price=Price(per_1k_input=f[15], per_1k_output=f[16]),
            amount=int.from_bytes(f[17], "big"),
            cumulative=int.from_bytes(f[18], "big"),
            client_account=Address(f[19]),
            worker_account=Address(f[20]),
            channel_epoch=f[21],
            started_ms=f[22],
            finished_ms=f[23],
        )

    def leaf(self) -> bytes:
        """Its leaf under a channel's receipts root."""
        return leaf_hash(self.pack())

    def sign(self, identity: Identity) -> bytes:
        """One side's signature, 64 bytes."""
        return identity.sign_record(RECEIPT_TAG, self.pack())

    def verify(self, signer: PeerId, signature: bytes) -> None:
        """Raise `VerificationError` unless ``signer`` (the client or the worker) signed it."""
        verify_record(signer, RECEIPT_TAG, self.pack(), signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt:
    """A receipt with both signatures."""

    receipt: Receipt
    worker_signature: bytes
    client_signature: bytes

    def verify(self) -> None:
        """Raise `VerificationError` unless both sides signed."""
        self.receipt.verify(self.receipt.worker, self.worker_signature)
        self.receipt.verify(self.receipt.client, self.client_signature)


def _in_range(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise ProtocolError(f"{name} is {value}, outside 0..{most}")


def _is_hash(name: str, value: bytes) -> None:
    if len(value) != HASH_SIZE:
        raise ProtocolError(f"{name} is {len(value)} bytes, not {HASH_SIZE}")


NO_ACCOUNT = Address(bytes(Address.size))
"""Stands for the account of a side that pays nothing or asks nothing."""

FREE_CHANNEL = Channel(chain_id=0, contract=NO_ACCOUNT, client=NO_ACCOUNT, worker=NO_ACCOUNT, epoch=0)
"""Where receipts of unpaid calls are kept."""
