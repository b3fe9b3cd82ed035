from __future__ import annotations

import dht
from dht.crawl import crawl

TARGETS = [bytes([number]) * 20 for number in range(6)]


async def test_a_walk_meets_every_node_and_info_hash() -> None:
    async with dht.open_node() as first:
        config = dht.DhtConfig(bootstrap=(first.address,))
        async with dht.open_node(config) as second, dht.open_node(config) as third:
            for number, target in enumerate(TARGETS):
                await (first, second, third)[number % 3].announce_peer(target, 7000)
            async with dht.open_node(dht.DhtConfig(bootstrap=(first.address,), read_only=True)) as walker:
                found = await crawl(walker, seed=1)
                assert {one.endpoint for one in found.nodes} == {first.address, second.address, third.address}
                assert set(found.info_hashes) == set(TARGETS)
                assert found.silent == 0
                assert found.total == 2 * len(TARGETS)  # each is kept by the two that did not announce it
                assert len((await crawl(walker, most=1)).nodes) == 1
