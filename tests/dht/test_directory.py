from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import dht
from dht.cards import Card
from dht.contacts import Endpoint
from dht.directory import Directory, authentic, model_salt, rpc_target
from dht.items import MAX_SALT
from dht.roster import ENTRY_TTL, Filter
from swarm.errors import ProtocolError, UnknownModelError, UsageError
from swarm.identity import Identity
from swarm.ids import InfoHash, ManifestId
from swarm.receipts import Price
from tests.dht.adverts import MODEL, signed

KEY = Identity(b"\x09" * 32)
OTHER = Identity(b"\x0a" * 32)
ONE, TWO = ManifestId(b"1" * 32), ManifestId(b"2" * 32)


def through(node: dht.Node) -> dht.DhtConfig:
    return dht.DhtConfig(bootstrap=(node.address,))


def test_layouts() -> None:
    assert model_salt("tiny") == b"swarm/model/1/" + hashlib.sha1(b"tiny", usedforsecurity=False).digest()
    assert len(model_salt("x" * 64)) <= MAX_SALT
    assert rpc_target(ONE) == hashlib.sha1(b"swarm-rpc/1" + ONE, usedforsecurity=False).digest()


async def test_a_name_means_what_its_publisher_last_said() -> None:
    async with dht.open_node() as first, dht.open_node(through(first)) as second:
        publisher, reader = Directory(first), Directory(second)
        assert await publisher.publish_model(KEY, "tiny", ONE) == 1
        assert await reader.find_model(KEY.peer_id, "tiny") == ONE
        assert await publisher.publish_model(KEY, "tiny", ONE) == 1
        assert await publisher.publish_model(KEY, "tiny", TWO) == 2
        assert await publisher.publish_model(KEY, "other", ONE) == 1
        assert await reader.find_model(KEY.peer_id, "tiny") == TWO
        assert await publisher.publish_model(KEY, "tiny", ONE) == 3


async def test_an_unknown_name_says_what_to_do() -> None:
    async with dht.open_node() as first, dht.open_node(through(first)) as second:
        with pytest.raises(UnknownModelError, match=f"no DHT node knows {KEY.peer_id}/tiny; check it"):
            await Directory(second).find_model(KEY.peer_id, "tiny")
        with pytest.raises(UsageError):
            await Directory(second).find_model(KEY.peer_id, "No Name")


@pytest.mark.parametrize(
    "value", [b"text", {}, {b"m": b"short", b"n": b"tiny"}, {b"m": bytes(32), b"n": b"other"}, {b"m": 7, b"n": b"tiny"}]
)
async def test_an_entry_that_names_no_manifest_names_its_publisher(value: bytes | dict[bytes, object]) -> None:
    async with dht.open_node() as node:
        await node.put_mutable(KEY, value, salt=model_salt("tiny"))
        with pytest.raises(ProtocolError, match="names no manifest") as caught:
            await Directory(node).find_model(KEY.peer_id, "tiny")
        assert caught.value.peer_id == KEY.peer_id


async def test_servers_and_seeders_are_found_apart() -> None:
    info_hash = InfoHash(b"i" * 32)
    async with dht.open_node() as first, dht.open_node(through(first)) as second:
        worker, reader = Directory(second), Directory(first)
        await worker.announce_manifest(ONE, 7000)
        await worker.announce_torrent(info_hash, 7001)
        assert await reader.find_peers(ONE) == [("127.0.0.1", 7000)]
        assert await reader.find_peers(TWO) == []
        assert await reader.find_torrent_peers(info_hash) == [("127.0.0.1", 7001)]
        assert await first.get_peers(info_hash.truncated) == [("127.0.0.1", 7001)]
        worker.withdraw_manifest(ONE)
        assert second.statistics().publications == 1


def advert(port: int = 7000, **changes: Any) -> dht.Advert:
    fields: dict[str, Any] = {
        "manifest_id": ONE, "host": "127.0.0.1", "port": port, "start": 0, "stop": 4, "free_slots": 2,
        "price": Price(per_1k_input=1, per_1k_output=2), "region": "de",
    }  # fmt: skip
    return dht.Advert(**(fields | changes))


async def found(directory: Directory, *expected: Identity, wanted: Filter | None = None) -> list[dht.Entry]:
    """What is found once exactly these are: a new entry counts when its endpoint has answered a ping."""
    while True:
        entries = await directory.find_workers(ONE, wanted)
        if {entry.worker for entry in entries} == {identity.peer_id for identity in expected}:
            return entries
        await trio.lowlevel.checkpoint()


async def test_workers_are_found_by_what_they_offer_and_gone_when_they_leave() -> None:
    async with (
        dht.open_node() as first,
        dht.open_node(through(first)) as second,
        dht.open_node(through(first)) as third,
    ):
        here, there, reader = Directory(first), Directory(second), Directory(third)
        await here.advertise(KEY, advert(7000, start=0, stop=2))
        await there.advertise(OTHER, advert(7001, start=2, stop=4, price=Price(per_1k_input=9, per_1k_output=9)))
        entries = await found(reader, KEY, OTHER)
        assert {(entry.host, entry.port, entry.start, entry.stop) for entry in entries} == {
            ("127.0.0.1", 7000, 0, 2),
            ("127.0.0.1", 7001, 2, 4),
        }
        assert [entry.worker for entry in await found(reader, KEY, wanted=Filter(span=(0, 1)))] == [KEY.peer_id]
        await found(reader, KEY, wanted=Filter(most_price=3))
        await found(reader, wanted=Filter(region="us"))
        assert len(await reader.find_workers(ONE, Filter(how_many=1))) == 1
        assert await reader.find_workers(TWO) == []
        assert sorted(await reader.find_peers(ONE)) == [("127.0.0.1", 7000), ("127.0.0.1", 7001)]
        there.withdraw(OTHER.peer_id, ONE)
        await found(reader, KEY)
        there.withdraw(OTHER.peer_id, ONE)  # nothing left to withdraw


async def test_a_heartbeat_says_what_has_changed(autojump_clock: MockClock) -> None:
    async with dht.open_node() as first, dht.open_node(through(first)) as second:
        worker, reader = Directory(second), Directory(first)
        slots = iter(range(5, 100))
        await worker.advertise(KEY, advert(), lambda before: replace(before, free_slots=next(slots)))
        (entry,) = await found(reader, KEY)
        assert entry.free_slots == 5
        await trio.sleep(500.0)
        (entry,) = await reader.find_workers(ONE)
        assert 11 <= entry.free_slots <= 16  # every 48 to 72 seconds
        await worker.advertise(KEY, advert(7009))
        (entry,) = await reader.find_workers(ONE)
        assert entry.port == 7009


async def test_a_worker_that_vanished_is_forgotten_within_three_minutes(autojump_clock: MockClock) -> None:
    async with dht.open_node() as first:
        async with dht.open_node(through(first)) as second:
            await Directory(second).advertise(KEY, advert())
            await found(Directory(first), KEY)
        assert len(await Directory(first).find_workers(ONE)) == 1
        await trio.sleep(ENTRY_TTL + 1)
        assert await Directory(first).find_workers(ONE) == []


async def test_cards_are_kept_and_read() -> None:
    card = Card(endpoints=(Endpoint("20.1.1.1", 7000),), region="de", spans=())
    async with dht.open_node() as first, dht.open_node(through(first)) as second:
        assert await Directory(first).find_card(KEY.peer_id) is None
        await Directory(second).put_card(KEY, card)
        assert await Directory(first).find_card(KEY.peer_id) == card
        await second.put_mutable(OTHER, b"nonsense", salt=b"swarm/card/1")
        with pytest.raises(ProtocolError, match="signed a card that is none") as caught:
            await Directory(first).find_card(OTHER.peer_id)
        assert caught.value.peer_id == OTHER.peer_id


def test_only_what_is_signed_and_timely_is_believed() -> None:
    entries = [
        signed(1, expiry=1000), signed(2, expiry=1000 - 301), signed(3, expiry=1000 + 481), signed(4, expiry=1480),
        replace(signed(5, expiry=1000), raw=signed(5, expiry=1000).raw[:-1] + b"\0"),
    ]  # fmt: skip
    assert [entry.worker for entry in authentic(entries, MODEL, 1000.0)] == [
        signed(1).entry.worker,
        signed(4).entry.worker,
    ]
