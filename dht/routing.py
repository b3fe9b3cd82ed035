"""The routing table: buckets by shared prefix, replacement caches, and the quality of contacts (BEP 5).

Only contacts that answered us get in, so nobody can fill the table with addresses that are not theirs; only with ids
that fit their addresses (BEP 42), and only a few of one network, so nobody can fill it with many of theirs. The table
does no I/O: where a decision needs a ping it *returns the contact to ping*, and hears of the outcome through `replied`
or `failed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dht.contacts import Contact, Endpoint
from dht.keys import BITS, NodeId, distance, is_secure_id, shared_prefix
from dht.prefixes import prefix_of

BUCKET_SIZE = 8  # BEP 5's K
CACHE_SIZE = 8  # replacements per bucket: as many as can be lost at once
GOOD_FOR = 900.0  # seconds without a word after which a contact is questionable (BEP 5)
BAD_AFTER = 2  # failures in a row; each already stands for three datagrams without answer
MAX_PER_PREFIX_IN_BUCKET = 2  # of one /24 or /48: a bucket needs four owners of networks to be taken over
MAX_PER_PREFIX = 10  # of one /24 or /48 in the whole table
FORGET_AFTER = 6  # failures in a row after which a contact goes even without a replacement


@dataclass(slots=True)
class Entry:
    """A contact with what we know of it. ``heard`` is when it last answered or asked."""

    contact: Contact
    heard: float
    failures: int = 0

    @property
    def is_bad(self) -> bool:
        """Whether it failed too often in a row to be passed on."""
        return self.failures >= BAD_AFTER

    def is_questionable(self, now: float) -> bool:
        """Whether it deserves a ping before it is relied on."""
        return self.failures > 0 or now - self.heard > GOOD_FOR


@dataclass(slots=True)
class Bucket:
    """Contacts that share exactly one length of prefix with us; the last of each list was heard last."""

    entries: list[Entry]
    cache: list[Entry]
    changed: float


class RoutingTable:
    """Contacts by how many leading bits they share with our id."""

    def __init__(self, own_id: NodeId, now: float) -> None:
        self.own_id = own_id
        self._buckets = [Bucket(entries=[], cache=[], changed=now) for _ in range(BITS)]
        self._by_endpoint: dict[Endpoint, NodeId] = {}

    def __len__(self) -> int:
        return len(self._by_endpoint)

    @property
    def is_cut_off(self) -> bool:
        """Whether no contact is known that can be relied on."""
        return all(entry.is_bad for bucket in self._buckets for entry in bucket.entries)

    def __iter__(self) -> Iterator[Contact]:
        return (entry.contact for bucket in self._buckets for entry in bucket.entries)

    def replied(self, contact: Contact, now: float) -> Contact | None:
        """Note that ``contact`` answered. Returns a contact to ping where a full bucket holds a doubtful one."""
        if contact.node_id == self.own_id:
            return None
        self._forget_former_id(contact)
        bucket = self._bucket(contact.node_id)
        entry = _find(bucket.entries, contact.node_id)
        if entry is None:
            return self._insert(bucket, Entry(contact, now), now) if self._admits(bucket, contact) else None
        if entry.contact.endpoint == contact.endpoint:
            entry.heard, entry.failures = now, 0
            _move_last(bucket.entries, entry)
            return None
        if not entry.is_bad or not self._admits(
            bucket, contact
        ):  # another node claims a known id: the first to prove it keeps it while it answers
            return entry.contact if entry.is_questionable(now) else None
        self._remove(bucket, entry)
        return self._insert(bucket, Entry(contact, now), now)

    def noticed(self, contact: Contact, now: float) -> Contact | None:
        """Note that ``contact`` asked us something. Returns it where it should be pinged to earn its place."""
        if contact.node_id == self.own_id:
            return None
        bucket = self._bucket(contact.node_id)
        entry = _find(bucket.entries, contact.node_id)
        if entry is not None and entry.contact.endpoint == contact.endpoint:
            if entry.failures == 0:
                entry.heard = now
                return None
            return contact  # it was given up, but it speaks
        if entry is not None:
            return entry.contact if entry.is_questionable(now) else None
        if not self._admits(bucket, contact):
            return None
        if _find(bucket.cache, contact.node_id) is not None:
            return None  # it has earned its place in the queue
        has_room = len(bucket.entries) < BUCKET_SIZE or any(e.is_bad for e in bucket.entries)
        return contact if has_room or len(bucket.cache) < CACHE_SIZE else None

    def failed(self, endpoint: Endpoint) -> None:
        """Note that ``endpoint`` left a query unanswered. A cached contact takes the place of a bad one."""
        node_id = self._by_endpoint.get(endpoint)
        if node_id is None:
            self._forget_spare(endpoint)
            return
        bucket = self._bucket(node_id)
        entry = _find(bucket.entries, node_id)
        if entry is None:
            return
        entry.failures += 1
        if entry.is_bad and bucket.cache:
            self._remove(bucket, entry)
            self._add(bucket, bucket.cache.pop())
        elif entry.failures >= FORGET_AFTER:
            self._remove(bucket, entry)

    def closest(self, target: bytes, count: int = BUCKET_SIZE) -> list[Contact]:
        """Up to ``count`` contacts nearest to ``target``, nearest first; bad ones only where there is no other."""
        found = self._nearest(target, count, bad=False)
        return found or self._nearest(target, count, bad=True)

    def questionable(self, now: float) -> list[Contact]:
        """Contacts that should be pinged because nothing was heard of them for long."""
        return [e.contact for bucket in self._buckets for e in bucket.entries if e.is_questionable(now)]

    def spares(self, now: float) -> list[Contact]:
        """Replacements that should be pinged so that they are there when they are needed, nearest to us first."""
        deepest_first = reversed(self._buckets)
        return [e.contact for bucket in deepest_first for e in bucket.cache if e.is_questionable(now)]

    @property
    def fill(self) -> tuple[int, ...]:
        """How many contacts each bucket holds, from the farthest half of the key space to the deepest in use."""
        counts = [len(bucket.entries) for bucket in self._buckets]
        while counts and not counts[-1]:
            counts.pop()
        return tuple(counts)

    @property
    def replacements(self) -> int:
        """How many contacts wait in the caches."""
        return sum(len(bucket.cache) for bucket in self._buckets)

    def move_to(self, own_id: NodeId, now: float) -> None:
        """Go on under another id of ours: contacts take the buckets that follow from it, as far as there is room."""
        entries = [entry for bucket in self._buckets for entry in bucket.entries + bucket.cache]
        self.own_id = own_id
        self._buckets = [Bucket(entries=[], cache=[], changed=now) for _ in range(BITS)]
        self._by_endpoint.clear()
        for entry in sorted(entries, key=lambda e: e.heard):
            bucket = self._bucket(entry.contact.node_id)
            if entry.contact.node_id != own_id and self._admits(bucket, entry.contact):
                self._insert(bucket, entry, now)

    def stale_buckets(self, now: float) -> list[int]:
        """Prefix lengths, up to the deepest in use, whose bucket did not change for `GOOD_FOR` seconds."""
        used = [length for length, bucket in enumerate(self._buckets) if bucket.entries]
        deepest = used[-1] if used else 0
        return [n for n, bucket in enumerate(self._buckets[: deepest + 1]) if now - bucket.changed > GOOD_FOR]

    def refresh_target(self, prefix_length: int, noise: bytes, now: float) -> NodeId:
        """An id in that bucket to look up, from 20 random bytes; the bucket counts as refreshed."""
        self._buckets[prefix_length].changed = now
        own = int.from_bytes(self.own_id, "big")
        rest = BITS - prefix_length - 1
        random_tail = int.from_bytes(noise, "big") & ((1 << rest) - 1)
        flipped = (own >> rest ^ 1) << rest
        return NodeId((flipped | random_tail).to_bytes(NodeId.size, "big"))

    def _admits(self, bucket: Bucket, contact: Contact) -> bool:
        """Whether its id fits its address, and its network has not its share of the bucket and of the table yet."""
        host = contact.endpoint.host
        if not is_secure_id(contact.node_id, host):
            return False
        prefix = prefix_of(host)
        if prefix is None:
            return True
        held = sum(prefix_of(e.contact.endpoint.host) == prefix for e in bucket.entries + bucket.cache)
        if held >= MAX_PER_PREFIX_IN_BUCKET and _find(bucket.cache, contact.node_id) is None:
            return False
        return sum(prefix_of(endpoint.host) == prefix for endpoint in self._by_endpoint) < MAX_PER_PREFIX

    def _forget_spare(self, endpoint: Endpoint) -> None:
        for bucket in self._buckets:
            bucket.cache = [entry for entry in bucket.cache if entry.contact.endpoint != endpoint]

    def _nearest(self, target: bytes, count: int, *, bad: bool) -> list[Contact]:
        # Our bucket for the target is nearest, then all deeper ones together, then the shallower one by one.
        home = min(shared_prefix(self.own_id, target), BITS - 1)
        deeper = [entry for bucket in self._buckets[home + 1 :] for entry in bucket.entries]
        groups = [self._buckets[home].entries, deeper]
        groups.extend(self._buckets[length].entries for length in range(home - 1, -1, -1))
        found: list[Contact] = []
        for group in groups:
            eligible = [entry.contact for entry in group if entry.is_bad == bad]
            eligible.sort(key=lambda contact: distance(contact.node_id, target))
            found.extend(eligible)
            if len(found) >= count:
                break
        return found[:count]

    def _insert(self, bucket: Bucket, entry: Entry, now: float) -> Contact | None:
        bucket.changed = now
        known = _find(bucket.cache, entry.contact.node_id)
        if known is not None:
            bucket.cache.remove(known)
        if len(bucket.entries) < BUCKET_SIZE:
            self._add(bucket, entry)
            return None
        worst = next((e for e in bucket.entries if e.is_bad), None)
        if worst is not None:
            self._remove(bucket, worst)
            self._add(bucket, entry)
            return None
        bucket.cache = [*bucket.cache, entry][-CACHE_SIZE:]
        return next((e.contact for e in bucket.entries if e.is_questionable(now)), None)

    def _add(self, bucket: Bucket, entry: Entry) -> None:
        bucket.entries.append(entry)
        self._by_endpoint[entry.contact.endpoint] = entry.contact.node_id

    def _remove(self, bucket: Bucket, entry: Entry) -> None:
        bucket.entries.remove(entry)
        self._by_endpoint.pop(entry.contact.endpoint, None)

    def _forget_former_id(self, contact: Contact) -> None:
        former = self._by_endpoint.get(contact.endpoint)
        if former is None or former == contact.node_id:
            return  # a node that restarted answers under another id from the same address
        bucket = self._bucket(former)
        entry = _find(bucket.entries, former)
        if entry is not None:
            self._remove(bucket, entry)

    def _bucket(self, node_id: NodeId) -> Bucket:
        return self._buckets[min(shared_prefix(self.own_id, node_id), BITS - 1)]


def _find(entries: list[Entry], node_id: NodeId) -> Entry | None:
    return next((entry for entry in entries if entry.contact.node_id == node_id), None)


def _move_last(entries: list[Entry], entry: Entry) -> None:
    entries.remove(entry)
    entries.append(entry)
