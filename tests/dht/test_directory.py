from __future__ import annotations

import hashlib

import pytest

import dht
from dht.directory import Directory, model_salt, rpc_target
from dht.items import MAX_SALT
from swarm.errors import ProtocolError, UnknownModelError, UsageError
from swarm.identity import Identity
from swarm.ids import InfoHash, ManifestId

KEY = Identity(b"\x09" * 32)
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
