"""Which chain to build: the fastest cover of all layers by the workers that answered. Pure.

A stage may be any sub-range of a worker's span, so the question is a shortest path over layer boundaries: a step
from boundary a to b by worker w costs half a round trip to reach it and its measured time for those layers. A worker
has one stage in a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import MissingLayersError, PaymentError
from swarm.records import SignedQuote

LEAST_HOP = 0.0005  # seconds that a hop costs in software even on one machine
UNMEASURED = 1.0  # tokens per second of a worker that does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that answered: its quote, where it was reached, and the round trip in seconds."""

    signed: SignedQuote
    host: str
    port: int
    rtt: float

    def seconds(self, layers: int) -> float:
        """Per token, for a stage of so many layers: the hop and the computing."""
        quote = self.signed.quote
        rate = quote.decode_rate / 1000 or UNMEASURED
        return max(self.rtt / 2, LEAST_HOP) + layers / (quote.stop - quote.start) / rate

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
    affordable = [c for c in candidates if most_price is None or c.price(1) <= most_price]
    path = _shortest(affordable, layers)
    if path is None:
        missing = _uncovered(candidates, layers)
        if not missing:
            raise PaymentError(f"no chain of workers asks at most {most_price} a layer; raise the price cap")
        names = ", ".join(str(layer) for layer in missing)
        what = f"no worker serves layer {names}" if len(missing) == 1 else f"no worker serves layers {names}"
        raise MissingLayersError(f"{what} of {layers}; start one with: swarm work MODEL --span", layers=missing)
    return _merge(path)


def _shortest(candidates: Sequence[Candidate], layers: int) -> tuple[Leg, ...] | None:
    best: list[tuple[float, int] | None] = [(0.0, 0)] + [None] * layers
    legs: list[Leg | None] = [None] * (layers + 1)
    for stop in range(1, layers + 1):
        for candidate in candidates:
            span = candidate.signed.quote
            if not span.start < stop <= span.stop:
                continue
            for start in range(span.start, stop):
                before = best[start]
                if before is None:
                    continue
                count = stop - start
                cost = (before[0] + candidate.seconds(count), before[1] + candidate.price(count))
                known = best[stop]
                if known is None or cost < known:
                    best[stop] = cost
                    legs[stop] = Leg(candidate=candidate, start=start, stop=stop)
    path: list[Leg] = []
    position = layers
    while position:
        leg = legs[position]
        if leg is None:
            return None
        path.append(leg)
        position = leg.start
    return tuple(reversed(path))


def _merge(path: Sequence[Leg]) -> tuple[Leg, ...]:
    """Give a worker that the path uses twice everything in between, which it serves too."""
    merged: list[Leg] = []
    for leg in path:
        worker = leg.candidate.signed.quote.worker
        first = next((i for i, known in enumerate(merged) if known.candidate.signed.quote.worker == worker), None)
        if first is None:
            merged.append(leg)
        else:
            start = merged[first].start
            del merged[first:]
            merged.append(Leg(candidate=leg.candidate, start=start, stop=leg.stop))
    return tuple(merged)


def _uncovered(candidates: Sequence[Candidate], layers: int) -> tuple[int, ...]:
    served: set[int] = set()
    for candidate in candidates:
        served.update(range(candidate.signed.quote.start, candidate.signed.quote.stop))
    return tuple(layer for layer in range(layers) if layer not in served)
