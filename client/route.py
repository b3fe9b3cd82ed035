"""Which chain to build: the fastest cover of all layers by the workers that answered. Pure.

A stage may be any sub-range of a worker's span, so the question is a shortest path over layer boundaries: a step
from boundary a to b by worker w costs half a round trip to reach it and its measured time for those layers. A worker
has one stage in a chain, which a shortest path does not know: where it uses one twice, the search goes on under each
way of not doing so, cheapest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

from swarm.errors import MissingLayersError, PaymentError
from swarm.ids import PeerId
from swarm.records import SignedQuote

LEAST_HOP = 0.0005  # seconds that a hop costs in software even on one machine
UNMEASURED = 1.0  # tokens per second of a worker that does not say
MAX_BRANCHES = 300  # restrictions tried before a chain that may not be the fastest is good enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that answered: its quote, where it was reached, and the round trip in seconds."""

    signed: SignedQuote
    host: str
    port: int
    rtt: float

    @property
    def worker(self) -> PeerId:
        """Who it is."""
        return self.signed.quote.worker

    @property
    def hop(self) -> float:
        """Seconds per token to reach it."""
        return max(self.rtt / 2, LEAST_HOP)

    @property
    def pace(self) -> float:
        """Seconds per token and layer."""
        quote = self.signed.quote
        return 1 / (quote.stop - quote.start) / (quote.decode_rate / 1000 or UNMEASURED)

    def seconds(self, layers: int) -> float:
        """Per token, for a stage of so many layers: the hop and the computing."""
        return self.hop + layers * self.pace

    def price(self, layers: int) -> int:
        """Base units for a thousand tokens in and a thousand out."""
        price = self.signed.quote.price
        return layers * (price.per_1k_input + price.per_1k_output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One stage of a planned chain."""

    candidate: Candidate
    start: int
    stop: int


def plan_chain(candidates: Sequence[Candidate], layers: int, *, most_price: int | None = None) -> tuple[Leg, ...]:
    """The chain with the least time per token; among equals the cheaper one.

    ``most_price``: the most that a layer may cost, in base units for a thousand tokens in and a thousand out.
    Raises `MissingLayersError` naming the layers that nobody serves, `PaymentError` when only the price forbids it.
    """
    affordable = {c.worker: c for c in candidates if most_price is None or c.price(1) <= most_price}
    path = _fastest(tuple(affordable.values()), layers)
    if path is None:
        missing = uncovered(candidates, layers)
        if not missing:
            raise PaymentError(f"no chain of workers asks at most {most_price} a layer; raise the price cap")
        gaps = _runs(missing)
        names = ", ".join(_name(start, stop) for start, stop in gaps)
        raise MissingLayersError(
            f"no worker serves {'layer' if len(missing) == 1 else 'layers'} {names} of {layers}; "
            f"start one with: swarm work MODEL --span {gaps[0][0]}:{gaps[0][1]}",
            layers=missing,
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Where a worker's stage may lie: within [start, stop), begun at ``first`` at the latest, with layer ``last``."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """Legs that cover the layers. ``cost`` is seconds per token, then price."""

    cost: tuple[float, int]
    legs: tuple[Leg, ...]


def _fastest(candidates: Sequence[Candidate], layers: int) -> tuple[Leg, ...] | None:
    """Branch and bound: what a path costs that may use workers twice bounds what one costs that may not."""
    order = count()  # among equals, the first that was found
    rooms = {
        c.worker: _Room(start=c.signed.quote.start, stop=c.signed.quote.stop, first=layers, last=-1) for c in candidates
    }
    waiting: list[tuple[tuple[float, int], int, _Path, Mapping[PeerId, _Room]]] = []

    def look(rooms: Mapping[PeerId, _Room]) -> None:
        path = _shortest(candidates, layers, rooms)
        if path is not None:
            heappush(waiting, (path.cost, next(order), path, rooms))

    look(rooms)
    while waiting:
        _, number, path, within = heappop(waiting)
        twice = _used_twice(path.legs)
        if twice is None:
            return path.legs
        if number > MAX_BRANCHES:
            return _merge(path.legs)
        worker, layer = twice
        room = within[worker]
        # Its one stage lies before the layer, behind it, or has it: each excludes one of the two.
        look({**within, worker: replace(room, stop=min(room.stop, layer))})
        look({**within, worker: replace(room, start=max(room.start, layer + 1))})
        look({**within, worker: replace(room, first=min(room.first, layer), last=max(room.last, layer))})
    return None


def _shortest(candidates: Sequence[Candidate], layers: int, rooms: Mapping[PeerId, _Room]) -> _Path | None:
    """The shortest path, which may use a worker twice; layers × candidates steps."""
    best: list[tuple[float, int] | None] = [(0.0, 0)] + [None] * layers
    legs: list[Leg | None] = [None] * (layers + 1)
    # For each worker the best layer to begin at so far, and what it costs if it had begun at layer 0 from there.
    begun: dict[PeerId, tuple[float, int, int]] = {}
    for stop in range(1, layers + 1):
        start, before = stop - 1, best[stop - 1]
        for candidate in candidates:
            worker = candidate.worker
            room = rooms[worker]
            if before is not None and room.start <= start <= room.first:
                entry = (before[0] - start * candidate.pace, before[1] - candidate.price(start), start)
                begun[worker] = min(begun.get(worker, entry), entry)
            if worker not in begun or not room.last < stop <= room.stop:
                continue
            at = begun[worker][2]
            base = best[at] or (0.0, 0)
            cost = (base[0] + candidate.seconds(stop - at), base[1] + candidate.price(stop - at))
            known = best[stop]
            if known is None or cost < known:
                best[stop] = cost
                legs[stop] = Leg(candidate=candidate, start=at, stop=stop)
    path: list[Leg] = []
    position = layers
    while position:
        leg = legs[position]
        if leg is None:
            return None
        path.append(leg)
        position = leg.start
    return _Path(cost=best[layers] or (0.0, 0), legs=tuple(reversed(path)))


def _used_twice(legs: Sequence[Leg]) -> tuple[PeerId, int] | None:
    """A worker with two legs, and the layer after the first of them."""
    stops: dict[PeerId, int] = {}
    for leg in legs:
        worker = leg.candidate.worker
        if worker in stops:
            return worker, stops[worker]
        stops[worker] = leg.stop
    return None


def _merge(legs: Sequence[Leg]) -> tuple[Leg, ...]:
    """Give a worker that the path uses twice everything in between, which it serves too."""
    merged: list[Leg] = []
    for leg in legs:
        first = next((i for i, known in enumerate(merged) if known.candidate.worker == leg.candidate.worker), None)
        if first is None:
            merged.append(leg)
        else:
            start = merged[first].start
            del merged[first:]
            merged.append(Leg(candidate=leg.candidate, start=start, stop=leg.stop))
    return tuple(merged)


def _name(start: int, stop: int) -> str:
    """Layers [start, stop) in words; three or more as a range."""
    if stop - start > 2:
        return f"{start} to {stop - 1}"
    return ", ".join(str(layer) for layer in range(start, stop))


def _runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending layers as spans [start, stop) without gaps."""
    runs: list[tuple[int, int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer:
            runs[-1] = (runs[-1][0], layer + 1)
        else:
            runs.append((layer, layer + 1))
    return runs


def uncovered(candidates: Iterable[Candidate], layers: int) -> tuple[int, ...]:
    """The layers that none of the candidates serves."""
    served: set[int] = set()
    for candidate in candidates:
        served.update(range(candidate.signed.quote.start, candidate.signed.quote.stop))
    return tuple(layer for layer in range(layers) if layer not in served)
