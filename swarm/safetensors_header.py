"""The header of a safetensors file, checked without torch and without reading a tensor.

Layout: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without gaps. The prefix (length and
JSON) travels in the manifest, so a worker knows where every tensor lies before it has fetched a byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from swarm.layout import LayoutError
from swarm.strict_json import decode_object

LENGTH_SIZE = 8
MAX_HEADER = 16 * 2**20  # the safetensors library allows 100 MB; all headers of a model fit a 32 MiB manifest
MAX_TENSORS = 100_000  # per file; the largest published mixture-of-experts shards hold a few thousand
MAX_DIMENSIONS = 8
MAX_FILE = 2**46  # 64 TiB: far above any shard, far below where 64-bit offsets overflow

DTYPE_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_NAME = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEntry:
    """One tensor: bytes ``[start, stop)`` from the file's first byte, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All tensors of one file, in the order of their bytes."""

    prefix_size: int
    """Bytes before the first tensor: the length field and the JSON."""
    entries: tuple[HeaderEntry, ...]


def header_size(length_field: bytes, *, file_size: int) -> int:
    """Size of the whole prefix, from the file's first 8 bytes. Raises `LayoutError`."""
    if len(length_field) != LENGTH_SIZE:
        raise LayoutError("is shorter than a safetensors header; download it again")
    size = LENGTH_SIZE + int.from_bytes(length_field, "little")
    if size > MAX_HEADER:
        raise LayoutError(f"claims a header of {size} bytes, over the limit of {MAX_HEADER}: not a safetensors file")
    if size > file_size:
        raise LayoutError(f"claims a header of {size} bytes in {file_size} bytes of file: truncated; download it again")
    return size


def parse_header(prefix: bytes, *, file_size: int) -> Header:
    """Read the prefix of a file of ``file_size`` bytes.

    Raises `LayoutError` unless the tensors' bytes fill the file behind the prefix exactly, without gap or overlap, and
    each tensor's bytes are what its dtype and shape need.
    """
    if file_size > MAX_FILE:
        raise LayoutError(f"is {file_size} bytes, over the limit of {MAX_FILE}")
    size = header_size(prefix[:LENGTH_SIZE], file_size=file_size)
    if len(prefix) != size:
        raise LayoutError(f"has a header of {len(prefix)} bytes where its length field says {size}")
    if prefix[LENGTH_SIZE : LENGTH_SIZE + 1] != b"{":
        raise LayoutError("has a header that is not a JSON object: not a safetensors file")
    fields = decode_object(prefix[LENGTH_SIZE:], limit=MAX_HEADER)
    _check_metadata(fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise LayoutError(f"lists {len(fields)} tensors, over the limit of {MAX_TENSORS}")
    entries = sorted(
        (_entry(name, value, size) for name, value in fields.items()), key=lambda entry: (entry.start, entry.stop)
    )
    position = size
    for entry in entries:
        if entry.start != position:
            raise LayoutError(f"leaves a gap or an overlap before tensor {entry.name}: the header lies")
        position = entry.stop
    if position != file_size:
        raise LayoutError(f"is {file_size} bytes where its header describes {position}: truncated, or the header lies")
    return Header(prefix_size=size, entries=tuple(entries))


def _check_metadata(value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise LayoutError("has __metadata__ that does not map text to text")


def _entry(name: str, value: Any, base: int) -> HeaderEntry:
    if not _NAME.fullmatch(name):
        raise LayoutError("has a tensor whose name is not 1 to 256 printable ASCII characters")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise LayoutError(f"describes tensor {name} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZE:
        raise LayoutError(f"gives tensor {name} a dtype that is not one of {', '.join(DTYPE_SIZE)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise LayoutError(f"gives tensor {name} a shape that is not at most {MAX_DIMENSIONS} sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise LayoutError(f"gives tensor {name} offsets that are not a start and a stop")
    needed = DTYPE_SIZE[dtype]
    for length in shape:
        needed *= length
    start, stop = offsets
    if stop - start != needed:
        raise LayoutError(f"gives tensor {name} {stop - start} bytes where its dtype and shape need {needed}")
    return HeaderEntry(name=name, dtype=dtype, shape=tuple(shape), start=base + start, stop=base + stop)


def _sizes(value: Any) -> bool:
    """Whether it is a list of integers in the range of file offsets."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_FILE for item in value)
