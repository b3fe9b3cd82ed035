"""Weights: bytes and speed of one worker, when its first layer is ready, and how near to the optimum a crowd fills.

    python -m benchmarks.bench_weights [--quick] [--json]

Loopback, TCP. Links are capped by libtorrent's own rate limits, which count local peers here. The **optimum** for N
workers that want F bytes from a seed that uploads u_s, each uploading u_i, is max(F/u_s, N F/(u_s + sum u_i)) (Kumar
and Ross 2006); T_last is when the last worker has everything, verified. The seed's and the workers' sessions of that
part live in this process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

from benchmarks.children import Child, open_child
from benchmarks.random_llama import write_random_llama
from benchmarks.report import Bar, Findings, Table, run
from client.publish import Published, publish_folder
from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.manifest import span_bytes, span_ranges, span_tiers
from swarm.messages import Sampling
from swarm.store import Store
from swarm.torrent import Torrent
from swarm.torrents import TorrentConfig, Torrents, open_torrents
from worker.engine import open_engine
from worker.fetch import SpanFetch, load_span, open_stored
from worker.stage import StageInput

SCHEMA = "bench-weights/1"
HOST = "127.0.0.1"
LAYERS = 8
SPAN = (2, 6)
OVERHEAD_BAR = 1.5  # % over the span's own bytes
RAW_BAR = 0.95  # of raw libtorrent's speed
FIRST_LAYER_BAR = 0.5  # of the span's time
SEED_BOUND_BAR, SWARM_BOUND_BAR = 0.80, 0.90
COPIES_BAR = 1.1
TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. Sizes of models by hidden width, rates in bytes per second."""

    rounds: int
    speed_hidden: int
    load_rate: int
    fill_hidden: int
    fill_rate: int
    crowds: tuple[int, ...]


FULL = Plan(rounds=5, speed_hidden=1024, load_rate=25_000_000, fill_hidden=512, fill_rate=2_000_000, crowds=(8, 16))
QUICK = Plan(rounds=1, speed_hidden=512, load_rate=25_000_000, fill_hidden=256, fill_rate=6_000_000, crowds=(4,))


async def publish_model(folder: Path, hidden: int) -> Published:
    """A random Llama of this width, published; torrent and manifest also as files beside it."""
    changes = {"hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "head_dim": hidden // 16}
    model = await trio.to_thread.run_sync(partial(write_random_llama, folder / "model", **changes))
    published = await publish_folder(model, name="random", publisher=Identity.generate())
    (folder / "torrent").write_bytes(published.torrent)
    (folder / "manifest").write_bytes(published.signed.encode())
    return published


# ---- (a) one worker: bytes, MB/s, CPU --------------------------------------------------------------------------------


async def measure_speed(findings: Findings, folder: Path, published: Published, plan: Plan) -> None:
    """The whole model and a span by our sessions, the whole by libtorrent alone and by curl from an HTTP server."""
    manifest = published.signed.manifest
    total = sum(file.size for file in manifest.files)
    spans = {"whole model": (0, LAYERS), "span 2:6": SPAN}
    rounds: dict[str, list[dict[str, Any]]] = {}
    async with (
        open_child("seed", "-m", "benchmarks.weights_node", log=folder / "seed.log") as seed,
        open_child("leech", "-m", "benchmarks.weights_node", log=folder / "leech.log") as leech,
    ):
        port = (await seed.ask({"do": "seed", "torrent": str(folder / "torrent"), "folder": str(published.folder)}))[
            "port"
        ]
        base = {"torrent": str(folder / "torrent"), "manifest": str(folder / "manifest"), "port": port}
        for number in range(plan.rounds + 1):
            for name, (start, stop) in spans.items():
                question = {"do": "fetch", "start": start, "stop": stop, **base}
                found = await _ask(seed, leech, question, folder)
                if number:
                    rounds.setdefault(name, []).append(found)
            found = await _ask(seed, leech, {"do": "raw_fetch", **base}, folder)
            if number:
                rounds.setdefault("libtorrent alone, whole", []).append(found)
            if number and (seconds := await _curl(folder, published.folder)) is not None:
                rounds.setdefault("HTTP (curl), whole", []).append({"seconds": seconds, "bytes": total})
    rows: list[tuple[object, ...]] = []
    speeds: dict[str, float] = {}
    for name, each in rounds.items():
        speeds[name] = median(one["bytes"] / one["seconds"] / 1e6 for one in each)
        cpu = [median(one[key] / one["bytes"] * 1e9 for one in each) if key in each[0] else None for key in _CPUS]
        rows.append((name, each[0]["bytes"], speeds[name], *cpu))
    fetched = rounds["span 2:6"][0]["bytes"]
    overhead = (fetched / span_bytes(manifest, *SPAN) - 1) * 100
    ratio = speeds["whole model"] / speeds["libtorrent alone, whole"]
    findings.bars.append(Bar.below("bytes over the span", overhead, OVERHEAD_BAR, "%"))
    findings.bars.append(Bar.at_least("whole model against raw libtorrent", ratio, RAW_BAR, "ours / raw"))
    columns = ("(a) one worker", "bytes", "MB/s", "CPU s/GB, leech", "seed")
    note = f"Pieces of {manifest.piece_length} bytes. " + (
        "" if "HTTP (curl), whole" in rounds else "curl is not installed: left out."
    )
    findings.tables.append(Table(title="speed", columns=columns, rows=rows, note=note))
    findings.results["speed"] = {
        "rounds": rounds,
        "span_bytes": span_bytes(manifest, *SPAN),
        "model_bytes": total,
        "piece_length": manifest.piece_length,
    }


_CPUS = ("cpu", "seed_cpu")


async def _ask(seed: Child, leech: Child, question: dict[str, Any], folder: Path) -> dict[str, Any]:
    place = folder / "fetched"
    await trio.to_thread.run_sync(partial(shutil.rmtree, place, ignore_errors=True))
    place.mkdir()
    before = (await seed.ask({"do": "cpu"}))["cpu"]
    answer = await leech.ask({**question, "folder": str(place)})
    return answer | {"seed_cpu": (await seed.ask({"do": "cpu"}))["cpu"] - before}


async def _curl(folder: Path, model: Path) -> float | None:
    """Seconds that curl takes from a local HTTP server; nginx where it is installed, else Python's own."""
    if shutil.which("curl") is None:
        return None
    code = "import functools, http.server, sys; h = functools.partial(http.server.SimpleHTTPRequestHandler, "
    code += "directory=sys.argv[1]); s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), h); "
    code += "print(s.server_port, flush=True); s.serve_forever()"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        if process.stdout is None:
            raise SwarmError("an HTTP server was started without a pipe")
        port = int(await process.stdout.receive_some())
        started = time.perf_counter()
        for path in await trio.to_thread.run_sync(lambda: sorted(model.glob("*.safetensors"))):
            url = f"http://{HOST}:{port}/{path.name}"
            await trio.run_process(["curl", "-sf", "-o", str(folder / "curl-fetched"), url])
        return time.perf_counter() - started
    finally:
        process.kill()
        await process.wait()


# ---- (b) when layers are ready ---------------------------------------------------------------------------------------


async def measure_loading(findings: Findings, folder: Path, published: Published, plan: Plan) -> None:
    """Join to first layer, to the whole span and to the first token, loading meanwhile or only then."""
    rows: list[tuple[object, ...]] = []
    results = {}
    async with open_torrents(TorrentConfig(upload_rate=plan.load_rate)) as seed:
        await seed.seed(published.torrent, published.folder, unchanged=True)
        for name, span, meanwhile in (
            ("whole, while it arrives", (0, LAYERS), True),
            ("whole, when it is there", (0, LAYERS), False),
            ("layers 2:6, while they arrive", SPAN, True),
            ("layers 2:6, when they are there", SPAN, False),
        ):
            found = await _load(folder / f"load-{len(rows)}", published, seed.port, span, meanwhile=meanwhile)
            share = found["first_layer"] / found["span"]
            rows.append((name, found["first_layer"], found["span"], found.get("token"), share))
            results[name] = found | {"share": share}
            if meanwhile:
                title = f"first layer ready, {name.partition(',')[0]}"
                findings.bars.append(Bar.below(title, share, FIRST_LAYER_BAR, "of the span's time"))
    columns = ("(b) loading", "first layer, s", "span, s", "first token, s", "first / span")
    note = f"Seconds from joining; the link is capped at {plan.load_rate / 1e6:.0f} MB/s. Goal: 0.2 of the span's time."
    findings.tables.append(Table(title="loading", columns=columns, rows=rows, note=note))
    findings.results["loading"] = results


async def _load(
    folder: Path, published: Published, port: int, span: tuple[int, int], *, meanwhile: bool
) -> dict[str, float]:
    fetch = SpanFetch(
        manifest=published.signed.manifest, raw=published.torrent, span=span, store=Store(folder / "store")
    )
    started = time.perf_counter()
    async with open_torrents(TorrentConfig()) as torrents, open_stored(fetch, torrents) as torrent:
        torrent.add_peer(HOST, port)
        if not meanwhile:
            await torrent.wait(span_ranges(fetch.manifest, *span))
        waited = time.perf_counter() - started
        loaded = await load_span(fetch, torrent, lambda what, progress: None)
        begun = time.perf_counter() - started - waited - loaded.span_after  # what came before the loading's clock
        found = {
            "first_layer": waited + begun + loaded.first_layer_after,
            "span": waited + begun + loaded.span_after,
        }
        if span == (0, LAYERS):
            async with open_engine(loaded.model, kv_budget_bytes=64 << 20, threads=2) as engine:
                stage = engine.open_stage(0, LAYERS, TOKENS + 1, Sampling())
                ids = tuple(range(1, TOKENS + 1))
                await stage.forward(StageInput(position=0, count=TOKENS, ids=ids, sample=True))
                found["token"] = time.perf_counter() - started
                stage.close()
    shutil.rmtree(folder)
    return found


# ---- (c) and (d) a crowd ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Workers that join at once. Rates in bytes per second."""

    workers: int
    seed_rate: int
    worker_rate: int
    vanishes: bool = False
    """The publisher goes once the workers hold one copy together."""

    def optimum(self, size: int) -> float:
        """Seconds that nobody can beat."""
        together = self.seed_rate + self.workers * self.worker_rate
        return max(size / self.seed_rate, self.workers * size / together)


async def fill(folder: Path, published: Published, crowd: Crowd) -> dict[str, float]:
    """Seconds until the last worker has the whole model, and what the seed uploaded, in copies."""
    manifest = published.signed.manifest
    size = sum(file.size for file in manifest.files)
    tiers = span_tiers(manifest, 0, LAYERS)
    async with trio.open_nursery() as around, AsyncExitStack() as stack:
        go, gone = trio.Event(), trio.Event()
        seed, seeded = await around.start(_seed, published, crowd.seed_rate, go, gone)
        sessions, torrents = await _join(stack, folder, published, crowd)
        started = time.perf_counter()
        ready: list[float] = []
        first: list[float] = []
        uploaded = 0

        async def wait(torrent: Torrent) -> None:
            for number, tier in enumerate(tiers):
                await torrent.wait(tier)
                if number == 1:  # the embedding, and the first layer
                    first.append(time.perf_counter() - started)
            ready.append(time.perf_counter() - started)

        async def leave() -> None:
            nonlocal uploaded
            have: set[int] = set()
            while len(have) < seeded.map.total:
                await trio.sleep(0.2)
                have = set().union(*(torrent.plan.done() for torrent in torrents))
            uploaded = (await seeded.refresh()).uploaded_payload
            go.set()
            await gone.wait()

        async with trio.open_nursery() as nursery:
            for torrent in torrents:
                torrent.add_peer(HOST, seed.port)
                for other in sessions:
                    torrent.add_peer(HOST, other.port)
                nursery.start_soon(torrent.share)
                nursery.start_soon(wait, torrent)
            if crowd.vanishes:
                nursery.start_soon(leave)
        if not crowd.vanishes:
            uploaded = (await seeded.refresh()).uploaded_payload
        go.set()
        received = sum([(await torrent.refresh()).downloaded_payload for torrent in torrents])
    return {
        "optimum": crowd.optimum(size),
        "last": max(ready),
        "share": crowd.optimum(size) / max(ready),
        "first_layer": max(first),
        "copies": uploaded / size,
        "redundant": (received / size - crowd.workers) / crowd.workers,
        "http": crowd.workers * size / crowd.seed_rate,
    }


async def _seed(
    published: Published, rate: int, go: trio.Event, gone: trio.Event, *, task_status: trio.TaskStatus[Any]
) -> None:
    """Seed until told to go."""
    async with open_torrents(TorrentConfig(upload_rate=rate)) as seed:
        task_status.started((seed, await seed.seed(published.torrent, published.folder, unchanged=True)))
        await go.wait()
    gone.set()


async def _join(
    stack: AsyncExitStack, folder: Path, published: Published, crowd: Crowd
) -> tuple[list[Torrents], list[Torrent]]:
    sessions, torrents = [], []
    tiers = span_tiers(published.signed.manifest, 0, LAYERS)
    for number in range(crowd.workers):
        session = await stack.enter_async_context(open_torrents(TorrentConfig(upload_rate=crowd.worker_rate)))
        place = folder / f"worker-{number}"
        shutil.rmtree(place, ignore_errors=True)
        sessions.append(session)
        torrents.append(await session.fetch(published.torrent, place, tiers))
    return sessions, torrents


async def measure_crowds(findings: Findings, folder: Path, published: Published, plan: Plan) -> None:
    """Seed-bound and swarm-bound crowds, and one whose publisher vanishes."""
    rate = plan.fill_rate
    crowds: dict[str, tuple[Crowd, float | None]] = {}
    for workers in plan.crowds:
        bound = Crowd(workers=workers, seed_rate=rate, worker_rate=rate)
        crowds[f"{workers} workers, seed-bound"] = (bound, SEED_BOUND_BAR)
        loose = Crowd(workers=workers, seed_rate=workers * rate, worker_rate=rate)
        crowds[f"{workers} workers, swarm-bound"] = (loose, SWARM_BOUND_BAR)
    few = min(plan.crowds)
    gone = Crowd(workers=few, seed_rate=rate, worker_rate=rate, vanishes=True)
    crowds[f"{few} workers, the publisher vanishes"] = (gone, None)
    rows: list[tuple[object, ...]] = []
    for name, (crowd, bar) in crowds.items():
        found = await fill(folder, published, crowd)
        rows.append((name, *found.values()))
        findings.results.setdefault("crowds", {})[name] = found
        if bar is not None:
            findings.bars.append(Bar.at_least(f"optimum / last, {name}", found["share"], bar, "T_min / T_last"))
        if bar == SEED_BOUND_BAR:
            findings.bars.append(Bar.below(f"copies from the seed, {name}", found["copies"], COPIES_BAR, "copies"))
    size = sum(file.size for file in published.signed.manifest.files)
    columns = (
        "(c) (d) crowds", "optimum, s", "last, s", "share", "first layer at all, s", "copies", "redundant",
        "one HTTP server, s",
    )  # fmt: skip
    note = (
        f"{size / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s up per worker; the seed has as much (seed-bound) or as much as "
        "all workers together (swarm-bound: the optimum itself takes several copies from it). One HTTP server: what "
        "its link takes at best."
    )
    findings.tables.append(Table(title="crowds", columns=columns, rows=rows, note=note))


async def measure_all(plan: Plan) -> Findings:
    """Everything."""
    findings = Findings(results={})
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as name:
        for part, hidden, steps in (
            ("large", plan.speed_hidden, (measure_speed, measure_loading)),
            ("small", plan.fill_hidden, (measure_crowds,)),
        ):
            folder = Path(name) / part
            folder.mkdir()
            published = await publish_model(folder, hidden)
            for step in steps:
                await step(findings, folder, published, plan)
    return findings


def measure(quick: bool) -> Findings:
    """Everything, as `benchmarks.report.run` wants it."""
    return trio.run(measure_all, QUICK if quick else FULL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run(SCHEMA, __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
