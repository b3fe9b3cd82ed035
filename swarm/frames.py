"""Frames: how messages of many streams share one TLS connection.

    frame    length u16 | kind u8 | flags u8 | stream u32 | payload          big-endian, at most 64 KiB in all
    message  header length u32 | header (msgpack) | raw bytes                cut into DATA frames of one stream

A message may be larger than a frame, so frames of other streams come between its parts: that is what keeps one
session's prefill from stalling another's token.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from swarm.errors import ProtocolError

_HEADER = struct.Struct("!HBBI")
_LENGTH = struct.Struct("!I")
HEADER_SIZE = _HEADER.size
MAX_FRAME = 1 << 16
MAX_PAYLOAD = MAX_FRAME - HEADER_SIZE
# The largest message: a prefill chunk of 512 positions of 8192 values in fp32 is 16 MiB, with room beside it.
MAX_MESSAGE = 24 << 20
MAX_STREAM_ID = 2**31 - 1
MAX_REASON = 512  # bytes of text in a RESET or GOODBYE

END_MESSAGE = 1  # the last frame of a message
END_STREAM = 2  # nothing more comes on this stream from this side


class Kind(IntEnum):
    """What a frame is for."""

    DATA = 0  # part of a message
    WINDOW = 1  # u32: that many more bytes may be sent on this stream (stream 0: on the connection)
    RESET = 2  # the stream is dropped; payload is a reason, UTF-8
    PING = 3  # 8 bytes, answered with the same
    PONG = 4
    GOODBYE = 5  # the connection ends; payload is a reason, UTF-8


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame off the wire."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def pack_frame(kind: int, stream: int, payload: bytes | memoryview = b"", flags: int = 0) -> bytes:
    """A frame's bytes. The payload is at most `MAX_PAYLOAD`."""
    return _HEADER.pack(len(payload), kind, flags, stream) + payload


def pack_message(stream: int, header: bytes, raw: bytes | memoryview = b"", *, fin: bool = False) -> list[bytes]:
    """The DATA frames of one message, in order."""
    last = END_MESSAGE | (END_STREAM if fin else 0)
    size = _LENGTH.size + len(header) + len(raw)
    if size <= MAX_PAYLOAD:
        return [
            b"".join((_HEADER.pack(size, Kind.DATA, last, stream), _LENGTH.pack(len(header)), header, raw)),
        ]
    body = memoryview(b"".join((_LENGTH.pack(len(header)), header, raw)))
    frames = [
        pack_frame(Kind.DATA, stream, body[offset : offset + MAX_PAYLOAD]) for offset in range(0, size, MAX_PAYLOAD)
    ]
    final = len(frames) - 1
    frames[final] = pack_frame(Kind.DATA, stream, body[final * MAX_PAYLOAD :], last)
    return frames


def split_message(body: bytes | bytearray) -> tuple[bytes, memoryview]:
    """The header and the raw part of a whole message. Raises `ProtocolError` when the lengths do not fit."""
    if len(body) < _LENGTH.size:
        raise ProtocolError(f"a message of {len(body)} bytes has no header")
    (length,) = _LENGTH.unpack_from(body)
    end = _LENGTH.size + length
    if end > len(body):
        raise ProtocolError(f"a message's header of {length} bytes does not fit in its {len(body)}")
    return bytes(body[_LENGTH.size : end]), memoryview(body)[end:].toreadonly()


def pack_reason(text: str) -> bytes:
    """The payload of a RESET or GOODBYE."""
    return text.encode("utf-8", "replace")[:MAX_REASON]


def read_reason(payload: bytes) -> str:
    """A peer's reason, fit to be shown."""
    text = payload[:MAX_REASON].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


class FrameReader:
    """Cuts a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[Frame]:
        """Add bytes; the frames that are now whole, one by one. The iterator raises `ProtocolError` where it comes to
        an oversized frame, so that what came before it counts however the bytes were cut.
        """
        self._buffer += data
        return self._cut()

    def _cut(self) -> Iterator[Frame]:
        buffer, start = self._buffer, 0
        try:
            while len(buffer) - start >= HEADER_SIZE:
                length, kind, flags, stream = _HEADER.unpack_from(buffer, start)
                if length > MAX_PAYLOAD:
                    raise ProtocolError(f"a frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
                end = start + HEADER_SIZE + length
                if end > len(buffer):
                    break
                start, payload = end, bytes(buffer[start + HEADER_SIZE : end])
                yield Frame(kind, flags, stream, payload)
        finally:
            del buffer[:start]
