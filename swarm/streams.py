"""One stream of a connection: an ordered exchange of messages. Made by `swarm.peer.Peer`."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import trio

from swarm.errors import ClosedError, ProtocolError, SwarmError
from swarm.events import Received
from swarm.failures import error_of, failure_of
from swarm.messages import Failure, Message

if TYPE_CHECKING:
    from swarm.peer import Peer

_M = TypeVar("_M", bound=Message)


class Stream:
    """One ordered exchange of messages.

    Leave its ``async with`` block and what was sent is still delivered, then it is over; leave it by an error and it
    is dropped on both sides at once.
    """

    def __init__(self, peer: Peer, stream_id: int, request: Received | None = None) -> None:
        self.peer = peer
        self.id = stream_id
        self._request = request  # the message that opened it: its room is given back when the next one is asked for
        self._inbox: deque[Received] = deque()
        self._error: SwarmError | None = None
        self._wake = trio.lowlevel.ParkingLot()
        self._ended = request is not None and request.fin  # the other side's direction
        self._left = False

    async def send(
        self, message: Message, raw: bytes | memoryview = b"", *, fin: bool = False, urgent: bool = True
    ) -> None:
        """Send one message; waits while too much is queued. Raises `ClosedError` or what ended the connection."""
        while True:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if not self.peer._is_full(self.id, urgent=urgent):
                break
            await self.peer._room.park()
        self.peer._send(self.id, message, raw, fin=fin, urgent=urgent)

    async def receive(self) -> Received | None:
        """The next message, or None when the other side has ended the stream. Raises what ended it otherwise."""
        self._release_request()
        while not self._inbox:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._left:
                raise ClosedError("the stream is closed", peer_id=self.peer.peer_id)
            if self._ended:
                return None
            await self._wake.park()
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
        """Answer with a failure and end the stream; nothing happens if it is already over, for whatever reason."""
        try:
            await self.send(failure_of(error), fin=True)
        except SwarmError:
            return

    def finish(self) -> None:
        """Let what was sent arrive and end our direction; what still comes is dropped."""
        self.peer._finish(self.id)

    def reset(self, reason: str = "") -> None:
        """Drop the stream at once, in both directions."""
        self._leave()
        self.peer._reset(self.id, reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._leave()
            self.finish()
        else:
            self.reset("abandoned")

    # ---- for the connection ---------------------------------------------------------------------------------------

    def _deliver(self, received: Received) -> None:
        self._inbox.append(received)
        self._ended = received.fin
        self._wake.unpark_all()

    def _deliver_end(self) -> None:
        self._ended = True
        self._wake.unpark_all()

    def _end(self, error: SwarmError) -> None:
        self._error = self._error or error
        self._wake.unpark_all()

    def _leave(self) -> None:
        """Nobody reads any more: the room of what lies unread goes back to the other side."""
        self._left = True
        self._release_request()
        while self._inbox:
            self.peer._consumed(self._inbox.popleft())
        self._wake.unpark_all()

    def _release_request(self) -> None:
        if self._request is not None:
            self.peer._consumed(self._request)
            self._request = None
