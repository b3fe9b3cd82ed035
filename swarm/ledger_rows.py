"""What the ledger's transactions do, row by row, over any connection: decisions and SQL, no files and no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from swarm.errors import PaymentError, UsageError
from swarm.ids import CallId
from swarm.ledger_schema import (
    TRANSACTION_HASH_SIZE,
    Call,
    ChannelState,
    StoredReceipt,
    belongs,
    pack_amount,
    pack_voucher,
    unpack_amount,
    unpack_channel,
    unpack_receipt,
    unpack_voucher,
)
from swarm.merkle import EMPTY_ROOT, Frontier
from swarm.receipts import Channel, SignedVoucher


class Cursor(Protocol):
    """The answer to a statement."""

    def fetchall(self) -> list[Any]:
        """Every row. All are fetched always: a statement left half read would hold its snapshot of the file."""


class Connection(Protocol):
    """What is asked of a database connection."""

    def execute(self, statements: str, bindings: Sequence[Any] | None = None, /) -> Cursor:
        """Run one statement."""


def rows(connection: Connection, sql: str, *bindings: Any) -> list[Any]:
    """All rows of a query."""
    return connection.execute(sql, bindings).fetchall()


def value(connection: Connection, sql: str, *bindings: Any) -> Any:
    """The first value of the first row of a query, None where there is no row."""
    found = rows(connection, sql, *bindings)
    return found[0][0] if found else None


def accepted(connection: Connection, channel: Channel) -> SignedVoucher | None:
    """The highest voucher taken on a channel."""
    return unpack_voucher(value(connection, "SELECT accepted FROM channel WHERE packed = ?", channel.pack()))


def issued(connection: Connection, channel: Channel) -> SignedVoucher | None:
    """The last voucher given on a channel."""
    return unpack_voucher(value(connection, "SELECT issued FROM channel WHERE packed = ?", channel.pack()))


def earned(connection: Connection, channel: Channel) -> int:
    """The highest cumulative of a channel's receipts."""
    return unpack_amount(value(connection, "SELECT earned FROM channel WHERE packed = ?", channel.pack()) or b"")


def settled(connection: Connection, channel: Channel) -> int:
    """What was marked as paid on a channel."""
    return unpack_amount(value(connection, "SELECT settled FROM channel WHERE packed = ?", channel.pack()) or b"")


def channels(connection: Connection) -> list[ChannelState]:
    """Every channel, in the order of first use."""
    return [
        ChannelState(
            channel=unpack_channel(packed),
            accepted=unpack_voucher(taken),
            issued=unpack_voucher(given),
            earned=unpack_amount(earned),
            settled=unpack_amount(settled),
            receipts=receipts,
        )
        for packed, taken, given, earned, settled, receipts in rows(
            connection, "SELECT packed, accepted, issued, earned, settled, receipts FROM channel ORDER BY id"
        )
    ]


def receipts(connection: Connection, channel: Channel) -> list[StoredReceipt]:
    """A channel's receipts in recording order."""
    found = rows(
        connection,
        "SELECT record, worker_signature, client_signature FROM receipt"
        " WHERE channel = (SELECT id FROM channel WHERE packed = ?) ORDER BY position",
        channel.pack(),
    )
    return [unpack_receipt(*row) for row in found]


def receipts_root(connection: Connection, channel: Channel) -> bytes:
    """The Merkle root over a channel's receipts, from the peaks kept with it."""
    found = rows(connection, "SELECT receipts, peaks FROM channel WHERE packed = ?", channel.pack())
    return Frontier.restore(*found[0]).root() if found else EMPTY_ROOT


def calls(connection: Connection, limit: int) -> list[Call]:
    """The last calls, latest first."""
    found: dict[bytes, list[StoredReceipt]] = {}
    for call_id, *row in rows(
        connection,
        "SELECT call_id, record, worker_signature, client_signature FROM receipt JOIN"
        " (SELECT call_id AS call, max(position) AS latest FROM receipt GROUP BY call_id"
        "  ORDER BY latest DESC LIMIT ?) ON call_id = call ORDER BY latest DESC, start, worker",
        limit,
    ):
        found.setdefault(call_id, []).append(unpack_receipt(*row))
    return [Call(call_id=CallId(call_id), receipts=tuple(stored)) for call_id, stored in found.items()]


def accept(connection: Connection, signed: SignedVoucher) -> bool:
    """Keep a voucher if it is its channel's highest; whether it is."""
    highest = accepted(connection, signed.voucher.channel)
    if highest is not None and highest.voucher.cumulative >= signed.voucher.cumulative:
        return False
    row = _channel_row(connection, signed.voucher.channel)
    connection.execute("UPDATE channel SET accepted = ? WHERE id = ?", (pack_voucher(signed), row))
    return True


def issue(connection: Connection, signed: SignedVoucher) -> None:
    """Record a voucher that rises. Raises `PaymentError` for one that does not."""
    voucher = signed.voucher
    last = issued(connection, voucher.channel)
    if last is not None and last.voucher.cumulative >= voucher.cumulative:
        raise PaymentError(
            f"a voucher for {voucher.cumulative} does not rise above the last one's"
            f" {last.voucher.cumulative}; issue a higher one"
        )
    if last is not None and last.voucher.nonce >= voucher.nonce:
        raise PaymentError(
            f"a voucher's nonce {voucher.nonce} does not rise above {last.voucher.nonce}; use the next one"
        )
    row = _channel_row(connection, voucher.channel)
    connection.execute("UPDATE channel SET issued = ? WHERE id = ?", (pack_voucher(signed), row))


def record(connection: Connection, channel: Channel, stored: StoredReceipt) -> None:
    """Keep a receipt and append its leaf, once. Raises `PaymentError` if it contradicts what is there."""
    receipt = stored.receipt
    if not belongs(receipt, channel):
        raise PaymentError(
            f"the receipt for call {receipt.call_id.short} names another channel; record it under its own",
            call_id=receipt.call_id,
        )
    row = _channel_row(connection, channel)
    if not _is_recorded(connection, row, stored):
        _insert(connection, row, stored)


def settle(connection: Connection, channel: Channel, amount: int, transaction_hash: bytes) -> None:
    """Note what a transaction paid; the highest amount counts. Raises `UsageError` for a hash of another size."""
    if len(transaction_hash) != TRANSACTION_HASH_SIZE:
        raise UsageError(f"a transaction hash is {TRANSACTION_HASH_SIZE} bytes, not {len(transaction_hash)}")
    row = _channel_row(connection, channel)
    connection.execute(
        "INSERT INTO settlement VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (row, bytes(transaction_hash), pack_amount(amount)),
    )
    connection.execute("UPDATE channel SET settled = max(settled, ?) WHERE id = ?", (pack_amount(amount), row))


def _channel_row(connection: Connection, channel: Channel) -> int:
    """The row number of a channel, which is made if it is not there."""
    packed = channel.pack()
    connection.execute("INSERT INTO channel (packed) VALUES (?) ON CONFLICT DO NOTHING", (packed,))
    return int(value(connection, "SELECT id FROM channel WHERE packed = ?", packed))


def _is_recorded(connection: Connection, channel: int, stored: StoredReceipt) -> bool:
    """Whether this receipt is there already; completes it with the client's signature where that was missing."""
    receipt = stored.receipt
    found = rows(
        connection,
        "SELECT position, channel, record FROM receipt WHERE call_id = ? AND worker = ? AND start = ?",
        bytes(receipt.call_id),
        bytes(receipt.worker),
        receipt.start,
    )
    if not found:
        return False
    position, *recorded = found[0]
    if recorded != [channel, receipt.pack()]:
        raise PaymentError(
            f"another receipt for call {receipt.call_id.short} at layer {receipt.start} is already recorded;"
            " the first one stands",
            call_id=receipt.call_id,
            peer_id=receipt.worker,
        )
    connection.execute(
        "UPDATE receipt SET client_signature = coalesce(client_signature, ?) WHERE position = ?",
        (stored.client_signature, position),
    )
    return True


def _insert(connection: Connection, channel: int, stored: StoredReceipt) -> None:
    receipt = stored.receipt
    connection.execute(
        "INSERT INTO receipt (channel, call_id, worker, start, record, worker_signature, client_signature)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            channel,
            bytes(receipt.call_id),
            bytes(receipt.worker),
            receipt.start,
            receipt.pack(),
            stored.worker_signature,
            stored.client_signature,
        ),
    )
    [(count, peaks)] = rows(connection, "SELECT receipts, peaks FROM channel WHERE id = ?", channel)
    frontier = Frontier.restore(count, peaks)
    frontier.append(receipt.leaf())
    connection.execute(
        "UPDATE channel SET receipts = ?, peaks = ?, earned = max(earned, ?) WHERE id = ?",
        (frontier.count, frontier.peaks, pack_amount(receipt.cumulative), channel),
    )
