from __future__ import annotations

import pytest

from swarm.frames import END_MESSAGE, END_STREAM, MAX_MESSAGE, MAX_PAYLOAD, FrameReader, pack_message
from swarm.outbox import CONNECTION_WINDOW, MAX_QUEUED, MESSAGE_COST, STREAM_WINDOW, WINDOW_STEP, Outbox


def outbox(*streams: int) -> Outbox:
    box = Outbox()
    for stream in streams:
        box.open(stream)
    return box


def put(box: Outbox, stream: int, size: int, *, urgent: bool = True, fin: bool = False) -> None:
    frames = pack_message(stream, b"", bytes(size - 4), fin=fin)
    box.push(stream, frames, size, fin=fin, urgent=urgent)


def take(box: Outbox, most: int = 10_000) -> list[tuple[int, int]]:
    """Stream and size of the frames that may go now."""
    sent: list[tuple[int, int]] = []
    while len(sent) < most and (item := box.next_frame()) is not None:
        (frame,) = FrameReader().receive(item[0])
        sent.append((frame.stream, len(frame.payload)))
    return sent


def test_the_windows_fit_together() -> None:
    assert STREAM_WINDOW >= MAX_MESSAGE + WINDOW_STEP  # the largest message fits while a step is held back
    assert CONNECTION_WINDOW >= 2 * STREAM_WINDOW
    assert MAX_QUEUED < STREAM_WINDOW


def test_urgent_before_bulk_and_in_order() -> None:
    box = outbox(1, 3)
    put(box, 1, 10, urgent=False)
    put(box, 3, 20)
    put(box, 3, 21, urgent=False)
    put(box, 3, 22)
    put(box, 1, 11)
    assert take(box) == [(3, 20), (1, 10), (3, 21), (3, 22), (1, 11)]
    assert box.queued == 0


def test_a_bulk_message_waits_for_its_streams_urgent_ones() -> None:
    box = outbox(1, 3)
    put(box, 1, STREAM_WINDOW)
    put(box, 1, 10)  # urgent, and blocked by the window
    put(box, 1, 4, urgent=False)
    put(box, 3, 5, urgent=False)
    assert take(box)[-1] == (3, 5)
    box.credit(1, 14)
    assert take(box) == [(1, 10), (1, 4)]


def test_a_message_starts_only_when_all_of_it_fits() -> None:
    box = outbox(1)
    put(box, 1, STREAM_WINDOW)
    put(box, 1, 8)
    take(box)
    assert (box.window, box.stream_window(1)) == (CONNECTION_WINDOW - STREAM_WINDOW, 0)
    box.credit(1, 7)
    assert take(box) == []
    box.credit(1, 1)
    assert take(box) == [(1, 8)]


def test_credit_never_exceeds_a_window() -> None:
    box = outbox(1)
    box.credit(0, 2**32 - 1)
    box.credit(1, 2**32 - 1)
    box.credit(99, 1)
    assert (box.window, box.stream_window(1)) == (CONNECTION_WINDOW, STREAM_WINDOW)


@pytest.mark.parametrize("urgent", [False, True])
def test_dropping_a_stream_frees_what_was_not_sent(urgent: bool) -> None:
    box = outbox(1, 3)
    put(box, 1, 3 * MAX_PAYLOAD, urgent=urgent)
    put(box, 1, 100, urgent=urgent)
    put(box, 3, 7, urgent=urgent)
    assert take(box, 1) == [(1, MAX_PAYLOAD)]
    assert box.is_sending(1)
    box.drop(1)
    assert (box.window, box.queued, box.is_sending(1)) == (CONNECTION_WINDOW - MAX_PAYLOAD, 7 + MESSAGE_COST, False)
    assert take(box) == [(3, 7)]
    box.drop(1)


def test_the_end_of_a_stream_is_told_with_its_last_frame() -> None:
    box = outbox(1, 3)
    put(box, 1, MAX_PAYLOAD + 1, fin=True)
    put(box, 3, 9)
    box.push_end(3)
    ends = [item[1] for item in iter(box.next_frame, None) if item is not None]
    assert ends == [None, 1, None, 3]
    assert END_MESSAGE | END_STREAM == 3


def test_a_class_is_full_by_itself() -> None:
    box = outbox(1, 3)
    put(box, 1, MAX_QUEUED, urgent=False)
    assert [box.is_full(stream, urgent=urgent) for stream in (1, 3) for urgent in (True, False)] == [
        True, True, False, True,
    ]  # fmt: skip
    box.clear()
    assert (box.queued, box.is_full(1, urgent=False)) == (0, False)
