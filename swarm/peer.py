"""Trio drivers for `swarm.protocol`: call a peer, serve peers, and the streams between them.

A `Peer` is one connection, the same object on either side once it is open. Its reader and its writer run in the
nursery of `open_peer` or `serve_peers`; every stream the other side opens gets a task there that runs the handler.
What goes wrong in that task goes to the other side as a `Failure` and hurts no other stream; what was no `SwarmError`
is also logged, with its traceback, by the logger ``swarm.peer``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Protocol, TypeVar

import trio

from swarm.errors import ClosedError, ResourceError, SwarmError, UnreachableError, VerificationError
from swarm.events import Closed, Ended, Event, Opened, Received, Reset, State
from swarm.failures import error_of, failure_of
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.messages import Message
from swarm.nurseries import open_nursery, single_error
from swarm.protocol import HEARTBEAT, MAX_STREAMS, SEND_BATCH, Connection
from swarm.streams import Stream
from swarm.tls import client_context, remote_key, server_context
from swarm.transport import TlsTransport

__all__ = ["Handler", "Peer", "Stream", "error_of", "failure_of", "open_peer", "serve_peers"]

CONNECT_TIMEOUT = 10.0  # seconds for TCP, TLS and the greeting together
MAX_GREETING = 256  # connections that have proven nothing yet; the oldest makes room for the next
MAX_HANDLERS = MAX_STREAMS  # tasks of one connection; a stream that is reset may leave its task at work for a while
GOODBYE_TIMEOUT = 0.5  # seconds that a closing side waits for the other to take its goodbye

_client_context = cache(client_context)  # making one reads the system's settings for certificates, 1 ms or more
_BROKEN = (OSError, trio.ClosedResourceError)  # what a transport raises; ssl.SSLError is an OSError
_log = logging.getLogger("swarm.peer")
_M = TypeVar("_M", bound=Message)


class Handler(Protocol):
    """Serves one stream that the other side has opened; ``request`` is its first message."""

    async def __call__(self, peer: Peer, stream: Stream, request: Received) -> None: ...


class Peer:
    """One open connection. ``peer_id`` is the other side's proven key."""

    def __init__(self, transport: TlsTransport, core: Connection, handler: Handler | None) -> None:
        self._transport = transport
        self._core = core
        self._handler = handler
        self._streams: dict[int, Stream] = {}
        self._writable = trio.Event()
        self._room = trio.lowlevel.ParkingLot()  # senders that wait because too much is queued
        self._serving = 0
        self._opened = trio.Event()
        self._over = trio.Event()
        self._written = trio.Event()  # the writer has ended
        self._reading = trio.CancelScope()
        self._fault: OSError | None = None  # what a hurried write met
        self._closed: SwarmError | None = None
        self.address = transport.address

    @property
    def peer_id(self) -> PeerId:
        """The other side's key. Raises `ClosedError` before the greeting is done."""
        if self._core.peer_id is None:
            raise ClosedError("the greeting is not done")
        return self._core.peer_id

    @property
    def is_open(self) -> bool:
        """Whether streams can still be opened."""
        return self._core.state is State.OPEN

    @property
    def streams(self) -> int:
        """Streams of either side that are not over."""
        return self._core.streams

    def open_stream(self) -> Stream:
        """A new stream to the other side. Raises `ClosedError` when the connection is over."""
        self._raise_if_closed()
        stream = Stream(self, self._core.open_stream())
        self._streams[stream.id] = stream
        return stream

    async def request(self, message: Message, kind: type[_M]) -> tuple[_M, memoryview]:
        """Open a stream, send one message, take one answer of type ``kind``."""
        async with self.open_stream() as stream:
            await stream.send(message, fin=True)
            return await stream.expect(kind)

    async def wait_closed(self) -> None:
        """Return when the connection is over, whatever ended it."""
        await self._over.wait()

    # ---- between streams and core ---------------------------------------------------------------------------------

    def _is_full(self, stream: int, *, urgent: bool) -> bool:
        self._raise_if_closed()
        return self._core.is_full(stream, urgent=urgent)

    def _send(self, stream: int, message: Message, raw: bytes | memoryview, *, fin: bool, urgent: bool) -> None:
        self._core.send(stream, message, raw, fin=fin, urgent=urgent)
        self._hurry()

    def _consumed(self, received: Received) -> None:
        self._core.consumed(received)
        self._hurry()

    def _finish(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._core.finish(stream)
        self._hurry()

    def _reset(self, stream: int, reason: str) -> None:
        self._streams.pop(stream, None)
        self._core.reset(stream, reason)
        self._hurry()

    def _hurry(self) -> None:
        """Send the next batch here and now, without a turn of the writer: a step of the ring costs none so.

        The writer has the rest: what the kernel does not take at once, what is more than a batch, and the errors.
        """
        if self._transport.is_blocked:
            return  # the writer is at it
        try:
            data = self._core.data_to_send()
            if not data:
                return
            self._room.unpark_all()
            if self._transport.write(data) and len(data) < SEND_BATCH:
                return
        except OSError as error:
            self._fault = error
        self._writable.set()

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)

    # ---- the two loops --------------------------------------------------------------------------------------------

    async def _run(self, nursery: trio.Nursery) -> None:
        """Read until the connection is over. The writer, the timer and the handlers run in ``nursery``."""
        nursery.start_soon(self._write)
        nursery.start_soon(self._keep_time, nursery)
        try:
            with self._reading, _mapped(self):
                while self._core.state is not State.CLOSED:
                    data = await self._transport.receive()
                    self._take(self._core.receive_data(data, trio.current_time()), nursery)
        except UnreachableError as error:
            self._end(error)
        finally:
            self._end(ClosedError("the connection is closed", peer_id=self._core.peer_id))

    async def _keep_time(self, nursery: trio.Nursery) -> None:
        """Act on deadlines; beside the reader, since a cancel scope around every read costs more than the read."""
        while self._core.state is not State.CLOSED:
            # At least once a heartbeat: the end of the greeting brings the deadline forward, and wakes nobody here.
            await trio.sleep_until(min(self._core.next_deadline(), trio.current_time() + HEARTBEAT))
            # What has come meanwhile is read first: a starved process must not blame its peer.
            await trio.lowlevel.checkpoint()
            self._take(self._core.handle_timer(trio.current_time()), nursery)

    def _take(self, events: list[Event], nursery: trio.Nursery) -> None:
        for event in events:
            self._dispatch(event, nursery)
        self._hurry()
        self._room.unpark_all()

    def _dispatch(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case Received():
                stream = self._streams.get(event.stream)
                if stream is not None:
                    stream._deliver(event)
                elif event.first and self._handler is not None and self._serving < MAX_HANDLERS:
                    stream = self._streams[event.stream] = Stream(self, event.stream, event)
                    self._serving += 1
                    nursery.start_soon(self._serve, self._handler, stream, event)
                else:
                    self._core.consumed(event)
                    reason = "this peer serves nothing" if self._handler is None else "too many requests at once"
                    self._core.reset(event.stream, reason)
            case Ended():
                stream = self._streams.get(event.stream)
                if stream is not None:
                    stream._deliver_end()
            case Reset():
                stream = self._streams.pop(event.stream, None)
                if stream is not None:
                    reason = f": {event.reason}" if event.reason else ""
                    stream._end(
                        ClosedError(f"peer {self.peer_id.short} dropped the stream{reason}", peer_id=self.peer_id)
                    )
            case Opened():
                self._opened.set()
            case Closed():
                self._end(event.error or ClosedError("the connection is closed", peer_id=self._core.peer_id))

    async def _serve(self, handler: Handler, stream: Stream, request: Received) -> None:
        """Run the handler for one stream. The task boundary: no error of one stream reaches another."""
        try:
            async with stream:
                what = f"the handler of a {type(request.message).__name__}"
                error = await _outcome(what, handler(self, stream, request))
                if error is not None:
                    await stream.fail(error)
        finally:
            self._serving -= 1

    async def _write(self) -> None:
        try:
            with _mapped(self):
                while True:
                    if self._fault is not None:
                        raise self._fault
                    await self._transport.flush()
                    if data := self._core.data_to_send():
                        self._room.unpark_all()
                        self._transport.write(data)
                        await trio.lowlevel.checkpoint()
                    elif self._core.state is State.CLOSED:
                        return
                    else:
                        self._writable = trio.Event()
                        await self._writable.wait()
        except UnreachableError as error:
            self._end(error)
        finally:
            self._written.set()

    def _end(self, error: SwarmError) -> None:
        self._closed = self._closed or error
        for stream in self._streams.values():
            stream._end(self._closed)
        self._streams.clear()
        self._core.close()
        self._reading.cancel()
        self._over.set()
        self._opened.set()
        self._room.unpark_all()
        self._writable.set()

    async def _wait_open(self) -> None:
        with trio.move_on_after(CONNECT_TIMEOUT):
            await self._opened.wait()
        self._raise_if_closed()
        if not self.is_open:
            name = f"peer {self.peer_id.short} at {self.address[0]}:{self.address[1]}"
            raise UnreachableError(f"{name} accepted the connection but did not greet", peer_id=self.peer_id)

    async def _hang_up(self) -> None:
        """Say goodbye if the other side takes it at once, and close."""
        self._end(ClosedError("the connection is closed", peer_id=self._core.peer_id))
        with trio.move_on_after(GOODBYE_TIMEOUT, shield=True), suppress(*_BROKEN):
            await self._written.wait()
            if data := self._core.data_to_send():  # a writer that was cancelled has left it
                self._transport.write(data)
            await self._transport.flush()
        self._transport.close()


@asynccontextmanager
async def open_peer(
    host: str, port: int, identity: Identity, *, expected: PeerId | None = None, handler: Handler | None = None
) -> AsyncIterator[Peer]:
    """Call the peer at ``host:port``. ``expected`` pins its key; ``handler`` serves streams that it opens.

    Raises `UnreachableError` when nobody answers in `CONNECT_TIMEOUT` seconds, `VerificationError` for another key.
    """
    transport, key = await _connect(host, port, expected)
    core = Connection(identity, remote=key, now=trio.current_time())
    peer = Peer(transport, core, handler)
    async with open_nursery() as nursery:
        nursery.start_soon(peer._run, nursery)
        try:
            await peer._wait_open()
            yield peer
        finally:
            await peer._hang_up()
            nursery.cancel_scope.cancel()


async def _connect(host: str, port: int, expected: PeerId | None) -> tuple[TlsTransport, PeerId]:
    name = f"peer {expected.short} at {host}:{port}" if expected is not None else f"{host}:{port}"
    transport: TlsTransport | None = None
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            socket = await trio.open_tcp_stream(host, port)
            transport = TlsTransport(socket, _client_context(), server_side=False)
            await transport.do_handshake()
        key = remote_key(transport.certificate())
        if expected is not None and key != expected:
            raise VerificationError(f"{name} answered with another key, {key.short}; it was not used", peer_id=key)
    # A host name that nobody could look up is a ValueError; it may have come from another peer.
    except (OSError, ValueError, trio.TooSlowError) as error:
        if transport is not None:
            transport.close()
        raise UnreachableError(f"{name} does not answer ({_why(error)})", peer_id=expected) from error
    except BaseException:
        if transport is not None:
            transport.close()
        raise
    return transport, key


async def serve_peers(
    handler: Handler,
    identity: Identity,
    *,
    host: str,
    port: int,
    on_peer: Callable[[Peer], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept peers until cancelled. Port 0 takes a free one; the port is what ``task_status`` is started with.

    ``on_peer`` hears of every connection once it is open. Raises `ResourceError` when the port cannot be had.
    """
    entrance = _Entrance(identity, handler, on_peer)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another port with --port"
        ) from error
    async with open_nursery() as nursery:
        for listener in listeners:
            listener.socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        nursery.start_soon(trio.serve_listeners, entrance.accept, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


class _Entrance:
    """Takes connections in: handshake, greeting, and then the connection's life. No connection hurts another."""

    def __init__(self, identity: Identity, handler: Handler, on_peer: Callable[[Peer], Awaitable[None]] | None) -> None:
        self._identity = identity
        self._handler = handler
        self._on_peer = on_peer
        self._context = server_context(identity)
        self._unproven: dict[trio.CancelScope, None] = {}

    async def accept(self, socket: trio.SocketStream) -> None:
        """Serve one connection until it is over."""
        transport = TlsTransport(socket, self._context, server_side=True)
        try:
            if await self._shake_hands(transport):
                await _outcome("a connection", self._keep(transport))
        finally:
            transport.close()

    async def _shake_hands(self, transport: TlsTransport) -> bool:
        """Whether it speaks TLS 1.3 in time; somebody who does not is no peer."""
        with self._probation(), suppress(*_BROKEN):
            await transport.do_handshake()
            return True
        return False

    async def _keep(self, transport: TlsTransport) -> None:
        core = Connection(self._identity, nonce=os.urandom(32), now=trio.current_time())
        peer = Peer(transport, core, self._handler)
        async with open_nursery() as nursery:
            nursery.start_soon(self._announce, peer, nursery.cancel_scope)
            try:
                await peer._run(nursery)
            finally:
                await peer._hang_up()
                nursery.cancel_scope.cancel()

    async def _announce(self, peer: Peer, connection: trio.CancelScope) -> None:
        with self._probation() as scope:
            await peer._opened.wait()
        if scope.cancelled_caught:
            connection.cancel()
        elif self._on_peer is not None and peer.is_open:
            await _outcome("what follows a greeting", self._on_peer(peer))

    @contextmanager
    def _probation(self) -> Iterator[trio.CancelScope]:
        """The time in which a stranger must prove itself. With too many of them, the oldest makes room."""
        if len(self._unproven) >= MAX_GREETING:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            oldest.cancel()
        with trio.move_on_after(CONNECT_TIMEOUT) as scope:
            self._unproven[scope] = None
            try:
                yield scope
            finally:
                self._unproven.pop(scope, None)


async def _outcome(what: str, work: Awaitable[None]) -> SwarmError | None:
    """Run what one peer has caused, and return the error it ended in. A bug is logged; cancellation goes on."""
    try:
        await work
    except BaseException as raised:
        error = single_error(raised)
        if not isinstance(error, Exception):
            raise
        if isinstance(error, SwarmError):
            return error
        _log.error("%s failed", what, exc_info=error)
        return SwarmError("an error of this peer's own; its log says more")
    return None


@contextmanager
def _mapped(peer: Peer) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        name = peer._core.peer_id.short if peer._core.peer_id is not None else str(peer.address)
        raise UnreachableError(f"the connection to peer {name} broke", peer_id=peer._core.peer_id) from error


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"nothing for {CONNECT_TIMEOUT:.0f} s"
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):  # one for each address of the host
        cause = cause.exceptions[0]
    text = (isinstance(cause, OSError) and cause.strerror) or str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)
