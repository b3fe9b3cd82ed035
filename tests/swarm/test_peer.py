from __future__ import annotations

import datetime
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from swarm import peer as peer_module
from swarm import protocol
from swarm.errors import (
    BusyError,
    ClosedError,
    PaymentError,
    ProtocolError,
    RemoteError,
    ResourceError,
    SwarmError,
    UnavailableError,
    UnreachableError,
    UsageError,
    VerificationError,
)
from swarm.events import Received, State
from swarm.frames import Kind, pack_frame
from swarm.identity import Identity
from swarm.ids import ContentHash, ManifestId, PeerId, SessionId
from swarm.messages import (
    CloseSession,
    GetObject,
    GetQuote,
    ObjectPart,
    OpenLink,
    SessionClosed,
    SessionOpened,
)
from swarm.nurseries import open_nursery
from swarm.outbox import MAX_QUEUED, STREAM_WINDOW
from swarm.peer import Handler, Peer, Stream, open_peer, serve_peers
from swarm.protocol import Connection
from swarm.tls import client_context, server_context

SERVER, CLIENT = Identity(b"s" * 32), Identity(b"c" * 32)
HOST = "127.0.0.1"
OBJECT = GetObject(ContentHash(b"h" * 32))
QUOTE = GetQuote(ManifestId(b"m" * 32))
LINK = OpenLink(SessionId(b"i" * 16), 0)


@asynccontextmanager
async def serving(handler: Handler, on_peer: Callable[[Peer], Awaitable[None]] | None = None) -> AsyncIterator[int]:
    """A server on a free port."""
    async with open_nursery() as nursery:
        port = await nursery.start(partial(serve_peers, handler, SERVER, host=HOST, port=0, on_peer=on_peer))
        yield port
        nursery.cancel_scope.cancel()


async def echo(peer: Peer, stream: Stream, request: Received) -> None:
    """Sends back what comes, and ends when the other side does."""
    received: Received | None = request
    while received is not None:
        await stream.send(received.message, received.raw)
        received = await stream.receive()


async def silent(peer: Peer, stream: Stream, request: Received) -> None:
    await trio.sleep_forever()


def raising(error: BaseException) -> Handler:
    """Serves objects, and fails over everything else."""

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        if request.message == OBJECT:
            await stream.send(ObjectPart(3), b"abc", fin=True)
        else:
            raise error

    return handler


def serves(stream: Stream, request: Received) -> Awaitable[None]:
    return stream.send(SessionOpened(len(request.raw)), fin=True)


async def works(port: int) -> None:
    """The server at this port serves a newcomer."""
    async with open_peer(HOST, port, Identity.generate(), expected=SERVER.peer_id) as peer:
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"


async def until(peer: Peer, condition: Callable[[], bool]) -> None:
    """Exchange something with the other side until it is so."""
    while not condition():
        peer._raise_if_closed()
        peer._core._control.append(pack_frame(Kind.PING, 0, bytes(8)))
        peer._writable.set()
        await trio.testing.wait_all_tasks_blocked()


class Raw:
    """A peer without manners: a TLS connection and the protocol's core, sending what the test says."""

    def __init__(self, transport: trio.SSLStream[trio.SocketStream], core: Connection) -> None:
        self.transport = transport
        self.core = core

    async def flush(self, more: bytes = b"") -> None:
        await self.transport.send_all(self.core.data_to_send() + more)

    async def read(self) -> bytes:
        """The next bytes; nothing at the end, however it comes."""
        try:
            return bytes(await self.transport.receive_some())
        except trio.BrokenResourceError:
            return b""

    async def drain(self) -> bytes:
        """All that still comes."""
        data = b""
        while chunk := await self.read():
            data += chunk
        return data


@asynccontextmanager
async def raw_client(port: int, *, greet: bool = True) -> AsyncIterator[Raw]:
    socket = await trio.open_tcp_stream(HOST, port)
    async with trio.SSLStream(socket, client_context(), https_compatible=True) as transport:
        await transport.do_handshake()
        raw = Raw(transport, Connection(CLIENT, remote=SERVER.peer_id, now=trio.current_time()))
        if greet:
            raw.core.receive_data(await raw.read(), trio.current_time())
            assert raw.core.state is State.OPEN
            await raw.flush()
        yield raw
        await trio.aclose_forcefully(transport)


# ---- requests and answers -------------------------------------------------------------------------------------------


async def test_a_request_is_answered_by_the_key_that_was_meant() -> None:
    keys: list[PeerId] = []

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        keys.append(peer.peer_id)
        assert peer.address[0] == HOST
        await serves(stream, request)

    async with serving(handler) as port, open_peer(HOST, port, CLIENT, expected=SERVER.peer_id) as peer:
        assert (peer.peer_id, peer.address, peer.is_open) == (SERVER.peer_id, (HOST, port), True)
        assert (await peer.request(LINK, SessionOpened))[0] == SessionOpened(0)
        assert keys == [CLIENT.peer_id]


async def test_a_caller_without_a_pin_learns_the_key() -> None:
    async with serving(echo) as port, open_peer(HOST, port, CLIENT) as peer:
        assert peer.peer_id == SERVER.peer_id


async def test_messages_arrive_in_order_and_whole() -> None:
    sizes = [0, 1, 70_000, 5, 3_000_000, 65_524, 65_523]
    async with (
        serving(echo) as port,
        open_peer(HOST, port, CLIENT) as peer,
        peer.open_stream() as stream,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            for count, size in enumerate(sizes):
                await stream.send(CloseSession(count), bytes([count]) * size, urgent=count % 2 == 0)

        nursery.start_soon(send)
        for count, size in enumerate(sizes):
            message, raw = await stream.expect(CloseSession)
            assert (message.tokens, bytes(raw)) == (count, bytes([count]) * size)


async def test_the_end_of_a_stream_is_seen_on_both_sides() -> None:
    ends: list[Received | None] = []

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        ends.append(await stream.receive())
        await stream.send(SessionClosed(), fin=True)

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
        await stream.send(LINK, fin=True)
        await stream.expect(SessionClosed)
        assert await stream.receive() is None
        assert ends == [None]
        with pytest.raises(ProtocolError, match="ended a stream early"):
            await stream.expect(SessionClosed)
        with pytest.raises(ClosedError):
            await stream.send(SessionClosed())


async def test_another_answer_than_the_expected_is_the_peers_fault() -> None:
    async with serving(echo) as port, open_peer(HOST, port, CLIENT) as peer:
        with pytest.raises(ProtocolError, match="sent GetObject for ObjectPart") as caught:
            await peer.request(OBJECT, ObjectPart)
        assert caught.value.peer_id == SERVER.peer_id


async def test_the_called_side_opens_streams_too() -> None:
    answers: list[bytes] = []
    done = trio.Event()

    async def on_peer(peer: Peer) -> None:
        answers.append(bytes((await peer.request(OBJECT, ObjectPart))[1]))
        with pytest.raises(RemoteError):
            await peer.request(QUOTE, ObjectPart)
        done.set()

    async with serving(silent, on_peer) as port:
        async with open_peer(HOST, port, CLIENT, handler=raising(RemoteError("no"))):
            await done.wait()
        assert answers == [b"abc"]


async def test_a_caller_that_serves_nothing_says_so() -> None:
    errors: list[str] = []
    done = trio.Event()

    async def on_peer(peer: Peer) -> None:
        with pytest.raises(ClosedError) as caught:
            await peer.request(OBJECT, ObjectPart)
        errors.append(caught.value.message)
        done.set()

    async with serving(silent, on_peer) as port, open_peer(HOST, port, CLIENT):
        await done.wait()
    assert errors == [f"peer {CLIENT.peer_id.short} dropped the stream: this peer serves nothing"]


async def test_two_hundred_streams_at_once() -> None:
    here = 0
    all_here = trio.Event()

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        nonlocal here
        here += 1
        if here == 200:
            all_here.set()
        await all_here.wait()
        await echo(peer, stream, request)

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:

        async def ask(count: int) -> None:
            async with peer.open_stream() as stream:
                for part in range(3):
                    await stream.send(CloseSession(count * 10 + part), bytes(count * 50), urgent=count % 2 == 0)
                for part in range(3):
                    message, raw = await stream.expect(CloseSession)
                    assert (message.tokens, len(raw)) == (count * 10 + part, count * 50)

        async with trio.open_nursery() as nursery:
            for count in range(200):
                nursery.start_soon(ask, count)
        await until(peer, lambda: peer.streams == 0)
        assert (peer._core.held, peer._core.queued) == (0, 0)


async def test_a_stream_that_is_opened_and_left_hurts_nobody() -> None:
    async with serving(raising(RemoteError("no"))) as port, open_peer(HOST, port, CLIENT) as peer:
        async with peer.open_stream():
            pass
        unused = peer.open_stream()
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"
        unused.reset()
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"


# ---- errors of handlers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (UsageError("text"), UsageError),
        (ResourceError("text"), UnavailableError),
        (ProtocolError("text"), ProtocolError),
        (VerificationError("text"), VerificationError),
        (UnavailableError("text"), UnavailableError),
        (UnreachableError("text"), UnreachableError),
        (BusyError("text", retry_after=1.5), BusyError),
        (PaymentError("text"), PaymentError),
        (ClosedError("text"), ClosedError),
        (ExceptionGroup("of a nursery", [BusyError("text", retry_after=1.5)]), BusyError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_handlers_typed_error_reaches_the_caller_and_nobody_else(
    raised: Exception, seen: type[SwarmError]
) -> None:
    async with serving(raising(raised)) as port, open_peer(HOST, port, CLIENT) as peer:
        with pytest.raises(seen, match=f"^peer {SERVER.peer_id.short}: text$") as caught:
            await peer.request(QUOTE, ObjectPart)
        assert type(caught.value) is seen
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"


@pytest.mark.parametrize(
    "bug",
    [
        ZeroDivisionError("secret"),
        KeyError("secret"),
        ExceptionGroup("two", [ValueError("a"), BusyError("b", retry_after=1)]),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogate"),
    ],
    ids=lambda bug: type(bug).__name__,
)
async def test_a_handlers_bug_is_logged_and_takes_nothing_down(
    bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(raising(bug)) as port, open_peer(HOST, port, CLIENT) as peer:
        async with peer.open_stream() as other:
            await other.send(OBJECT)
            with pytest.raises(RemoteError, match="an error of this peer's own; its log says more"):
                await peer.request(QUOTE, ObjectPart)
            assert bytes((await other.expect(ObjectPart))[1]) == b"abc"
        await works(port)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("swarm.peer", logging.ERROR)
    assert record.getMessage() == "the handler of a GetQuote failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is bug


async def test_a_bug_on_the_callers_side_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    done = trio.Event()

    async def on_peer(peer: Peer) -> None:
        with pytest.raises(RemoteError):
            await peer.request(QUOTE, ObjectPart)
        done.set()

    async with (
        serving(raising(RemoteError("no")), on_peer) as port,
        open_peer(HOST, port, CLIENT, handler=raising(KeyError("bug"))) as peer,
    ):
        await done.wait()
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"
    assert [record.getMessage() for record in caplog.records] == ["the handler of a GetQuote failed"]


@pytest.mark.parametrize("error", [KeyError("bug"), UnreachableError("gone")], ids=["bug", "typed"])
async def test_an_error_after_the_greeting_takes_nothing_down(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_peer(peer: Peer) -> None:
        raise error

    async with serving(raising(RemoteError("no")), on_peer) as port:
        await works(port)
        await works(port)
    assert len(caplog.records) == (2 if isinstance(error, KeyError) else 0)


async def test_a_broken_rule_while_a_handler_waits_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    """The handler's error is the connection's own: there is nobody left to answer with a failure."""
    seen: list[SwarmError] = []

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        if request.message == OBJECT:
            await stream.send(ObjectPart(3), b"abc")
            return
        await stream.send(SessionOpened(1))
        with trio.CancelScope(shield=True):
            try:
                await stream.receive()
            except SwarmError as error:
                seen.append(error)
                raise

    async with serving(handler) as port:
        async with raw_client(port) as raw:
            raw.core.send(raw.core.open_stream(), LINK)
            await raw.flush()
            await raw.read()
            await raw.flush(b"\xff" * 8)
            assert b"over the limit" in await raw.drain()
        await works(port)
    assert [(type(error), error.peer_id) for error in seen] == [(ProtocolError, CLIENT.peer_id)]
    assert caplog.records == []


async def test_a_handler_that_ends_without_a_word_ends_the_stream() -> None:
    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        return

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:
        with pytest.raises(ProtocolError, match="ended a stream early"):
            await peer.request(OBJECT, ObjectPart)


async def test_a_message_that_is_too_large_fails_its_sender_alone() -> None:
    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        await stream.send(ObjectPart(1), bytes(25 << 20))

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:
        with pytest.raises(UsageError, match="send less at once"):
            await peer.request(OBJECT, ObjectPart)
        async with peer.open_stream() as stream:
            with pytest.raises(UsageError, match="send less at once"):
                await stream.send(LINK, bytes(25 << 20))
        assert peer.is_open


async def test_handlers_of_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are opened and reset at once leave their handlers at work; more than so many are not started."""
    monkeypatch.setattr(peer_module, "MAX_HANDLERS", 4)
    started = 0

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        nonlocal started
        started += 1
        await trio.sleep_forever()

    async with serving(handler) as port, raw_client(port) as raw:
        for _ in range(20):
            stream = raw.core.open_stream()
            raw.core.send(stream, LINK)
            await raw.flush()
            raw.core.reset(stream, "")
        raw.core.send(raw.core.open_stream(), LINK)
        await raw.flush()
        answer = b""
        while b"too many requests at once" not in answer:
            chunk = await raw.read()
            assert chunk
            answer += chunk
        assert started == 4


# ---- ends -----------------------------------------------------------------------------------------------------------


async def test_a_body_that_raises_comes_out_as_itself() -> None:
    error = KeyError("mine")
    async with serving(echo) as port:
        with pytest.raises(KeyError) as caught:
            async with open_peer(HOST, port, CLIENT):
                raise error
        assert caught.value is error


async def test_a_deadline_of_the_body_is_no_fault_of_the_peers(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(port: int) -> None:
        async with open_peer(HOST, port, CLIENT) as peer:
            with trio.fail_after(3):
                await peer.request(LINK, SessionClosed)

    async with serving(silent) as port:
        with pytest.raises(trio.TooSlowError):
            await slow(port)


async def test_a_reset_says_why() -> None:
    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        stream.reset("moving out")
        with pytest.raises(ClosedError):
            await stream.receive()
        with pytest.raises(ClosedError):
            await stream.send(SessionClosed())

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
        await stream.send(LINK)
        for _ in range(2):
            with pytest.raises(ClosedError, match=f"^peer {SERVER.peer_id.short} dropped the stream: moving out$"):
                await stream.receive()
        with pytest.raises(ClosedError, match="moving out"):
            await stream.send(SessionClosed())
        assert peer.is_open


async def test_cancelling_a_large_send_leaves_nothing_behind() -> None:
    errors: list[SwarmError] = []
    heard, over = trio.Event(), trio.Event()

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        if request.message != LINK:
            await serves(stream, request)
            return
        try:
            while await stream.receive() is not None:
                heard.set()
        except SwarmError as error:
            errors.append(error)
        over.set()

    async def send(stream: Stream) -> None:
        while True:
            await stream.send(ObjectPart(1), bytes(20 << 20), urgent=False)

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:
        with trio.CancelScope() as scope:
            async with peer.open_stream() as stream, trio.open_nursery() as nursery:
                await stream.send(LINK)
                nursery.start_soon(send, stream)
                await heard.wait()
                scope.cancel()
        assert scope.cancelled_caught
        assert peer._core.queued == 0
        await over.wait()
        assert (await peer.request(OBJECT, SessionOpened))[0] == SessionOpened(0)
        assert peer._room.statistics().tasks_waiting == 0
    (error,) = errors
    assert (type(error), error.peer_id) == (ClosedError, CLIENT.peer_id)
    assert error.message == f"peer {CLIENT.peer_id.short} dropped the stream: abandoned"


async def test_the_end_of_a_connection_wakes_all_who_wait() -> None:
    errors: list[SwarmError] = []
    connected: list[Peer] = []

    async def on_peer(peer: Peer) -> None:
        connected.append(peer)

    async with serving(silent, on_peer) as port, open_peer(HOST, port, CLIENT) as peer:

        async def flood(stream: Stream) -> None:
            while True:
                await stream.send(ObjectPart(1), bytes(1 << 20), urgent=False)

        async def wait(stream: Stream, sending: bool) -> None:
            with pytest.raises(ClosedError) as caught:
                await (flood(stream) if sending else stream.receive())
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for count in range(6):
                stream = peer.open_stream()
                await stream.send(LINK)
                nursery.start_soon(wait, stream, count % 2 == 0)
            await until(peer, lambda: peer._room.statistics().tasks_waiting == 3)
            connected[0]._core.close("shutting down")
            connected[0]._writable.set()
        await peer.wait_closed()
        assert not peer.is_open
        assert len(errors) == 6
        assert {error.message for error in errors} == {
            f"peer {SERVER.peer_id.short} closed the connection: shutting down"
        }
        with pytest.raises(ClosedError, match="shutting down"):
            peer.open_stream()


async def test_leaving_the_block_ends_streams_that_others_still_use() -> None:
    errors: list[SwarmError] = []

    async with serving(silent) as port, trio.open_nursery() as nursery:

        async def wait(stream: Stream) -> None:
            with pytest.raises(ClosedError) as caught:
                await stream.receive()
            errors.append(caught.value)

        async with open_peer(HOST, port, CLIENT) as peer:
            stream = peer.open_stream()
            nursery.start_soon(wait, stream)
            await trio.testing.wait_all_tasks_blocked()
    assert [error.message for error in errors] == ["the connection is closed"]
    with pytest.raises(ClosedError):
        peer.open_stream()
    with pytest.raises(ClosedError):
        await stream.send(LINK)


async def test_a_server_that_is_killed_is_unreachable_or_closed() -> None:
    async with open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[int]) -> None:
            with scope:
                await serve_peers(silent, SERVER, host=HOST, port=0, task_status=task_status)

        port = await nursery.start(serve)
        async with open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
            await stream.send(LINK)
            scope.cancel()
            with pytest.raises((ClosedError, UnreachableError)) as caught:
                await stream.receive()
            assert caught.value.peer_id == SERVER.peer_id


# ---- backpressure ---------------------------------------------------------------------------------------------------


async def test_a_receiver_that_does_not_read_makes_the_sender_wait() -> None:
    go, got = trio.Event(), 0
    servers: list[Peer] = []

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        nonlocal got
        if request.message != LINK:
            await serves(stream, request)
            return
        servers.append(peer)
        await go.wait()
        while (received := await stream.receive()) is not None:
            assert received.raw[0] == got
            got += 1
        await stream.send(SessionClosed())

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
        await stream.send(LINK)

        async def send() -> None:
            for count in range(60):
                await stream.send(ObjectPart(1), bytes([count]) * (1 << 20), fin=count == 59, urgent=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            full = STREAM_WINDOW - (2 << 20)
            while not (servers and servers[0]._core.held > full and peer._room.statistics().tasks_waiting == 1):
                # Others go on meanwhile: their messages are urgent and their streams' windows open.
                assert (await peer.request(OBJECT, SessionOpened))[0] == SessionOpened(0)
            assert servers[0]._core.held <= STREAM_WINDOW
            assert peer._core.queued <= MAX_QUEUED + (2 << 20)
            go.set()
            await stream.expect(SessionClosed)
        assert got == 60
        assert (peer._core.queued, servers[0]._core.held) == (0, 0)


async def test_all_who_wait_for_room_get_it() -> None:
    """More senders than fit at once: none is forgotten, whoever is woken first."""

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        await serves(stream, request)

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:
        done = 0

        async def ask() -> None:
            nonlocal done
            async with peer.open_stream() as stream:
                await stream.send(LINK, bytes(2 << 20), urgent=False)
                await stream.expect(SessionOpened)
                done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert done == 20
        assert peer._room.statistics().tasks_waiting == 0


async def test_what_nobody_reads_costs_no_window() -> None:
    """Handlers that leave messages unread give their room back when they end."""

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        await stream.send(SessionOpened(1))
        if request.message == OBJECT:
            await stream.send(SessionOpened(peer._core.held))
            await stream.receive()

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer:
        for _ in range(5):  # more than the connection's window in all
            async with peer.open_stream() as stream:
                await stream.send(LINK, bytes(20 << 20), urgent=False)
                await stream.send(ObjectPart(1), bytes(2 << 20), urgent=False)
                await stream.expect(SessionOpened)
        async with peer.open_stream() as stream:
            await stream.send(OBJECT)
            await stream.expect(SessionOpened)
            held = (await stream.expect(SessionOpened))[0].max_positions
            assert held < 100


async def test_a_large_request_counts_until_its_handler_has_dealt_with_it() -> None:
    go, heard = trio.Event(), trio.Event()
    servers: list[Peer] = []

    async def handler(peer: Peer, stream: Stream, request: Received) -> None:
        servers.append(peer)
        heard.set()
        await go.wait()
        await stream.receive()
        await stream.send(SessionOpened(peer._core.held))

    async with serving(handler) as port, open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
        await stream.send(LINK, bytes(1 << 20))
        await heard.wait()
        assert servers[0]._core.held > 1 << 20
        await stream.send(SessionClosed())
        go.set()
        assert (await stream.expect(SessionOpened))[0].max_positions < 100


# ---- strangers ------------------------------------------------------------------------------------------------------


async def test_another_key_than_the_pinned_one_is_refused_and_named() -> None:
    async with serving(raising(RemoteError("no"))) as port:
        with pytest.raises(VerificationError, match=rf"{CLIENT.peer_id.short} at .*another key") as caught:
            async with open_peer(HOST, port, CLIENT, expected=CLIENT.peer_id):
                pytest.fail("opened")
        assert caught.value.peer_id == SERVER.peer_id
        await works(port)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 600, b"\0" * 70_000, b""],
    ids=["http", "bad hello", "zeros", "nothing"],
)
async def test_a_client_that_speaks_no_tls_is_turned_away(data: bytes) -> None:
    async with serving(raising(RemoteError("no"))) as port:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            try:
                await stream.send_all(data)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        await works(port)


@pytest.mark.parametrize("data", [b"\xff" * 100, bytes(100), pack_frame(Kind.WINDOW, 0, bytes(4))])
async def test_a_tls_client_that_does_not_greet_is_told_and_closed(data: bytes) -> None:
    async with serving(raising(RemoteError("no"))) as port:
        async with raw_client(port, greet=False) as raw:
            await raw.transport.send_all(data)
            assert b"did not begin with a greeting" in await raw.drain() or data[0] == 0xFF
        await works(port)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_client_that_says_nothing_is_closed_in_time(tls: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with serving(raising(RemoteError("no"))) as port:
        began = trio.current_time()
        if tls:
            async with raw_client(port, greet=False) as raw:
                await raw.drain()
        else:
            async with await trio.open_tcp_stream(HOST, port) as stream:
                assert await stream.receive_some() == b""
        assert trio.current_time() - began < peer_module.CONNECT_TIMEOUT + 2
        await works(port)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_crowd_of_silent_clients_does_not_keep_others_out(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "MAX_GREETING", 8)
    async with serving(raising(RemoteError("no"))) as port, trio.open_nursery() as nursery:
        ends = 0

        async def lurk(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            nonlocal ends
            if tls:
                async with raw_client(port, greet=False) as raw:
                    task_status.started()
                    await raw.drain()
            else:
                async with await trio.open_tcp_stream(HOST, port) as stream:
                    task_status.started()
                    await stream.receive_some()
            ends += 1

        for _ in range(40):
            await nursery.start(lurk)
        await works(port)
        while ends < 32:
            await trio.testing.wait_all_tasks_blocked()
        await works(port)
        nursery.cancel_scope.cancel()


def rsa_context(folder: Path) -> ssl.SSLContext:
    """A TLS 1.3 server with a certificate as the web has them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime.datetime(2000, 1, 1)).not_valid_after(datetime.datetime(2099, 1, 1))
    path = folder / "rsa.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@asynccontextmanager
async def impostor(act: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server that is something else than a peer."""
    async with open_nursery() as nursery:

        async def accept(stream: trio.SocketStream) -> None:
            try:
                await act(stream)
            except trio.BrokenResourceError:
                return

        (listener,) = await nursery.start(partial(trio.serve_tcp, accept, 0, host=HOST))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def call(port: int, host: str = HOST, expected: PeerId | None = SERVER.peer_id) -> None:
    async with open_peer(host, port, CLIENT, expected=expected):
        pytest.fail("opened")


async def test_a_server_with_an_rsa_certificate_is_refused(tmp_path: Path) -> None:
    context = rsa_context(tmp_path)

    async def act(stream: trio.SocketStream) -> None:
        await trio.SSLStream(stream, context, server_side=True).do_handshake()
        await stream.receive_some()

    async with impostor(act) as port:
        with pytest.raises(VerificationError, match="no Ed25519 key"):
            await call(port)


async def test_a_server_that_closes_at_once_is_unreachable() -> None:
    async def act(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with impostor(act) as port:
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            await call(port)
        assert caught.value.peer_id == SERVER.peer_id


async def test_a_server_that_speaks_no_tls_is_unreachable() -> None:
    async def act(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.9\r\n")
        await stream.receive_some()

    async with impostor(act) as port:
        with pytest.raises(UnreachableError, match="does not answer"):
            await call(port)


async def test_a_server_that_says_nothing_is_unreachable(autojump_clock: trio.testing.MockClock) -> None:
    async def act(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with impostor(act) as port:
        with pytest.raises(UnreachableError, match="nothing for 10 s"):
            await call(port)


async def test_a_server_that_does_not_greet_is_unreachable(autojump_clock: trio.testing.MockClock) -> None:
    context = server_context(SERVER)

    async def act(stream: trio.SocketStream) -> None:
        await trio.SSLStream(stream, context, server_side=True).do_handshake()
        await trio.sleep_forever()

    async with impostor(act) as port:
        with pytest.raises(UnreachableError, match="did not greet") as caught:
            await call(port)
        assert caught.value.peer_id == SERVER.peer_id


async def test_a_peer_that_falls_silent_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    context = server_context(SERVER)

    async def act(stream: trio.SocketStream) -> None:
        transport = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        core = Connection(SERVER, nonce=bytes(32), now=0.0)
        while core.state is State.GREETING:
            await transport.send_all(core.data_to_send())
            core.receive_data(bytes(await transport.receive_some()), 0.0)
        await trio.sleep_forever()

    async with impostor(act) as port, open_peer(HOST, port, CLIENT) as peer, peer.open_stream() as stream:
        with pytest.raises(UnreachableError, match="has been silent for 10 s") as caught:
            await stream.receive()
        assert caught.value.peer_id == SERVER.peer_id


async def test_a_caller_that_falls_silent_is_hung_up_on(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(raising(RemoteError("no"))) as port, raw_client(port) as raw:
        began = trio.current_time()
        with trio.fail_after(3 * protocol.DEAD_AFTER):
            await raw.drain()
        assert protocol.DEAD_AFTER <= trio.current_time() - began + 0.01 < protocol.DEAD_AFTER + 2
        await works(port)


async def test_two_idle_peers_stay_connected(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(raising(RemoteError("no"))) as port, open_peer(HOST, port, CLIENT) as peer:
        with trio.move_on_after(10 * protocol.DEAD_AFTER):
            await peer.wait_closed()
        assert bytes((await peer.request(OBJECT, ObjectPart))[1]) == b"abc"


async def test_a_client_that_asks_and_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONTROL", 64)

    async def flood(raw: Raw) -> None:
        while True:
            await raw.flush(pack_frame(Kind.PING, 0, bytes(8)) * 1000)

    async with serving(raising(RemoteError("no"))) as port:
        async with raw_client(port) as raw:
            with pytest.raises(trio.BrokenResourceError):
                await flood(raw)
        await works(port)


@pytest.mark.parametrize("host", ["x" * 64 + ".example", "a" * 255, "nul\0host", "", "..", "\udcff", "300.300.300.300"])
async def test_a_host_that_is_no_name_is_unreachable(host: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        await call(1, host)
    assert caught.value.peer_id == SERVER.peer_id
    assert "\n" not in caught.value.message


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with trio.socket.socket() as taken:
        await taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"^{HOST}:{port} does not answer .*efused") as caught:
            await call(port, expected=None)
        assert "\n" not in caught.value.message


async def test_a_port_that_is_taken_is_a_lack_of_this_machine() -> None:
    async with serving(echo) as port:
        with pytest.raises(ResourceError, match=rf"cannot listen on {HOST}:{port} .*choose another port"):
            await serve_peers(echo, SERVER, host=HOST, port=port)


async def test_a_client_gone_before_its_handshake_ends_takes_nothing_down() -> None:
    async with serving(raising(RemoteError("no"))) as port:
        for _ in range(20):
            stream = await trio.open_tcp_stream(HOST, port)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await trio.aclose_forcefully(stream)  # resets
        for _ in range(20):
            async with raw_client(port, greet=False) as raw:
                raw.transport.transport_stream.setsockopt(
                    trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
        await works(port)
