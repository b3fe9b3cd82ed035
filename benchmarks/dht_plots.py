"""Plots of the simulated DHT: success and latency against loss and churn, hops and queries against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dht_simulated import Scale, Survival
from swarm.errors import ResourceError

SIZE = (9.0, 3.6)  # inches


def draw(folder: Path, scales: Sequence[Scale], survivals: Sequence[Survival]) -> list[str]:
    """Write the PNG files; returns their names. Raises `ResourceError` where matplotlib is not installed."""
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]

        matplotlib.use("Agg")
        from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ResourceError("plots need matplotlib; run: pip install matplotlib") from error
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [scale.nodes for scale in scales]
    by_loss = sorted((s for s in survivals if s.churn == 0.2), key=lambda s: s.loss)
    by_churn = sorted((s for s in survivals if s.loss == survivals[0].loss), key=lambda s: s.churn)
    return [
        _size(pyplot, folder / "dht-size.png", sizes, scales),
        _survival(pyplot, folder / "dht-loss.png", by_loss, [100 * s.loss for s in by_loss], "datagrams lost, %"),
        _survival(
            pyplot, folder / "dht-churn.png", by_churn, [100 * s.churn for s in by_churn], "replaced in 10 minutes, %"
        ),
    ]


def _size(pyplot: Any, path: Path, sizes: Sequence[int], scales: Sequence[Scale]) -> str:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE)
    left.plot(sizes, [scale.hops for scale in scales], "o-", label="mean")
    left.plot(sizes, [scale.hops_p95 for scale in scales], "s--", label="95 %")
    left.set_ylabel("round trips of a lookup")
    left.legend()
    right.plot(sizes, [scale.queries for scale in scales], "o-")
    right.set_ylabel("nodes asked")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("nodes")
    return _save(pyplot, figure, path)


def _survival(pyplot: Any, path: Path, cases: Sequence[Survival], places: Sequence[float], label: str) -> str:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=SIZE)
    left.plot(places, [case.success for case in cases], "o-")
    left.set_ylabel("lookups that succeed, %")
    left.set_ylim(min(98.0, *(case.success for case in cases)) - 0.2, 100.1)
    right.plot(places, [case.p50 * 1000 for case in cases], "o-", label="median")
    right.plot(places, [case.p95 * 1000 for case in cases], "s--", label="95 %")
    right.set_ylabel("ms")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel(label)
    return _save(pyplot, figure, path)


def _save(pyplot: Any, figure: Any, path: Path) -> str:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=axes.get_ylim()[0] if axes.get_ylabel().endswith("%") else 0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path.name
