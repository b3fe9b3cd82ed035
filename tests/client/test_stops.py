"""Stop strings in a stream against the search in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.stops import MAX_STOP_LENGTH, MAX_STOPS, StopStrings, cut_at_stop
from swarm.errors import UsageError

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def _stream(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watch = StopStrings(stops)
    shown = "".join(watch.push(piece) for piece in pieces)
    return (shown, watch.matched) if watch.matched is not None else (shown + watch.flush(), None)


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
@settings(max_examples=200)
def test_a_stream_is_cut_where_the_whole_text_is(pieces: list[str], stops: list[str]) -> None:
    assert _stream(stops, pieces) == cut_at_stop("".join(pieces), stops)


@given(text=LETTERS, stops=STOPS)
@settings(max_examples=100)
def test_the_specification_finds_the_stop_that_ends_first(text: str, stops: list[str]) -> None:
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    shown, stop = cut_at_stop(text, stops)
    if not ends:
        assert (shown, stop) == (text, None)
    else:
        longest = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        assert (shown, stop) == (text[: ends[0] - len(longest)], longest)


@given(text=LETTERS, stops=STOPS)
@settings(max_examples=100)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown = watch.push(text)
    if watch.matched is None:
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_text_before_a_stop_is_shown_at_once_and_nothing_after_it() -> None:
    watch = StopStrings(["\n\n"])
    assert [watch.push(piece) for piece in ("one\n", "two", "\n", "\nthree", "four")] == ["one", "\ntwo", "", "", ""]
    assert watch.matched == "\n\n"
    assert watch.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["x" * (MAX_STOP_LENGTH + 1)], ["x"] * (MAX_STOPS + 1)])
def test_impossible_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError):
        StopStrings(stops)
