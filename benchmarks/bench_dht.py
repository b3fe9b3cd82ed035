"""The DHT: one node under load, lookups on loopback beside libtorrent's, and thousands of nodes in virtual time.

    python -m benchmarks.bench_dht [--quick] [--json] [--plots DIR]

**Load**: closed-loop requests on loopback to one node without contacts, in a process of its own; CPU time is that
process's. libtorrent's node and the PyPI package ``kademlia`` are measured beside where they are installed.
**Loopback**: 64 real nodes put and get immutable items, all alive and then with a third of them gone without a word.
Ours share one process and one core; libtorrent's share one process with a thread each.
**Simulated**: on the network of tests/sim, engines as shipped, virtual time. ``--plots`` draws these with matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from benchmarks.dht_load import Rate, measure_node
from benchmarks.dht_loopback import Timings, measure_libtorrent, measure_ours, quantile
from benchmarks.dht_plots import draw
from benchmarks.dht_simulated import RosterFigures, Scale, Survival, measure_roster, measure_scale, measure_survival
from benchmarks.report import Bar, Findings, Table, run

SCHEMA = "bench-dht/1"
DEAD_BAR = 1.0  # seconds: libtorrent's put took 15.2 with one dead node among the closest
CHURN = 0.2  # of the nodes replaced in ten minutes
CHURN_BAR, LOSS_BAR = 99.9, 99.0  # percent
EXTRA_BAR = 2  # datagrams after the lookup


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    load_seconds: float
    nodes: int
    operations: int
    foreign_dead_operations: int
    sizes: tuple[int, ...]
    lookups: int
    survival_nodes: int
    survival_lookups: int
    losses: tuple[float, ...]
    churns: tuple[float, ...]
    workers: int
    roster_nodes: int
    roster_reads: int


FULL = Plan(
    load_seconds=3.0, nodes=64, operations=100, foreign_dead_operations=8, sizes=(100, 300, 1000, 3000, 10_000),
    lookups=100, survival_nodes=200, survival_lookups=1200, losses=(0.01, 0.1, 0.2), churns=(0.0, 0.2, 0.4),
    workers=10_000, roster_nodes=1000, roster_reads=100,
)  # fmt: skip
QUICK = Plan(
    load_seconds=0.3, nodes=9, operations=5, foreign_dead_operations=1, sizes=(50, 100), lookups=5, survival_nodes=30,
    survival_lookups=20, losses=(0.01, 0.1), churns=(0.2,), workers=300, roster_nodes=40, roster_reads=3,
)  # fmt: skip


def report_load(findings: Findings, plan: Plan) -> None:
    """Requests per second of a core, beside the others."""
    rows: list[tuple[object, ...]] = []
    results: list[dict[str, Any]] = []
    for kind in ("ping", "find_node", "get"):
        for which in ("ours", "libtorrent", "kademlia"):
            rate: Rate | None = measure_node(which, kind, plan.load_seconds)
            results.append({"node": which, "request": kind, **(asdict(rate) if rate else {"missing": True})})
            figures = (
                (round(rate.requests_per_core_second), rate.cpu_us_per_request, round(rate.requests_per_second))
                if rate
                else (None, None, None)
            )
            rows.append((kind, which, *figures))
    findings.results["load"] = results
    columns = ("request", "node", "per s and core", "CPU µs each", "per s measured")
    note = "A dash: not installed. The load generator shares the machine, so the last column is its limit as well."
    findings.tables.append(Table(title="one node under load", columns=columns, rows=rows, note=note))


def report_loopback(findings: Findings, plan: Plan) -> None:
    """p50 and p95 of puts and gets, alive and with a third dead."""
    measured: dict[str, Timings | None] = {
        "ours": trio.run(measure_ours, plan.nodes, plan.operations),
        "libtorrent": measure_libtorrent(plan.nodes, plan.operations, plan.foreign_dead_operations),
    }
    rows: list[tuple[object, ...]] = []
    results: list[dict[str, Any]] = []
    for which, timings in measured.items():
        if timings is None:
            results.append({"node": which, "missing": True})
            rows.append((which, "not installed", None, None, None))
            continue
        for name in ("gets", "puts", "gets_dead", "puts_dead"):
            values: list[float] = getattr(timings, name)
            p50, p95 = quantile(values, 0.5), quantile(values, 0.95)
            label = name.removesuffix("_dead")[:-1] + (", a third dead" if name.endswith("_dead") else "")
            results.append({"node": which, "operation": name, "p50": p50, "p95": p95, "count": len(values)})
            rows.append((which, label, p50 * 1000, p95 * 1000, len(values)))
            if which == "ours" and name.endswith("_dead"):
                findings.bars.append(Bar.below(f"{label}, p95 on loopback", p95, DEAD_BAR, "s"))
        results[-1]["failed"] = timings.failed
    findings.results["loopback"] = {"nodes": plan.nodes, "operations": results}
    columns = ("node", "operation", "p50 ms", "p95 ms", "count")
    findings.tables.append(Table(title=f"{plan.nodes} nodes on loopback", columns=columns, rows=rows))


def report_survival(findings: Findings, plan: Plan) -> list[Survival]:
    """Success of lookups by loss and churn."""
    cases = [(loss, CHURN) for loss in plan.losses] + [(plan.losses[0], churn) for churn in plan.churns]
    found = [
        measure_survival(plan.survival_nodes, plan.survival_lookups, loss=loss, churn=churn)
        for loss, churn in dict.fromkeys(cases)
    ]
    rows: list[tuple[object, ...]] = []
    for case in found:
        rows.append(
            (
                100 * case.loss, 100 * case.churn, case.replaced, case.lookups, case.success, case.p50 * 1000,
                case.p95 * 1000,
            )
        )  # fmt: skip
        bar = {0.01: CHURN_BAR, 0.1: LOSS_BAR}.get(case.loss) if case.churn == CHURN else None
        if bar is not None:
            name = f"lookups that succeed, churn {CHURN:.0%} per 10 min, loss {case.loss:.0%}"
            findings.bars.append(Bar.at_least(name, case.success, bar, "%"))
    findings.results["survival"] = [asdict(case) | {"success": case.success} for case in found]
    columns = ("loss %", "churn % per 10 min", "replaced", "lookups", "success %", "p50 ms", "p95 ms")
    title = f"{plan.survival_nodes} simulated nodes, one way 10 to 80 ms"
    findings.tables.append(Table(title=title, columns=columns, rows=rows))
    return found


def report_scale(findings: Findings, plan: Plan) -> list[Scale]:
    """Hops and queries by the number of nodes."""
    found = [measure_scale(nodes, plan.lookups) for nodes in plan.sizes]
    findings.results["scale"] = [asdict(scale) for scale in found]
    rows: list[tuple[object, ...]] = [
        (scale.nodes, scale.hops, scale.hops_p95, scale.queries, scale.exact) for scale in found
    ]
    columns = ("nodes", "round trips", "p95", "queries", "exact %")
    findings.tables.append(Table(title="lookups by size, nothing lost", columns=columns, rows=rows))
    return found


def report_roster(findings: Findings, plan: Plan) -> None:
    """Eight workers for ten layers."""
    found: RosterFigures = measure_roster(plan.workers, plan.roster_nodes, plan.roster_reads)
    findings.results["roster"] = asdict(found)
    rows: list[tuple[object, ...]] = [
        ("one lookup brings eight, % of reads", found.satisfied),
        ("p50 until they are known, ms", found.p50 * 1000),
        ("p95, ms", found.p95 * 1000),
        ("nodes asked until then", found.asked),
        ("nodes that a plain lookup asks", found.plain_asked),
        ("datagrams after the lookup, most", found.extra_datagrams),
        ("datagrams sent, everything", found.sent),
        ("datagrams received, everything", found.received),
        ("bytes sent", found.bytes_sent),
        ("bytes received", found.bytes_received),
    ]
    note = f"The roster is split into {1 << found.depth} shards; one way takes 10 to 80 ms."
    title = f"eight workers for ten of 80 layers among {found.workers}, {plan.roster_nodes} nodes"
    findings.tables.append(Table(title=title, columns=("", "mean"), rows=rows, note=note))
    name = f"datagrams after the lookup, {found.workers} workers"
    most = found.extra_datagrams
    findings.bars.append(Bar(name=name, value=most, unit="datagrams", bar=EXTRA_BAR, holds=most <= EXTRA_BAR))


def measure_all(plan: Plan, plots: Path | None) -> Findings:
    """Everything, and the plots where they are wanted."""
    findings = Findings(results={})
    report_load(findings, plan)
    report_loopback(findings, plan)
    scales = report_scale(findings, plan)
    survivals = report_survival(findings, plan)
    report_roster(findings, plan)
    if plots is not None:
        findings.results["plots"] = draw(plots, scales, survivals)
    return findings


def main(arguments: list[str]) -> int:
    """The command line; `benchmarks.report` has the rest of it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--plots", type=Path)
    own, common = parser.parse_known_args(arguments)
    return run(SCHEMA, __doc__, lambda quick: measure_all(QUICK if quick else FULL, own.plots), common)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
