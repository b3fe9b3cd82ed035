from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.checked import Checked, Stamp
from swarm.errors import ProtocolError

STAMP = Stamp(size=100, mtime_ns=5, ctime_ns=7)


def record(pieces: set[int], *, size: int = 100, length: int = 8, boot: bytes = b"now") -> Checked:
    return Checked(size=size, piece_length=length, pieces=frozenset(pieces), stamp=STAMP, boot=boot, reserved=3)


@given(st.integers(1, 500), st.data())
def test_a_record_survives_its_encoding(size: int, data: st.DataObject) -> None:
    count = -(-size // 8)
    pieces = data.draw(st.sets(st.integers(0, count - 1)))
    made = record(pieces, size=size)
    assert Checked.decode(made.encode()) == made
    assert made.complete == (len(pieces) == count)


@pytest.mark.parametrize("raw", [b"", b"de", b"i1e", record({1}).encode()[:-2], record({1}).encode() + b"x"])
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        Checked.decode(raw)


def test_a_bitfield_of_another_length_is_refused() -> None:
    raw = record({1}).encode()
    with pytest.raises(ProtocolError, match="another length"):
        Checked.decode(raw.replace(b"4:sizei100e", b"4:sizei900e"))


def test_it_holds_while_the_file_looks_the_same_and_the_machine_runs() -> None:
    assert record({1}).holds(STAMP, b"now")
    assert not record({1}).holds(STAMP, b"after a power cut")
    assert record({1}, boot=b"").holds(STAMP, b"after a power cut"), "it was synced"
    for other in (Stamp(size=99, mtime_ns=5, ctime_ns=7), Stamp(size=100, mtime_ns=6, ctime_ns=7)):
        assert not record({1}, boot=b"").holds(other, b"now")


@given(st.sets(st.integers(0, 12)), st.sampled_from([4, 8, 16, 32, 128]))
def test_pieces_of_another_length_count_where_all_their_bytes_were_checked(pieces: set[int], length: int) -> None:
    made = record(pieces)
    checked = {byte for piece in pieces for byte in range(piece * 8, min(piece * 8 + 8, 100))}
    expected = {
        piece
        for piece in range(-(-100 // length))
        if set(range(piece * length, min(piece * length + length, 100))) <= checked
    }
    assert made.recut(length) == expected
