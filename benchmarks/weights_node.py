"""A process that seeds or fetches weights, for `bench_weights`: our sessions, or libtorrent as it is.

Reads lines of JSON, answers each with one. ``{"do": "seed" | "fetch" | "raw_fetch", "torrent", "folder", ...}``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import libtorrent as lt
import trio

from swarm.manifest import SignedManifest, span_ranges, span_tiers
from swarm.torrents import TorrentConfig, open_torrents

HOST = "127.0.0.1"


async def lines() -> AsyncIterator[dict[str, Any]]:
    """What the benchmark asks, until it ends."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


async def fetch(question: dict[str, Any]) -> dict[str, Any]:
    """Fetch a span as a worker does: tier by tier, flushed, read back and hashed."""
    raw = await trio.Path(question["torrent"]).read_bytes()
    manifest = SignedManifest.decode(await trio.Path(question["manifest"]).read_bytes()).manifest
    span = (question["start"], question["stop"])
    async with open_torrents(TorrentConfig()) as torrents:
        started, cpu = time.perf_counter(), time.process_time()
        torrent = await torrents.fetch(raw, Path(question["folder"]), span_tiers(manifest, *span))
        torrent.add_peer(HOST, question["port"])
        for tier in span_tiers(manifest, *span):
            await torrent.wait(tier)
        await torrent.wait(span_ranges(manifest, *span))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        payload = (await torrent.refresh()).downloaded_payload
    return {"seconds": seconds, "cpu": cpu, "bytes": payload}


def raw_fetch(question: dict[str, Any]) -> dict[str, Any]:
    """Fetch everything with libtorrent and nothing of ours; it is done when libtorrent says so."""
    settings: Any = {
        "listen_interfaces": f"{HOST}:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
        "enable_natpmp": False, "enable_outgoing_utp": False, "enable_incoming_utp": False,
        "allow_multiple_connections_per_ip": True, "alert_mask": int(lt.alert_category.status),
    }  # fmt: skip
    session: Any = lt.session(settings)
    started, cpu = time.perf_counter(), time.process_time()
    parameters: Any = lt.load_torrent_file(question["torrent"])
    parameters.save_path = question["folder"]
    handle = session.add_torrent(parameters)
    handle.connect_peer((HOST, question["port"]))
    done = False
    while not done:
        session.wait_for_alert(1000)
        done = any(isinstance(alert, lt.torrent_finished_alert) for alert in session.pop_alerts())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "bytes": handle.status().total_payload_download}


async def main() -> None:
    """Answer until the input ends; what is seeded stays so."""
    async with AsyncExitStack() as stack:
        async for question in lines():
            if question["do"] == "seed":
                raw = await trio.Path(question["torrent"]).read_bytes()
                torrents = await stack.enter_async_context(
                    open_torrents(TorrentConfig(upload_rate=question.get("rate", 0)))
                )
                await torrents.seed(raw, Path(question["folder"]), unchanged=True)
                answer: dict[str, Any] = {"port": torrents.port}
            elif question["do"] == "fetch":
                answer = await fetch(question)
            elif question["do"] == "raw_fetch":
                answer = await trio.to_thread.run_sync(raw_fetch, question)
            else:
                answer = {"cpu": time.process_time()}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(main)
