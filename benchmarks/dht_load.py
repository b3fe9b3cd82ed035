"""How many requests one DHT node answers: closed-loop load on loopback, its process's CPU time beside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import psutil  # type: ignore[import-untyped]

from benchmarks.report import ROOT, installed
from dht.keys import NodeId, Target
from dht.krpc import QueryPacket
from dht.queries import FindNode, Get, Ping, Query
from swarm.errors import ResourceError

WINDOW = 32  # requests on their way: enough to keep a node busy, few enough for its socket
TICK = 0.01  # seconds: no less CPU time is told apart
STALLED = 2.0  # seconds without an answer that end a measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Requests answered, and what they cost the process that answers."""

    requests_per_second: float
    """As the load generator saw it, which shares the machine."""
    cpu_us_per_request: float
    requests_per_core_second: float
    """What a core would answer if the node had it all to itself: 1 / CPU time."""


def _krpc(kind: str) -> Callable[[bytes], bytes]:
    sender = NodeId(os.urandom(20))
    target = Target(os.urandom(20))
    queries: dict[str, Query] = {"ping": Ping(), "find_node": FindNode(target=target), "get": Get(target=target)}
    query = queries[kind]
    return lambda number: QueryPacket(transaction=number, sender=sender, query=query).pack()


def _rpcudp(kind: str) -> Callable[[bytes], bytes]:
    """What the package `kademlia` sends: 0, 20 bytes of message id, and a name with arguments as msgpack."""
    own, key = os.urandom(20), os.urandom(20)
    arguments = [own] if kind == "ping" else [own, key]
    name = {"ping": "ping", "find_node": "find_node", "get": "find_value"}[kind]
    body = msgspec.msgpack.encode([name, arguments])
    return lambda number: b"\0" + number.ljust(20, b"\0") + body


def measure_node(which: str, kind: str, seconds: float) -> Rate | None:
    """Load ``which`` (ours, libtorrent, kademlia) with one kind of request; None where it is not installed."""
    if which != "ours" and installed(which) is None:
        return None
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.dht_server", which],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ResourceError(f"the node of {which} did not start; run: python -m benchmarks.dht_server {which}")
        make = _rpcudp(kind) if which == "kademlia" else _krpc(kind)
        return _load(("127.0.0.1", int(line)), make, psutil.Process(process.pid), seconds)
    finally:
        process.kill()
        process.communicate()


def _load(address: tuple[str, int], make: Callable[[bytes], bytes], process: psutil.Process, seconds: float) -> Rate:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.settimeout(STALLED)
        requests = [make(number.to_bytes(4, "big")) for number in range(4096)]
        sent = answered = 0
        cpu = begun = 0.0
        end = time.perf_counter() + 0.3 + seconds
        while True:
            while sent - answered < WINDOW:
                sock.send(requests[sent % len(requests)])
                sent += 1
            try:
                sock.recv(4096)
            except TimeoutError:
                if not begun:
                    raise ResourceError(f"the node at {address[1]} answers nothing") from None
                sent = answered  # what was lost in the buffers
                continue
            answered += 1
            now = time.perf_counter()
            if not begun and now > end - seconds:  # warm
                begun, before, cpu = now, answered, sum(process.cpu_times()[:2])
            if now > end:
                count = answered - before
                used = max(sum(process.cpu_times()[:2]) - cpu, TICK)
                return Rate(
                    requests_per_second=count / (now - begun),
                    cpu_us_per_request=used / count * 1e6,
                    requests_per_core_second=count / used,
                )
