"""Trio drivers for `swarm.protocol`: call a peer, serve peers, and the streams between them.

A `Peer` is one connection, the same object on either side once it is open. Its reader and its writer run in the
nursery of `open_peer` or `serve_peers`; every stream the other side opens gets a task there that runs the handler.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Protocol, Self, TypeVar

import trio

from swarm.errors import (
    BusyError,
    ClosedError,
    MissingLayersError,
    PaymentError,
    ProtocolError,
    RemoteError,
    ResourceError,
    SwarmError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
    UsageError,
    VerificationError,
)
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.messages import Failure, Message
from swarm.nurseries import open_nursery
from swarm.protocol import MAX_QUEUED, Closed, Connection, Ended, Event, Opened, Received, Reset, State
from swarm.tls import client_context, remote_key, server_context

CONNECT_TIMEOUT = 10.0  # seconds for TCP, TLS and the greeting together
MAX_GREETING = 256  # connections that may be in their handshake at once
_READ_SIZE = 256 << 10

_M = TypeVar("_M", bound=Message)


class Handler(Protocol):
    """Serves one stream that the other side has opened; ``request`` is its first message."""

    async def __call__(self, peer: Peer, stream: Stream, request: Received) -> None: ...


class Stream:
    """One ordered exchange of messages.

    Leave its ``async with`` block and what was sent is still delivered, then it is over; leave it by an error and it
    is dropped on both sides at once.
    """

    def __init__(self, peer: Peer, stream_id: int) -> None:
        self.peer = peer
        self.id = stream_id
        self._inbox: deque[Received] = deque()
        self._error: SwarmError | None = None
        self._wake = trio.Event()
        self._ended = False  # the other side's direction

    async def send(
        self, message: Message, raw: bytes | memoryview = b"", *, fin: bool = False, urgent: bool = True
    ) -> None:
        """Send one message; waits while too much is queued. Raises `ClosedError` or `UnreachableError`."""
        await self.peer._send(self.id, message, raw, fin=fin, urgent=urgent)

    async def receive(self) -> Received | None:
        """The next message, or None when the other side has ended the stream. Raises what ended it otherwise."""
        while not self._inbox:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        received = self._inbox.popleft()
        self.peer._consumed(received)
        return received

    async def expect(self, kind: type[_M]) -> tuple[_M, memoryview]:
        """The next message, which must be a ``kind``; a `Failure` becomes the error it stands for."""
        received = await self.receive()
        if received is None:
            raise ProtocolError(f"peer {self.peer.peer_id.short} ended a stream early", peer_id=self.peer.peer_id)
        if isinstance(received.message, Failure):
            raise error_of(received.message, self.peer.peer_id)
        if not isinstance(received.message, kind):
            raise ProtocolError(
                f"peer {self.peer.peer_id.short} sent {type(received.message).__name__} for {kind.__name__}",
                peer_id=self.peer.peer_id,
            )
        return received.message, received.raw

    async def fail(self, error: SwarmError) -> None:
        """Answer with a failure and end the stream; nothing happens if it is already over."""
        try:
            await self.send(failure_of(error), fin=True)
        except (ClosedError, UnreachableError):
            return

    def reset(self, reason: str = "") -> None:
        """Drop the stream at once, in both directions."""
        self.peer._reset(self.id, reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.peer._finish(self.id)
        else:
            self.reset("abandoned")

    def _deliver(self, received: Received) -> None:
        self._inbox.append(received)
        self._ended = received.fin
        self._wake.set()

    def _end(self, error: SwarmError) -> None:
        self._error = self._error or error
        self._wake.set()


class Peer:
    """One open connection. ``peer_id`` is the other side's proven key."""

    def __init__(self, transport: trio.SSLStream[trio.SocketStream], core: Connection, handler: Handler | None) -> None:
        self._transport = transport
        self._core = core
        self._handler = handler
        self._streams: dict[int, Stream] = {}
        self._writable = trio.Event()
        self._drained = trio.Event()
        self._opened = trio.Event()
        self._closed: SwarmError | None = None
        self.address: tuple[str, int] = transport.transport_stream.socket.getpeername()[:2]

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

    # ---- between streams and core ---------------------------------------------------------------------------------

    async def _send(self, stream: int, message: Message, raw: bytes | memoryview, *, fin: bool, urgent: bool) -> None:
        self._raise_if_closed()
        while self._core.queued > MAX_QUEUED:
            self._drained = trio.Event()
            await self._drained.wait()
            self._raise_if_closed()
        self._core.send(stream, message, raw, fin=fin, urgent=urgent)
        self._writable.set()

    def _consumed(self, received: Received) -> None:
        self._core.consumed(received)
        self._writable.set()

    def _finish(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._core.finish(stream)
        self._writable.set()

    def _reset(self, stream: int, reason: str) -> None:
        self._streams.pop(stream, None)
        self._core.reset(stream, reason)
        self._writable.set()

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise self._closed

    # ---- the two loops --------------------------------------------------------------------------------------------

    async def _run(self, nursery: trio.Nursery) -> None:
        """Read until the connection is over. The writer and the handlers run in ``nursery``."""
        nursery.start_soon(self._write)
        try:
            while self._core.state is not State.CLOSED:
                data: bytes | bytearray | None = None
                with trio.move_on_at(self._core.next_deadline()), _mapped(self):
                    data = await self._transport.receive_some(_READ_SIZE)
                now = trio.current_time()
                # A deadline is only acted on when nothing has come: a starved process must not blame its peer.
                events = self._core.handle_timer(now) if data is None else self._core.receive_data(bytes(data), now)
                for event in events:
                    self._dispatch(event, nursery)
                self._writable.set()
        except UnreachableError as error:
            self._end(error)
        finally:
            self._end(ClosedError("the connection is closed", peer_id=self._core.peer_id))

    def _dispatch(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case Received():
                stream = self._streams.get(event.stream)
                if stream is None:
                    if not event.first or self._handler is None:
                        self._core.consumed(event)
                        if event.first:
                            self._core.reset(event.stream, "this peer serves nothing")
                        return
                    stream = self._streams[event.stream] = Stream(self, event.stream)
                    stream._ended = event.fin
                    self._core.consumed(event)
                    nursery.start_soon(self._serve, self._handler, stream, event)
                else:
                    stream._deliver(event)
            case Ended():
                stream = self._streams.get(event.stream)
                if stream is not None:
                    stream._ended = True
                    stream._wake.set()
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
        async with stream:
            try:
                await handler(self, stream, request)
            except SwarmError as error:
                await stream.fail(error)

    async def _write(self) -> None:
        try:
            with _mapped(self):
                while True:
                    while data := self._core.data_to_send():
                        await self._transport.send_all(data)
                        if self._core.queued <= MAX_QUEUED:
                            self._drained.set()
                    if self._core.state is State.CLOSED:
                        return
                    self._writable = trio.Event()
                    await self._writable.wait()
        except UnreachableError as error:
            self._end(error)

    def _end(self, error: SwarmError) -> None:
        self._closed = self._closed or error
        for stream in self._streams.values():
            stream._end(self._closed)
        self._streams.clear()
        self._core.close()
        self._opened.set()
        self._drained.set()
        self._writable.set()

    async def _wait_open(self) -> None:
        await self._opened.wait()
        self._raise_if_closed()

    async def _hang_up(self) -> None:
        """Say goodbye if the other side takes it at once, and close."""
        self._core.close()
        with trio.move_on_after(0.5, shield=True), _ignored():
            if data := self._core.data_to_send():
                await self._transport.transport_stream.wait_send_all_might_not_block()
                await self._transport.send_all(data)
        self._end(ClosedError("the connection is closed", peer_id=self._core.peer_id))
        await trio.aclose_forcefully(self._transport)


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
            with trio.fail_after(CONNECT_TIMEOUT):
                await peer._wait_open()
            yield peer
        except trio.TooSlowError as error:
            raise UnreachableError(f"{host}:{port} accepted the connection but did not greet", peer_id=key) from error
        finally:
            await peer._hang_up()
            nursery.cancel_scope.cancel()


async def _connect(host: str, port: int, expected: PeerId | None) -> tuple[trio.SSLStream[trio.SocketStream], PeerId]:
    name = f"peer {expected.short} at {host}:{port}" if expected is not None else f"{host}:{port}"
    transport: trio.SSLStream[trio.SocketStream] | None = None
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            socket = await trio.open_tcp_stream(host, port)
            socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            transport = trio.SSLStream(socket, _client_context(), https_compatible=True)
            await transport.do_handshake()
        key = remote_key(transport.getpeercert(binary_form=True))
        if expected is not None and key != expected:
            raise VerificationError(f"{name} answered with another key, {key.short}; it was not used", peer_id=key)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError) as error:
        if transport is not None:
            await trio.aclose_forcefully(transport)
        raise UnreachableError(f"{name} does not answer ({_why(error)})", peer_id=expected) from error
    except BaseException:
        if transport is not None:
            await trio.aclose_forcefully(transport)
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
    context = server_context(identity)
    greeting = trio.CapacityLimiter(MAX_GREETING)

    async def accept(socket: trio.SocketStream) -> None:
        socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        transport = trio.SSLStream(socket, context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                async with greeting:
                    await transport.do_handshake()
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError):
            await trio.aclose_forcefully(transport)  # somebody who cannot speak TLS 1.3 in time is not a peer
            return
        core = Connection(identity, nonce=os.urandom(32), now=trio.current_time())
        peer = Peer(transport, core, handler)
        async with open_nursery() as nursery:
            if on_peer is not None:
                nursery.start_soon(_announce, peer, on_peer)
            try:
                await peer._run(nursery)
            finally:
                await peer._hang_up()
                nursery.cancel_scope.cancel()

    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another port with --port"
        ) from error
    async with open_nursery() as nursery:
        for listener in listeners:
            listener.socket.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        nursery.start_soon(trio.serve_listeners, accept, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


async def _announce(peer: Peer, on_peer: Callable[[Peer], Awaitable[None]]) -> None:
    await peer._opened.wait()
    if peer.is_open:
        await on_peer(peer)


_contexts: dict[str, ssl.SSLContext] = {}


def _client_context() -> ssl.SSLContext:
    """One context for all calls: making one reads the system's certificates' settings, 1 ms or more."""
    if "client" not in _contexts:
        _contexts["client"] = client_context()
    return _contexts["client"]


@contextmanager
def _mapped(peer: Peer) -> Iterator[None]:
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
        name = peer._core.peer_id.short if peer._core.peer_id is not None else str(peer.address)
        raise UnreachableError(f"the connection to peer {name} broke", peer_id=peer._core.peer_id) from error


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, ssl.SSLError, OSError):
        return


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"nothing for {CONNECT_TIMEOUT:.0f} s"
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return getattr(cause, "strerror", None) or str(error) or type(error).__name__


_BY_CODE: dict[str, type[SwarmError]] = {
    kind.code: kind
    for kind in (
        UsageError,
        ResourceError,
        RemoteError,
        ProtocolError,
        VerificationError,
        UnavailableError,
        UnknownModelError,
        UnreachableError,
        PaymentError,
        ClosedError,
    )
}


def failure_of(error: SwarmError) -> Failure:
    """The wire form of an error."""
    retry_after = error.retry_after if isinstance(error, BusyError) else 0.0
    return Failure(error.code, error.message[:1024], retry_after=retry_after, culprit=bytes(error.peer_id or b""))


def error_of(failure: Failure, sender: PeerId) -> SwarmError:
    """The error that a peer's failure stands for; blames the culprit it names, else its sender."""
    culprit = PeerId(failure.culprit) if len(failure.culprit) == PeerId.size else sender
    text = "".join(c if c.isprintable() else "?" for c in failure.message)
    message = f"peer {sender.short}: {text}"
    if failure.code == BusyError.code:
        return BusyError(message, retry_after=min(max(failure.retry_after, 0.0), 3600.0), peer_id=culprit)
    if failure.code == MissingLayersError.code:
        return UnavailableError(message, peer_id=culprit)
    return _BY_CODE.get(failure.code, RemoteError)(message, peer_id=culprit)
