from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarm import frames, messages, outbox, protocol
from swarm.errors import ClosedError, ProtocolError, SwarmError, UnreachableError, UsageError, VerificationError
from swarm.events import Closed, Ended, Event, Opened, Received, Reset, Role, State
from swarm.frames import END_MESSAGE, END_STREAM, MAX_MESSAGE, MAX_PAYLOAD, FrameReader, Kind, pack_frame, pack_message
from swarm.greeting import proof_message
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.messages import CloseSession, Hello, ObjectPart, Proof, SessionClosed, Step, encode
from swarm.outbox import CONNECTION_WINDOW, STREAM_WINDOW, WINDOW_STEP
from swarm.protocol import DEAD_AFTER, HEARTBEAT, MAX_CONTROL, MAX_STREAMS, Connection

CALLER, CALLED, NONCE = Identity(b"a" * 32), Identity(b"b" * 32), b"n" * 32
OK = SessionClosed()


def greeting() -> tuple[Connection, Connection]:
    """The caller's and the called side's connection, with nothing exchanged."""
    caller = Connection(CALLER, remote=CALLED.peer_id, now=0.0)
    return caller, Connection(CALLED, nonce=NONCE, now=0.0)


def carry(source: Connection, target: Connection, now: float = 0.0) -> list[Event]:
    """Move everything that may be sent now."""
    events: list[Event] = []
    while data := source.data_to_send():
        events += target.receive_data(data, now)
    return events


def opened() -> tuple[Connection, Connection]:
    """Both sides after the greeting."""
    caller, called = greeting()
    assert carry(called, caller) == [Opened(CALLED.peer_id)]
    assert carry(caller, called) == [Opened(CALLER.peer_id)]
    return caller, called


def received(event: Event) -> Received:
    assert isinstance(event, Received)
    return event


def broken(events: list[Event]) -> SwarmError:
    """The error of a connection that has just closed."""
    closed = events[-1]
    assert isinstance(closed, Closed)
    assert closed.error is not None
    return closed.error


def plain(events: list[Event]) -> list[Any]:
    """Events in a form that compares by value."""
    return [
        (e.stream, e.message, bytes(e.raw), e.first, e.fin, e.size)
        if isinstance(e, Received)
        else (str(e.error), type(e.error))
        if isinstance(e, Closed)
        else e
        for e in events
    ]


# ---- the greeting ---------------------------------------------------------------------------------------------------


def test_the_greeting_on_the_wire_is_pinned() -> None:
    caller, called = greeting()
    hello = called.data_to_send()
    head = "0039000100000000 00000035 9401c420" + NONCE.hex()
    assert hello.hex() == (head + "01af" + b"swarm-inference".hex()).replace(" ", "")
    assert caller.data_to_send() == b""
    assert caller.receive_data(hello, 0.0) == [Opened(CALLED.peer_id)]
    signature = CALLER.sign_raw(b"swarm-peer/v1\0\0" + CALLED.peer_id + NONCE)
    assert proof_message(CALLED.peer_id, NONCE) == b"swarm-peer/v1\0\0" + CALLED.peer_id + NONCE
    head = "007b000100000000 00000077 9502c420" + CALLER.peer_id.hex() + "c440" + signature.hex()
    assert caller.data_to_send().hex() == (head + "01af" + b"swarm-inference".hex()).replace(" ", "")


def test_both_sides_open_and_know_each_other() -> None:
    caller, called = opened()
    assert (caller.role, called.role) == (Role.CALLER, Role.CALLED)
    assert (caller.state, called.state) == (State.OPEN, State.OPEN)
    assert (caller.peer_id, called.peer_id) == (CALLED.peer_id, CALLER.peer_id)
    assert [caller.open_stream(), caller.open_stream()] == [1, 3]
    assert [called.open_stream(), called.open_stream()] == [2, 4]


@pytest.mark.parametrize("arguments", [{}, {"remote": CALLED.peer_id, "nonce": NONCE}, {"nonce": b"short"}])
def test_a_connection_has_one_role(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the caller gives the remote key"):
        Connection(CALLER, now=0.0, **arguments)


def proof(signer: Identity = CALLER, server: PeerId = CALLED.peer_id, nonce: bytes = NONCE, **fields: Any) -> bytes:
    """The frame of a caller's proof, right unless told otherwise."""
    fields = {"peer_id": signer.peer_id, "signature": signer.sign_raw(proof_message(server, nonce))} | fields
    return pack_message(0, encode(Proof(**fields)))[0]


STRANGE = {
    "data on a stream": pack_message(1, encode(OK))[0],
    "another message": pack_message(0, encode(OK))[0],
    "half a message": pack_frame(Kind.DATA, 0, b"\0\0\0\1"),
    "an end": pack_frame(Kind.DATA, 0, flags=END_STREAM),
    "no header": pack_frame(Kind.DATA, 0, b"", END_MESSAGE),
    "a header that lies": pack_frame(Kind.DATA, 0, b"\xff\xff\xff\xff", END_MESSAGE),
    "no message": pack_frame(Kind.DATA, 0, b"\0\0\0\1\xc1", END_MESSAGE),
    "a window": pack_frame(Kind.WINDOW, 0, bytes(4)),
    "a reset": pack_frame(Kind.RESET, 1),
    "a pong": pack_frame(Kind.PONG, 0, bytes(8)),
    "an unknown kind": pack_frame(99, 0),
    "an oversized frame": b"\xff" * 8,
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(21_000),
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("side", [0, 1], ids=["caller", "called"])
def test_nothing_but_the_greeting_comes_first(side: int, data: bytes) -> None:
    connection = greeting()[side]
    error = broken(connection.receive_data(data, 0.0))
    assert isinstance(error, ProtocolError)
    assert error.peer_id == (CALLED.peer_id if side == 0 else None)
    assert connection.receive_data(proof(), 0.0) == []
    assert pack_frame(Kind.GOODBYE, 0, error.message.encode()) in connection.data_to_send()
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("side", [0, 1], ids=["caller", "called"])
def test_a_side_that_gets_its_own_kind_of_greeting_refuses(side: int) -> None:
    connection = greeting()[side]
    data = proof() if side == 0 else pack_message(0, encode(Hello(NONCE)))[0]
    assert isinstance(broken(connection.receive_data(data, 0.0)), ProtocolError)


@pytest.mark.parametrize(
    "data",
    [
        proof(signature=bytes(64)),
        proof(nonce=b"o" * 32),
        proof(server=CALLER.peer_id),
        proof(peer_id=CALLED.peer_id),
        proof(peer_id=PeerId(bytes(32))),
        proof(peer_id=PeerId(b"\xff" * 32)),
        proof(signature=CALLER.sign_raw(CALLED.peer_id + NONCE)),
    ],
    ids=["no signature", "replayed nonce", "other server", "other key", "zero key", "no point", "no tag"],
)
def test_a_proof_that_does_not_hold_is_refused(data: bytes) -> None:
    _, called = greeting()
    error = broken(called.receive_data(data + pack_message(1, encode(OK))[0], 0.0))
    assert isinstance(error, VerificationError)
    assert "did not prove its key" in error.message
    assert (called.state, called.peer_id) == (State.CLOSED, None)


def test_a_proof_for_one_connection_is_no_proof_on_another() -> None:
    caller, called = greeting()
    carry(called, caller)
    replayed = caller.data_to_send()
    other = Connection(CALLED, nonce=b"m" * 32, now=0.0)
    assert isinstance(broken(other.receive_data(replayed, 0.0)), VerificationError)


@pytest.mark.parametrize("version", [0, 2, 2**31 - 1])
def test_another_version_is_refused_with_advice(version: int) -> None:
    caller, called = greeting()
    for connection, data in (
        (caller, pack_message(0, encode(Hello(NONCE, version)))[0]),
        (called, proof(version=version)),
    ):
        error = broken(connection.receive_data(data, 0.0))
        assert isinstance(error, ProtocolError)
        assert f"version {version}" in error.message
        assert "upgrade the older one" in error.message


def test_a_greeting_is_not_repeated() -> None:
    caller, called = opened()
    error = broken(called.receive_data(proof(), 0.0))
    assert (type(error), error.peer_id) == (ProtocolError, CALLER.peer_id)
    stream = caller.open_stream()
    error = broken(caller.receive_data(pack_message(stream, encode(Hello(NONCE)))[0], 0.0))
    assert "greeted twice" in error.message


def test_a_refusal_before_the_greeting_says_why() -> None:
    caller, _ = greeting()
    error = broken(caller.receive_data(pack_frame(Kind.GOODBYE, 0, "no\nroom €".encode()), 0.0))
    assert isinstance(error, ClosedError)
    assert error.message == f"peer {CALLED.peer_id.short} refused us: no?room €"


def test_a_ping_before_the_greeting_is_passed_over() -> None:
    caller, called = greeting()
    assert called.receive_data(pack_frame(Kind.PING, 0, bytes(8)), 0.0) == []
    carry(called, caller)
    assert carry(caller, called) == [Opened(CALLER.peer_id)]


def test_what_is_sent_before_the_greeting_waits_for_it() -> None:
    caller, called = greeting()
    stream = caller.open_stream()
    caller.send(stream, OK)
    assert caller.data_to_send() == b""
    carry(called, caller)
    assert [type(event) for event in carry(caller, called)] == [Opened, Received]


# ---- streams --------------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, CloseSession(1), b"raw", fin=True)
    (event,) = carry(caller, called)
    assert plain([event]) == [(1, CloseSession(1), b"raw", True, True, 10)]
    assert (called.held, called.queued) == (10, 0)
    called.consumed(received(event))
    called.send(stream, OK, fin=True)
    (event,) = carry(called, caller)
    assert plain([event]) == [(1, OK, b"", False, True, 6)]
    caller.consumed(received(event))
    assert (caller.held, called.held, caller.queued, called.queued) == (0, 0, 0, 0)
    for side in (caller, called):
        with pytest.raises(ClosedError, match="is closed"):
            side.send(stream, OK)


def test_only_the_first_message_of_the_peers_stream_opens_it() -> None:
    caller, called = opened()
    stream = called.open_stream()
    for _ in range(2):
        called.send(stream, OK)
    assert [received(event).first for event in carry(called, caller)] == [True, False]
    caller.send(stream, OK)
    assert [received(event).first for event in carry(caller, called)] == [False]


def test_a_stream_that_ends_without_a_message_says_so() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK)
    caller.finish(stream)
    message, end = carry(caller, called)
    assert (received(message).fin, end) == (False, Ended(stream))
    called.send(stream, OK)
    assert carry(called, caller) == []  # nobody there reads any more
    assert caller.held == 0


def test_a_sender_that_nobody_reads_comes_to_its_end() -> None:
    """Who has left a stream still gives credit on it, or what waits for it would wait for ever."""
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK)
    (event,) = carry(caller, called)
    called.consumed(received(event))
    called.finish(stream)
    assert carry(called, caller) == [Ended(stream)]
    for _ in range(5):
        caller.send(stream, OK, bytes(MAX_MESSAGE - 6), urgent=False)
    caller.finish(stream)
    for _ in range(5):
        assert carry(caller, called) == carry(called, caller) == []
    assert (caller.queued, caller.streams, called.streams, called.held) == (0, 0, 0, 0)


def test_what_was_sent_before_a_finish_still_arrives() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, ObjectPart(1), bytes(3 * MAX_PAYLOAD), urgent=False)
    caller.finish(stream)
    caller.finish(stream)
    assert [type(event) for event in carry(caller, called)] == [Received, Ended]


def test_a_stream_on_which_nothing_was_sent_leaves_no_trace() -> None:
    caller, called = opened()
    caller.finish(caller.open_stream())
    caller.reset(caller.open_stream(), "")
    stream = caller.open_stream()
    caller.send(stream, OK)
    assert [received(event).stream for event in carry(caller, called)] == [5]
    assert len(called._remote_ids) == 0


def test_streams_may_arrive_in_another_order_than_they_were_opened() -> None:
    caller, called = opened()
    bulk, urgent = caller.open_stream(), caller.open_stream()
    caller.send(bulk, CloseSession(1), urgent=False)
    caller.send(urgent, CloseSession(2))
    events = [received(event) for event in carry(caller, called)]
    assert [(event.stream, event.first) for event in events] == [(urgent, True), (bulk, True)]


def test_data_for_a_forgotten_stream_is_dropped_and_its_room_given_back() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK)
    carry(caller, called)
    called.reset(stream, "")
    called.data_to_send()  # lost on the way
    whole = pack_message(stream, encode(OK), bytes(WINDOW_STEP))
    assert [event for frame in whole for event in called.receive_data(frame, 0.0)] == []
    (window,) = FrameReader().receive(called.data_to_send())
    assert (window.kind, window.stream) == (Kind.WINDOW, 0)
    assert int.from_bytes(window.payload, "big") >= WINDOW_STEP


def test_an_ended_stream_is_not_used_again() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK, fin=True)
    carry(caller, called)
    frame = pack_message(stream, encode(OK))[0]
    error = broken(called.receive_data(frame, 0.0))
    assert "sent on a stream it had ended" in error.message
    caller, called = opened()
    caller.send(caller.open_stream(), OK, fin=True)
    carry(caller, called)
    called.send(stream, OK, fin=True)
    carry(called, caller)
    assert called.receive_data(frame, 0.0) == []  # ended by both and forgotten: dropped like a late frame


BROKEN = {
    "stream 0": (pack_message(0, encode(OK))[0], "stream 0 after the greeting"),
    "our parity": (pack_message(2, encode(OK))[0], "stream 2, which was never opened"),
    "above all ids": (pack_message(2**31 + 1, encode(OK))[0], "skipped too many"),
    "many ids skipped": (pack_message(2 * MAX_STREAMS + 3, encode(OK))[0], "skipped too many"),
    "a reset that skips": (pack_frame(Kind.RESET, 2**32 - 1), "skipped too many"),
    "an end at the start": (pack_frame(Kind.DATA, 1, flags=END_STREAM), "in the middle of a message"),
    "an end in a message": (
        pack_frame(Kind.DATA, 1, b"abc") + pack_frame(Kind.DATA, 1, flags=END_STREAM),
        "in the middle of a message",
    ),
    "an end with data": (pack_frame(Kind.DATA, 1, b"abc", END_STREAM), "in the middle of a message"),
    "an empty frame": (pack_frame(Kind.DATA, 1), "an empty frame that ends nothing"),
    "an empty message": (pack_frame(Kind.DATA, 1, b"", END_MESSAGE), "an empty frame that ends nothing"),
    "no header": (pack_frame(Kind.DATA, 1, b"abc", END_MESSAGE), "has no header"),
    "a header that lies": (pack_frame(Kind.DATA, 1, b"\xff\xff\xff\xff", END_MESSAGE), "does not fit"),
    "an unknown tag": (pack_message(1, b"\x91\x63")[0], "not a message of the peer protocol"),
    "a header over the limit": (
        b"".join(pack_message(1, bytes(messages.MAX_HEADER + 1))),
        f"over the limit of {messages.MAX_HEADER}",
    ),
    "a message over the limit": (
        b"".join(pack_message(1, encode(OK), bytes(MAX_MESSAGE - 5))),
        f"a message over the limit of {MAX_MESSAGE}",
    ),
    "a message without end": (
        pack_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD)) * (MAX_MESSAGE // MAX_PAYLOAD + 2),
        f"a message over the limit of {MAX_MESSAGE}",
    ),
    "a short window": (pack_frame(Kind.WINDOW, 1, b"abc"), "a window frame carries 4 bytes"),
    "a long window": (pack_frame(Kind.WINDOW, 0, bytes(5)), "a window frame carries 4 bytes"),
    "a short ping": (pack_frame(Kind.PING, 0, b"abc"), "a ping carries 8 bytes"),
    "an unknown kind": (pack_frame(6, 0), "a frame of unknown kind 6"),
    "an oversized frame": (b"\xff" * 8, "over the limit of 65528"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_closes_with_an_error_that_names_the_peer(data: bytes, message: str) -> None:
    _, called = opened()
    error = broken(called.receive_data(data, 0.0))
    assert isinstance(error, ProtocolError)
    assert message in error.message
    assert "\n" not in error.message
    assert error.peer_id == CALLER.peer_id
    assert called.data_to_send().endswith(pack_frame(Kind.GOODBYE, 0, error.message.encode()[:512]))
    assert (called.state, called.held, called.queued, called.next_deadline()) == (State.CLOSED, 0, 0, math.inf)
    assert called.receive_data(b"more", 1.0) == called.handle_timer(99.0) == []


@pytest.mark.parametrize(
    "data",
    [
        pack_frame(Kind.RESET, 0),
        pack_frame(Kind.RESET, 1, b"\xff"),
        pack_frame(Kind.RESET, 2),
        pack_frame(Kind.WINDOW, 77, b"\xff\xff\xff\xff"),
        pack_frame(Kind.WINDOW, 0, b"\xff\xff\xff\xff"),
        pack_frame(Kind.PONG, 0),
        pack_frame(Kind.PONG, 5, bytes(1000)),
    ],
)
def test_frames_about_nothing_known_are_harmless(data: bytes) -> None:
    caller, called = opened()
    assert called.receive_data(data, 0.0) == []
    assert called._outbox.window == CONNECTION_WINDOW
    caller.open_stream()
    stream = caller.open_stream()
    caller.send(stream, OK)
    assert [received(event).stream for event in carry(caller, called)] == [stream]


def test_a_reset_drops_the_stream_and_nothing_else() -> None:
    caller, called = opened()
    streams = [caller.open_stream() for _ in range(2)]
    for stream in streams:
        caller.send(stream, OK)
    carry(caller, called)
    called.send(streams[0], ObjectPart(9), bytes(100_000))
    called.reset(streams[0], "no longer\udcff")
    assert carry(called, caller) == [Reset(streams[0], "no longer?")]
    assert called.queued == 0
    with pytest.raises(ClosedError):
        caller.send(streams[0], OK)
    caller.send(streams[1], CloseSession(3))
    assert [received(event).message for event in carry(caller, called)] == [CloseSession(3)]


@pytest.mark.parametrize("by_receiver", [False, True])
def test_a_message_that_was_cut_off_costs_no_window(by_receiver: bool) -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, ObjectPart(9), bytes(MAX_MESSAGE - 1000), urgent=False)
    assert called.receive_data(caller.data_to_send(), 0.0) == []
    assert called.held > 0
    if by_receiver:
        called.reset(stream, "enough")
        carry(called, caller)
    else:
        caller.reset(stream, "enough")
    assert carry(caller, called) == ([] if by_receiver else [Reset(stream, "enough")])
    assert (called.held, caller.queued) == (0, 0)
    carry(called, caller)
    assert caller._outbox.window + called._unread == CONNECTION_WINDOW


def test_streams_have_an_end() -> None:
    caller, called = opened()
    streams = [caller.open_stream() for _ in range(MAX_STREAMS)]
    with pytest.raises(ClosedError, match="too many open streams"):
        caller.open_stream()
    for stream in streams:
        caller.send(stream, OK)
    assert len(carry(caller, called)) == MAX_STREAMS
    extra = pack_message(2 * MAX_STREAMS + 1, encode(OK))[0]
    assert called.receive_data(extra, 0.0) == []
    assert called.data_to_send() == pack_frame(Kind.RESET, 2 * MAX_STREAMS + 1, b"too many open streams")
    called.reset(1, "")
    assert carry(called, caller) == [Reset(1, "")]
    caller._next_stream += 2
    caller.send(caller.open_stream(), OK)
    assert len(carry(caller, called)) == 1


def test_ten_thousand_streams_one_after_another_leave_nothing() -> None:
    caller, called = opened()
    for _ in range(10_000):
        stream = caller.open_stream()
        caller.send(stream, OK, fin=True)
        (event,) = called.receive_data(caller.data_to_send(), 0.0)
        called.consumed(received(event))
        called.send(stream, OK, fin=True)
        (event,) = caller.receive_data(called.data_to_send(), 0.0)
        caller.consumed(received(event))
    for side in (caller, called):
        assert (side.held, side.queued, len(side._streams), len(side._remote_ids)) == (0, 0, 0, 0)
        assert not side._outbox._senders


# ---- windows --------------------------------------------------------------------------------------------------------


def fill(connection: Connection, stream: int, size: int) -> list[Event]:
    """Receive messages on a stream that come to ``size`` bytes, headers included, from a sender without manners."""
    events: list[Event] = []
    while size:
        part = min(size, MAX_MESSAGE)
        for frame in pack_message(stream, encode(OK), bytes(part - 6)):
            events += connection.receive_data(frame, 0.0)
        size -= part
    return events


def test_a_peer_that_fills_its_windows_exactly_is_welcome() -> None:
    _, called = opened()
    fill(called, 1, STREAM_WINDOW)
    fill(called, 3, STREAM_WINDOW)
    fill(called, 5, CONNECTION_WINDOW - 2 * STREAM_WINDOW)
    assert (called.state, called.held) == (State.OPEN, CONNECTION_WINDOW)


def test_a_peer_that_overruns_a_streams_window_is_closed() -> None:
    _, called = opened()
    fill(called, 1, STREAM_WINDOW)
    error = broken(called.receive_data(pack_frame(Kind.DATA, 1, b"x"), 0.0))
    assert (type(error), error.peer_id) == (ProtocolError, CALLER.peer_id)
    assert "more than its window" in error.message


def test_a_peer_that_overruns_the_connections_window_is_closed() -> None:
    _, called = opened()
    fill(called, 1, STREAM_WINDOW)
    fill(called, 3, STREAM_WINDOW)
    fill(called, 5, CONNECTION_WINDOW - 2 * STREAM_WINDOW)
    assert "more than its window" in broken(called.receive_data(pack_frame(Kind.DATA, 7, b"x"), 0.0)).message


def test_an_honest_sender_stops_at_the_window_and_goes_on_with_credit() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    for _ in range(3):
        caller.send(stream, OK, bytes(MAX_MESSAGE - 6), urgent=False)
    events = carry(caller, called)
    assert len(events) == 1
    assert called.held == MAX_MESSAGE
    for _ in range(2):
        called.consumed(received(events.pop()))
        carry(called, caller)
        events = carry(caller, called)
    assert len(events) == 1
    called.consumed(received(events.pop()))
    assert (called.held, caller.queued) == (0, 0)


def test_credit_that_is_held_back_stops_no_message() -> None:
    """The largest message fits although nearly a step of credit has not been given back."""
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK, bytes(WINDOW_STEP - 7))
    (event,) = carry(caller, called)
    called.consumed(received(event))
    assert carry(called, caller) == []
    assert caller._outbox.stream_window(stream) == STREAM_WINDOW - WINDOW_STEP + 1
    caller.send(stream, OK, bytes(MAX_MESSAGE - 6))
    assert len(carry(caller, called)) == 1


def test_a_message_that_does_not_fit_lets_others_pass_but_not_its_own_stream() -> None:
    caller, called = opened()
    large, small = caller.open_stream(), caller.open_stream()
    caller.send(large, CloseSession(0), bytes(MAX_MESSAGE - 7), urgent=False)
    caller.send(large, CloseSession(1), bytes(MAX_MESSAGE - 7), urgent=False)
    caller.send(large, CloseSession(2), urgent=False)
    caller.send(small, CloseSession(3), urgent=False)
    got = [received(event).message for event in carry(caller, called)]
    assert got == [CloseSession(0), CloseSession(3)]


@pytest.mark.parametrize("size", [MAX_MESSAGE - 5, MAX_MESSAGE, 2 * MAX_MESSAGE])
def test_a_message_that_is_too_large_is_the_senders_own_fault(size: int) -> None:
    caller, called = opened()
    stream = caller.open_stream()
    with pytest.raises(UsageError, match="over the limit"):
        caller.send(stream, OK, bytes(size), fin=True)
    with pytest.raises(UsageError, match="over the limit"):
        caller.send(stream, messages.Tokens(0, 0, tuple(range(2**20))))
    caller.send(stream, OK)
    assert len(carry(caller, called)) == 1


def test_an_urgent_message_overtakes_a_bulk_one_between_its_frames() -> None:
    caller, called = opened()
    bulk, urgent = caller.open_stream(), caller.open_stream()
    caller.send(bulk, ObjectPart(1), bytes(8 << 20), urgent=False)
    first = caller.data_to_send()
    assert len(first) < 8 << 20
    caller.send(urgent, CloseSession(1))
    second = list(FrameReader().receive(caller.data_to_send()))
    assert [frame.stream for frame in second[:2]] == [urgent, bulk]
    called.receive_data(first, 0.0)
    got = [
        *called.receive_data(b"".join(pack_frame(f.kind, f.stream, f.payload, f.flags) for f in second), 0.0),
        *carry(caller, called),
    ]
    assert [received(event).stream for event in got] == [urgent, bulk]


def test_an_urgent_message_does_not_overtake_its_own_stream() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, CloseSession(0), bytes(200_000), urgent=False)
    caller.data_to_send()
    caller.send(stream, CloseSession(1))
    caller.send(stream, CloseSession(2), urgent=False)
    frames_left = list(FrameReader().receive(caller.data_to_send()))
    assert len(frames_left) >= 2
    assert called.state is State.OPEN
    caller, called = opened()
    stream = caller.open_stream()
    for count, urgent in enumerate([False, True, True, False, True]):
        caller.send(stream, CloseSession(count), urgent=urgent)
    got = [received(event).message for event in carry(caller, called)]
    assert got == [CloseSession(count) for count in range(5)]


def test_senders_wait_for_their_own_class_only() -> None:
    caller, _ = opened()
    stream = caller.open_stream()
    other = caller.open_stream()
    caller.send(stream, OK, bytes(9 << 20), urgent=False)
    assert [caller.is_full(other, urgent=urgent) for urgent in (True, False)] == [False, True]
    # On its own stream an urgent message goes behind the bulk one, so it waits for room there.
    assert [caller.is_full(stream, urgent=urgent) for urgent in (True, False)] == [True, True]
    while caller.data_to_send():
        pass
    assert (caller.is_full(stream, urgent=False), caller.queued) == (False, 0)


def test_bulk_messages_after_an_urgent_one_stay_bulk() -> None:
    caller, called = opened()
    stream, other = caller.open_stream(), caller.open_stream()
    caller.send(stream, CloseSession(0))
    count = 0
    while not caller.is_full(stream, urgent=False):
        count += 1
        caller.send(stream, CloseSession(count), bytes(1 << 20), urgent=False)
    caller.send(other, CloseSession(99))
    got = [received(event).message for event in carry(caller, called)]
    assert got == [CloseSession(0), CloseSession(99), *(CloseSession(n) for n in range(1, count + 1))]


def test_tiny_messages_are_bounded_too() -> None:
    caller, _ = opened()
    stream = caller.open_stream()
    count = 0
    while not caller.is_full(stream, urgent=True):
        caller.send(stream, OK)
        count += 1
    assert count < 20_000


def test_a_message_in_tiny_frames_takes_no_more_memory_than_it_says() -> None:
    _, called = opened()
    called.receive_data(pack_frame(Kind.DATA, 1, b"x") * 10_000, 0.0)
    parts = called._streams[1].parts
    assert parts is not None
    assert (len(parts), called.held) == (10_000, 10_000)


@pytest.mark.parametrize(
    "data",
    [
        pack_frame(Kind.PING, 0, bytes(8)) * (MAX_CONTROL + 1),
        b"".join(pack_message(1 + 2 * i, encode(OK))[0] for i in range(MAX_STREAMS + MAX_CONTROL + 1)),
    ],
    ids=["pings", "streams"],
)
def test_a_peer_that_asks_and_does_not_read_is_closed(data: bytes) -> None:
    _, called = opened()
    error = broken(called.receive_data(data, 0.0))
    assert (type(error), error.peer_id) == (ProtocolError, CALLER.peer_id)
    assert "does not read" in error.message


# ---- time and ends --------------------------------------------------------------------------------------------------


def test_a_ping_is_answered_with_its_bytes() -> None:
    _, called = opened()
    assert called.receive_data(pack_frame(Kind.PING, 0, b"12345678"), 0.0) == []
    assert called.data_to_send() == pack_frame(Kind.PONG, 0, b"12345678")


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    caller, called = opened()
    pings = 0
    while caller.state is State.OPEN:
        now = caller.next_deadline()
        events = caller.handle_timer(now)
        pings += caller.data_to_send() == pack_frame(Kind.PING, 0, bytes(8))
    assert (now, pings) == (DEAD_AFTER, DEAD_AFTER / HEARTBEAT - 1)
    error = broken(events)
    assert isinstance(error, UnreachableError)
    assert error.peer_id == called._identity.peer_id


def test_two_idle_peers_keep_each_other_alive() -> None:
    sides = opened()
    for _ in range(100):
        now = min(side.next_deadline() for side in sides)
        for side, other in (sides, sides[::-1]):
            assert side.handle_timer(now) == []
            assert carry(side, other, now) == []
    assert now >= 30 * HEARTBEAT
    assert all(side.state is State.OPEN for side in sides)


@given(st.lists(st.floats(0.0, 3.0, allow_nan=False), min_size=1, max_size=40))
def test_no_timer_blames_before_its_deadline(steps: list[float]) -> None:
    caller, _ = opened()
    now, ticks = 0.0, 0
    for step in steps:
        now += step
        late = now > caller.next_deadline() + HEARTBEAT
        events = caller.handle_timer(now)
        ticks = 0 if late else ticks
        if events:
            assert now >= DEAD_AFTER
            assert not late
            return
        ticks += 1
        assert caller.next_deadline() > now


def test_a_process_that_was_stopped_blames_nobody() -> None:
    caller, called = opened()
    assert caller.handle_timer(HEARTBEAT) == []
    assert caller.handle_timer(3600.0) == []
    assert pack_frame(Kind.PING, 0, bytes(8)) in caller.data_to_send()
    assert caller.handle_timer(3601.0) == []
    assert carry(caller, called, 3601.0) == carry(called, caller, 3601.0) == []
    assert caller.next_deadline() == 3601.0 + HEARTBEAT
    greeter, _ = greeting()
    assert greeter.handle_timer(3600.0) == []
    assert "did not greet" in broken(greeter.handle_timer(greeter.next_deadline())).message


def test_dripping_bytes_buys_no_time_for_the_greeting() -> None:
    _, called = greeting()
    for second in range(int(DEAD_AFTER)):
        assert called.receive_data(proof()[second : second + 1], float(second)) == []
        assert called.next_deadline() == DEAD_AFTER
    error = broken(called.handle_timer(DEAD_AFTER))
    assert isinstance(error, UnreachableError)


def test_the_end_of_the_bytes_is_an_unreachable_peer() -> None:
    for side in (*opened(), *greeting()):
        error = broken(side.receive_data(b"", 0.0))
        assert isinstance(error, UnreachableError)
        assert error.peer_id == side.peer_id


def test_a_goodbye_ends_it_on_both_sides() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK, bytes(9 << 20))
    caller.close("moving out")
    assert (caller.state, caller.queued) == (State.CLOSED, 0)
    error = broken(carry(caller, called))
    assert isinstance(error, ClosedError)
    assert error.message == f"peer {CALLER.peer_id.short} closed the connection: moving out"
    caller.close()
    assert caller.data_to_send() == b""
    for side in (caller, called):
        with pytest.raises(ClosedError):
            side.open_stream()
        with pytest.raises(ClosedError):
            side.send(stream, OK)
        side.finish(stream)
        side.reset(stream, "")
        assert side.data_to_send() == b""


def test_memory_is_given_back_after_the_end() -> None:
    caller, called = opened()
    stream = caller.open_stream()
    caller.send(stream, OK, bytes(WINDOW_STEP))
    (event,) = carry(caller, called)
    called.close()
    called.data_to_send()
    called.consumed(received(event))
    assert (called.held, called.data_to_send()) == (0, b"")


# ---- hostile bytes --------------------------------------------------------------------------------------------------


def transcript() -> bytes:
    """What a caller sends in a lively connection, with the proof in front."""
    caller, called = greeting()
    carry(called, caller)
    streams = [caller.open_stream() for _ in range(4)]
    caller.send(streams[0], CloseSession(1), b"raw" * 50, urgent=False)
    caller.send(streams[1], Step(1, 2, 3), bytes(70_000), urgent=False)
    caller.send(streams[2], OK, fin=True)
    caller.send(streams[3], OK)
    data = caller.data_to_send()
    caller.handle_timer(caller.next_deadline())
    caller.finish(streams[3])
    data += caller.data_to_send()
    caller.reset(streams[0], "reason")
    return data + caller.data_to_send() + pack_frame(Kind.WINDOW, 0, bytes(4)) + pack_frame(Kind.GOODBYE, 0, b"bye")


TRANSCRIPT = transcript()


def survive(connection: Connection, *chunks: bytes) -> list[Event]:
    """Feed bytes; whatever they are, the connection is open or has closed once with a typed error."""
    events = [event for chunk in chunks for event in connection.receive_data(chunk, 0.0)]
    closed = [event for event in events if isinstance(event, Closed)]
    assert (connection.state is State.CLOSED) == (len(closed) == 1)
    if closed:
        error = events[-1]
        assert error is closed[0]
        assert isinstance(closed[0].error, SwarmError)
        assert closed[0].error.peer_id == connection.peer_id
        assert "\n" not in closed[0].error.message
    connection.data_to_send()
    return events


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_arbitrary_bytes_end_in_a_typed_error_at_most(data: bytes, greeted: bool, called: bool) -> None:
    survive((opened() if greeted else greeting())[called], data)


ANY_FRAME = st.builds(
    pack_frame,
    st.integers(0, 6),
    st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"\0\0\0\2" + encode(OK), b"\0\0\0\3" + encode(CloseSession(1)) + b"x", bytes(8), bytes(4)]),
    ),
    st.integers(0, 4),
)


@given(st.lists(ANY_FRAME, max_size=30), st.booleans())
def test_any_frames_end_in_a_typed_error_at_most(frames: list[bytes], called: bool) -> None:
    connection = opened()[called]
    connection.open_stream()
    survive(connection, *frames)


@given(st.data())
@settings(max_examples=200)
def test_mutated_transcripts_end_in_a_typed_error_at_most(data: st.DataObject) -> None:
    raw = bytearray(TRANSCRIPT)
    for _ in range(data.draw(st.integers(0, 3))):
        # Most of it is one message's raw part; what matters lies before it and behind it.
        place = data.draw(st.one_of(st.integers(0, 400), st.integers(len(raw) - 200, len(raw) - 1)))
        match data.draw(st.integers(0, 2)):
            case 0:
                raw[place] = data.draw(st.integers(0, 255))
            case 1:
                del raw[place : place + data.draw(st.integers(1, 20))]
            case _:
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    survive(greeting()[1], bytes(raw))


@given(st.lists(st.integers(0, len(TRANSCRIPT)), max_size=12), st.binary(max_size=40))
def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int], tail: bytes) -> None:
    data = TRANSCRIPT[:-20] + tail  # ends in the middle of a frame, or in a broken rule
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    whole = survive(greeting()[1], data)
    parts = survive(greeting()[1], *(data[a:b] for a, b in pairwise(edges)))
    assert plain(whole) == plain(parts)


def test_the_transcript_is_what_it_seems() -> None:
    events = survive(greeting()[1], TRANSCRIPT)
    assert [type(event).__name__ for event in events] == [
        *("Opened", "Received", "Received", "Received", "Received", "Ended", "Reset", "Closed"),
    ]


# ---- two connections back to back -----------------------------------------------------------------------------------

SMALL = {
    (outbox, "WINDOW_STEP"): 100,
    (outbox, "STREAM_WINDOW"): 500,
    (outbox, "CONNECTION_WINDOW"): 1100,
    (protocol, "MAX_MESSAGE"): 400,
    (protocol, "WINDOW_STEP"): 100,
    (protocol, "STREAM_WINDOW"): 500,
    (protocol, "CONNECTION_WINDOW"): 1100,
    (protocol, "SEND_BATCH"): 150,
}
SIDES = st.integers(0, 1)


class BackToBack(RuleBasedStateMachine):
    """Two connections over a lossless pipe, with limits small enough to be met all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        for (module, name), value in SMALL.items():
            self.patches.setattr(module, name, value)
        self.ends = opened()
        self.patches.setattr(frames, "MAX_PAYLOAD", 60)
        self.pipes = (bytearray(), bytearray())  # what a side has sent and the other has not received
        self.known: tuple[set[int], set[int]] = (set(), set())
        self.sent: dict[tuple[int, int], list[int]] = {}
        self.got: dict[tuple[int, int], list[int]] = {}
        self.over: set[tuple[int, int]] = set()  # sides that ended their direction
        self.ended: set[tuple[int, int]] = set()  # sides that heard of the end
        self.deaf: set[tuple[int, int]] = set()  # sides that take no more
        self.dropped: set[int] = set()
        self.unread: tuple[list[Received], list[Received]] = ([], [])
        self.serial = 0

    @initialize()
    def begin(self) -> None:
        assert all(end.state is State.OPEN for end in self.ends)

    @rule(side=SIDES)
    @precondition(lambda self: len(self.known[0] | self.known[1]) < 5)
    def open(self, side: int) -> None:
        self.known[side].add(self.ends[side].open_stream())

    @rule(
        side=SIDES,
        data=st.data(),
        size=st.one_of(st.integers(0, 20), st.integers(200, 370)),
        urgent=st.booleans(),
        fin=st.integers(0, 7),
    )
    @precondition(lambda self: self.known[0] or self.known[1])
    def send(self, side: int, data: st.DataObject, size: int, urgent: bool, fin: int) -> None:
        if not self.known[side]:
            return
        stream = data.draw(st.sampled_from(sorted(self.known[side])))
        self.serial += 1
        raw = self.serial.to_bytes(4, "big") + bytes(size)
        if (side, stream) in self.over or stream in self.dropped:
            if (side, stream) in self.over:
                with pytest.raises(ClosedError):
                    self.ends[side].send(stream, OK, raw, urgent=urgent)
            return
        self.ends[side].send(stream, OK, raw, urgent=urgent, fin=fin == 0)
        self.sent.setdefault((side, stream), []).append(self.serial)
        if fin == 0:
            self.over.add((side, stream))

    @rule(side=SIDES, data=st.data())
    @precondition(lambda self: self.known[0] and self.known[1])
    def finish(self, side: int, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(sorted(self.known[side])))
        self.ends[side].finish(stream)
        self.over.add((side, stream))
        self.deaf.add((side, stream))

    @rule(side=SIDES, data=st.data())
    @precondition(lambda self: self.known[0] and self.known[1])
    def reset(self, side: int, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(sorted(self.known[side])))
        self.ends[side].reset(stream, "reset")
        self.dropped.add(stream)
        self.over.add((side, stream))
        self.deaf.add((side, stream))

    @rule(side=SIDES, count=st.integers(1, 400))
    def transfer(self, side: int, count: int) -> None:
        pipe = self.pipes[side]
        pipe += self.ends[side].data_to_send()
        chunk = bytes(pipe[:count])
        del pipe[:count]
        if chunk:
            self.take(1 - side, self.ends[1 - side].receive_data(chunk, 0.0))

    @rule(side=SIDES, data=st.data())
    @precondition(lambda self: self.unread[0] or self.unread[1])
    def consume(self, side: int, data: st.DataObject) -> None:
        if self.unread[side]:
            index = data.draw(st.integers(0, len(self.unread[side]) - 1))
            self.ends[side].consumed(self.unread[side].pop(index))

    def take(self, side: int, events: list[Event]) -> None:
        for event in events:
            match event:
                case Received():
                    key = (side, event.stream)
                    assert key not in self.ended
                    assert key not in self.deaf
                    assert event.first == (event.stream not in self.known[side])
                    self.known[side].add(event.stream)
                    self.got.setdefault(key, []).append(int.from_bytes(event.raw[:4], "big"))
                    self.unread[side].append(event)
                    if event.fin:
                        self.ended.add(key)
                case Ended(stream):
                    assert (side, stream) not in self.ended
                    assert (side, stream) not in self.deaf
                    self.ended.add((side, stream))
                case Reset(stream):
                    assert stream in self.dropped
                    self.over.add((side, stream))
                    self.deaf.add((side, stream))
                case _:
                    pytest.fail(f"{event}")

    @invariant()
    def windows_hold(self) -> None:
        for side, end in enumerate(self.ends):
            assert end.state is State.OPEN
            assert 0 <= end._outbox.window <= 1100
            assert all(0 <= sender.window <= 500 for sender in end._outbox._senders.values())
            assert sum(event.size for event in self.unread[side]) <= end.held <= 1100
            assert end.queued >= 0

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.patches.undo()

    def settle(self) -> None:
        """Consume everything: all that was sent and not dropped arrives, and nothing is left."""
        quiet = False
        while not quiet:
            quiet = True
            for side in (0, 1):
                self.pipes[side].extend(self.ends[side].data_to_send())
                if self.pipes[side]:
                    self.take(1 - side, self.ends[1 - side].receive_data(bytes(self.pipes[side]), 0.0))
                quiet &= not self.pipes[side] and not self.unread[1 - side]
                self.pipes[side].clear()
                for event in self.unread[1 - side]:
                    self.ends[1 - side].consumed(event)
                self.unread[1 - side].clear()
        for (sender, stream), sent in self.sent.items():
            there = (1 - sender, stream)
            got = self.got.get(there, [])
            assert got == sent[: len(got)]
            if there not in self.deaf and stream not in self.dropped:
                assert got == sent
                assert ((sender, stream) in self.over) == (there in self.ended)
        for side, other in ((0, 1), (1, 0)):
            end = self.ends[side]
            assert (end.held, end.queued) == (0, 0)
            assert end._outbox.window + self.ends[other]._unread == 1100
            assert set(end._streams) == set(end._outbox._senders)
            for stream in end._streams:
                assert not end._outbox.is_sending(stream)
                assert (side, stream) not in self.over or (other, stream) not in self.over


TestBackToBack = BackToBack.TestCase
TestBackToBack.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
