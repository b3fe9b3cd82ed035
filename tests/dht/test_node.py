"""The driver on real sockets; the protocol is tested with the engine."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

import dht
from dht.keys import NodeId, is_secure_id
from swarm.errors import ClosedError, ResourceError, UnreachableError, UsageError
from swarm.identity import Identity

KEY = Identity(b"\x08" * 32)
TARGET = b"t" * 20


def config(*through: dht.Node, read_only: bool = False) -> dht.DhtConfig:
    return dht.DhtConfig(bootstrap=tuple(node.address for node in through), read_only=read_only)


def unused_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_two_nodes_share_peers_and_items() -> None:
    async with dht.open_node() as first, dht.open_node(config(first)) as second:
        await second.announce_peer(TARGET, 7000)
        assert await first.get_peers(TARGET) == [("127.0.0.1", 7000)]
        target = await first.put_immutable([1, b"two"])
        assert await second.get_immutable(target) == [1, b"two"]
        assert (await second.put_mutable(KEY, b"v", salt=b"s")).seq == 1
        item = await first.get_mutable(KEY.peer_id, b"s")
        assert item is not None
        assert (item.value, item.seq) == (b"v", 1)
        assert await second.ping(first.address) == first.node_id
        assert [contact.node_id for contact in await second.find_node(TARGET)] == [first.node_id]
        assert second.statistics().contacts == 1
        assert second.statistics().publications == 2
        second.withdraw_peer(TARGET)
        assert second.statistics().publications == 1


async def test_what_nobody_has_is_none_or_empty() -> None:
    async with dht.open_node() as first, dht.open_node(config(first)) as second:
        for node in (first, second):
            assert await node.get_peers(TARGET) == []
            assert await node.get_immutable(TARGET) is None
            assert await node.get_mutable(KEY.peer_id) is None


async def test_the_next_seq_is_taken_and_an_unchanged_value_keeps_its_own() -> None:
    async with dht.open_node() as first, dht.open_node(config(first)) as second:
        seqs = [
            (await node.put_mutable(KEY, value)).seq for node, value in [(first, b"a"), (second, b"a"), (first, b"b")]
        ]
        assert seqs == [1, 1, 2]
        with pytest.raises(dht.ConflictError) as caught:
            await second.put_mutable(KEY, b"c", seq=2)
        assert caught.value.current_seq == 2
        with pytest.raises(dht.ConflictError):
            await second.put_mutable(KEY, b"c", cas=1)
        assert (await second.put_mutable(KEY, b"c", cas=2)).seq == 3


async def test_the_first_node_alone_is_a_network() -> None:
    async with dht.open_node() as node:
        target = await node.put_immutable(b"v")
        assert await node.get_immutable(target) == b"v"
        await node.announce_peer(TARGET, 7000)
        assert await node.get_peers(TARGET) == [("127.0.0.1", 7000)]
        await node.put_mutable(KEY, b"v")
        assert await node.get_mutable(KEY.peer_id) is not None


async def test_an_unreachable_bootstrap_says_so(autojump_clock: MockClock) -> None:
    port = unused_port()
    with pytest.raises(UnreachableError, match=f"no DHT node answered at 127.0.0.1:{port}; check the address"):
        async with dht.open_node(dht.DhtConfig(bootstrap=(("127.0.0.1", port),))):
            pytest.fail("it joined nobody")
    assert trio.current_time() < 5.0
    async with dht.open_node() as node:
        with pytest.raises(UnreachableError):
            await node.ping(("127.0.0.1", port))


async def test_one_live_bootstrap_of_two_is_enough() -> None:
    async with dht.open_node() as first:
        both = (("127.0.0.1", unused_port()), first.address)
        async with dht.open_node(dht.DhtConfig(bootstrap=both)) as second:
            assert second.statistics().contacts == 1


async def test_a_name_that_does_not_resolve_says_so() -> None:
    async with dht.open_node() as node:
        with pytest.raises(UnreachableError, match="cannot resolve"):
            await node.bootstrap([("no..such..name", 1)])
        async with dht.open_node() as other:
            await other.bootstrap([("no..such..name", 1), node.address])
            with pytest.raises(UsageError):
                await other.bootstrap([])


async def test_a_network_that_died_is_told_from_one_that_does_not_know(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dht.open_node() as first, dht.open_node(config(first)) as second:
        assert await second.get_immutable(TARGET) is None
        monkeypatch.setattr(first._engine, "receive_datagram", lambda *_: None)  # deaf from now on
        with pytest.raises(UnreachableError, match="none of 1 DHT nodes answered"):
            await second.get_immutable(TARGET)
        with pytest.raises(UnreachableError):
            await second.announce_peer(TARGET, 1)
        assert second.statistics().publications == 0


async def test_a_port_in_use_says_so() -> None:
    async with dht.open_node() as node:
        with pytest.raises(ResourceError, match="is in use"):
            async with dht.open_node(dht.DhtConfig(port=node.address[1])):
                pytest.fail("two nodes on a port")
    with pytest.raises(ResourceError, match="cannot listen"):
        async with dht.open_node(dht.DhtConfig(host="192.0.2.1")):
            pytest.fail("not an address of ours")


async def test_bad_arguments_are_refused_before_anything_is_sent() -> None:
    async with dht.open_node() as node:
        with pytest.raises(UsageError, match="1000 bytes"):
            await node.put_immutable(b"x" * 1000)
        with pytest.raises(UsageError, match="salt"):
            await node.put_mutable(KEY, b"v", salt=b"s" * 65)
        with pytest.raises(UsageError, match="port"):
            await node.announce_peer(TARGET, 0)
        assert node.statistics().datagrams_sent == 0


async def test_a_closed_node_says_so() -> None:
    async with dht.open_node() as node:
        pass
    with pytest.raises(ClosedError):
        await node.get_peers(TARGET)


async def test_who_waits_while_it_closes_is_told() -> None:
    caught: list[ClosedError] = []

    async def wait_in_vain(node: dht.Node) -> None:
        try:
            await node.ping(("127.0.0.1", unused_port()))
        except ClosedError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery, dht.open_node() as node:
        nursery.start_soon(wait_in_vain, node)
        await trio.testing.wait_all_tasks_blocked()
    assert len(caught) == 1


async def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    async with dht.open_node() as node:
        with trio.move_on_after(0):
            await node.ping(("127.0.0.1", unused_port()))
        assert node.statistics().operations == 0


async def test_errors_of_the_block_come_out_as_they_were_raised() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with dht.open_node():
            raise KeyError("mine")


async def test_garbage_does_no_harm() -> None:
    async with dht.open_node() as first, dht.open_node(config(first)) as second:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in (b"", b"garbage", b"d" * 3000, bytes(60000)):
                sock.sendto(data, first.address)
        assert await second.ping(first.address) == first.node_id
        assert first.statistics().malformed == 4


async def test_ids_suit_the_address_and_may_be_given() -> None:
    given = NodeId(b"i" * 20)
    async with dht.open_node(dht.DhtConfig(node_id=given)) as node:
        assert node.node_id == given
    async with dht.open_node(dht.DhtConfig(external_host="203.0.113.9", seed=1)) as node:
        assert is_secure_id(node.node_id, "203.0.113.9")
        expected = node.node_id
    async with dht.open_node(dht.DhtConfig(external_host="203.0.113.9", seed=1)) as node:
        assert node.node_id == expected
