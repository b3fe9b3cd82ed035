from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.keys import NodeId, Target, crc32c, distance, info_target, is_secure_id, secure_id, shared_prefix
from swarm.errors import UsageError
from swarm.ids import InfoHash

KEYS = st.binary(min_size=20, max_size=20)

# BEP 42's table: address, the last byte of the id, the first three bytes (the last of them by its top five bits).
BEP_42 = [
    ("124.31.75.21", 1, "5fbfbf", "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"),
    ("21.75.31.124", 86, "5a3ce9", "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"),
    ("65.23.51.170", 22, "a5d432", "a5d43220bc8f112a3d426c84764f8c2a1150e616"),
    ("84.124.73.14", 65, "1b0321", "1b0321dd1bb1fe518101ceef99462b947a01ff41"),
    ("43.213.53.83", 90, "e56f6c", "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"),
]


@pytest.mark.parametrize(("host", "last", "head", "example"), BEP_42)
def test_bep_42_table(host: str, last: int, head: str, example: str) -> None:
    assert is_secure_id(NodeId.parse(example), host)
    made = secure_id(host, bytes(19) + bytes([last]))
    expected = bytes.fromhex(head)
    assert made[:2] == expected[:2]
    assert made[2] & 0xF8 == expected[2] & 0xF8
    assert made[-1] == last


@pytest.mark.parametrize(("host", "last", "head", "example"), BEP_42)
def test_bep_42_refuses_every_change_of_a_fixed_bit(host: str, last: int, head: str, example: str) -> None:
    del last, head
    good = int.from_bytes(bytes.fromhex(example), "big")
    for bit in range(160):
        changed = NodeId((good ^ (1 << (159 - bit))).to_bytes(20, "big"))
        free = 21 <= bit < 157
        if free:
            assert is_secure_id(changed, host)
        elif bit < 21:
            assert not is_secure_id(changed, host)


@given(noise=KEYS, host=st.ip_addresses().map(str))
def test_made_ids_are_secure(noise: bytes, host: str) -> None:
    assert is_secure_id(secure_id(host, noise), host)


def test_local_addresses_may_use_any_id() -> None:
    assert is_secure_id(NodeId(bytes(20)), "127.0.0.1")
    assert is_secure_id(NodeId(bytes(20)), "192.168.1.9")
    assert not is_secure_id(NodeId(bytes(20)), "8.8.8.8")


def test_noise_has_a_length() -> None:
    with pytest.raises(ValueError, match="20 random bytes"):
        secure_id("8.8.8.8", b"short")


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(a=KEYS, b=KEYS, c=KEYS)
def test_distance_is_a_metric(a: bytes, b: bytes, c: bytes) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(a=KEYS, b=KEYS)
def test_shared_prefix_counts_bits(a: bytes, b: bytes) -> None:
    bits_a, bits_b = (f"{int.from_bytes(key, 'big'):0160b}" for key in (a, b))
    shared = next((i for i, (x, y) in enumerate(zip(bits_a, bits_b, strict=True)) if x != y), 160)
    assert shared_prefix(a, b) == shared


def test_targets_of_content_and_torrents() -> None:
    assert Target.of_content(b"12:Hello World!").hex() == "e5f96f6f38320f0f33959cb4d3d656452117aadb"
    assert info_target(InfoHash(bytes(range(32)))) == bytes(range(20))
    assert info_target(b"i" * 20) == b"i" * 20
    with pytest.raises(UsageError, match="20 bytes"):
        info_target(b"i" * 32)
