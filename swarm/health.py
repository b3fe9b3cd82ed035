"""How well a model is kept and served: copies of its pieces and workers of its layers, known together.

A layer that three workers serve is lost with its weights if a single seeder has some piece of it, and one whose weights
lie everywhere is of no use while nobody serves it. So both are looked at per unit of placement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from swarm.manifest import Manifest, span_units
from swarm.pieces import PieceMap

ENOUGH_COPIES = 3  # whole copies of a piece, and workers of a layer: with one gone, the loss of another is no outage


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitHealth:
    """One unit of placement. ``copies`` is that of its rarest piece."""

    unit: str
    copies: int
    workers: int

    @property
    def thin(self) -> bool:
        """Whether the loss of one or two peers could cost it."""
        return min(self.copies, self.workers) < ENOUGH_COPIES


def piece_copies(total: int, holdings: Iterable[AbstractSet[int]]) -> list[int]:
    """Copies of each of ``total`` pieces, given who holds which; a seed holds all."""
    copies = [0] * total
    for pieces in holdings:
        for piece in pieces:
            copies[piece] += 1
    return copies


def model_health(manifest: Manifest, copies: Sequence[int], spans: Iterable[tuple[int, int]]) -> tuple[UnitHealth, ...]:
    """Every unit in order of placement; ``spans`` are those that workers serve, one per worker."""
    pieces = _pieces(manifest)
    served = [name for start, stop in spans for name in span_units(manifest, start, stop)]
    return tuple(
        UnitHealth(
            unit=unit.name,
            copies=min(copies[piece] for piece in pieces[unit.name]),
            workers=served.count(unit.name),
        )
        for unit in manifest.units
    )


def replicas(
    manifest: Manifest, copies: Sequence[int], health: Sequence[UnitHealth], have: Collection[int], room: int
) -> list[int]:
    """The pieces that a worker with ``room`` bytes to spare does most good with, most needed first.

    Those with the fewest copies come first, and among them those of the units that the fewest workers serve; pieces
    that are in ``have`` or kept often enough are left out.
    """
    pieces = _pieces(manifest)
    workers: dict[int, int] = {}
    for unit in health:
        for piece in pieces[unit.unit]:
            workers[piece] = min(unit.workers, workers.get(piece, unit.workers))
    thin = [piece for piece in workers if copies[piece] < ENOUGH_COPIES and piece not in have]
    chosen: list[int] = []
    layout = _layout(manifest)
    for piece in sorted(thin, key=lambda piece: (copies[piece], workers[piece], piece)):
        size = layout.bytes_in([piece])
        if size <= room:
            chosen.append(piece)
            room -= size
    return chosen


def _layout(manifest: Manifest) -> PieceMap:
    return PieceMap(sizes=tuple(file.size for file in manifest.files), piece_length=manifest.piece_length)


def _pieces(manifest: Manifest) -> dict[str, set[int]]:
    layout = _layout(manifest)
    return {unit.name: layout.pieces(unit.ranges) for unit in manifest.units}
