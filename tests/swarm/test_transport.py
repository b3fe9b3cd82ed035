"""TLS over a socket: bytes both ways, what the kernel does not take at once, and every way in which it ends."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from swarm.identity import Identity
from swarm.tls import client_context, remote_key, server_context
from swarm.transport import TlsTransport

SERVER = Identity(b"\x01" * 32)
MORE_THAN_THE_KERNEL_HOLDS = 64 << 20


async def open_streams() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a TCP connection on loopback."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return near, await listener.accept()


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[TlsTransport, TlsTransport]]:
    """A caller and a called side that have shaken hands."""
    near, far = await open_streams()
    caller = TlsTransport(near, client_context(), server_side=False)
    called = TlsTransport(far, server_context(SERVER), server_side=True)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.do_handshake)
            nursery.start_soon(called.do_handshake)
        yield caller, called
    finally:
        caller.close()
        called.close()


async def receive_all(transport: TlsTransport) -> bytes:
    """Everything until the end."""
    received = bytearray()
    while data := await transport.receive():
        received += data
    return bytes(received)


async def test_the_handshake_gives_the_called_sides_key_and_the_addresses() -> None:
    async with open_pair() as (caller, called):
        assert remote_key(caller.certificate()) == SERVER.peer_id
        assert called.certificate() is None
        assert caller.address[0] == called.address[0] == "127.0.0.1"
        assert caller.address[1] != called.address[1]


async def test_what_is_written_arrives_at_once_and_in_order() -> None:
    async with open_pair() as (caller, called):
        for sender, receiver in ((caller, called), (called, caller)):
            assert sender.write(b"one ")
            assert sender.write(b"two")
            assert not sender.is_blocked
            received = b""
            while len(received) < 7:
                received += await receiver.receive()
            assert received == b"one two"


async def test_what_the_kernel_does_not_take_waits_and_then_arrives() -> None:
    data = bytes(range(256)) * (MORE_THAN_THE_KERNEL_HOLDS // 256)
    async with open_pair() as (caller, called):
        assert not caller.write(data)
        assert caller.is_blocked
        received: list[bytes] = []

        async def read() -> None:
            received.append(await receive_all(called))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await caller.flush()
            assert not caller.is_blocked
            caller.close()
        assert received == [data]


async def test_a_fast_sender_does_not_hold_the_loop() -> None:
    async with open_pair() as (caller, called):
        caller.write(bytes(4 << 20))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            nursery.start_soon(caller.flush)
            reads = 8
            for _ in range(reads):
                assert await called.receive()
            assert turns >= reads - 1  # the counter's first turn may come after ours
            nursery.cancel_scope.cancel()


async def test_an_end_without_goodbye_is_an_end() -> None:
    async with open_pair() as (caller, called):
        caller.write(b"last")
        caller.close()
        assert await receive_all(called) == b"last"
        assert await called.receive() == b""


async def test_a_connection_that_breaks_raises() -> None:
    async with open_pair() as (caller, called):
        called._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        called.close()
        with pytest.raises(OSError, match="reset"):
            await caller.receive()


async def test_bytes_that_are_no_tls_are_an_error_of_tls() -> None:
    near, far = await open_streams()
    async with near:
        called = TlsTransport(far, server_context(SERVER), server_side=True)
        await near.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await called.do_handshake()
        called.close()


async def test_closing_wakes_whoever_waits_and_is_final() -> None:
    async with open_pair() as (caller, _):
        woken: list[str] = []

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await caller.receive()
            woken.append("reader")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            caller.close()
        assert woken == ["reader"]
        caller.close()
        assert caller.address == ("", 0)
        with pytest.raises(trio.ClosedResourceError):
            await caller.receive()
        with pytest.raises(OSError, match="descriptor"):
            caller.write(b"too late")
