"""Sockets of IPv6, and state over restarts; what the API says is tested with the node."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import dht
from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, Target
from dht.queries import Family, FindNode, UnknownQuery
from dht.state import SavedState, load_state, save_state
from swarm.errors import ResourceError, UnavailableError, UnreachableError
from swarm.identity import Identity
from tests.dht.test_node import unused_port

KEY = Identity(b"\x32" * 32)
TARGET = b"t" * 20


class TestIPv6:
    async def test_nodes_on_ipv6_share_peers_and_items(self) -> None:
        async with dht.open_node(dht.DhtConfig(host="::1")) as first:
            config = dht.DhtConfig(host="::1", bootstrap=(first.address,))
            async with dht.open_node(config) as second, dht.open_node(config) as third:
                await second.announce_peer(TARGET, 7000, seed=True)
                assert await third.get_peers(TARGET) == [("::1", 7000)]
                target = await second.put_immutable(b"six")
                assert await third.get_immutable(target) == b"six"
                assert first.address in [contact.endpoint for contact in await third.find_node(TARGET)]
                told = await first._ask(second.address, FindNode(target=Target(TARGET), want=(Family.IPV6,)))
                assert told.reply is not None
                assert all(contact.endpoint.is_ipv6 for contact in told.reply.nodes6)
                assert len(told.reply.nodes6) == 1
                assert told.reply.nodes == ()

    async def test_a_bootstrap_address_of_the_other_kind_says_so(self) -> None:
        async with dht.open_node(dht.DhtConfig(host="::1")) as six:
            with pytest.raises(UnreachableError, match="address family"):
                async with dht.open_node(dht.DhtConfig(bootstrap=(six.address,))):
                    pytest.fail("it joined across families")


class TestScrapeAndSamples:
    async def test_seeds_and_downloaders_are_counted(self) -> None:
        async with dht.open_node() as first, dht.open_node(dht.DhtConfig(bootstrap=(first.address,))) as second:
            assert await second.scrape(TARGET) == dht.SwarmSize(seeds=0, downloaders=0)
            await second.announce_peer(TARGET, 7000, seed=True)
            assert await second.scrape(TARGET) == dht.SwarmSize(seeds=1, downloaders=0)
            await second.announce_peer(TARGET, 7000)
            assert await second.scrape(TARGET) == dht.SwarmSize(seeds=0, downloaders=1)

    async def test_info_hashes_are_shown(self) -> None:
        async with dht.open_node() as first, dht.open_node(dht.DhtConfig(bootstrap=(first.address,))) as second:
            assert (await second.sample_infohashes(first.address)).total == 0
            await second.announce_peer(TARGET, 7000)
            shown = await second.sample_infohashes(first.address, TARGET)
            assert (shown.info_hashes, shown.total) == ((TARGET,), 1)
            assert shown.interval > 0

    async def test_who_does_not_answer_or_does_not_show_any_is_told_apart(self, autojump_clock: MockClock) -> None:
        async with dht.open_node() as node, dht.open_node(dht.DhtConfig(read_only=True)) as mute:
            with pytest.raises(UnreachableError):
                await node.sample_infohashes(mute.address)
            with pytest.raises(UnavailableError, match="refused vote"):
                await mute._ask(node.address, UnknownQuery(method=b"vote"))


class TestState:
    async def test_a_restart_keeps_the_id_and_needs_no_bootstrap(self, tmp_path: Path) -> None:
        path = tmp_path / "dht.state"
        async with dht.open_node() as first:
            async with dht.open_node(dht.DhtConfig(bootstrap=(first.address,), state_path=path)) as second:
                node_id = second.node_id
            saved = load_state(path)
            assert saved == SavedState(node_id=node_id, contacts=(Contact(first.node_id, Endpoint(*first.address)),))
            async with dht.open_node(dht.DhtConfig(state_path=path)) as again:
                assert again.node_id == node_id
                assert again.statistics().contacts == 1

    async def test_a_damaged_file_is_a_clean_start_that_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "dht.state"
        path.write_bytes(b"d6:formati1e")
        with caplog.at_level(logging.WARNING):
            async with dht.open_node(dht.DhtConfig(state_path=path)) as node:
                assert node.statistics().contacts == 0
        assert "is damaged" in caplog.text
        saved = load_state(path)
        assert saved is not None
        assert saved.node_id == node.node_id

    async def test_old_contacts_that_are_gone_leave_it_alone_or_to_the_bootstrap(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
    ) -> None:
        path = tmp_path / "dht.state"
        gone = Contact(NodeId(b"g" * 20), Endpoint("127.0.0.1", unused_port()))
        save_state(path, SavedState(node_id=NodeId(b"i" * 20), contacts=(gone,)))
        with caplog.at_level(logging.WARNING):
            async with dht.open_node(dht.DhtConfig(state_path=path)) as node:
                assert node.statistics().contacts == 0
                assert await node.get_immutable(await node.put_immutable(b"v")) == b"v"
        assert "none of 1 remembered DHT nodes answered" in caplog.text
        saved = load_state(path)
        assert saved is not None
        assert saved.contacts == (gone,)  # a night without network does not cost what was known
        async with (
            dht.open_node() as first,
            dht.open_node(dht.DhtConfig(state_path=path, bootstrap=(first.address,))) as node,
        ):
            assert node.statistics().contacts == 1
        with pytest.raises(UnreachableError):
            async with dht.open_node(dht.DhtConfig(state_path=path, bootstrap=(gone.endpoint,))):
                pytest.fail("nobody is there")

    async def test_it_is_saved_every_few_minutes_and_a_full_disk_ends_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
    ) -> None:
        path = tmp_path / "folder" / "dht.state"
        async with dht.open_node(dht.DhtConfig(state_path=path)):
            path.unlink()
            await trio.sleep(301)
            assert load_state(path) is not None
            path.unlink()
            path.mkdir()
            await trio.sleep(301)
            assert "cannot write the DHT state" in caplog.text
            path.rmdir()

    async def test_a_place_that_cannot_be_written_is_told_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ResourceError, match="DHT state"):
            async with dht.open_node(dht.DhtConfig(state_path=tmp_path / "file" / "state")):
                pytest.fail("it has nowhere to write")


async def test_a_socket_that_takes_nothing_is_a_lost_datagram(autojump_clock: MockClock) -> None:
    async with dht.open_node() as node:
        with pytest.raises(UnreachableError):
            await node.ping(("255.255.255.255", 1))  # broadcast is not allowed
        assert node.statistics().timeouts == 1
