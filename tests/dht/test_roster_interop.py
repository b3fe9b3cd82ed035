"""Rosters across foreign nodes: libtorrent's show the way to ours, and keep nothing."""

from __future__ import annotations

import dht
from dht.directory import Directory
from swarm.receipts import Price
from tests.dht.adverts import MODEL, worker
from tests.dht.test_interop import open_foreign


async def test_a_worker_is_found_by_a_node_that_knows_only_libtorrents() -> None:
    price = Price(per_1k_input=0, per_1k_output=0)
    advert = dht.Advert(manifest_id=MODEL, host="127.0.0.1", port=7000, start=0, stop=4, price=price, free_slots=1)
    async with (
        dht.open_node() as first,
        open_foreign(first.address) as foreign,
        dht.open_node(dht.DhtConfig(bootstrap=(foreign.address,))) as keeping,
        dht.open_node(dht.DhtConfig(bootstrap=(foreign.address,))) as serving,
        dht.open_node(dht.DhtConfig(bootstrap=(foreign.address,), read_only=True)) as reading,
    ):
        while keeping.node_id not in [contact.node_id for contact in await reading.find_node(MODEL[:20])]:
            await keeping.ping(foreign.address)  # it names who it has heard of often enough
        await Directory(serving).advertise(worker(1), advert)
        entries: list[dht.Entry] = []
        while not entries:  # it counts once its endpoint has answered a ping
            entries = await Directory(reading).find_workers(MODEL)
        assert [entry.worker for entry in entries] == [worker(1).peer_id]
