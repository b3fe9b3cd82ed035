from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dht
from dht.mutable_torrents import TorrentLink, get_torrent, put_torrent
from swarm.errors import ProtocolError, UsageError
from swarm.identity import Identity
from swarm.ids import InfoHash, PeerId

KEY = Identity(b"\x46" * 32)
LINK = TorrentLink(public_key=KEY.peer_id, salt=b"n")
VECTOR_KEY = "8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e"


@pytest.mark.parametrize(
    ("magnet", "target"),
    [
        (f"magnet:?xs=urn:btpk:{VECTOR_KEY}", "cc3f9d90b572172053626f9980ce261a850d050b"),
        (f"magnet:?xs=urn:btpk:{VECTOR_KEY}&s=6e", "59ee7c2cb9b4f7eb1986ee2d18fd2fdb8a56554f"),
    ],
)
def test_the_vectors_of_bep_46(magnet: str, target: str) -> None:
    link = TorrentLink.parse(magnet)
    assert link.target.hex() == target
    assert str(link) == magnet


@given(key=st.binary(min_size=32, max_size=32), salt=st.binary(max_size=64))
def test_links_survive_the_round_trip(key: bytes, salt: bytes) -> None:
    link = TorrentLink(public_key=PeerId(key), salt=salt)
    assert TorrentLink.parse(str(link)) == link
    assert TorrentLink.parse("MAGNET:?dn=a+name&" + str(link)[8:]) == link


@pytest.mark.parametrize(
    "magnet",
    [
        "",
        "magnet:?xt=urn:btih:" + "a" * 40,
        f"magnet:?xs=urn:btpk:{VECTOR_KEY[:-1]}",
        f"magnet:?xs=urn:btpk:{VECTOR_KEY[:-1]}g",
        f"magnet:?xs=urn:btpk:{VECTOR_KEY}&s=6",
        f"magnet:?xs=urn:btpk:{VECTOR_KEY}&s={'6e' * 65}",
        f"http:?xs=urn:btpk:{VECTOR_KEY}",
    ],
)
def test_other_links_are_refused(magnet: str) -> None:
    with pytest.raises(UsageError):
        TorrentLink.parse(magnet)


async def test_a_key_names_one_torrent_and_then_another() -> None:
    async with (
        dht.open_node() as publisher,
        dht.open_node(dht.DhtConfig(bootstrap=(publisher.address,))) as reader,
    ):
        assert await get_torrent(reader, LINK) is None
        assert (await put_torrent(publisher, KEY, b"1" * 20, b"n")).seq == 1
        assert await get_torrent(reader, LINK) == b"1" * 20
        assert (await put_torrent(publisher, KEY, InfoHash(b"2" * 32), b"n")).seq == 2
        assert await get_torrent(reader, LINK) == b"2" * 20


async def test_an_item_that_names_no_torrent_is_its_publishers_fault() -> None:
    async with dht.open_node() as node:
        for value in (b"text", {b"ih": b"short"}, {b"other": b"2" * 20}):
            await node.put_mutable(KEY, value, b"n")
            with pytest.raises(ProtocolError) as caught:
                await get_torrent(node, LINK)
            assert caught.value.peer_id == KEY.peer_id
