"""The peer protocol between two peers, without I/O: bytes and the time go in; bytes, events and a deadline come out.

Theory of operation
-------------------
The connection runs inside TLS 1.3, which has already proven the called side's key. One greeting proves the caller's:

    state      called side                       caller
    GREETING   sends Hello(nonce); waits         waits for Hello, answers Proof(key, signature), is OPEN
               for Proof, checks it, is OPEN
    OPEN       streams, both ways, opened by either side (the caller's have odd ids, the called side's even ones)
    CLOSED     after GOODBYE, a broken rule, silence, or the end of the bytes; nothing is accepted or sent any more

Before OPEN only the greeting is accepted, on stream 0. A rule that is broken closes the connection with a
`ProtocolError` that names the peer; a stream that is refused or abandoned is RESET and hurts no other.

Sending: each stream may have `STREAM_WINDOW` bytes on the way or unread at the other side, the connection
`CONNECTION_WINDOW`. **A message starts only when all of it fits both windows**, and messages of one class go one
after another, so a message that has started always ends: no deadlock over half-received messages. Urgent messages
(tokens, decode steps, control) go before the frames of bulk ones (prefill, objects), frame by frame.

Liveness: a peer that has been silent for `HEARTBEAT` seconds is pinged; after `DEAD_AFTER` it is dead.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from swarm import messages
from swarm.errors import ClosedError, ProtocolError, SwarmError, UnreachableError, VerificationError
from swarm.frames import (
    END_MESSAGE,
    END_STREAM,
    MAX_MESSAGE,
    MAX_STREAM_ID,
    Frame,
    FrameReader,
    Kind,
    pack_frame,
    pack_message,
    split_message,
)
from swarm.identity import Identity, domain_tag, verify_raw
from swarm.ids import PeerId
from swarm.messages import AnyMessage, Hello, Message, Proof

STREAM_WINDOW = 24 << 20  # at least one message of any allowed size
CONNECTION_WINDOW = 64 << 20  # what one peer can make us hold in all
WINDOW_STEP = 4 << 20  # credit is given back in steps, so that decode steps cost no extra frames
MAX_STREAMS = 1024  # open at once on one connection
MAX_QUEUED = 8 << 20  # bytes waiting to be sent beyond which senders must wait
SEND_BATCH = 256 << 10  # bytes handed to the transport at once; what an urgent message may have to wait for
MAX_REASON = 512
HEARTBEAT = 1.0
DEAD_AFTER = 10.0  # a busy machine may hold a process up for seconds

_CALLER_TAG = domain_tag("swarm-peer/v1")
_U32 = struct.Struct("!I")


class Role(Enum):
    """Which side of the TLS connection this is."""

    CALLER = "caller"
    CALLED = "called"


class State(Enum):
    """See the theory of operation."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Opened:
    """The greeting is done: both keys are proven."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class Received:
    """A whole message. ``first`` marks the one that opens a stream of the peer's; ``fin`` the last of its direction."""

    stream: int
    message: AnyMessage
    raw: memoryview
    first: bool
    fin: bool
    size: int
    """Bytes to give back with `Connection.consumed` once the message has been dealt with."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer ended its direction of a stream without another message."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer dropped a stream."""

    stream: int
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; ``error`` says why, None for a goodbye."""

    error: SwarmError | None


Event = Opened | Received | Ended | Reset | Closed


@dataclass(slots=True)
class _Stream:
    send_window: int = STREAM_WINDOW
    unread: int = 0  # consumed bytes not yet given back
    parts: list[bytes] = field(default_factory=list)
    parts_size: int = 0
    deaf: bool = False  # nobody reads it any more: what still comes is dropped
    started: bool = False  # a message of the peer's has arrived
    sent_fin: bool = False
    got_fin: bool = False


@dataclass(slots=True)
class _Outgoing:
    stream: int
    frames: deque[bytes]
    size: int
    fin: bool
    begun: bool = False


def proof_message(server: PeerId, nonce: bytes) -> bytes:
    """What the caller signs: tag ‖ the called side's key ‖ its nonce."""
    return _CALLER_TAG + server + nonce


class Connection:
    """One side of one connection."""

    def __init__(self, identity: Identity, *, remote: PeerId | None = None, nonce: bytes = b"", now: float) -> None:
        """The caller gives ``remote``, the key that TLS has proven; the called side ``nonce``, 32 random bytes."""
        if (remote is None) == (nonce == b""):
            raise ValueError("the caller gives the remote key, the called side a nonce")
        self.role = Role.CALLED if remote is None else Role.CALLER
        self.state = State.GREETING
        self.peer_id = remote
        self._identity = identity
        self._called_key = identity.peer_id if remote is None else remote
        self._nonce = nonce
        self._reader = FrameReader()
        self._control: deque[bytes] = deque()  # greeting, windows, resets, pings: before everything else
        self._urgent: deque[_Outgoing] = deque()
        self._bulk: deque[_Outgoing] = deque()
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1 if self.role is Role.CALLER else 2
        self._last_remote = 0
        self._send_window = CONNECTION_WINDOW
        self._unread = 0
        self._held = 0  # bytes of messages the peer has sent and we have not consumed
        self._heard = now
        self._pinged = now
        self.queued = 0
        self._events: deque[Event] = deque()
        if self.role is Role.CALLED:
            self._control.extend(pack_message(0, messages.encode(Hello(nonce, agent="swarm-inference"))))

    # ---- bytes and time in ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Bytes from the transport; empty means it has ended. Returns what happened, in order; never raises."""
        if self.state is State.CLOSED:
            return []
        self._heard = now
        if not data:
            self._close(UnreachableError(f"peer {self._name()} closed the connection", peer_id=self.peer_id))
        try:
            for frame in self._reader.receive(data):
                self._receive_frame(frame)
                if self.state is State.CLOSED:  # type: ignore[comparison-overlap]
                    break
        except (ProtocolError, VerificationError) as error:
            error.peer_id = self.peer_id
            self._control.append(pack_frame(Kind.GOODBYE, 0, error.message.encode()[:MAX_REASON]))
            self._close(error)
        events = list(self._events)
        self._events.clear()
        return events

    def next_deadline(self) -> float:
        """When `handle_timer` wants to be called, on the clock of ``now``; infinity when closed."""
        if self.state is State.CLOSED:
            return float("inf")
        if self.state is State.GREETING:
            return self._heard + DEAD_AFTER
        return min(max(self._heard, self._pinged) + HEARTBEAT, self._heard + DEAD_AFTER)

    def handle_timer(self, now: float) -> list[Event]:
        """Ping a silent peer; give up on a dead one."""
        if self.state is State.CLOSED:
            return []
        if now >= self._heard + DEAD_AFTER:
            what = f"peer {self._name()} has been silent for {DEAD_AFTER:.0f} s"
            self._close(UnreachableError(what, peer_id=self.peer_id))
        elif self.state is State.OPEN and now >= max(self._heard, self._pinged) + HEARTBEAT:
            self._pinged = now
            self._control.append(pack_frame(Kind.PING, 0, bytes(8)))
        events = list(self._events)
        self._events.clear()
        return events

    # ---- requests in ----------------------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """A new stream's id. Raises `ClosedError` when the connection is over or has its fill of streams."""
        if self.state is State.CLOSED:
            raise ClosedError(f"the connection to peer {self._name()} is closed", peer_id=self.peer_id)
        if len(self._streams) >= MAX_STREAMS or self._next_stream > MAX_STREAM_ID:
            raise ClosedError(f"too many open streams to peer {self._name()}", peer_id=self.peer_id)
        stream = self._next_stream
        self._next_stream += 2
        self._streams[stream] = _Stream()
        return stream

    def send(
        self, stream: int, message: Message, raw: bytes | memoryview = b"", *, fin: bool = False, urgent: bool = True
    ) -> None:
        """Queue a message. Raises `ClosedError` on a stream that is over."""
        state = self._streams.get(stream)
        if self.state is State.CLOSED or state is None or state.sent_fin:
            raise ClosedError(f"the stream to peer {self._name()} is closed", peer_id=self.peer_id)
        header = messages.encode(message)
        if len(header) + len(raw) + _U32.size > MAX_MESSAGE:
            raise ProtocolError(f"a message of {len(raw)} bytes is over the limit of {MAX_MESSAGE}; send less at once")
        frames = pack_message(stream, header, raw, fin=fin)
        size = len(header) + len(raw) + _U32.size
        state.sent_fin = fin
        self.queued += size
        self._queue_for(stream, urgent).append(_Outgoing(stream, deque(frames), size, fin))

    def consumed(self, received: Received) -> None:
        """The message has been dealt with: its room can be given back to the peer."""
        self._held -= received.size
        self._unread += received.size
        if self._unread >= WINDOW_STEP:
            self._control.append(pack_frame(Kind.WINDOW, 0, _U32.pack(self._unread)))
            self._unread = 0
        state = self._streams.get(received.stream)
        if state is not None:
            state.unread += received.size
            if state.unread >= WINDOW_STEP:
                self._control.append(pack_frame(Kind.WINDOW, received.stream, _U32.pack(state.unread)))
                state.unread = 0

    def finish(self, stream: int) -> None:
        """End our direction after what is queued, and drop whatever still comes from the other side."""
        state = self._streams.get(stream)
        if state is None:
            return
        state.deaf = True
        if not state.sent_fin:
            state.sent_fin = True
            end = pack_frame(Kind.DATA, stream, flags=END_STREAM)
            self._queue_for(stream, True).append(_Outgoing(stream, deque([end]), 0, True))
        self._forget_if_done(stream)

    def reset(self, stream: int, reason: str) -> None:
        """Drop a stream, and what was still to be sent on it unless it has begun."""
        if not self._drop(stream) or self.state is State.CLOSED:
            return
        for queue in (self._urgent, self._bulk):
            for item in [item for item in queue if item.stream == stream and not item.begun]:
                queue.remove(item)
                self.queued -= item.size
        self._control.append(pack_frame(Kind.RESET, stream, reason.encode()[:MAX_REASON]))

    def close(self, reason: str = "") -> None:
        """Say goodbye; what is queued and not sent is dropped."""
        if self.state is not State.CLOSED:
            self._control.append(pack_frame(Kind.GOODBYE, 0, reason.encode()[:MAX_REASON]))
            self._close(None)

    # ---- bytes out ------------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """The next bytes for the transport, at most about `SEND_BATCH`; empty when there is nothing to send now."""
        out: list[bytes] = []
        size = 0
        while self._control:
            out.append(self._control.popleft())
        if self.state is State.OPEN:
            while size < SEND_BATCH and (frame := self._next_frame()) is not None:
                out.append(frame)
                size += len(frame)
        return out[0] if len(out) == 1 else b"".join(out)

    def _queue_for(self, stream: int, urgent: bool) -> deque[_Outgoing]:
        """By urgency, but a stream keeps its order: it stays in the queue that still holds a message of its own."""
        other = self._bulk if urgent else self._urgent
        if any(item.stream == stream for item in other):
            return other
        return self._urgent if urgent else self._bulk

    def _next_frame(self) -> bytes | None:
        for queue in (self._urgent, self._bulk):
            item = self._next_message(queue)
            if item is None:
                continue
            frame = item.frames.popleft()
            if not item.frames:
                queue.popleft()
                self.queued -= item.size
                if item.fin:
                    self._forget_if_done(item.stream)
            return frame
        return None

    def _next_message(self, queue: deque[_Outgoing]) -> _Outgoing | None:
        """The begun message at the head of its queue, or the first that fits its windows, moved to the head."""
        if not queue or queue[0].begun:
            return queue[0] if queue else None
        blocked: set[int] = set()  # a stream's own messages keep their order
        for index, item in enumerate(queue):
            if item.stream not in blocked and self._admit(item):
                item.begun = True
                if index:
                    del queue[index]
                    queue.appendleft(item)
                return item
            blocked.add(item.stream)
        return None

    def _admit(self, item: _Outgoing) -> bool:
        state = self._streams.get(item.stream)
        window = state.send_window if state is not None else STREAM_WINDOW
        if item.size > window or item.size > self._send_window:
            return False
        if state is not None:
            state.send_window -= item.size
        self._send_window -= item.size
        return True

    # ---- frames in ------------------------------------------------------------------------------------------------

    def _receive_frame(self, frame: Frame) -> None:
        if self.state is State.GREETING:
            self._greet(frame)
            return
        match frame.kind:
            case Kind.DATA:
                self._receive_part(frame)
            case Kind.WINDOW:
                self._receive_window(frame)
            case Kind.RESET:
                if self._drop(frame.stream):
                    self._events.append(Reset(frame.stream, _reason(frame.payload)))
            case Kind.PING:
                if len(frame.payload) != 8:
                    raise ProtocolError("a ping carries 8 bytes")
                self._control.append(pack_frame(Kind.PONG, 0, frame.payload))
            case Kind.PONG:
                pass
            case Kind.GOODBYE:
                reason = _reason(frame.payload)
                what = f"peer {self._name()} closed the connection" + (f": {reason}" if reason else "")
                self._close(ClosedError(what, peer_id=self.peer_id))
            case _:
                raise ProtocolError(f"peer {self._name()} sent a frame of unknown kind {frame.kind}")

    def _greet(self, frame: Frame) -> None:
        if frame.kind == Kind.GOODBYE:
            self._close(ClosedError(f"peer {self._name()} refused us: {_reason(frame.payload)}", peer_id=self.peer_id))
            return
        if frame.kind == Kind.PING:
            return
        if frame.kind != Kind.DATA or frame.stream != 0 or not frame.flags & END_MESSAGE:
            raise ProtocolError(f"peer {self._name()} did not begin with a greeting")
        header, _ = split_message(frame.payload)
        message = messages.decode(header)
        if self.role is Role.CALLER and isinstance(message, Hello):
            self._check_version(message.version)
            signature = self._identity.sign_raw(proof_message(self._called_key, message.nonce))
            proof = Proof(self._identity.peer_id, signature, agent="swarm-inference")
            self._control.extend(pack_message(0, messages.encode(proof)))
            peer_id = self._called_key
        elif self.role is Role.CALLED and isinstance(message, Proof):
            self._check_version(message.version)
            if not verify_raw(message.peer_id, proof_message(self._called_key, self._nonce), message.signature):
                raise VerificationError(f"peer {message.peer_id.short} did not prove its key")
            peer_id = self.peer_id = message.peer_id
        else:
            raise ProtocolError(f"peer {self._name()} did not begin with a greeting")
        self.state = State.OPEN
        self._events.append(Opened(peer_id))

    def _check_version(self, version: int) -> None:
        if version != messages.VERSION:
            raise ProtocolError(
                f"peer {self._name()} speaks version {version} of the peer protocol, this is {messages.VERSION}: "
                "upgrade the older one"
            )

    def _receive_part(self, frame: Frame) -> None:
        state = self._streams.get(frame.stream)
        if state is None:
            state = self._accept(frame)
            if state is None:
                return
        if state.got_fin:
            raise ProtocolError(f"peer {self._name()} sent on a stream it had ended")
        self._held += len(frame.payload)
        if self._held > CONNECTION_WINDOW + STREAM_WINDOW:
            raise ProtocolError(f"peer {self._name()} sent more than its window allows")
        state.parts.append(frame.payload)
        state.parts_size += len(frame.payload)
        if state.parts_size > MAX_MESSAGE:
            raise ProtocolError(f"peer {self._name()} sent a message over the limit of {MAX_MESSAGE} bytes")
        if not frame.flags & END_MESSAGE:
            if frame.flags & END_STREAM:
                self._end_direction(frame.stream, state)
            return
        body = state.parts[0] if len(state.parts) == 1 else b"".join(state.parts)
        state.parts, state.parts_size = [], 0
        header, raw = split_message(body)
        first, state.started = not state.started and frame.stream % 2 != self._next_stream % 2, True
        state.got_fin = bool(frame.flags & END_STREAM)
        message = messages.decode(header)
        received = Received(frame.stream, message, raw, first, state.got_fin, len(body))
        if state.deaf:
            self.consumed(received)
        else:
            self._events.append(received)
        if state.got_fin:
            self._forget_if_done(frame.stream)

    def _end_direction(self, stream: int, state: _Stream) -> None:
        if state.parts_size or not (state.started or stream % 2 == self._next_stream % 2):
            raise ProtocolError(f"peer {self._name()} ended a stream in the middle of a message")
        state.got_fin = True
        if not state.deaf:
            self._events.append(Ended(stream))
        self._forget_if_done(stream)

    def _accept(self, frame: Frame) -> _Stream | None:
        """A stream the peer opens, or None for the rest of one that we have dropped."""
        if frame.stream == 0:
            raise ProtocolError(f"peer {self._name()} sent data on stream 0 after the greeting")
        ours = frame.stream % 2 == self._next_stream % 2
        if ours and frame.stream >= self._next_stream:
            raise ProtocolError(f"peer {self._name()} sent on stream {frame.stream}, which was never opened")
        if ours or frame.stream <= self._last_remote:
            self._unread += len(frame.payload)
            return None
        if len(self._streams) >= MAX_STREAMS:
            self._last_remote = frame.stream
            self._control.append(pack_frame(Kind.RESET, frame.stream, b"too many open streams"))
            self._unread += len(frame.payload)
            return None
        self._last_remote = frame.stream
        state = self._streams[frame.stream] = _Stream()
        return state

    def _receive_window(self, frame: Frame) -> None:
        if len(frame.payload) != _U32.size:
            raise ProtocolError("a window frame carries 4 bytes")
        (credit,) = _U32.unpack(frame.payload)
        if frame.stream == 0:
            self._send_window = min(self._send_window + credit, CONNECTION_WINDOW)
        elif (state := self._streams.get(frame.stream)) is not None:
            state.send_window = min(state.send_window + credit, STREAM_WINDOW)

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _forget_if_done(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is not None and state.sent_fin and (state.got_fin or state.deaf) and not self._sending(stream):
            self._drop(stream)

    def _drop(self, stream: int) -> bool:
        """Forget a stream; the room of a message that will never be whole goes back to the peer."""
        state = self._streams.pop(stream, None)
        if state is None:
            return False
        self._held -= state.parts_size
        self._unread += state.parts_size
        return True

    def _sending(self, stream: int) -> bool:
        return any(item.stream == stream for queue in (self._urgent, self._bulk) for item in queue)

    def _close(self, error: SwarmError | None) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._urgent.clear()
            self._bulk.clear()
            self._streams.clear()
            self._events.append(Closed(error))

    def _name(self) -> str:
        return self.peer_id.short if self.peer_id is not None else "(unknown)"


def _reason(payload: bytes) -> str:
    text = payload[:MAX_REASON].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
