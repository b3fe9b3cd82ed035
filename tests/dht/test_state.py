from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contacts import Contact
from dht.keys import NodeId
from dht.state import MAX_CONTACTS, SavedState, load_state, save_state
from swarm.errors import ProtocolError, ResourceError
from tests.dht.strategies import NODE_IDS, V4_CONTACTS, V6_CONTACTS

STATE = SavedState(node_id=NodeId(b"i" * 20))


@given(node_id=NODE_IDS, four=st.lists(V4_CONTACTS, max_size=40), six=st.lists(V6_CONTACTS, max_size=40))
def test_what_is_saved_is_restored_up_to_the_limit(node_id: NodeId, four: list[Contact], six: list[Contact]) -> None:
    saved = SavedState(node_id=node_id, contacts=(*four, *six))
    restored = SavedState.unpack(saved.pack())
    assert restored == SavedState(node_id=node_id, contacts=(*four, *six)[:MAX_CONTACTS])


@given(data=st.data())
def test_no_damaged_byte_goes_unnoticed(data: st.DataObject) -> None:
    raw = bytearray(STATE.pack())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError):
        SavedState.unpack(bytes(raw))


@given(raw=st.binary(max_size=300))
def test_other_bytes_are_no_state(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        SavedState.unpack(raw)


def test_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "new" / "dht.state"
    assert load_state(path) is None
    save_state(path, STATE)
    assert load_state(path) == STATE
    assert list(path.parent.iterdir()) == [path]
    assert caplog.records == []
    path.write_bytes(STATE.pack()[:-7])
    with caplog.at_level(logging.WARNING):
        assert load_state(path) is None
    assert str(path) in caplog.text
    newer = STATE.pack().replace(b"6:formati1e", b"6:formati2e")
    path.write_bytes(newer)
    assert load_state(path) is None
    assert "format 2" in caplog.text


def test_a_place_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot read"):
        load_state(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot write"):
        save_state(tmp_path / "file" / "dht.state", STATE)
    (tmp_path / "taken").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        save_state(tmp_path / "taken", STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
