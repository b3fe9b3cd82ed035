"""What the ledger's file holds: its tables, and its rows as values. Pure; `swarm.ledger` does the storing.

Two tables carry both roles: a **channel** row holds the state a decision needs (the highest voucher taken, the last
one issued, what was earned and settled, the peaks of the receipts' Merkle tree), so that each is one read by key; a
**receipt** row holds one call at one stage. Amounts have 128 bits, which SQLite's integers have not: they are 16
bytes, big-endian, and so compare as numbers do.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.errors import ProtocolError
from swarm.identity import SIGNATURE_SIZE
from swarm.ids import Address, CallId
from swarm.receipts import Channel, Receipt, SignedReceipt, SignedVoucher, Voucher

APPLICATION_ID = 0x5377726D  # "Swrm": tells a ledger from any other SQLite file
AMOUNT_SIZE = 16
TRANSACTION_HASH_SIZE = 32

# One script per version of the file; `PRAGMA user_version` counts the ones that were run. Scripts are only added.
MIGRATIONS = (
    """
    CREATE TABLE channel (
        id          INTEGER PRIMARY KEY,
        packed      BLOB NOT NULL UNIQUE CHECK (length(packed) = 100),
        accepted    BLOB CHECK (length(accepted) = 252),
        issued      BLOB CHECK (length(issued) = 252),
        earned      BLOB NOT NULL DEFAULT (zeroblob(16)) CHECK (length(earned) = 16),
        settled     BLOB NOT NULL DEFAULT (zeroblob(16)) CHECK (length(settled) = 16),
        receipts    INTEGER NOT NULL DEFAULT 0,
        peaks       BLOB NOT NULL DEFAULT x''
    ) STRICT;

    CREATE TABLE receipt (
        position         INTEGER PRIMARY KEY,
        channel          INTEGER NOT NULL REFERENCES channel,
        call_id          BLOB NOT NULL,
        worker           BLOB NOT NULL,
        start            INTEGER NOT NULL,
        record           BLOB NOT NULL CHECK (length(record) = 388),
        worker_signature BLOB NOT NULL CHECK (length(worker_signature) = 64),
        client_signature BLOB CHECK (length(client_signature) = 64),
        UNIQUE (call_id, worker, start)
    ) STRICT;
    CREATE INDEX receipt_of_channel ON receipt (channel, position);

    CREATE TABLE settlement (
        channel          INTEGER NOT NULL REFERENCES channel,
        transaction_hash BLOB NOT NULL CHECK (length(transaction_hash) = 32),
        amount           BLOB NOT NULL CHECK (length(amount) = 16),
        PRIMARY KEY (channel, transaction_hash)
    ) STRICT, WITHOUT ROWID;
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """All that is known of one channel."""

    channel: Channel
    accepted: SignedVoucher | None
    """The highest voucher taken, on the worker's side."""
    issued: SignedVoucher | None
    """The last voucher given, on the client's side."""
    earned: int
    """The highest cumulative of its receipts, in base units."""
    settled: int
    """What the contract has paid for it in all, in base units."""
    receipts: int
    """How many receipts it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReceipt:
    """A receipt as it is kept: the worker's signature is there from the start, the client's may come later."""

    receipt: Receipt
    worker_signature: bytes
    client_signature: bytes | None

    def __post_init__(self) -> None:
        for signature in (self.worker_signature, self.client_signature):
            if signature is not None and len(signature) != SIGNATURE_SIZE:
                raise ProtocolError(f"a signature is {SIGNATURE_SIZE} bytes, not {len(signature)}")

    def signed(self) -> SignedReceipt | None:
        """The receipt with both signatures, once both are there."""
        if self.client_signature is None:
            return None
        return SignedReceipt(
            receipt=self.receipt,
            worker_signature=self.worker_signature,
            client_signature=self.client_signature,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One billed call: its receipts, in the order of the layers."""

    call_id: CallId
    receipts: tuple[StoredReceipt, ...]

    @property
    def amount(self) -> int:
        """What the call cost in all, in base units."""
        return sum(stored.receipt.amount for stored in self.receipts)

    @property
    def started_ms(self) -> int:
        """When its first stage began, in milliseconds since the epoch."""
        return min(stored.receipt.started_ms for stored in self.receipts)

    @property
    def finished_ms(self) -> int:
        """When its last stage ended, in milliseconds since the epoch."""
        return max(stored.receipt.finished_ms for stored in self.receipts)


def pack_amount(amount: int) -> bytes:
    """The 16 bytes that an amount is stored as."""
    return amount.to_bytes(AMOUNT_SIZE, "big")


def unpack_amount(raw: bytes) -> int:
    """The amount in base units."""
    return int.from_bytes(raw, "big")


def pack_voucher(signed: SignedVoucher) -> bytes:
    """The voucher record and its signature, 252 bytes."""
    return signed.voucher.pack() + signed.signature


def unpack_voucher(raw: bytes | None) -> SignedVoucher | None:
    """The voucher of a column that may be empty."""
    if raw is None:
        return None
    return SignedVoucher(voucher=Voucher.unpack(raw[: Voucher.SIZE]), signature=raw[Voucher.SIZE :])


def unpack_channel(packed: bytes) -> Channel:
    """The channel whose `Channel.pack` this is."""
    return Channel(
        chain_id=int.from_bytes(packed[:32], "big"),
        contract=Address(packed[32:52]),
        client=Address(packed[52:72]),
        worker=Address(packed[72:92]),
        epoch=int.from_bytes(packed[92:], "big"),
    )


def unpack_receipt(record: bytes, worker_signature: bytes, client_signature: bytes | None) -> StoredReceipt:
    """The receipt of one row."""
    return StoredReceipt(
        receipt=Receipt.unpack(record), worker_signature=worker_signature, client_signature=client_signature
    )


def belongs(receipt: Receipt, channel: Channel) -> bool:
    """Whether the receipt was written for this channel (a receipt names its parties and epoch, not the contract)."""
    return (receipt.client_account, receipt.worker_account, receipt.channel_epoch) == (
        channel.client,
        channel.worker,
        channel.epoch,
    )
