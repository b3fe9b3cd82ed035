"""What becomes of a publication once it was offered: kept alive, or given up because a newer one is out."""

from __future__ import annotations

from dht.config import Randomness
from dht.errors import ConflictError, RejectedQuery
from dht.items import Item
from dht.outcomes import Outcome, Stored
from dht.publications import Publications, PublishedItem, Publishing
from dht.store import ItemStore


class Publisher:
    """Follows store operations by their number; ``items`` is the node's own store, which keeps its own items too."""

    def __init__(self, publications: Publications, items: ItemStore, rng: Randomness) -> None:
        self._publications = publications
        self._items = items
        self._rng = rng
        self._offered: dict[int, Publishing] = {}

    def follow(self, operation: int, publishing: Publishing) -> None:
        """Remember what an operation publishes."""
        self._offered[operation] = publishing

    def forget(self, operation: int) -> None:
        """Its outcome will not come."""
        self._offered.pop(operation, None)

    def settle(self, operation: int, outcome: Outcome, now: float, *, alone: bool) -> None:
        """Plan what was published to be published again.

        One whom nobody answered keeps at it only when it is ``alone``, the first of its network.
        """
        publishing = self._offered.pop(operation, None)
        if publishing is None or not isinstance(outcome, Stored):
            return
        publication = publishing.published(outcome)
        if publication is None:
            return
        if isinstance(outcome.error, ConflictError):
            self._publications.remove(type(publication), publication.target)
            return
        if outcome.stored or (alone and not outcome.answered) or publishing.again:
            self._publications.add(publication, holders=outcome.stored, now=now, draw=self._rng.random())
            if isinstance(publication, PublishedItem):
                self._keep_own(publication.item, now)

    def _keep_own(self, item: Item, now: float) -> None:
        try:
            self._items.put(item, now)
        except RejectedQuery:
            self._publications.remove(PublishedItem, item.target)  # a newer one reached our own store meanwhile
