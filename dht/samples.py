"""What a node shows of the info-hashes it keeps peers of: a random few, the same ones for a while (BEP 51)."""

from __future__ import annotations

from dht.config import Randomness
from dht.keys import Target
from dht.replies import Samples
from dht.store import PeerStore

MAX_SAMPLES = 40  # 800 bytes: with nodes and envelope still one datagram
INTERVAL = 600  # seconds: a crawler gains nothing by asking more often, and learns little about who announced when


class Sampler:
    """Draws from a `PeerStore`."""

    def __init__(self, peers: PeerStore, rng: Randomness) -> None:
        self._peers = peers
        self._rng = rng
        self._shown: tuple[Target, ...] = ()
        self._until = float("-inf")

    def draw(self, now: float) -> Samples:
        """A sample, drawn anew when the last one is `INTERVAL` old, or was all there was and more came since."""
        known = self._peers.info_hashes
        if now >= self._until or (len(self._shown) < MAX_SAMPLES and len(self._shown) < len(known)):
            self._shown = tuple(sorted(known, key=lambda _: self._rng.random())[:MAX_SAMPLES])
            self._until = now + INTERVAL
        return Samples(info_hashes=self._shown, total=len(known), interval=INTERVAL)
