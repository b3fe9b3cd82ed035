"""What a node keeps of rosters for others: few per writer's network, proven endpoints, a random sample for readers.

    cap_put ──signature, shard, newer seq──> unproven ──its endpoint answers a ping──> counts ──TTL──> gone
                                                └──no answer within a minute──> gone

Entries live by this node's own clock: `ENTRY_TTL` from their last newer seq, so that nobody keeps a dead worker alive
by repeating its old words. Readers, who have a calendar, also look at the expiry.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from dht.config import Randomness
from dht.contacts import Endpoint
from dht.errors import RejectedQuery
from dht.items import INVALID_SIGNATURE, STALE_SEQ
from dht.keys import Target
from dht.krpc import PROTOCOL_ERROR
from dht.prefixes import prefix_of
from dht.roster import ENTRY_TTL, Entry, Filter, SignedEntry
from dht.roster_queries import CapGet, CapPut, RosterReply
from swarm.errors import ProtocolError, VerificationError

NO_ROOM = 201  # BEP 5's generic error

HOT_ENTRIES = 200  # entries under one key above which its writers should split
HOT_READS = 500  # reads per second under one key above which they should too
MAX_PER_ROSTER = 400  # entries: twice what a settled roster holds
MAX_PER_NETWORK = 16  # entries of one /24 (IPv6: /48) in a roster: a Sybil buys addresses, not entries
MAX_PER_NETWORK_OVERALL = 256
MAX_PER_ANSWER = 2  # entries of one network in one answer
MAX_ENTRIES = 20_000  # over all rosters: under 20 MB
PROVING_TIME = 60.0  # seconds for an endpoint to answer one ping
MAX_WEIGHT = 8  # however many slots it claims, an entry is drawn at most so often as eight others


@dataclass(slots=True)
class _Kept:
    signed: SignedEntry
    until: float
    proven: bool


@dataclass(slots=True)
class _Roster:
    entries: OrderedDict[bytes, _Kept] = field(default_factory=OrderedDict)  # by worker
    reads: int = 0  # in the second that began at `since`
    since: float = 0.0
    hot_until: float = 0.0


class RosterStore:
    """Rosters by target. A full one gives up a random entry, the whole store the roster written longest ago."""

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng
        self._rosters: OrderedDict[Target, _Roster] = OrderedDict()
        self._per_network: dict[bytes, int] = {}
        self._count = 0
        self._unproven: dict[Endpoint, list[tuple[Target, bytes]]] = {}
        self._to_ping: list[Endpoint] = []

    def __len__(self) -> int:
        return self._count

    def put(self, query: CapPut, now: float, *, own: bool = False) -> None:
        """Keep an entry whose writer holds a token. ``own`` is this node's, which needs no ping.

        Raises `RejectedQuery` for no entry at all, a stale seq, another's shard, a quota or a false signature.
        """
        try:
            entry = SignedEntry.read_unverified(query.entry).entry
        except ProtocolError as error:
            raise RejectedQuery(error.message, krpc_code=PROTOCOL_ERROR) from error
        target = query.target
        if not query.shard.holds(entry.worker):
            raise RejectedQuery("not this worker's shard", krpc_code=NO_ROOM)
        roster = self._rosters.get(target) or _Roster()
        known = roster.entries.get(entry.worker)
        if known is not None:
            if known.signed.raw == query.entry:
                return  # repeated words live no longer
            if entry.seq <= known.signed.entry.seq:
                raise RejectedQuery(f"seq is not above {known.signed.entry.seq}", krpc_code=STALE_SEQ)
        elif not own:
            self._check_quota(roster, prefix_of(entry.host))
        try:
            signed = SignedEntry.read(query.entry, query.manifest_id)  # last: it costs as much as all else together
        except VerificationError as error:
            raise RejectedQuery(error.message, krpc_code=INVALID_SIGNATURE) from error
        same = known is not None and _endpoint(known.signed.entry) == _endpoint(entry)
        proven = own or (known is not None and known.proven and same)
        self._rosters[target] = roster
        self._rosters.move_to_end(target)
        self._forget(roster, entry.worker)
        self._add(roster, _Kept(signed, now + ENTRY_TTL, proven))
        if not proven and entry.expiry:
            self._prove(entry, target)
        self._make_room(roster, keep=entry.worker)

    def get(self, query: CapGet, now: float) -> RosterReply:
        """A weighted random sample of what the reader wants; how many are kept, and the writers' usual depth."""
        roster = self._rosters.get(query.target)
        if roster is None:
            return RosterReply()
        living = [kept.signed for kept in roster.entries.values() if _counts(kept, now)]
        self._note_read(roster, now)
        fitting = [signed for signed in living if query.wanted.admits(signed.entry)]
        count = len(living) if roster.hot_until <= now else max(len(living), HOT_ENTRIES + 1)
        depths = sorted(signed.entry.depth for signed in living)
        return RosterReply(
            entries=tuple(signed.raw for signed in self._sample(fitting, query.wanted)),
            count=count,
            depth=depths[len(depths) // 2] if depths else 0,
        )

    def take_pings(self) -> list[Endpoint]:
        """Endpoints of new entries, each to be pinged once now."""
        pings, self._to_ping = self._to_ping, []
        return pings

    def answered(self, endpoint: Endpoint) -> None:
        """Note that ``endpoint`` answered a query of ours: what it stands in counts from now on."""
        for target, worker in self._unproven.pop(endpoint, ()):
            roster = self._rosters.get(target)
            kept = roster.entries.get(worker) if roster is not None else None
            if kept is not None and _endpoint(kept.signed.entry) == endpoint:
                kept.proven = True

    def expire(self, now: float) -> None:
        """Forget what is over its time, and what was not proven in time."""
        for target in list(self._rosters):
            roster = self._rosters[target]
            for worker, kept in list(roster.entries.items()):
                age = now - (kept.until - ENTRY_TTL)
                if kept.until <= now or (not kept.proven and kept.signed.entry.expiry and age > PROVING_TIME):
                    self._forget(roster, worker)
            if not roster.entries:
                del self._rosters[target]
        self._unproven = {
            endpoint: waiting
            for endpoint, waiting in self._unproven.items()
            if any(target in self._rosters and worker in self._rosters[target].entries for target, worker in waiting)
        }

    def _check_quota(self, roster: _Roster, network: bytes | None) -> None:
        if network is None:
            return
        here = sum(prefix_of(kept.signed.entry.host) == network for kept in roster.entries.values())
        if here >= MAX_PER_NETWORK or self._per_network.get(network, 0) >= MAX_PER_NETWORK_OVERALL:
            raise RejectedQuery("too many entries of your network", krpc_code=NO_ROOM)

    def _prove(self, entry: Entry, target: Target) -> None:
        endpoint = _endpoint(entry)
        self._to_ping.append(endpoint)
        waiting = self._unproven.setdefault(endpoint, [])
        if (target, entry.worker) not in waiting:
            waiting.append((target, entry.worker))

    def _make_room(self, roster: _Roster, keep: bytes) -> None:
        if len(roster.entries) > MAX_PER_ROSTER:
            # A random one, so that a flood pushes out its own kind as often as another's.
            others = [worker for worker in roster.entries if worker != keep]
            self._forget(roster, others[int(self._rng.random() * len(others))])
        while self._count > MAX_ENTRIES:
            _, oldest = self._rosters.popitem(last=False)
            for worker in list(oldest.entries):
                self._forget(oldest, worker)

    def _add(self, roster: _Roster, kept: _Kept) -> None:
        network = prefix_of(kept.signed.entry.host)
        if network is not None:
            self._per_network[network] = self._per_network.get(network, 0) + 1
        roster.entries[kept.signed.entry.worker] = kept
        self._count += 1

    def _forget(self, roster: _Roster, worker: bytes) -> None:
        kept = roster.entries.pop(worker, None)
        if kept is None:
            return
        self._count -= 1
        network = prefix_of(kept.signed.entry.host)
        if network is not None:
            left = self._per_network.pop(network, 1) - 1
            if left:
                self._per_network[network] = left

    def _note_read(self, roster: _Roster, now: float) -> None:
        if now - roster.since >= 1.0:
            roster.since, roster.reads = now, 0
        roster.reads += 1
        if roster.reads > HOT_READS:
            roster.hot_until = now + ENTRY_TTL  # so that every writer hears of it at its next heartbeat

    def _sample(self, fitting: list[SignedEntry], wanted: Filter) -> list[SignedEntry]:
        """At random, by weight: each entry draws u^(1/weight), the largest draws win."""
        draws = [(self._rng.random() ** (1 / _weight(signed.entry)), at) for at, signed in enumerate(fitting)]
        chosen: list[SignedEntry] = []
        networks: dict[bytes, int] = {}
        for _, at in sorted(draws, reverse=True):
            if len(chosen) >= wanted.how_many:
                break
            network = prefix_of(fitting[at].entry.host)
            if network is not None:
                networks[network] = networks.get(network, 0) + 1
                if networks[network] > MAX_PER_ANSWER:
                    continue
            chosen.append(fitting[at])
        return chosen


def _endpoint(entry: Entry) -> Endpoint:
    return Endpoint(entry.host, entry.dht_port)


def _counts(kept: _Kept, now: float) -> bool:
    return kept.proven and kept.until > now and kept.signed.entry.expiry > 0


def _weight(entry: Entry) -> int:
    return 1 + min(entry.free_slots, MAX_WEIGHT - 1)
