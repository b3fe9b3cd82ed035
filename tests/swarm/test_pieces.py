from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.layout import ByteRange, LayoutError
from swarm.pieces import FetchPlan, PieceMap

SIZES = (25, 10, 3)  # pieces 0 1 2 | 3 | 4 at ten bytes
MAP = PieceMap(sizes=SIZES, piece_length=10)


def test_files_start_on_pieces_of_their_own() -> None:
    assert [MAP.first(file) for file in range(3)] == [0, 3, 4]
    assert MAP.total == 5
    assert [MAP.place(piece) for piece in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    with pytest.raises(LayoutError):
        MAP.place(5)


@given(st.integers(0, 2), st.integers(0, 24), st.integers(1, 25))
def test_pieces_cover_a_range_and_no_more(file: int, start: int, size: int) -> None:
    item = ByteRange(file=file, start=start, stop=start + size)
    if item.stop > SIZES[file]:
        with pytest.raises(LayoutError):
            MAP.pieces([item])
        return
    assert MAP.pieces([item]) == {MAP.first(file) + at // 10 for at in range(item.start, item.stop)}


def test_last_pieces_are_short() -> None:
    assert MAP.bytes_in(range(5)) == sum(SIZES)
    assert MAP.bytes_in([2, 3]) == 5 + 10
    with pytest.raises(LayoutError):
        MAP.pieces([ByteRange(file=3, start=0, stop=1)])


def test_tiers_come_one_after_the_other() -> None:
    plan = FetchPlan(12, [{number, number + 1} for number in range(9)])
    assert plan.priorities() == [7, 7, 6, 5, 4, 3, 2, 1, 1, 1, 0, 0]
    plan.finished([1])
    assert not plan.turn_changed()
    plan.finished([0, 2])
    assert plan.turn_changed()
    assert plan.priorities()[2:] == [7, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert not plan.turn_changed()
    plan.finished(range(10))
    assert not plan.turn_changed(), "nothing is left to put first"


def test_a_piece_may_be_read_once_it_is_finished_flushed_and_verified() -> None:
    plan = FetchPlan(4, [{0, 1}])
    wanted = {0, 1}
    plan.finished([0])
    assert plan.start_flush(wanted) == 0, "not all are here"
    plan.finished([1])
    assert plan.start_flush(wanted) == 1
    assert plan.start_flush(wanted) == 0, "one flush at a time"
    plan.finished([2])
    assert not plan.to_verify({0, 1, 2})
    plan.flushed()
    assert plan.to_verify({0, 1, 2}) == wanted, "a piece that finished during the flush may have missed it"
    assert plan.missing(wanted) == wanted
    plan.verified(wanted)
    assert not plan.missing(wanted)
    assert plan.start_flush(wanted) == 0
    assert plan.done() == wanted


def test_a_flush_is_over_only_when_one_of_the_answers_must_be_ours() -> None:
    plan = FetchPlan(2, [{0, 1}])
    plan.finished([0, 1])
    plan.flushing_itself()
    asked = plan.start_flush({0, 1})
    assert asked == 2
    plan.flushed()  # perhaps the answer to the flush of its own, from before ours
    assert not plan.to_verify({0, 1})
    plan.flushed()
    assert plan.to_verify({0, 1}) == {0, 1}
    plan.flushed()
    assert plan.start_flush({0, 1}) == 0


def test_a_flush_whose_answer_may_be_lost_is_asked_for_again() -> None:
    plan = FetchPlan(1, [{0}])
    plan.finished([0])
    assert plan.start_flush({0}) == 1
    plan.answers_lost()
    assert plan.start_flush({0}) == 2
    plan.flushed()
    plan.flushed()
    assert plan.to_verify({0}) == {0}
