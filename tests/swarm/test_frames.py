from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ProtocolError
from swarm.frames import (
    END_MESSAGE,
    END_STREAM,
    HEADER_SIZE,
    MAX_FRAME,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    MAX_STREAM_ID,
    Frame,
    FrameReader,
    Kind,
    pack_frame,
    pack_message,
    split_message,
)


def read(*chunks: bytes) -> list[Frame]:
    reader = FrameReader()
    return [frame for chunk in chunks for frame in reader.receive(chunk)]


def test_the_layout_is_pinned() -> None:
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("DATA", 0),
        ("WINDOW", 1),
        ("RESET", 2),
        ("PING", 3),
        ("PONG", 4),
        ("GOODBYE", 5),
    ]
    assert (END_MESSAGE, END_STREAM, HEADER_SIZE, MAX_FRAME, MAX_PAYLOAD) == (1, 2, 8, 65536, 65528)
    assert (MAX_MESSAGE, MAX_STREAM_ID) == (25165824, 2147483647)
    assert pack_frame(Kind.WINDOW, 7, b"\0\x40\0\0") == bytes.fromhex("0004010000000007 00400000")
    assert pack_frame(Kind.PING, 0, bytes(8)) == bytes.fromhex("0008030000000000 0000000000000000")
    assert pack_frame(Kind.DATA, 0x01020304, flags=END_STREAM) == bytes.fromhex("0000000201020304")
    assert pack_message(9, b"head", b"raw") == [bytes.fromhex("000b000100000009 00000004 68656164 726177")]
    assert pack_message(9, b"", fin=True) == [bytes.fromhex("0004000300000009 00000000")]


@pytest.mark.parametrize("size", [0, MAX_PAYLOAD - 8, MAX_PAYLOAD - 7, MAX_PAYLOAD - 6, 2 * MAX_PAYLOAD, 200_000])
def test_a_message_is_cut_where_it_must_be(size: int) -> None:
    frames = read(*pack_message(5, b"abc", bytes(size), fin=True))
    assert len(frames) == max(1, -(-(size + 7) // MAX_PAYLOAD))
    assert all(frame.kind == Kind.DATA and frame.stream == 5 for frame in frames)
    assert [frame.flags for frame in frames] == [0] * (len(frames) - 1) + [END_MESSAGE | END_STREAM]
    assert all(len(frame.payload) == MAX_PAYLOAD for frame in frames[:-1])
    header, raw = split_message(b"".join(frame.payload for frame in frames))
    assert (header, bytes(raw)) == (b"abc", bytes(size))


FRAMES = st.builds(
    Frame,
    kind=st.integers(0, 255),
    flags=st.integers(0, 255),
    stream=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 2500), max_size=12))
def test_any_cut_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(pack_frame(frame.kind, frame.stream, frame.payload, frame.flags) for frame in frames)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert read(*(data[a:b] for a, b in pairwise(edges))) == frames


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_a_message_is_split_where_it_was_joined(header: bytes, raw: bytes) -> None:
    (frame,) = read(*pack_message(1, header, raw))
    got_header, got_raw = split_message(frame.payload)
    assert (got_header, bytes(got_raw)) == (header, raw)
    assert got_raw.readonly


def test_nothing_is_a_frame_before_it_is_whole() -> None:
    data = pack_frame(Kind.DATA, 3, b"payload")
    reader = FrameReader()
    assert [list(reader.receive(data[i : i + 1])) for i in range(len(data) - 1)] == [[]] * (len(data) - 1)
    assert list(reader.receive(data[-1:])) == [Frame(Kind.DATA, 0, 3, b"payload")]


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 0xFFFF])
def test_an_oversized_frame_is_refused_by_its_header(length: int) -> None:
    with pytest.raises(ProtocolError, match=rf"a frame of {length} bytes is over the limit of 65528"):
        read(struct.pack("!HBBI", length, 0, 0, 1))


def test_the_largest_frame_is_read() -> None:
    assert read(pack_frame(0, 1, bytes(MAX_PAYLOAD)))[0].payload == bytes(MAX_PAYLOAD)


@pytest.mark.parametrize("cut", [0, 11, 19])
def test_what_came_before_an_oversized_frame_counts(cut: int) -> None:
    data = pack_frame(0, 1, b"abc") + pack_frame(0, 2) + b"\xff" * 8
    reader = FrameReader()
    frames: list[Frame] = []
    with pytest.raises(ProtocolError):  # noqa: PT012 - the frames before the raise are the point
        for chunk in (data[:cut], data[cut:]):
            frames.extend(reader.receive(chunk))
    assert [frame.stream for frame in frames] == [1, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "a message of 0 bytes has no header"),
        (b"\0\0\0", "a message of 3 bytes has no header"),
        (b"\0\0\0\1", "header of 1 bytes does not fit in its 4"),
        (b"\xff\xff\xff\xff" + bytes(100), "header of 4294967295 bytes does not fit in its 104"),
    ],
)
def test_header_lengths_that_lie_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        split_message(body)
    with pytest.raises(ProtocolError, match=message):
        split_message(bytearray(body))
