"""Workers and entries for tests of the roster."""

from __future__ import annotations

import hashlib
from typing import Any

from dht.roster import Entry, Shard, SignedEntry
from dht.roster_queries import CapPut
from swarm.identity import Identity
from swarm.ids import ManifestId
from swarm.receipts import Price

MODEL = ManifestId(b"m" * 32)
CHEAP = Price(per_1k_input=1, per_1k_output=2)


def worker(number: int) -> Identity:
    """The same key for the same number."""
    return Identity(hashlib.sha256(b"worker %d" % number).digest())


def host_of(number: int) -> str:
    """A public address, each in a /24 of its own."""
    return f"{20 + number // 65536}.{number // 256 % 256}.{number % 256}.7"


def entry_of(number: int, **changes: Any) -> Entry:
    """A worker's entry with sensible fields."""
    fields: dict[str, Any] = {
        "worker": worker(number).peer_id, "host": host_of(number), "port": 7000, "dht_port": 6881, "start": 0,
        "stop": 4, "price": CHEAP, "free_slots": 3, "expiry": 2_000_000_000, "seq": 1,
    }  # fmt: skip
    return Entry(**(fields | changes))


def signed(number: int, **changes: Any) -> SignedEntry:
    """It, signed for `MODEL`."""
    return entry_of(number, **changes).sign(worker(number), MODEL)


def put_of(number: int, depth: int = 0, **changes: Any) -> CapPut:
    """The query that writes it into its shard."""
    shard = Shard.of(worker(number).peer_id, depth)
    return CapPut(manifest_id=MODEL, shard=shard, entry=signed(number, **changes).raw, token=b"")
