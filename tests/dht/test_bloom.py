from __future__ import annotations

import pytest

from dht.bloom import FILTER_SIZE, AddressFilter
from dht.contacts import Endpoint

# BEP 33's vector: 192.0.2.0 to 192.0.2.255 and 2001:db8:: to 2001:db8::3e7.
VECTOR = (
    "f6c3f5eaa07ffd91bde89f777f26fb2bff37bdb8fb2bbaa2fd3ddde7bacfff75ee7ccbaefe5eedb1fbfaff67f6abff5e43ddbca3fd9b9ffd"
    "f4ffd3e9dff12d1bdf59db53dbe9fa5b7ff3b8fdfcde1afb8bedd7be2f3ee71ebbbfe93bcdeefe148246c2bc5dbff7e7efdcf24fd8dc7adf"
    "fd8fffdfddfff7a4bbeedf5cb95ce81fc7fcff1ff4ffffdfe5f7fdcbb7fd79b3fa1fc77bfe07fff905b7b7ffc7fefeffe0b8370bb0cd3f5b"
    "7f2bd93feb4386cfdd6f7fd5bfaf2e9ebffffeecd67adbf7c67f17efd5d75eba6ffeba7fff47a91eb1bfbb53e8abfb5762abe8ff237279bf"
    "efbfeef5ffc5febfdfe5adffadfee1fb737ffffbfd9f6aeffeee76b6fd8f72ef"
)
V4 = [Endpoint(f"192.0.2.{n}", 1) for n in range(256)]
V6 = [Endpoint(f"2001:db8::{n:x}", 1) for n in range(0x3E8)]


def test_the_vector_of_bep_33() -> None:
    filled = AddressFilter.of(V4 + V6)
    assert filled.pack().hex() == VECTOR
    assert filled.estimate == pytest.approx(1224.9308, abs=1e-4)


def test_joined_filters_count_each_address_once() -> None:
    joined = AddressFilter.of(V4)
    joined.join(AddressFilter.of(V4[100:] + V6).pack())
    assert joined.pack().hex() == VECTOR
    assert AddressFilter().estimate == 0
    assert AddressFilter.of([V4[0], Endpoint(V4[0].host, 2)]).estimate == pytest.approx(1, abs=0.01)


def test_a_full_filter_says_no_more_than_many() -> None:
    assert AddressFilter(b"\xff" * FILTER_SIZE).estimate == 6000
    with pytest.raises(ValueError, match="256"):
        AddressFilter(b"short")
