"""Ids of the other side's streams: each is used once, in any order, and not too many are skipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ProtocolError
from swarm.frames import MAX_STREAM_ID
from swarm.stream_ids import RemoteIds


@given(st.permutations(range(1, 41, 2)))
def test_each_id_is_used_once_in_any_order(order: list[int]) -> None:
    ids = RemoteIds(1, most_skipped=20)
    assert [ids.use(stream) for stream in order] == [True] * len(order)
    assert [ids.use(stream) for stream in order] == [False] * len(order)
    assert len(ids) == 0


def test_ids_of_our_own_parity_and_zero_are_none_of_theirs() -> None:
    ids = RemoteIds(2, most_skipped=4)
    assert [ids.use(stream) for stream in (0, 1, 3, 2**31 - 1)] == [False] * 4
    assert ids.use(2)


@pytest.mark.parametrize("stream", [2 * 4 + 3, MAX_STREAM_ID + 2, 2**32 - 1])
def test_skipping_too_many_is_refused(stream: int) -> None:
    with pytest.raises(ProtocolError, match="skipped too many"):
        RemoteIds(1, most_skipped=4).use(stream)


def test_what_was_skipped_counts_until_it_is_used() -> None:
    ids = RemoteIds(1, most_skipped=4)
    assert ids.use(9)  # 1, 3, 5, 7 skipped
    with pytest.raises(ProtocolError):
        ids.use(13)
    assert ids.use(1)
    assert ids.use(13)
    ids.clear()
    assert not ids.use(3)
