"""What a node keeps for others: announced peers (BEP 5) and items (BEP 44), within limits and for a time.

Whoever floods a store displaces its own things first: each network prefix has a share of every info-hash, of all
info-hashes and of all items, and beyond it its own oldest gives way. Beyond the whole store's size the one used longest
ago gives way, whoever's it is. Local addresses have no prefix and no share.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import CAS_MISMATCH, STALE_SEQ, Item, MutableItem
from dht.keys import Target
from dht.prefixes import prefix_of

PEER_TTL = 1800.0  # seconds: BEP 5 practice; announcers repeat every 10 to 15 minutes
ITEM_TTL = 7200.0  # seconds: BEP 44's two hours; publishers repeat every hour
MAX_TARGETS = 2048  # info-hashes with peers; with full lists under 150 MB, in practice a few
MAX_PEERS = 256  # per info-hash: more than twice what one answer carries
MAX_PEERS_PER_PREFIX = 32  # of one info-hash: an eighth
MAX_TARGETS_PER_PREFIX = 256  # info-hashes that one prefix was first to announce: an eighth
MAX_ITEMS = 4096  # under 8 MB
MAX_ITEMS_PER_PREFIX = 256  # a sixteenth


@dataclass(slots=True)
class _Announced:
    expiry: float
    seed: bool


@dataclass(slots=True)
class _Swarm:
    """The peers of one info-hash, the latest announced last; ``opener`` is the prefix that announced it first."""

    peers: OrderedDict[Endpoint, _Announced]
    opener: bytes | None


class PeerStore:
    """Announced peers by info-hash. The info-hash announced longest ago gives way."""

    def __init__(self) -> None:
        self._swarms: OrderedDict[Target, _Swarm] = OrderedDict()
        self._opened: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return sum(len(swarm.peers) for swarm in self._swarms.values())

    @property
    def info_hashes(self) -> list[Target]:
        """Every info-hash that peers are kept of."""
        return list(self._swarms)

    def add(self, target: Target, peer: Endpoint, now: float, *, seed: bool = False) -> None:
        """Keep ``peer`` under ``target`` for `PEER_TTL` seconds from now; ``seed`` says that it has everything."""
        prefix = prefix_of(peer.host)
        swarm = self._swarms.get(target) or self._open(target, prefix)
        self._swarms.move_to_end(target)
        peers = swarm.peers
        peers[peer] = _Announced(now + PEER_TTL, seed)
        peers.move_to_end(peer)
        if prefix is not None:
            same = [endpoint for endpoint in peers if prefix_of(endpoint.host) == prefix]
            if len(same) > MAX_PEERS_PER_PREFIX:
                del peers[same[0]]
        if len(peers) > MAX_PEERS:
            peers.popitem(last=False)
        if len(self._swarms) > MAX_TARGETS:
            self._close(next(iter(self._swarms)))

    def get(self, target: Target, now: float, *, seed: bool | None = None) -> list[Endpoint]:
        """Peers under ``target`` that have not expired, the latest announced first.

        ``seed`` given takes only seeds, or only the others.
        """
        swarm = self._swarms.get(target)
        if swarm is None:
            return []
        return [
            peer
            for peer, announced in reversed(swarm.peers.items())
            if announced.expiry > now and seed in (None, announced.seed)
        ]

    def expire(self, now: float) -> None:
        """Forget what is over its time."""
        for target in list(self._swarms):
            peers = self._swarms[target].peers
            while peers and next(iter(peers.values())).expiry <= now:
                peers.popitem(last=False)
            if not peers:
                self._close(target)

    def _open(self, target: Target, prefix: bytes | None) -> _Swarm:
        if prefix is not None and self._opened[prefix] >= MAX_TARGETS_PER_PREFIX:
            self._close(next(known for known, swarm in self._swarms.items() if swarm.opener == prefix))
        if prefix is not None:
            self._opened[prefix] += 1
        swarm = self._swarms[target] = _Swarm(OrderedDict(), prefix)
        return swarm

    def _close(self, target: Target) -> None:
        _release(self._opened, self._swarms.pop(target).opener)


@dataclass(slots=True)
class _Kept:
    item: Item
    expiry: float
    prefix: bytes | None


class ItemStore:
    """Items by target. The item used longest ago gives way."""

    def __init__(self) -> None:
        self._items: OrderedDict[Target, _Kept] = OrderedDict()
        self._held: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, now: float, *, cas: int | None = None, storer: Endpoint | None = None) -> None:
        """Keep ``item`` for `ITEM_TTL` seconds from now; ``storer`` is who brought it, None for ourselves.

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
        known = self._items.get(target)
        if known is None:
            prefix = None if storer is None else prefix_of(storer.host)
            self._make_room(prefix)
        else:
            prefix = known.prefix  # whoever brings it again does not take it over
        self._items[target] = _Kept(item, now + ITEM_TTL, prefix)
        self._items.move_to_end(target)
        if len(self._items) > MAX_ITEMS:
            self._drop(next(iter(self._items)))

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
            self._drop(target)

    def _make_room(self, prefix: bytes | None) -> None:
        if prefix is None:
            return
        if self._held[prefix] >= MAX_ITEMS_PER_PREFIX:
            self._drop(next(target for target, kept in self._items.items() if kept.prefix == prefix))
        self._held[prefix] += 1

    def _drop(self, target: Target) -> None:
        _release(self._held, self._items.pop(target).prefix)


def _release(counts: Counter[bytes], prefix: bytes | None) -> None:
    if prefix is not None:
        counts[prefix] -= 1
        if not counts[prefix]:
            del counts[prefix]
