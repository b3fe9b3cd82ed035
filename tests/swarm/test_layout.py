from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.layout import ByteRange, LayoutError, merge_ranges

ranges = st.builds(
    lambda file, start, size: ByteRange(file=file, start=start, stop=start + size),
    st.integers(0, 2),
    st.integers(0, 60),
    st.integers(1, 20),
)


@given(st.lists(ranges))
def test_merged_ranges_hold_the_same_bytes_with_gaps_between_them(items: list[ByteRange]) -> None:
    def bytes_of(some: list[ByteRange]) -> set[tuple[int, int]]:
        return {(item.file, at) for item in some for at in range(item.start, item.stop)}

    merged = list(merge_ranges(items))
    assert bytes_of(merged) == bytes_of(items)
    assert sum(item.size for item in merged) == len(bytes_of(items))
    for before, after in itertools.pairwise(merged):
        assert (before.file, before.stop) < (after.file, after.start)


@pytest.mark.parametrize(("file", "start", "stop"), [(-1, 0, 1), (0, -1, 1), (0, 5, 5), (0, 5, 4)])
def test_an_empty_or_negative_range_is_refused(file: int, start: int, stop: int) -> None:
    with pytest.raises(LayoutError):
        ByteRange(file=file, start=start, stop=stop)
