"""The benchmarks' common output, and that each benchmark runs and says what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.bench_chain import FULL, pace
from benchmarks.report import Bar, Findings, Table
from swarm.errors import ResourceError, SwarmError

ROOT = Path(__file__).parents[1]


def findings(quick: bool = False) -> Findings:
    """One figure that holds its bar and one that misses it."""
    return Findings(
        results={"quick": quick},
        bars=[Bar.at_least("speed", 1.25, 1.0, "x"), Bar.below("cost", 3.0, 2.0, "ms")],
        tables=[
            Table(title="times", columns=("what", "ms"), rows=[("short", 12.345), ("longer", None)], note="a note")
        ],
    )


def check_document(document: dict[str, Any], schema: str) -> None:
    """What every benchmark's object holds."""
    assert document["schema"] == schema
    assert set(document) == {"schema", "machine", "commit", "results", "bars"}
    assert {"cores", "cpu", "memory_gib", "python", "torch"} <= set(document["machine"])
    for bar in document["bars"]:
        assert set(bar) == {"name", "value", "unit", "bar", "holds"}
        assert isinstance(bar["holds"], bool)


class TestReport:
    def test_json_is_one_object_with_the_common_keys(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert report.run("bench-x/1", "X.", findings, ["--quick", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        check_document(document, "bench-x/1")
        assert document["results"] == {"quick": True}
        assert [bar["holds"] for bar in document["bars"]] == [True, False]

    def test_a_table_for_people_aligns_numbers_and_says_which_bar_is_missed(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert report.run("bench-x/1", "X.", findings, []) == 0
        out = capsys.readouterr().out
        assert "times\nwhat       ms\nshort   12.35\nlonger      –\na note\n" in out
        assert [line.split()[-1] for line in out.splitlines()[-2:]] == ["holds", "MISSED"]

    def test_what_cannot_be_measured_is_a_failure_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fail(quick: bool) -> Findings:
            raise ResourceError("a worker ended: port in use")

        assert report.run("bench-x/1", "X.", fail, ["--json"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == "bench-x/1: not measured: a worker ended: port in use\n"

    @pytest.mark.parametrize(("value", "at_least", "below"), [(0.99, False, True), (1.0, True, False)])
    def test_a_bar_holds_from_or_below_its_figure(self, value: float, at_least: bool, below: bool) -> None:
        assert Bar.at_least("", value, 1.0, "").holds is at_least
        assert Bar.below("", value, 1.0, "").holds is below

    def test_the_commit_says_whether_files_differ_from_it(self, tmp_path: Path) -> None:
        assert report.commit(tmp_path) == "unknown"
        git = ("git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.invalid")
        for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
            subprocess.run([*git, *command], check=True)
        clean = report.commit(tmp_path)
        assert len(clean) == 40
        (tmp_path / "new").touch()
        assert report.commit(tmp_path) == f"{clean}+dirty"


def test_the_pace_counts_the_tokens_after_the_first_ones() -> None:
    times = [0.0] * FULL.skipped + [0.002 * (index + 1) for index in range(FULL.counted)]
    assert pace(times, FULL) == pytest.approx(2.0)
    with pytest.raises(SwarmError, match="79 tokens came of 80"):
        pace(times[1:], FULL)


@pytest.mark.slow
def test_bench_chain_measures_both_models_and_the_hop() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_chain", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_document(document, "bench-chain/1")
    models = document["results"]["models"]
    assert set(models) == {"demo", "random-111m"}
    for rows in models.values():
        assert [row["what"] for row in rows[-3:]] == ["1 worker", "2 workers", "3 workers"]
        assert any(row["what"].startswith("transformers") for row in rows)
        assert all(row["ms_per_token"] > 0 for row in rows)
    assert all(row["tokens_equal"] for row in models["demo"])
    rings = {(row["hidden"], row["stages"]): row["ms_per_hop"] for row in document["results"]["hops"]}
    assert set(rings) == {(hidden, stages) for hidden in (128, 1024) for stages in (1, 2, 3)}
    assert all((cost is None) == (stages == 1) for (_, stages), cost in rings.items())
    assert [bar["name"] for bar in document["bars"]] == [
        "one worker against transformers, demo",
        "one worker against transformers, random-111m",
        "software cost per hop, hidden 128 fp32",
        "software cost per hop, hidden 1024 fp32",
    ]


@pytest.mark.slow
def test_bench_weights_measures_what_it_promises() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_weights", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    check_document(document, "bench-weights/1")
    assert {"speed", "loading", "crowds"} <= set(document["results"])
    names = {bar["name"] for bar in document["bars"]}
    assert {"bytes over the span", "whole model against raw libtorrent", "first layer ready, whole"} <= names
    overhead = next(bar for bar in document["bars"] if bar["name"] == "bytes over the span")
    assert overhead["holds"], "bytes do not depend on the machine"
    assert all(0 < found["share"] <= 1 for found in document["results"]["crowds"].values())
    gone = next(found for name, found in document["results"]["crowds"].items() if "vanishes" in name)
    assert gone["last"] > 0, "all finish without the publisher"
