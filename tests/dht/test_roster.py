from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.roster import MAX_DEPTH, MAX_ENTRY, WHOLE, Entry, Filter, Shard, SignedEntry, roster_target
from swarm.errors import ProtocolError, SwarmError, UsageError, VerificationError
from swarm.identity import Identity
from swarm.ids import ManifestId
from swarm.receipts import Price
from tests.dht.adverts import MODEL, entry_of, signed, worker

LABELS = st.text("abcXYZ019-_", max_size=4)
UINT16, UINT32, UINT64 = st.integers(1, 0xFFFF), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
ENTRIES = st.builds(
    Entry, worker=st.just(worker(1).peer_id), host=HOSTS, port=UINT16, dht_port=UINT16, start=st.just(0), stop=UINT16,
    variant=LABELS, region=st.sampled_from(["", "de", "US"]),
    price=st.builds(Price, per_1k_input=UINT64, per_1k_output=UINT64), free_slots=st.integers(0, 0xFFFF),
    decode_rate=UINT32, depth=st.integers(0, MAX_DEPTH), expiry=UINT32, seq=st.integers(0, 2**48 - 1),
)  # fmt: skip


@given(ENTRIES)
def test_what_is_packed_is_read_again(entry: Entry) -> None:
    made = entry.sign(worker(1), MODEL)
    assert len(made.raw) == (160 if ":" in entry.host else 148) <= MAX_ENTRY
    assert SignedEntry.read(made.raw, MODEL) == made


@given(st.binary(max_size=200) | st.binary(min_size=148, max_size=148) | st.binary(min_size=160, max_size=160))
def test_noise_is_no_entry(raw: bytes) -> None:
    with pytest.raises(SwarmError):
        SignedEntry.read(raw, MODEL)


@given(st.integers(0, 148 * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    raw = bytearray(signed(1).raw)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SwarmError):
        SignedEntry.read(bytes(raw), MODEL)


def test_an_entry_is_for_one_model_and_by_its_worker() -> None:
    with pytest.raises(VerificationError, match="did not sign") as caught:
        SignedEntry.read(signed(1).raw, ManifestId(b"n" * 32))
    assert caught.value.peer_id == worker(1).peer_id
    with pytest.raises(UsageError, match="the worker that it names"):
        entry_of(1).sign(worker(2), MODEL)


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 0}, {"dht_port": 0}, {"port": 65536}, {"start": 4}, {"start": -1}, {"variant": "toolong"},
        {"variant": "a b"}, {"region": "deu"}, {"region": "é"}, {"depth": 17}, {"expiry": -1}, {"seq": 2**48},
        {"free_slots": 65536},
    ],
)  # fmt: skip
def test_impossible_entries_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        entry_of(1, **changes)


def test_a_name_with_a_hole_is_not_canonical() -> None:
    raw = bytearray(signed(1, variant="abcd").raw)
    raw[raw.index(b"abcd") + 1] = 0
    with pytest.raises(ProtocolError, match="not a short name"):
        SignedEntry.read_unverified(bytes(raw))


class TestFilter:
    @pytest.mark.parametrize(
        ("wanted", "admitted"),
        [
            (Filter(), True),
            (Filter(span=(3, 9)), True),
            (Filter(span=(4, 9)), False),
            (Filter(span=(3, 9), whole=True), False),
            (Filter(span=(1, 4), whole=True), True),
            (Filter(most_price=3), True),
            (Filter(most_price=2), False),
            (Filter(region="de"), True),
            (Filter(region="us"), False),
        ],
    )
    def test_admits(self, wanted: Filter, admitted: bool) -> None:
        assert wanted.admits(entry_of(1, start=0, stop=4, region="de")) is admitted

    @pytest.mark.parametrize(
        "fields", [{"span": (3, 3)}, {"span": (-1, 3)}, {"how_many": 17}, {"most_price": -1}, {"region": "deu"}]
    )
    def test_impossible_filters_are_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Filter(**fields)


class TestShards:
    @given(st.binary(min_size=32, max_size=32), st.integers(1, MAX_DEPTH))
    def test_a_shard_lies_in_the_one_above(self, seed: bytes, depth: int) -> None:
        peer = Identity(seed).peer_id
        shard = Shard.of(peer, depth)
        assert shard.holds(peer)
        assert Shard.of(peer, depth - 1).prefix == shard.prefix >> 1
        assert Shard.unpack(shard.pack()) == shard
        assert not Shard(depth, shard.prefix ^ 1).holds(peer)

    def test_the_whole_holds_everybody(self) -> None:
        assert WHOLE.holds(worker(1).peer_id)

    @pytest.mark.parametrize("raw", [b"", b"\0\0", b"\0\0\1", b"\x11\0\0", b"\2\0\4", b"\0\0\0\0"])
    def test_impossible_shards_are_refused(self, raw: bytes) -> None:
        with pytest.raises(ProtocolError):
            Shard.unpack(raw)

    def test_every_shard_of_every_model_has_a_place_of_its_own(self) -> None:
        expected = hashlib.sha1(b"cap1" + MODEL + b"\2\0\3", usedforsecurity=False).digest()
        assert roster_target(MODEL, Shard(2, 3)) == expected
        shards = [WHOLE, Shard(1, 0), Shard(1, 1), Shard(2, 0)]
        assert len({roster_target(MODEL, shard) for shard in shards}) == 4
