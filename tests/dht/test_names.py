from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.names import check_name, format_model_reference, parse_model_reference
from swarm.errors import UsageError
from swarm.ids import PeerId

PUBLISHER = PeerId(bytes(range(32)))


@given(st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True), st.sampled_from(["", "swarm://"]))
def test_references_survive(name: str, scheme: str) -> None:
    assert check_name(name) == name
    assert parse_model_reference(scheme + format_model_reference(PUBLISHER, name)) == (PUBLISHER, name)


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "a" * 65, "ä", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        check_name(name)


@pytest.mark.parametrize(
    "text", ["", "tiny", "/tiny", f"{PUBLISHER}", f"{PUBLISHER}/", f"{PUBLISHER}0/tiny", "zz" * 32 + "/tiny", "0x/tiny"]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(UsageError):
        parse_model_reference(text)


def test_spaces_around_and_capital_digits_are_forgiven() -> None:
    assert parse_model_reference(f" {str(PUBLISHER).upper()}/tiny\n") == (PUBLISHER, "tiny")
