"""What every benchmark says and how: tables for people on stdout, or with ``--json`` one object.

The object holds ``schema``, ``machine``, ``commit``, ``results`` and ``bars``, a list of
``{name, value, unit, bar, holds}`` with one entry for each bar that is claimed anywhere. A bar that is missed is said,
and is no failure: the exit status is 1 only when nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from swarm.errors import SwarmError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure that is claimed, and the least (or most) that it may be."""

    name: str
    value: float
    unit: str
    bar: float
    holds: bool

    @classmethod
    def at_least(cls, name: str, value: float, bar: float, unit: str) -> Bar:
        """It holds from ``bar`` upwards."""
        return cls(name=name, value=value, unit=unit, bar=bar, holds=value >= bar)

    @classmethod
    def below(cls, name: str, value: float, bar: float, unit: str) -> Bar:
        """It holds below ``bar``."""
        return cls(name=name, value=value, unit=unit, bar=bar, holds=value < bar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows for people; ``note`` follows them."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    note: str = ""

    def text(self) -> str:
        """Aligned columns, numbers to the right."""
        lines = [""] * (len(self.rows) + 1)
        for at, column in enumerate(self.columns):
            values = [row[at] for row in self.rows]
            cells = [column, *map(_cell, values)]
            width = max(map(len, cells))
            numeric = all(isinstance(value, int | float | None) for value in values)
            for index, cell in enumerate(cells):
                lines[index] += (cell.rjust(width) if numeric else cell.ljust(width)) + "  "
        return "\n".join([self.title, *(line.rstrip() for line in lines), *([self.note] if self.note else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one benchmark has found."""

    results: dict[str, Any]
    """JSON values; their form is the benchmark's own and named by its schema."""
    bars: list[Bar] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def run(
    schema: str, description: str | None, measure: Callable[[bool], Findings], arguments: Sequence[str] | None = None
) -> int:
    """A benchmark's command line; ``measure`` is told whether to be quick. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: whether it works, not how fast")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args(arguments)
    before, about = commit(), machine()
    try:
        findings = measure(options.quick)
    except SwarmError as error:
        print(f"{schema}: not measured: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(document(schema, about, before, findings)))
    else:
        print("\n\n".join(_sections(about, before, findings)))
    return 0


def document(schema: str, about: dict[str, Any], version: str, findings: Findings) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "schema": schema,
        "machine": about,
        "commit": version,
        "results": findings.results,
        "bars": [asdict(bar) for bar in findings.bars],
    }


def machine() -> dict[str, Any]:
    """This machine: ``cores, cpu, memory_gib, python, torch`` (None where it is not installed), ``load`` before."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "python": platform.python_version(),
        "torch": installed("torch"),
        "load": round(psutil.getloadavg()[0], 2),
    }


def installed(distribution: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(folder: Path = ROOT) -> str:
    """The commit of the working tree with ``+dirty`` where files differ from it; "unknown" outside git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _sections(about: dict[str, Any], version: str, findings: Findings) -> list[str]:
    bars = Table(
        title="bars",
        columns=("", "value", "unit", "bar", ""),
        rows=[(bar.name, bar.value, bar.unit, bar.bar, "holds" if bar.holds else "MISSED") for bar in findings.bars],
    )
    head = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    return [f"{head}\ncommit {version}", *(table.text() for table in findings.tables), bars.text()]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
