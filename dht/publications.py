"""What this node publishes itself: announcements and items, and when each is due again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from dht.items import Item
from dht.keys import Target
from dht.outcomes import Stored
from dht.routing import BUCKET_SIZE

ANNOUNCE_EVERY = (600.0, 900.0)  # seconds, drawn between: peers expire after 30 minutes (BEP 5)
PUT_EVERY = (3000.0, 3600.0)  # seconds, drawn between: items expire after two hours (BEP 44)
THIN_EVERY = (45.0, 75.0)  # seconds, while fewer than a full set of nodes holds it: in a small or young network a
# newcomer may be nearer, and a restarted storer has forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """This node can be reached for ``target`` at ``port``. With ``region`` everybody near the target is told."""

    target: Target
    port: int
    seed: bool = False
    region: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedItem:
    """An item that this node keeps alive, at everybody near its target with ``region``."""

    item: Item
    region: bool = False

    @property
    def target(self) -> Target:
        """Where it is kept."""
        return self.item.target


Publication: TypeAlias = Announcement | PublishedItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """What a store operation publishes (an item is known only when it is put), and whether it is a repetition."""

    publication: Publication | None = None
    region: bool = False
    again: bool = False

    def published(self, outcome: Stored) -> Publication | None:
        """What was published, now that the outcome is there; None if nothing was even offered."""
        if outcome.item is not None:
            return PublishedItem(item=outcome.item, region=self.region)
        return self.publication


@dataclass(frozen=True, slots=True)
class _Planned:
    publication: Publication
    due: float


class Publications:
    """Publications by kind and target, with the time each is due."""

    def __init__(self) -> None:
        self._planned: dict[tuple[type[Publication], Target], _Planned] = {}

    def __len__(self) -> int:
        return len(self._planned)

    def add(self, publication: Publication, *, holders: int, now: float, draw: float) -> None:
        """Publish again later: ``holders`` nodes keep it now; ``draw`` in [0, 1) is the jitter."""
        if holders < BUCKET_SIZE:
            low, high = THIN_EVERY
        else:
            low, high = ANNOUNCE_EVERY if isinstance(publication, Announcement) else PUT_EVERY
        key = (type(publication), publication.target)
        self._planned[key] = _Planned(publication, now + low + (high - low) * draw)

    def remove(self, kind: type[Publication], target: Target) -> None:
        """Publish no more; what others keep of it expires."""
        self._planned.pop((kind, target), None)

    def announced_port(self, target: Target) -> int | None:
        """The port this node announces under ``target``."""
        planned = self._planned.get((Announcement, target))
        return planned.publication.port if planned and isinstance(planned.publication, Announcement) else None

    def take_due(self, now: float) -> list[Publication]:
        """What is due; it is not due again until it is added anew, or for the longest interval."""
        due = [key for key, planned in self._planned.items() if planned.due <= now]
        for key in due:
            self._planned[key] = replace(self._planned[key], due=now + ANNOUNCE_EVERY[0])
        return [self._planned[key].publication for key in due]

    def next_due(self) -> float | None:
        """When something is due."""
        return min((planned.due for planned in self._planned.values()), default=None)
