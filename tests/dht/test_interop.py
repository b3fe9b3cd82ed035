"""libtorrent's own DHT as a foreign peer on loopback, both directions.

Everything here waits for an alert or an answer, never for time to pass.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

import libtorrent as lt
import pytest
import trio

import dht
from swarm.identity import Identity
from swarm.ids import ManifestId

MIXED_LIMIT = 60.0  # seconds: libtorrent waits 15 for a dead node among the closest
LIMIT = 20.0  # seconds: far above what anything here takes; a hang fails instead of hanging

CATEGORIES = lt.alert.category_t
SETTINGS: dict[str, Any] = {
    "listen_interfaces": "127.0.0.1:0",
    "alert_mask": CATEGORIES.dht_notification | CATEGORIES.dht_operation_notification,
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1000,
    "dht_upload_rate_limit": 1_000_000,
}

AlertT = TypeVar("AlertT")

KEY = Identity(b"\x21" * 32)
EXPANDED = bytearray(hashlib.sha512(KEY.seed).digest())  # libtorrent signs with the expanded private key
EXPANDED[0] &= 248
EXPANDED[31] = EXPANDED[31] & 63 | 64


class Bootstrapped:
    """The session's first traversal is over."""


class Announced:
    """The session answered an announcement: it keeps the peer now."""

    def __init__(self, alert: Any) -> None:
        self.port: int = alert.port


class PeersReply:
    def __init__(self, alert: Any) -> None:
        self.peers = [(str(host), int(port)) for host, port in alert.peers()]


class ImmutableItem:
    def __init__(self, alert: Any) -> None:
        self.target: bytes = alert.target.to_bytes()
        self.item: Any = alert.item


class MutableItem:
    def __init__(self, alert: Any) -> None:
        self.seq: int = alert.seq
        self.salt: bytes = alert.salt
        self.item: Any = alert.item
        self.authoritative: bool = alert.authoritative


class PutDone:
    def __init__(self, alert: Any) -> None:
        self.stored: int = alert.num_success
        self.seq: int = alert.seq


class Sampled:
    """A node showed the session info-hashes (BEP 51)."""

    def __init__(self, alert: Any) -> None:
        self.samples = [sample.to_bytes() for sample in alert.samples]
        self.total: int = alert.num_infohashes
        self.interval: float = alert.interval.total_seconds()
        self.nodes = [(node["nid"].to_bytes(), node["endpoint"]) for node in alert.nodes]


def copy_alert(alert: Any) -> object:
    """What the tests read of an alert: libtorrent frees it at the next pop."""
    match alert:
        case lt.dht_bootstrap_alert():
            return Bootstrapped()
        case lt.dht_announce_alert():
            return Announced(alert)
        case lt.dht_get_peers_reply_alert():
            return PeersReply(alert)
        case lt.dht_immutable_item_alert():
            return ImmutableItem(alert)
        case lt.dht_mutable_item_alert():
            return MutableItem(alert)
        case lt.dht_put_alert():
            return PutDone(alert)
        case lt.dht_sample_infohashes_alert():
            return Sampled(alert)
    return None


class Foreign:
    """A libtorrent session that wakes trio through a socket pair."""

    def __init__(self, bootstrap: str) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self.session: Any = cast("Any", lt).session(SETTINGS | {"dht_bootstrap_nodes": bootstrap})
        self.session.set_alert_fd(self._sender.fileno())
        self._alerts: list[object] = []

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.session.listen_port()

    async def wait_for(self, kind: type[AlertT], matches: Callable[[AlertT], bool] = lambda _: True) -> AlertT:
        """The next alert of ``kind`` that matches; others are kept."""
        while True:
            self._alerts.extend(copy_alert(alert) for alert in self.session.pop_alerts())
            for alert in self._alerts:
                if isinstance(alert, kind) and matches(alert):
                    self._alerts.remove(alert)
                    return alert
            await trio.lowlevel.wait_readable(self._receiver)
            self._receiver.recv(4096)

    def close(self) -> None:
        self.session.set_alert_fd(-1)
        self.session = None  # its destructor waits for its threads: a few milliseconds without torrents
        self._receiver.close()
        self._sender.close()


@asynccontextmanager
async def open_foreign(*through: tuple[str, int], limit: float = LIMIT) -> AsyncIterator[Foreign]:
    """A libtorrent session that joined ``through`` these; everything with it ends within ``limit`` seconds."""
    foreign = Foreign(",".join(f"{host}:{port}" for host, port in through))
    try:
        with trio.fail_after(limit):
            await foreign.wait_for(Bootstrapped)
            yield foreign
    finally:
        foreign.close()


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[dht.Node, Foreign]]:
    """Our node, and a libtorrent session that joined through it."""
    async with dht.open_node() as node, open_foreign(node.address) as foreign:
        await node.bootstrap([foreign.address])
        yield node, foreign


def lt_hash(raw: bytes) -> Any:
    return lt.sha1_hash(raw)


async def test_it_joins_through_us() -> None:
    async with dht.open_node() as first, open_foreign(first.address) as foreign:
        target = foreign.session.dht_put_immutable_item(b"through us").to_bytes()
        assert (await foreign.wait_for(PutDone)).stored == 1
        assert await first.get_immutable(target) == b"through us"


async def test_we_join_through_it() -> None:
    async with (
        dht.open_node() as first,
        open_foreign(first.address) as foreign,
        dht.open_node(dht.DhtConfig(bootstrap=(foreign.address,))) as second,
    ):
        near = await second.find_node(first.node_id)
        assert foreign.address in [contact.endpoint for contact in near]
        assert await second.ping(foreign.address) in [contact.node_id for contact in near]


async def test_its_peers_are_found_by_us() -> None:
    async with open_pair() as (node, foreign):
        foreign.session.dht_announce(lt_hash(b"a" * 20), 7001, 0)
        peers: list[tuple[str, int]] = []
        with trio.fail_after(LIMIT):
            while not peers:  # the announcement raises no alert at its sender; each look is a round trip
                peers = await node.get_peers(b"a" * 20)
        assert peers == [("127.0.0.1", 7001)]


async def test_our_peers_are_found_by_it() -> None:
    async with open_pair() as (node, foreign):
        await node.announce_peer(b"b" * 20, 7002)
        assert (await foreign.wait_for(Announced)).port == 7002
        foreign.session.dht_get_peers(lt_hash(b"b" * 20))
        reply = await foreign.wait_for(PeersReply)
        assert reply.peers == [("127.0.0.1", 7002)]


async def test_peers_between_two_of_ours_through_it() -> None:
    async with open_pair() as (node, foreign):
        await node.announce_peer(b"c" * 20, 7003)
        async with dht.open_node(dht.DhtConfig(bootstrap=(foreign.address,), read_only=True)) as reader:
            assert await reader.get_peers(b"c" * 20) == [("127.0.0.1", 7003)]


async def test_immutable_items_both_ways() -> None:
    value = {b"list": [1, b"two"], b"text": b"ours"}
    async with open_pair() as (node, foreign):
        target = await node.put_immutable(value)
        foreign.session.dht_get_immutable_item(lt_hash(target))
        read = await foreign.wait_for(ImmutableItem)
        assert read.target == target
        assert read.item == value
        theirs = foreign.session.dht_put_immutable_item(b"theirs").to_bytes()
        assert (await foreign.wait_for(PutDone)).stored == 1
        assert await node.get_immutable(theirs) == b"theirs"


async def test_it_keeps_our_immutable_items_for_others() -> None:
    async with dht.open_node() as first, open_foreign(first.address) as foreign:
        config = dht.DhtConfig(bootstrap=(foreign.address,), read_only=True)
        async with dht.open_node(config) as writer:
            target = await writer.put_immutable(b"kept")
        async with dht.open_node(config) as reader:
            assert await reader.get_immutable(target) == b"kept"


async def test_mutable_items_both_ways() -> None:
    async with open_pair() as (node, foreign):
        assert (await node.put_mutable(KEY, b"ours", salt=b"s")).seq == 1
        foreign.session.dht_get_mutable_item(bytes(KEY.peer_id), b"s")
        read = await foreign.wait_for(MutableItem, lambda alert: alert.item is not None)
        assert (read.item, read.seq, read.salt) == (b"ours", 1, b"s")
        foreign.session.dht_put_mutable_item(bytes(EXPANDED), bytes(KEY.peer_id), b"theirs", b"s")
        done = await foreign.wait_for(PutDone)
        assert (done.stored, done.seq) == (1, 2)
        item = await node.get_mutable(KEY.peer_id, b"s")
        assert item is not None
        assert (item.value, item.seq) == (b"theirs", 2)
        assert (await node.put_mutable(KEY, b"again", salt=b"s", cas=2)).seq == 3
        foreign.session.dht_get_mutable_item(bytes(KEY.peer_id), b"s")
        assert (await foreign.wait_for(MutableItem, lambda alert: alert.seq == 3)).item == b"again"


async def test_the_directory_works_through_foreign_nodes_alone() -> None:
    manifest_id = ManifestId(b"m" * 32)
    async with dht.open_node() as first, open_foreign(first.address) as foreign:
        config = dht.DhtConfig(bootstrap=(foreign.address,))
        async with dht.open_node(config) as worker:
            directory = dht.Directory(worker)
            await directory.publish_model(KEY, "tiny", manifest_id)
            await directory.announce_manifest(manifest_id, 7004)
        async with dht.open_node(config) as client:
            directory = dht.Directory(client)
            assert await directory.find_model(KEY.peer_id, "tiny") == manifest_id
            assert await directory.find_peers(manifest_id) == [("127.0.0.1", 7004)]


async def test_samples_both_ways() -> None:
    async with open_pair() as (node, foreign):
        for first in b"xyz":
            await node.announce_peer(bytes([first]) * 20, 7005)
            await foreign.wait_for(Announced)
        theirs = await node.sample_infohashes(foreign.address)
        assert set(theirs.info_hashes) == {b"x" * 20, b"y" * 20, b"z" * 20}
        assert theirs.total == 3
        async with dht.open_node(dht.DhtConfig(bootstrap=(node.address,))) as other:
            await other.announce_peer(b"w" * 20, 7006)
        foreign.session.dht_sample_infohashes(node.address, lt_hash(b"t" * 20))
        ours = await foreign.wait_for(Sampled)
        assert b"w" * 20 in ours.samples
        assert ours.total >= 1
        assert ours.interval > 0


async def test_scrapes_by_us_count_its_peers_too() -> None:
    async with open_pair() as (node, foreign):
        await node.announce_peer(b"s" * 20, 7007, seed=True)
        assert (await foreign.wait_for(Announced)).port == 7007
        assert await node.scrape(b"s" * 20) == dht.SwarmSize(seeds=1, downloaders=0)


async def test_a_stale_seq_and_a_failed_cas_are_refused_through_foreign_storers() -> None:
    async with dht.open_node() as first, open_foreign(first.address) as foreign:
        config = dht.DhtConfig(bootstrap=(foreign.address,), read_only=True)
        async with dht.open_node(config) as writer, dht.open_node(config) as rival:
            await writer.put_mutable(KEY, b"five", salt=b"c", seq=5)
            for seq, cas in [(4, None), (5, None), (6, 4)]:
                with pytest.raises(dht.ConflictError):
                    await rival.put_mutable(KEY, b"late", salt=b"c", seq=seq, cas=cas)
            assert (await rival.put_mutable(KEY, b"six", salt=b"c", seq=6, cas=5)).seq == 6
            found = await writer.get_mutable(KEY.peer_id, b"c")
            assert found is not None
            assert (found.value, found.seq) == (b"six", 6)


async def join_all(stack: AsyncExitStack, first: dht.Node, count: int) -> tuple[list[dht.Node], list[Foreign]]:
    """So many nodes of each kind, one after the other, that live as long as the stack."""
    config = dht.DhtConfig(bootstrap=(first.address,))
    ours, theirs = [], []
    for _ in range(count):
        ours.append(await stack.enter_async_context(dht.open_node(config)))
        theirs.append(await stack.enter_async_context(open_foreign(first.address, limit=MIXED_LIMIT)))
    return ours, theirs


async def test_a_mixed_network_of_which_half_of_each_kind_dies_keeps_every_item() -> None:
    count = 12
    values = [b"%s %d" % (who, number) for who in (b"ours", b"theirs") for number in range(count)]
    async with dht.open_node() as first, AsyncExitStack() as living:
        ours, theirs = await join_all(living, first, 3)
        theirs.append(await living.enter_async_context(open_foreign(first.address, limit=MIXED_LIMIT)))
        async with AsyncExitStack() as doomed:
            dying, their_dying = await join_all(doomed, first, 4)
            writers, their_writers = [first, *ours, *dying], [*theirs, *their_dying]
            targets = [await writers[n % 8].put_immutable(values[n]) for n in range(count)]
            for n in range(count):
                session = their_writers[n % 8]
                targets.append(dht.Target(session.session.dht_put_immutable_item(values[count + n]).to_bytes()))
                assert (await session.wait_for(PutDone)).stored >= 4
            await dying[0].put_mutable(KEY, b"mutable", salt=b"m")
        for node in (first, *ours):
            assert [await node.get_immutable(target) for target in targets] == values
            item = await node.get_mutable(KEY.peer_id, b"m")
            assert item is not None
            assert item.value == b"mutable"
        for session in theirs:
            for target, value in list(zip(targets, values, strict=True))[::5]:
                session.session.dht_get_immutable_item(lt_hash(target))
                read = await session.wait_for(ImmutableItem, partial(is_under, target))
                assert read.item == value


def is_under(target: bytes, alert: ImmutableItem) -> bool:
    return alert.target == target
