"""What one worker writes into the rosters of its model, and into which shards: the decisions of its heartbeat.

At each beat it writes to its own shard. Once the roster is split it also writes, now and then, to one of those who
keep the top, where readers begin: each of them holds a random sample of its own, about as large as a shard, so that a
reader who asks several sees many times as many. Where its own shard is crowded it goes one level deeper at once; where
it is nearly empty, one level back at the next beat. The gap between the two keeps writers from wandering.
"""

from __future__ import annotations

from dataclasses import dataclass

from dht.config import Randomness
from dht.roster import ENTRY_TTL, MAX_DEPTH, Entry, Shard
from dht.roster_queries import CapPut
from dht.roster_store import HOT_ENTRIES
from dht.routing import BUCKET_SIZE
from swarm.identity import Identity
from swarm.ids import ManifestId
from swarm.receipts import Price

BEAT = 60.0  # seconds between writes
JITTER = 0.2  # of it, either way, so that workers started together drift apart
SAMPLING = BUCKET_SIZE * BEAT / ENTRY_TTL  # so many times 2^-depth at each beat: entries stay for several beats
FEW_ENTRIES = 50  # a quarter of what splits a shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """What a worker wants known: the part of a roster entry that is its own to say."""

    manifest_id: ManifestId
    host: str | None = None
    """Where it is called, numeric; None for where other nodes see its DHT node."""
    port: int
    """TCP port for calls."""
    start: int
    stop: int
    variant: str = ""
    region: str = ""
    price: Price
    free_slots: int
    decode_rate: int = 0
    """Thousandths of a token per second for the whole span."""


class Heartbeat:
    """The writes of one worker for one model."""

    def __init__(self, identity: Identity, manifest_id: ManifestId, rng: Randomness) -> None:
        self._identity = identity
        self._manifest_id = manifest_id
        self._rng = rng
        self._seq = 0
        self.depth = 0  # of its shard

    def pause(self) -> float:
        """Seconds until the next beat."""
        return BEAT * (1 - JITTER + 2 * JITTER * self._rng.random())

    def own(self, advert: Advert, host: str, dht_port: int, unix_now: float) -> CapPut:
        """The write to its own shard; its token is filled in by the engine."""
        return self._write(self.depth, self._entry(advert, host, dht_port, unix_now, ttl=ENTRY_TTL))

    def sample(self, advert: Advert, host: str, dht_port: int, unix_now: float) -> CapPut | None:
        """The write to one storer of the top, if this beat's draw asks for one."""
        if not self.depth or self._rng.random() >= SAMPLING / 2**self.depth:
            return None
        return self._write(0, self._entry(advert, host, dht_port, unix_now, ttl=ENTRY_TTL))

    def withdrawal(self, advert: Advert, host: str, dht_port: int, unix_now: float) -> list[CapPut]:
        """What takes its entries out of its shard and the top."""
        entry = self._entry(advert, host, dht_port, unix_now, ttl=None)
        return [self._write(level, entry) for level in sorted({0, self.depth})]

    def heard(self, count: int, depth: int) -> bool:
        """Note how many entries its own shard held, and the usual depth of their writers.

        Returns whether it has to write deeper now.
        """
        if self.depth < depth and self.depth == 0:
            self.depth = min(depth, MAX_DEPTH)  # a newcomer goes where the others are
            return True
        if count > HOT_ENTRIES and self.depth < MAX_DEPTH:
            self.depth += 1
            return True
        if count < FEW_ENTRIES and self.depth > 0:
            self.depth -= 1
        return False

    def _entry(self, advert: Advert, host: str, dht_port: int, unix_now: float, ttl: float | None) -> Entry:
        self._seq = max(self._seq + 1, int(unix_now * 1000))  # above what it said before it was restarted
        return Entry(
            worker=self._identity.peer_id, host=host, port=advert.port, dht_port=dht_port, start=advert.start,
            stop=advert.stop, variant=advert.variant, region=advert.region, price=advert.price,
            free_slots=min(advert.free_slots, 0xFFFF), decode_rate=min(advert.decode_rate, 2**32 - 1),
            depth=self.depth, expiry=0 if ttl is None else int(unix_now + ttl), seq=self._seq,
        )  # fmt: skip

    def _write(self, level: int, entry: Entry) -> CapPut:
        signed = entry.sign(self._identity, self._manifest_id)
        shard = Shard.of(entry.worker, level)
        return CapPut(manifest_id=self._manifest_id, shard=shard, entry=signed.raw, token=b"")
