"""Quotes, candidates and legs of workers that are not there."""

from __future__ import annotations

from typing import Any

from client.route import Candidate, Leg
from swarm.identity import Identity
from swarm.ids import Address, ManifestId
from swarm.receipts import NO_ACCOUNT, Price
from swarm.records import Quote, SignedQuote
from swarm.testing import FAKE_CHAIN_ID, FAKE_CONTRACT

PRICE = Price(per_1k_input=1_000, per_1k_output=3_000)
MANIFEST = ManifestId(b"m" * 32)
NOW = 1_700_000_000


def identity(number: int) -> Identity:
    """A worker's key."""
    return Identity(number.to_bytes(32, "big"))


def quote(number: int = 1, start: int = 0, stop: int = 8, **changes: Any) -> Quote:
    """What worker ``number`` offers."""
    fields: dict[str, Any] = {
        "worker": identity(number).peer_id,
        "manifest_id": MANIFEST,
        "start": start,
        "stop": stop,
        "price": PRICE,
        "account": Address(number.to_bytes(20, "big")),
        "chain_id": FAKE_CHAIN_ID,
        "contract": FAKE_CONTRACT,
        "window": 64,
        "device": "cpu",
        "device_name": "a processor",
        "memory_bytes": 1 << 30,
        "host": "",
        "port": 0,
        "free_slots": 8,
        "free_positions": 4096,
        "queue": 0,
        "decode_rate": 100_000,
        "prefill_rate": 1_000_000,
        "context": 1024,
        "issued": NOW,
        "valid_until": NOW + 300,
    }
    return Quote(**fields | changes)


def free_quote(number: int = 1, **changes: Any) -> Quote:
    """The same for nothing."""
    nothing: dict[str, Any] = {"price": Price(per_1k_input=0, per_1k_output=0), "account": NO_ACCOUNT}
    return quote(number, **nothing | changes)


def signed_quote(number: int = 1, start: int = 0, stop: int = 8, **changes: Any) -> SignedQuote:
    """It, signed."""
    return quote(number, start, stop, **changes).sign(identity(number))


def candidate(number: int = 1, start: int = 0, stop: int = 8, *, rtt: float = 0.01, **changes: Any) -> Candidate:
    """The worker as one that answered."""
    signed = signed_quote(number, start, stop, **changes)
    return Candidate(signed=signed, host="127.0.0.1", port=1000 + number, rtt=rtt)


def leg(number: int = 1, start: int = 0, stop: int = 8, **changes: Any) -> Leg:
    """The worker with its whole span as a stage."""
    return Leg(candidate=candidate(number, start, stop, **changes), start=start, stop=stop)
