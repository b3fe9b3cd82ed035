"""Looking through a roster, and writing to it: searches that collect signed entries from several storers."""

from __future__ import annotations

from dataclasses import replace

from dht.contacts import Contact, Endpoint
from dht.keys import BITS, Target
from dht.krpc import ReplyPacket
from dht.outcomes import RosterFound, RosterStored
from dht.queries import Query
from dht.roster import Filter, SignedEntry
from dht.roster_queries import CapGet, CapPut, RosterReply
from dht.routing import BUCKET_SIZE
from dht.search import AGREEING, Search, Start
from dht.storing import Store
from swarm.errors import ProtocolError


class RosterSearch(Search):
    """Some workers of a roster. The caller is answered as soon as `AGREEING` storers have named enough.

    Entries are taken from the storers in turn, so that one that lies fills its own share at most.
    """

    def __init__(self, target: Target, start: Start, wanted: Filter, known: RosterReply | None = None) -> None:
        """``known`` is what our own store says."""
        super().__init__(target, start)
        self.draw: float | None = None  # in [0, 1): which one storer is written to; None for all
        self._wanted = wanted
        self._heard: list[RosterReply] = [known] if known is not None and known.count else []

    @property
    def outcome(self) -> RosterFound | None:
        if self.finished or (self._wanted.how_many and self._enough):
            return self._outcome()
        return None

    @property
    def _enough(self) -> bool:
        fruitful = sum(bool(reply.entries) for reply in self._heard)
        return fruitful >= AGREEING and len(self._in_turn()) >= self._wanted.how_many

    def replied(self, endpoint: Endpoint, packet: ReplyPacket) -> None:
        roster = packet.reply.roster
        if roster is not None and (roster.entries or roster.count):  # those on the way there keep nothing of it
            self._heard.append(roster)
        super().replied(endpoint, packet)

    def storers(self) -> list[Contact]:
        """The nearest who know rosters: foreign nodes show the way, but give no token for a method they do not know."""
        answered = self.paths.within(1 << BITS)
        near = [contact for contact in answered if contact.endpoint in self.tokens][:BUCKET_SIZE]
        return near if self.draw is None or not near else [near[int(self.draw * len(near))]]

    def _query(self) -> Query:
        return CapGet(target=self.target, wanted=self._wanted)

    def _in_turn(self) -> list[SignedEntry]:
        newest: dict[bytes, SignedEntry] = {}
        lists = [list(reply.entries) for reply in self._heard]
        for place in range(max(map(len, lists), default=0)):
            for entries in lists:
                try:
                    signed = SignedEntry.read_unverified(entries[place]) if place < len(entries) else None
                except ProtocolError:
                    continue
                if signed is None or not self._wanted.admits(signed.entry):
                    continue
                known = newest.get(signed.entry.worker)
                if known is None or signed.entry.seq > known.entry.seq:
                    newest[signed.entry.worker] = signed
        return list(newest.values())

    def _outcome(self) -> RosterFound:
        base = super()._outcome()
        counts = sorted(reply.count for reply in self._heard) or [0]
        depths = sorted(reply.depth for reply in self._heard) or [0]
        return RosterFound(
            asked=base.asked,
            answered=base.answered,
            nearest=base.nearest,
            entries=tuple(self._in_turn()),
            count=counts[len(counts) // 2],
            depth=depths[len(depths) // 2],
        )


class RosterPut(Store):
    """One entry, offered to the storers of its shard."""

    def __init__(self, search: RosterSearch, query: CapPut, draw: float | None = None) -> None:
        """``draw`` in [0, 1) chooses one storer; None offers it to all."""
        search.draw = draw
        super().__init__(search, lambda: self._offer)
        self._query = query
        self._roster = search
        self._offered: list[tuple[Endpoint, bytes]] = []

    def _offer(self, endpoint: Endpoint, token: bytes) -> CapPut:
        self._offered.append((endpoint, token))
        return replace(self._query, token=token)

    @property
    def outcome(self) -> RosterStored | None:
        base = super().outcome
        found = self._roster.outcome
        if base is None or found is None:
            return None
        return RosterStored(
            asked=base.asked,
            answered=base.answered,
            nearest=base.nearest,
            target=base.target,
            stored=base.stored,
            error=base.error,
            count=found.count,
            depth=found.depth,
            storers=tuple(self._offered),
        )
