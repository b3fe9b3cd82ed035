from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ProtocolError, VerificationError
from swarm.identity import Identity
from swarm.ids import Address, CallId, ManifestId, SessionId
from swarm.merkle import leaf_hash
from swarm.receipts import UINT64_MAX, UINT128_MAX, Channel, Price, Receipt, SignedReceipt, SignedVoucher, Voucher

CLIENT, WORKER, SPENDING = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
CHANNEL = Channel(
    chain_id=0x0102,
    contract=Address(b"\x11" * 20),
    client=Address(b"\x22" * 20),
    worker=Address(b"\x33" * 20),
    epoch=0x0405,
)
VOUCHER = Voucher(channel=CHANNEL, nonce=0x0607, cumulative=0x0809, receipts_root=b"\x44" * 32, terms_hash=b"\x55" * 32)
RECEIPT = Receipt(
    manifest_id=ManifestId(b"\x61" * 32),
    client=CLIENT.peer_id,
    worker=WORKER.peer_id,
    session_id=SessionId(b"\x62" * 16),
    call_id=CallId(b"\x63" * 16),
    chain_epoch=0x0A0B,
    start=2,
    stop=5,
    request_hash=b"\x64" * 32,
    input_root=b"\x65" * 32,
    output_root=b"\x66" * 32,
    fingerprint_root=b"\x67" * 32,
    input_tokens=10,
    output_tokens=20,
    rebuilt_tokens=5,
    price=Price(per_1k_input=1000, per_1k_output=3000),
    amount=3 * (15 * 1 + 20 * 3),
    cumulative=0x0C0D,
    client_account=CHANNEL.client,
    worker_account=CHANNEL.worker,
    channel_epoch=CHANNEL.epoch,
    started_ms=0x0E0F,
    finished_ms=0x1011,
)


def u(value: int, size: int) -> str:
    return value.to_bytes(size, "big").hex()


def test_the_voucher_layout_is_final() -> None:
    golden = (
        u(0x0102, 32) + "11" * 20 + "22" * 20 + "33" * 20 + u(0x0405, 8) + u(0x0607, 8) + u(0x0809, 16)
        + "44" * 32 + "55" * 32
    )  # fmt: skip
    assert VOUCHER.pack().hex() == golden
    assert len(VOUCHER.pack()) == Voucher.SIZE == 188
    digest = hashlib.sha256(VOUCHER.pack()).hexdigest()
    assert digest == "17591c2ceab9a73e6c5baf3e2a9170de15e08ddbae95abc1b57817b02e888344"
    assert CHANNEL.pack() == VOUCHER.pack()[:100]


def test_the_receipt_layout_is_final() -> None:
    golden = (
        "61" * 32 + CLIENT.peer_id.hex() + WORKER.peer_id.hex() + "62" * 16 + "63" * 16 + u(0x0A0B, 4) + u(2, 2)
        + u(5, 2) + "64" * 32 + "65" * 32 + "66" * 32 + "67" * 32 + u(10, 4) + u(20, 4) + u(5, 4) + u(1000, 8)
        + u(3000, 8) + u(225, 16) + u(0x0C0D, 16) + "22" * 20 + "33" * 20 + u(0x0405, 8) + u(0x0E0F, 8) + u(0x1011, 8)
    )  # fmt: skip
    assert RECEIPT.pack().hex() == golden
    assert len(RECEIPT.pack()) == Receipt.SIZE == 388
    assert RECEIPT.leaf() == leaf_hash(bytes.fromhex(golden))
    assert RECEIPT.leaf().hex() == "6be60f05e243af18e1f2ae408dccc6f1e0aed0352b2ea3da54d965a6534486b8"


def test_signatures_are_final() -> None:
    signed = VOUCHER.sign(SPENDING)
    assert signed.message() == b"swarm-pay/v1\0\0\0" + hashlib.sha256(VOUCHER.pack()).digest()
    assert signed.signature == SPENDING.sign_raw(signed.message())
    assert signed.signature.hex() == (
        "910d5242e335e8524f3a35e639f33a8276a66de4915c1863a4a7d4e1ecb9be58"
        "ffc2b58e5d8fd1a1aaabfe50f4d3c627e1b765f55688360ec293b4e5aa918203"
    )
    assert RECEIPT.sign(WORKER) == WORKER.sign_raw(b"swarm-rcpt/v1\0\0" + hashlib.sha256(RECEIPT.pack()).digest())


@given(st.binary(min_size=188, max_size=188))
def test_every_voucher_record_is_one_voucher(record: bytes) -> None:
    assert Voucher.unpack(record).pack() == record


@given(st.binary(min_size=388, max_size=388))
def test_a_receipt_record_is_one_receipt_or_refused(record: bytes) -> None:
    try:
        receipt = Receipt.unpack(record)
    except ProtocolError:
        return
    assert receipt.pack() == record


PRICES = st.builds(Price, per_1k_input=st.integers(0, UINT64_MAX), per_1k_output=st.integers(0, UINT64_MAX))


@given(st.integers(0, 0xFFFE), st.integers(1, 0xFFFF), PRICES, st.tuples(*[st.integers(0, 2**32 - 1)] * 3), st.data())
def test_receipts_survive_packing(
    start: int, layers: int, price: Price, tokens: tuple[int, int, int], data: st.DataObject
) -> None:
    stop = min(start + layers, 0xFFFF)
    fresh, written, rebuilt = tokens
    receipt = dataclasses.replace(
        RECEIPT,
        start=start,
        stop=stop,
        price=price,
        input_tokens=fresh,
        output_tokens=written,
        rebuilt_tokens=rebuilt,
        amount=price.amount(layers=stop - start, input_tokens=fresh + rebuilt, output_tokens=written),
        cumulative=data.draw(st.integers(0, UINT128_MAX)),
    )
    assert Receipt.unpack(receipt.pack()) == receipt


@pytest.mark.parametrize("size", [0, 187, 189])
def test_a_voucher_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"188 bytes, not {size}"):
        Voucher.unpack(bytes(size))


@pytest.mark.parametrize("size", [0, 387, 389])
def test_a_receipt_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"388 bytes, not {size}"):
        Receipt.unpack(bytes(size))


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": -1},
        {"nonce": 2**64},
        {"cumulative": -1},
        {"cumulative": 2**128},
        {"receipts_root": bytes(31)},
        {"terms_hash": bytes(33)},
    ],
)
def test_a_voucher_checks_itself(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=next(iter(change))):
        dataclasses.replace(VOUCHER, **change)


@pytest.mark.parametrize("change", [{"epoch": -1}, {"epoch": 2**64}, {"chain_id": -1}, {"chain_id": 2**256}])
def test_a_channel_checks_itself(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=next(iter(change))):
        dataclasses.replace(CHANNEL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"start": 5},
        {"start": -1},
        {"stop": 0x10000},
        {"amount": RECEIPT.amount + 1},
        {"amount": RECEIPT.amount - 1},
        {"rebuilt_tokens": 6},
        {"input_tokens": 2**32},
        {"chain_epoch": 2**32},
        {"cumulative": 2**128},
        {"channel_epoch": 2**64},
        {"finished_ms": -1},
        {"output_root": bytes(31)},
        {"fingerprint_root": b""},
    ],
)
def test_a_receipt_checks_itself(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        dataclasses.replace(RECEIPT, **change)


def test_an_amount_is_rounded_up_to_a_whole_unit() -> None:
    price = Price(per_1k_input=1, per_1k_output=2)
    assert price.amount(layers=1, input_tokens=0, output_tokens=0) == 0
    assert price.amount(layers=1, input_tokens=1, output_tokens=0) == 1
    assert price.amount(layers=8, input_tokens=125, output_tokens=0) == 1
    assert price.amount(layers=8, input_tokens=125, output_tokens=1) == 2
    with pytest.raises(ProtocolError, match="per_1k_output"):
        Price(per_1k_input=0, per_1k_output=-1)


def test_a_voucher_counts_for_its_own_spending_key_and_content() -> None:
    signed = VOUCHER.sign(SPENDING)
    signed.verify(SPENDING.peer_id)
    with pytest.raises(VerificationError):
        signed.verify(CLIENT.peer_id)
    raised = dataclasses.replace(VOUCHER, cumulative=VOUCHER.cumulative + 1)
    with pytest.raises(VerificationError):
        SignedVoucher(voucher=raised, signature=signed.signature).verify(SPENDING.peer_id)
    with pytest.raises(ProtocolError, match="64 bytes, not 63"):
        SignedVoucher(voucher=VOUCHER, signature=signed.signature[:63])


def test_a_receipt_needs_both_signatures() -> None:
    worker_signature, client_signature = RECEIPT.sign(WORKER), RECEIPT.sign(CLIENT)
    SignedReceipt(receipt=RECEIPT, worker_signature=worker_signature, client_signature=client_signature).verify()
    for first, second in ((client_signature, worker_signature), (worker_signature, worker_signature)):
        with pytest.raises(VerificationError):
            SignedReceipt(receipt=RECEIPT, worker_signature=first, client_signature=second).verify()
