"""TLS over one TCP socket, in as few turns of the event loop as it takes.

`trio.SSLStream` serves any stream: its reads and writes pass locks and checkpoints of their own, five or six turns of
the loop for one step of a ring. Here a read waits once for the socket, and a write that the kernel takes at once does
not wait at all, so that it can be made from wherever a message arises.
"""

from __future__ import annotations

import socket
import ssl

import trio

READ_SIZE = 256 << 10  # bytes taken from the socket at once


class TlsTransport:
    """One side of one connection. Errors are OSError, ssl.SSLError and trio.ClosedResourceError."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool) -> None:
        """Takes the socket over; ``stream`` is closed from here on."""
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._unsent = memoryview(b"")

    @property
    def address(self) -> tuple[str, int]:
        """The other side's host and port; ("", 0) when it has gone already."""
        try:
            host, port, *_ = self._socket.getpeername()
        except OSError:
            return ("", 0)
        return (host, port)

    @property
    def is_blocked(self) -> bool:
        """Whether some of what was written still waits for the kernel: then `flush`, before more is written."""
        return bool(self._unsent) or self._outgoing.pending > 0

    def certificate(self) -> bytes | None:
        """The called side's certificate, DER; after the handshake."""
        return self._tls.getpeercert(binary_form=True)

    async def do_handshake(self) -> None:
        """Agree on keys with the other side."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._fill()
            except ssl.SSLError:
                self._drain()  # the alert that says why, if the kernel takes it
                raise
            else:
                await self.flush()
                return

    async def receive(self) -> bytes:
        """The next bytes, all that have come; empty at the end. Waits for the socket at least once between two."""
        parts: list[bytes] = []
        while True:
            try:
                while data := self._tls.read(READ_SIZE):
                    parts.append(data)
                return b"".join(parts)
            except ssl.SSLWantReadError:
                if parts:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b"".join(parts)
            await self._fill()

    def write(self, data: bytes) -> bool:
        """Encrypt, and send what the kernel takes at once. False when some is left for `flush`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._drain()

    async def flush(self) -> None:
        """Send what is left."""
        while not self._drain():
            await trio.lowlevel.wait_writable(self._open_socket())

    def close(self) -> None:
        """Close the socket at once, without a word. Whoever waits for it gets trio.ClosedResourceError. Idempotent."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _open_socket(self) -> socket.socket:
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("the transport is closed")
        return self._socket

    def _drain(self) -> bool:
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except (BlockingIOError, InterruptedError):
                return False

    async def _fill(self) -> None:
        """Bytes from the socket to TLS; one turn of the loop at least, so that a fast sender cannot hold it."""
        while True:
            await trio.lowlevel.wait_readable(self._open_socket())
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                continue
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            return
