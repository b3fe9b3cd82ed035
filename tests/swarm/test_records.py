"""Quotes: canonical bytes that their worker signed, for a while."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import codec
from swarm.errors import ProtocolError, VerificationError
from swarm.ids import Address, ManifestId
from swarm.receipts import Price
from swarm.records import CLOCK_TOLERANCE, MAX_QUOTE, MAX_TEXT, QUOTE_SECONDS, Quote, SignedQuote
from tests.client.quotes import NOW, identity, quote, signed_quote

WORKER = identity(1).peer_id
COUNT = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=MAX_TEXT)
QUOTES = st.builds(
    Quote,
    worker=st.just(WORKER),
    manifest_id=st.binary(min_size=32, max_size=32).map(ManifestId),
    start=st.integers(0, 100),
    stop=st.integers(101, 0xFFFF),
    price=st.builds(Price, per_1k_input=st.integers(0, 2**64 - 1), per_1k_output=st.integers(0, 2**64 - 1)),
    account=st.binary(min_size=20, max_size=20).map(Address),
    chain_id=COUNT,
    contract=st.binary(min_size=20, max_size=20).map(Address),
    window=COUNT,
    device=TEXT,
    device_name=TEXT,
    memory_bytes=COUNT,
    host=TEXT,
    port=st.integers(0, 65535),
    free_slots=COUNT,
    free_positions=COUNT,
    queue=COUNT,
    decode_rate=COUNT,
    prefill_rate=COUNT,
    context=COUNT,
    issued=st.just(NOW),
    valid_until=st.integers(NOW + 1, NOW + QUOTE_SECONDS),
)


@settings(deadline=None)  # a loaded machine is no failure
@given(QUOTES)
def test_a_quote_survives_its_bytes(made: Quote) -> None:
    record = made.pack()
    assert len(record) <= MAX_QUOTE
    assert Quote.unpack(record) == made
    signed = made.sign(identity(1))
    read = SignedQuote.read(signed.record, signed.signature, sender=WORKER, now=NOW)
    assert read == signed
    assert read.terms_hash == hashlib.sha256(record).digest()


@settings(deadline=None)  # a loaded machine is no failure
@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_never_passes(at: int, flip: int) -> None:
    signed = signed_quote(1)
    record = bytearray(signed.record)
    record[at % len(record)] ^= flip
    with pytest.raises((ProtocolError, VerificationError)):
        SignedQuote.read(bytes(record), signed.signature, sender=WORKER, now=NOW)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(max_size=300))
def test_noise_is_no_quote(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        Quote.unpack(noise)


@pytest.mark.parametrize("value", [-1, b"x", [], [1], {}, 2**64 - 1])
@pytest.mark.parametrize("key", sorted(codec.decode(quote().pack(), limit=MAX_QUOTE)))  # type: ignore[arg-type]
def test_a_field_of_another_kind_is_a_protocol_error_or_harmless(key: bytes, value: Any) -> None:
    fields = codec.decode(quote().pack(), limit=MAX_QUOTE)
    assert isinstance(fields, dict)
    fields[key] = value
    try:
        read = Quote.unpack(codec.encode(fields))
    except ProtocolError:
        return
    assert read.pack() == codec.encode(fields)
    assert value in (b"x", 2**64 - 1)  # a text, or a large number


def test_fields_are_all_there_and_no_others() -> None:
    fields = codec.decode(quote().pack(), limit=MAX_QUOTE)
    assert isinstance(fields, dict)
    for key in fields:
        with pytest.raises(ProtocolError):
            Quote.unpack(codec.encode({name: value for name, value in fields.items() if name != key}))
    with pytest.raises(ProtocolError, match="does not know"):
        Quote.unpack(codec.encode({**fields, b"zzz": 1}))
    with pytest.raises(ProtocolError):
        Quote.unpack(codec.encode([]))
    with pytest.raises(ProtocolError, match="limit"):
        Quote.unpack(codec.encode({**fields, b"name": b"x" * MAX_QUOTE}))


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 8},
        {"start": -1},
        {"stop": 0x10000},
        {"memory_bytes": -1},
        {"window": -1},
        {"decode_rate": -1},
        {"context": -1},
        {"port": 65536},
        {"port": -1},
        {"device": "x" * (MAX_TEXT + 1)},
        {"device_name": "x" * (MAX_TEXT + 1)},
        {"host": "x" * (MAX_TEXT + 1)},
        {"device_name": "a\x1b[2Jb"},
        {"host": "a\nb"},
        {"valid_until": NOW},
        {"valid_until": NOW + QUOTE_SECONDS + 1},
    ],
)
def test_what_a_quote_cannot_say(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        quote(**changes)


@pytest.mark.parametrize(
    ("now", "holds"),
    [
        (NOW, True),
        (NOW + 300 + CLOCK_TOLERANCE, True),
        (NOW + 301 + CLOCK_TOLERANCE, False),
        (NOW - CLOCK_TOLERANCE, True),
        (NOW - CLOCK_TOLERANCE - 1, False),
    ],
)
def test_a_quote_holds_for_a_while(now: int, holds: bool) -> None:
    signed = signed_quote(1)
    if holds:
        SignedQuote.read(signed.record, signed.signature, sender=WORKER, now=now)
        return
    with pytest.raises(VerificationError, match="out of date; ask again") as caught:
        SignedQuote.read(signed.record, signed.signature, sender=WORKER, now=now)
    assert caught.value.peer_id == WORKER


def test_a_quote_is_its_workers_own() -> None:
    signed, other = signed_quote(1), identity(2)
    with pytest.raises(VerificationError, match="another worker's") as caught:
        SignedQuote.read(signed.record, signed.signature, sender=other.peer_id, now=NOW)
    assert caught.value.peer_id == other.peer_id
    forged = quote(1).sign(other)
    with pytest.raises(VerificationError):
        SignedQuote.read(forged.record, forged.signature, sender=WORKER, now=NOW)


def test_terms_differ_with_every_field() -> None:
    assert signed_quote(1).terms_hash != replace(quote(1), queue=1).sign(identity(1)).terms_hash
