from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.layout import LayoutError
from swarm.safetensors_header import DTYPE_SIZE, MAX_HEADER, header_size, parse_header
from tests.tiny_models import header_bytes, safetensors_bytes

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
DATA = 32


def parse(header: dict[str, Any], data: int = DATA) -> Any:
    prefix = header_bytes(header)
    return parse_header(prefix, file_size=len(prefix) + data)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(json.dumps(GOOD))
    header[name] |= fields
    return header


def test_tensors_come_in_the_order_of_their_bytes_with_offsets_from_the_start_of_the_file() -> None:
    header = parse({"b": GOOD["b"], "__metadata__": {"format": "pt"}, "a": GOOD["a"]})
    size = header.prefix_size
    assert [(entry.name, entry.dtype, entry.shape, entry.start, entry.stop) for entry in header.entries] == [
        ("a", "F32", (2, 3), size, size + 24),
        ("b", "BF16", (4,), size + 24, size + 32),
    ]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (changed("b", data_offsets=[20, 28]), DATA),  # overlap
        (changed("b", data_offsets=[25, 33]), DATA + 1),  # gap
        (GOOD, DATA - 1),  # truncated
        (GOOD, DATA + 1),  # bytes that nothing describes
        (changed("b", shape=[5]), DATA),  # more elements than bytes
        (changed("b", shape=[-4]), DATA),
        (changed("b", shape=[2.0, 2]), DATA),
        (changed("b", shape=[True, 4]), DATA),
        (changed("b", shape=[1] * 9), DATA),
        (changed("b", dtype="F31"), DATA),
        (changed("b", dtype=7), DATA),
        (changed("b", data_offsets=[32, 24]), DATA),
        (changed("b", data_offsets=[24]), DATA),
        (changed("b", data_offsets=[24, 2**70]), DATA),
        (changed("b", extra=1), DATA),
        (GOOD | {"c": []}, DATA),
        (GOOD | {"c\n": {"dtype": "U8", "shape": [0], "data_offsets": [32, 32]}}, DATA),
        (GOOD | {"__metadata__": {"a": 1}}, DATA),
        (GOOD | {"__metadata__": []}, DATA),
    ],
)
def test_a_lying_header_is_refused(header: dict[str, Any], data: int) -> None:
    parse(GOOD)
    with pytest.raises(LayoutError):
        parse(header, data)


def test_duplicate_tensors_and_foreign_prefixes_are_refused() -> None:
    entry = json.dumps(GOOD["a"])
    for text in (f'{{"a": {entry}, "a": {entry}}}', " {}", "[]", "{} {}"):
        prefix = len(text).to_bytes(8, "little") + text.encode()
        with pytest.raises(LayoutError):
            parse_header(prefix, file_size=len(prefix) + 24)


@pytest.mark.parametrize(
    ("field", "size"),
    [(b"", 0), (b"\x01" * 7, 7), ((100).to_bytes(8, "little"), 50), ((MAX_HEADER).to_bytes(8, "little"), 2**40)],
)
def test_a_length_that_does_not_fit_is_refused(field: bytes, size: int) -> None:
    with pytest.raises(LayoutError):
        header_size(field, file_size=size)


shapes = st.dictionaries(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    max_size=6,
)


@given(shapes, st.sampled_from(sorted(DTYPE_SIZE)))
def test_what_is_written_is_read(tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    raw = safetensors_bytes(tensors, dtype=dtype)
    size = header_size(raw[:8], file_size=len(raw))
    header = parse_header(raw[:size], file_size=len(raw))
    assert {entry.name: entry.shape for entry in header.entries} == tensors
    assert sum(entry.stop - entry.start for entry in header.entries) == len(raw) - size


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_damaged_headers_give_a_layout_error_or_a_layout_that_fills_the_file(at: int, junk: bytes) -> None:
    prefix = header_bytes(GOOD)
    at %= len(prefix)
    damaged = prefix[:at] + junk + prefix[at + len(junk) :]
    size = len(prefix) + DATA
    try:
        header = parse_header(damaged, file_size=size)
    except LayoutError:
        return
    assert sum(entry.stop - entry.start for entry in header.entries) == size - header.prefix_size
