"""What a node keeps for others: announced peers (BEP 5) and items (BEP 44), within limits and for a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import CAS_MISMATCH, STALE_SEQ, Item, MutableItem
from dht.keys import Target

PEER_TTL = 1800.0  # seconds: BEP 5 practice; announcers repeat every 10 to 15 minutes
ITEM_TTL = 7200.0  # seconds: BEP 44's two hours; publishers repeat every hour
MAX_TARGETS = 2048  # info-hashes with peers; with full lists under 150 MB, in practice a few
MAX_PEERS = 256  # per info-hash: more than twice what one answer carries
MAX_ITEMS = 4096  # under 8 MB


class PeerStore:
    """Announced peers by info-hash. The info-hash announced longest ago gives way."""

    def __init__(self) -> None:
        self._peers: OrderedDict[Target, OrderedDict[Endpoint, float]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(peers) for peers in self._peers.values())

    def add(self, target: Target, peer: Endpoint, now: float) -> None:
        """Keep ``peer`` under ``target`` for `PEER_TTL` seconds from now."""
        peers = self._peers.setdefault(target, OrderedDict())
        self._peers.move_to_end(target)
        peers[peer] = now + PEER_TTL
        peers.move_to_end(peer)
        if len(peers) > MAX_PEERS:
            peers.popitem(last=False)
        if len(self._peers) > MAX_TARGETS:
            self._peers.popitem(last=False)

    def get(self, target: Target, now: float) -> list[Endpoint]:
        """Peers under ``target`` that have not expired, the latest announced first."""
        peers = self._peers.get(target, OrderedDict())
        return [peer for peer, expiry in reversed(peers.items()) if expiry > now]

    def expire(self, now: float) -> None:
        """Forget what is over its time."""
        for target in list(self._peers):
            peers = self._peers[target]
            while peers and next(iter(peers.values())) <= now:
                peers.popitem(last=False)
            if not peers:
                del self._peers[target]


@dataclass(slots=True)
class _Kept:
    item: Item
    expiry: float


class ItemStore:
    """Items by target. The item used longest ago gives way."""

    def __init__(self) -> None:
        self._items: OrderedDict[Target, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, now: float, *, cas: int | None = None) -> None:
        """Keep ``item`` for `ITEM_TTL` seconds from now.

        Raises `RejectedQuery` 302 where it would not replace what is there: a lower seq, or the same seq with
        another value; 301 where ``cas`` names another seq than is there (BEP 44).
        """
        target = item.target
        current = self.get(target, now)
        if isinstance(item, MutableItem) and isinstance(current, MutableItem):
            if cas is not None and cas != current.seq:
                raise RejectedQuery(f"cas mismatch, seq is {current.seq}", krpc_code=CAS_MISMATCH)
            if item.seq < current.seq or (item.seq == current.seq and item.encoded != current.encoded):
                raise RejectedQuery(f"seq is not above {current.seq}", krpc_code=STALE_SEQ)
        self._items[target] = _Kept(item, now + ITEM_TTL)
        self._items.move_to_end(target)
        if len(self._items) > MAX_ITEMS:
            self._items.popitem(last=False)

    def get(self, target: Target, now: float) -> Item | None:
        """The item under ``target`` if it has not expired."""
        kept = self._items.get(target)
        if kept is None or kept.expiry <= now:
            return None
        self._items.move_to_end(target)
        return kept.item

    def expire(self, now: float) -> None:
        """Forget what is over its time."""
        for target in [target for target, kept in self._items.items() if kept.expiry <= now]:
            del self._items[target]
