"""The benchmark of the DHT runs, and says what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_dht import FULL, QUICK
from benchmarks.dht_loopback import quantile
from benchmarks.dht_simulated import measure_roster, measure_scale, measure_survival

ROOT = Path(__file__).parents[1]


def test_quantiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.95), quantile([3.0], 0.95)) == (50.0, 95.0, 3.0)


def test_simulated_figures_are_of_what_was_simulated() -> None:
    scale = measure_scale(60, 4)
    assert (scale.nodes, scale.exact) == (60, 100.0)
    assert 1.0 <= scale.hops <= scale.hops_p95 <= 8.0
    survival = measure_survival(24, 5, loss=0.3, churn=0.2, items=3)
    assert survival.lookups == 5
    assert survival.replaced > 0
    roster = measure_roster(30, 20, 2)
    assert roster.depth == 0
    assert roster.sent >= roster.asked > 0


def test_the_full_plan_is_what_the_bars_are_claimed_for() -> None:
    assert (FULL.nodes, FULL.workers, max(FULL.sizes)) == (64, 10_000, 10_000)
    assert FULL.survival_lookups >= 1000
    assert {0.01, 0.1} <= set(FULL.losses) & set(QUICK.losses)


@pytest.mark.slow
def test_it_prints_one_object() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_dht", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "bench-dht/1"
    assert len(document["bars"]) == 5
    assert {"load", "loopback", "scale", "survival", "roster"} == set(document["results"])
