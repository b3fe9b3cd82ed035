"""One DHT node in a process of its own, to be measured: ``python -m benchmarks.dht_server ours|libtorrent|kademlia``.

It prints its UDP port and runs until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import trio

import dht

LIBTORRENT_SETTINGS: dict[str, Any] = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1_000_000,
    "dht_upload_rate_limit": 1_000_000_000,
    "dht_bootstrap_nodes": "",
}
"""What libtorrent's node needs to live on loopback and under load."""


async def _ours() -> None:
    async with dht.open_node() as node:
        print(node.address[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def _libtorrent() -> None:
    import libtorrent

    session: Any = cast("Any", libtorrent).session(LIBTORRENT_SETTINGS)
    print(session.listen_port(), flush=True)
    sys.stdin.read()


async def _kademlia() -> None:
    from kademlia.network import Server  # type: ignore[import-not-found]

    server = Server()
    await server.listen(0, interface="127.0.0.1")
    print(server.transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.stop()


if __name__ == "__main__":
    match sys.argv[1]:
        case "ours":
            trio.run(_ours)
        case "libtorrent":
            _libtorrent()
        case "kademlia":
            asyncio.run(_kademlia())
