"""Lookups and stores on a loopback network of real nodes, ours and libtorrent's, with all alive and a third dead."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

import dht
from benchmarks.dht_server import LIBTORRENT_SETTINGS
from benchmarks.report import installed
from swarm.errors import ResourceError, SwarmError

LIMIT = 40.0  # seconds for one operation: libtorrent gives up a silent node after 15


@dataclass(slots=True, kw_only=True)
class Timings:
    """Seconds that operations took, in the order they ran."""

    gets: list[float] = field(default_factory=list)
    gets_dead: list[float] = field(default_factory=list)
    puts: list[float] = field(default_factory=list)
    puts_dead: list[float] = field(default_factory=list)
    failed: int = 0


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1)]


async def measure_ours(nodes: int, operations: int) -> Timings:
    """Random nodes put and get immutable items; then every third dies at once, and they go on."""
    rng, timings = random.Random(1), Timings()
    async with trio.open_nursery() as nursery:
        running: list[tuple[dht.Node, trio.CancelScope]] = []
        for number in range(nodes):
            through = (running[0][0].address,) if running else ()
            running.append(await nursery.start(_hold, dht.DhtConfig(bootstrap=through, seed=number)))
        await trio.sleep(1.0)
        targets = [await _time_put(rng.choice(running)[0], timings.puts) for _ in range(operations)]
        for target in targets:
            await _time_get(rng.choice(running)[0], target, timings.gets, timings)
        for _, scope in running[::3]:
            scope.cancel()
        await trio.sleep(0.1)
        alive = [node for number, (node, _) in enumerate(running) if number % 3]
        for target in targets:
            await _time_get(rng.choice(alive), target, timings.gets_dead, timings)
        for _ in range(operations):
            await _time_put(rng.choice(alive), timings.puts_dead)
        nursery.cancel_scope.cancel()
    return timings


async def _hold(config: dht.DhtConfig, *, task_status: trio.TaskStatus[tuple[dht.Node, trio.CancelScope]]) -> None:
    """One node until its scope is cancelled: it goes without a word."""
    with trio.CancelScope() as scope:
        async with dht.open_node(config) as node:
            task_status.started((node, scope))
            await trio.sleep_forever()


async def _time_put(node: dht.Node, times: list[float]) -> bytes:
    begun = time.perf_counter()
    target = await node.put_immutable(os.urandom(100))
    times.append(time.perf_counter() - begun)
    return target


async def _time_get(node: dht.Node, target: bytes, times: list[float], timings: Timings) -> None:
    begun = time.perf_counter()
    try:
        found = await node.get_immutable(target)
    except SwarmError:
        found = None
    times.append(time.perf_counter() - begun)
    timings.failed += found is None


class _Foreign:
    """A libtorrent session whose alerts are waited for in this thread."""

    def __init__(self, bootstrap: str) -> None:
        import libtorrent

        self._lt: Any = libtorrent
        mask = libtorrent.alert.category_t.dht_notification
        self.session: Any = self._lt.session(
            LIBTORRENT_SETTINGS | {"dht_bootstrap_nodes": bootstrap, "alert_mask": mask}
        )

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.session.listen_port()}"

    def wait(self, wanted: Callable[[Any], bool]) -> bool:
        """Whether an alert that is ``wanted`` came in time."""
        end = time.perf_counter() + LIMIT
        while time.perf_counter() < end:
            if self.session.wait_for_alert(200) and any(wanted(alert) for alert in self.session.pop_alerts()):
                return True
        return False

    def put(self, value: bytes) -> tuple[bytes, float]:
        begun = time.perf_counter()
        target = self.session.dht_put_immutable_item(value)
        raw: bytes = target.to_bytes()
        if not self.wait(lambda a: isinstance(a, self._lt.dht_put_alert) and a.target.to_bytes() == raw):
            raise ResourceError("libtorrent's put never ended")
        return raw, time.perf_counter() - begun

    def get(self, target: bytes) -> tuple[bool, float]:
        begun = time.perf_counter()
        found: list[bool] = []

        def wanted(alert: Any) -> bool:
            if not isinstance(alert, self._lt.dht_immutable_item_alert) or alert.target.to_bytes() != target:
                return False
            found.append(alert.item is not None)
            return True

        self.session.dht_get_immutable_item(self._lt.sha1_hash(target))
        return self.wait(wanted) and found[0], time.perf_counter() - begun


def measure_libtorrent(nodes: int, operations: int, dead_operations: int) -> Timings | None:
    """The same with libtorrent's nodes; None where it is not installed."""
    if installed("libtorrent") is None:
        return None
    rng, timings = random.Random(1), Timings()
    first = _Foreign("")
    running = [first, *(_Foreign(first.place) for _ in range(nodes - 1))]
    import libtorrent

    for node in running[1:]:
        node.wait(lambda alert: isinstance(alert, libtorrent.dht_bootstrap_alert))
    targets = []
    for _ in range(operations):
        target, seconds = rng.choice(running).put(hashlib.sha256(os.urandom(8)).digest() * 3)
        targets.append(target)
        timings.puts.append(seconds)
    for target in targets:
        found, seconds = rng.choice(running).get(target)
        timings.gets.append(seconds)
        timings.failed += not found
    alive = [node for number, node in enumerate(running) if number % 3]
    for node in running[::3]:
        node.session.pause()
        node.session.apply_settings({"enable_dht": False})
    time.sleep(1.0)
    for target in targets[:dead_operations]:
        found, seconds = rng.choice(alive).get(target)
        timings.gets_dead.append(seconds)
        timings.failed += not found
    for _ in range(dead_operations):
        timings.puts_dead.append(rng.choice(alive).put(os.urandom(100))[1])
    return timings
