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

Sending is in `swarm.outbox`: windows, and urgent messages (tokens, decode steps, control) before bulk ones (prefill,
objects). What it may send is checked here on arrival: a peer that overruns a window has broken a rule.

Streams need not arrive in the order of their ids, since an urgent message overtakes a bulk one: ids below the highest
seen that have not been used are remembered. A stream that is dropped before anything was sent on it is RESET too.

Liveness: a peer that has been silent for `HEARTBEAT` seconds is pinged; after `DEAD_AFTER` it is dead. A timer that
comes late says that this process was held up, and blames nobody.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from swarm import messages
from swarm.errors import ClosedError, ProtocolError, SwarmError, UnreachableError, UsageError, VerificationError
from swarm.events import Closed, Ended, Event, Opened, Received, Reset, Role, State
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
    pack_reason,
    read_reason,
    split_message,
)
from swarm.greeting import AGENT, check_proof, prove
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.messages import Hello, Message, Proof
from swarm.outbox import CONNECTION_WINDOW, STREAM_WINDOW, WINDOW_STEP, Outbox
from swarm.stream_ids import RemoteIds

MAX_STREAMS = 1024  # open at once on one connection
MAX_CONTROL = 4096  # answers waiting for a peer that asks and does not read
SEND_BATCH = 256 << 10  # bytes handed to the transport at once; what an urgent message may have to wait for
HEARTBEAT = 1.0
DEAD_AFTER = 10.0  # a busy machine may hold a process up for seconds

_U32 = struct.Struct("!I")


@dataclass(slots=True)
class _Stream:
    held: int = 0  # bytes received and not yet consumed, whole messages and parts
    unread: int = 0  # consumed bytes not yet given back
    parts: bytearray | None = None  # of a message that is not whole; one array, so that tiny frames cost no more
    deaf: bool = False  # nobody reads it any more: what still comes is dropped
    announced: bool = False  # the other side has heard, or will hear, of the stream
    started: bool = False  # a message of the peer's has arrived
    sent_fin: bool = False
    got_fin: bool = False


class Connection:
    """One side of one connection."""

    def __init__(self, identity: Identity, *, remote: PeerId | None = None, nonce: bytes = b"", now: float) -> None:
        """The caller gives ``remote``, the key that TLS has proven; the called side ``nonce``, 32 random bytes."""
        if len(nonce) != (32 if remote is None else 0):
            raise ValueError("the caller gives the remote key, the called side a nonce of 32 bytes")
        self.role = Role.CALLED if remote is None else Role.CALLER
        self.state = State.GREETING
        self.peer_id = remote
        self._identity = identity
        self._called_key = identity.peer_id if remote is None else remote
        self._nonce = nonce
        self._reader = FrameReader()
        self._outbox = Outbox()
        self._control = self._outbox.control
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1 if self.role is Role.CALLER else 2
        self._remote_ids = RemoteIds(2 if self.role is Role.CALLER else 1, most_skipped=MAX_STREAMS)
        self._unread = 0  # bytes consumed and not yet given back
        self._held = 0  # bytes received and not consumed, parts of messages with them
        self._delivered = 0  # those of whole messages
        self._heard = self._started = self._pinged = now
        self._events: deque[Event] = deque()
        if self.role is Role.CALLED:
            self._control.extend(pack_message(0, messages.encode(Hello(nonce, agent=AGENT))))

    @property
    def queued(self) -> int:
        """Bytes waiting to be sent, with what they cost to keep."""
        return self._outbox.queued

    @property
    def held(self) -> int:
        """Bytes the peer has sent that have not been consumed."""
        return self._held

    @property
    def streams(self) -> int:
        """Streams that are not over, what is still to be sent on them included."""
        return len(self._streams)

    def is_full(self, stream: int, *, urgent: bool) -> bool:
        """Whether a sender of this class must wait before it may `send`."""
        return self._outbox.is_full(stream, urgent=urgent)

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
                if len(self._control) > MAX_CONTROL:
                    raise ProtocolError(f"peer {self._name()} does not read the answers it asks for")
        except (ProtocolError, VerificationError) as error:
            error.peer_id = self.peer_id
            self._control.append(pack_frame(Kind.GOODBYE, 0, pack_reason(error.message)))
            self._close(error)
        events = list(self._events)
        self._events.clear()
        return events

    def next_deadline(self) -> float:
        """When `handle_timer` wants to be called, on the clock of ``now``; infinity when closed."""
        if self.state is State.CLOSED:
            return float("inf")
        if self.state is State.GREETING:
            return self._started + DEAD_AFTER  # from the start: dripping bytes buys no time
        return min(max(self._heard, self._pinged) + HEARTBEAT, self._heard + DEAD_AFTER)

    def handle_timer(self, now: float) -> list[Event]:
        """Ping a silent peer; give up on a dead one. Call it when `next_deadline` has passed and no bytes have come."""
        if self.state is State.CLOSED:
            return []
        if now > self.next_deadline() + HEARTBEAT:
            # This process was stopped or starved; what the peer has sent meanwhile may still lie in a buffer.
            self._heard = now - HEARTBEAT
            self._started = now + HEARTBEAT - DEAD_AFTER
        if self.state is State.GREETING and now >= self._started + DEAD_AFTER:
            what = f"peer {self._name()} did not greet within {DEAD_AFTER:.0f} s"
            self._close(UnreachableError(what, peer_id=self.peer_id))
        if self.state is State.OPEN and now >= self._heard + DEAD_AFTER:
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
        self._open(stream)
        return stream

    def send(
        self, stream: int, message: Message, raw: bytes | memoryview = b"", *, fin: bool = False, urgent: bool = True
    ) -> None:
        """Queue a message. Raises `ClosedError` on a stream that is over, `UsageError` for one that is too large."""
        state = self._streams.get(stream)
        if self.state is State.CLOSED or state is None or state.sent_fin:
            raise ClosedError(f"the stream to peer {self._name()} is closed", peer_id=self.peer_id)
        header = messages.encode(message)
        size = _U32.size + len(header) + len(raw)
        if size > MAX_MESSAGE or len(header) > messages.MAX_HEADER:
            raise UsageError(f"a message of {size} bytes is over the limit of {MAX_MESSAGE}; send less at once")
        state.sent_fin, state.announced = fin, True
        self._outbox.push(stream, pack_message(stream, header, raw, fin=fin), size, fin=fin, urgent=urgent)

    def consumed(self, received: Received) -> None:
        """The message has been dealt with: its room can be given back to the peer."""
        self._held -= received.size
        self._delivered -= received.size
        self._give_back(received.size)
        state = self._streams.get(received.stream)
        if state is not None:
            state.held -= received.size
            self._give_back_on(received.stream, state, received.size)

    def finish(self, stream: int) -> None:
        """End our direction after what is queued, and drop whatever still comes from the other side."""
        state = self._streams.get(stream)
        if state is None:
            return
        if not state.announced:
            self.reset(stream, "")
            return
        state.deaf = True
        self._drop_parts(stream, state)
        if not state.sent_fin:
            state.sent_fin = True
            self._outbox.push_end(stream)
        self._forget_if_done(stream)

    def reset(self, stream: int, reason: str) -> None:
        """Drop a stream, and what was still to be sent on it."""
        if self._drop(stream):
            self._control.append(pack_frame(Kind.RESET, stream, pack_reason(reason)))

    def close(self, reason: str = "") -> None:
        """Say goodbye; what is queued and not sent is dropped."""
        if self.state is not State.CLOSED:
            self._control.append(pack_frame(Kind.GOODBYE, 0, pack_reason(reason)))
            self._close(None)

    # ---- bytes out ------------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """The next bytes for the transport, at most about `SEND_BATCH`; empty when there is nothing to send now."""
        out: list[bytes] = []
        size = 0
        while self._control:
            out.append(self._control.popleft())
        while self.state is State.OPEN and size < SEND_BATCH and (item := self._outbox.next_frame()) is not None:
            frame, ended = item
            out.append(frame)
            size += len(frame)
            if ended is not None:
                self._forget_if_done(ended)
        return out[0] if len(out) == 1 else b"".join(out)

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
                self._remote_ids.use(frame.stream)
                if self._drop(frame.stream):
                    self._events.append(Reset(frame.stream, read_reason(frame.payload)))
            case Kind.PING:
                if len(frame.payload) != 8:
                    raise ProtocolError("a ping carries 8 bytes")
                self._control.append(pack_frame(Kind.PONG, 0, frame.payload))
            case Kind.PONG:
                pass
            case Kind.GOODBYE:
                reason = read_reason(frame.payload)
                what = f"peer {self._name()} closed the connection" + (f": {reason}" if reason else "")
                self._close(ClosedError(what, peer_id=self.peer_id))
            case _:
                raise ProtocolError(f"peer {self._name()} sent a frame of unknown kind {frame.kind}")

    def _greet(self, frame: Frame) -> None:
        if frame.kind == Kind.GOODBYE:
            self._close(
                ClosedError(f"peer {self._name()} refused us: {read_reason(frame.payload)}", peer_id=self.peer_id)
            )
            return
        if frame.kind == Kind.PING:
            return
        if frame.kind != Kind.DATA or frame.stream != 0 or not frame.flags & END_MESSAGE:
            raise ProtocolError(f"peer {self._name()} did not begin with a greeting")
        header, _ = split_message(frame.payload)
        message = messages.decode(header)
        if self.role is Role.CALLER and isinstance(message, Hello):
            proof = prove(self._identity, self._called_key, message)
            self._control.extend(pack_message(0, messages.encode(proof)))
            peer_id = self._called_key
        elif self.role is Role.CALLED and isinstance(message, Proof):
            peer_id = self.peer_id = check_proof(message, self._called_key, self._nonce)
        else:
            raise ProtocolError(f"peer {self._name()} did not begin with a greeting")
        self.state = State.OPEN
        self._events.append(Opened(peer_id))

    def _receive_part(self, frame: Frame) -> None:
        state = self._streams.get(frame.stream)
        if state is None:
            state = self._accept(frame)
            if state is None:
                return
        if state.got_fin:
            raise ProtocolError(f"peer {self._name()} sent on a stream it had ended")
        if not frame.payload and not frame.flags & END_STREAM:
            raise ProtocolError(f"peer {self._name()} sent an empty frame that ends nothing")
        size = len(frame.payload)
        if state.deaf:
            self._give_back(size)
            self._give_back_on(frame.stream, state, size)
            state.got_fin = bool(frame.flags & END_STREAM)
            self._forget_if_done(frame.stream)
            return
        self._held += size
        state.held += size
        self._check_window(state)
        if not frame.flags & END_MESSAGE:
            self._add_part(frame, state)
            return
        body: bytes | bytearray = frame.payload
        if state.parts is not None:
            state.parts += frame.payload
            body, state.parts = state.parts, None
        self._receive_message(frame, state, body)

    def _check_window(self, state: _Stream) -> None:
        # Exact, though credit is on its way: the sender counts it later than we do, never sooner.
        if self._held + self._unread > CONNECTION_WINDOW or state.held + state.unread > STREAM_WINDOW:
            raise ProtocolError(f"peer {self._name()} sent more than its window allows")
        if state.parts is not None and len(state.parts) > MAX_MESSAGE:
            raise ProtocolError(f"peer {self._name()} sent a message over the limit of {MAX_MESSAGE} bytes")

    def _add_part(self, frame: Frame, state: _Stream) -> None:
        """A frame that does not end a message; it may end the stream, between messages."""
        if not frame.flags & END_STREAM:
            if state.parts is None:
                state.parts = bytearray()
            state.parts += frame.payload
            return
        ours = frame.stream % 2 == self._next_stream % 2
        if frame.payload or state.parts is not None or not (state.started or ours):
            raise ProtocolError(f"peer {self._name()} ended a stream in the middle of a message")
        state.got_fin = True
        self._events.append(Ended(frame.stream))
        self._forget_if_done(frame.stream)

    def _receive_message(self, frame: Frame, state: _Stream, body: bytes | bytearray) -> None:
        if len(body) > MAX_MESSAGE:
            raise ProtocolError(f"peer {self._name()} sent a message over the limit of {MAX_MESSAGE} bytes")
        header, raw = split_message(body)
        message = messages.decode(header)
        if isinstance(message, Hello | Proof):
            raise ProtocolError(f"peer {self._name()} greeted twice")
        first, state.started = not state.started and frame.stream % 2 != self._next_stream % 2, True
        state.got_fin = bool(frame.flags & END_STREAM)
        received = Received(frame.stream, message, raw, first, state.got_fin, len(body))
        self._delivered += received.size
        self._events.append(received)
        if state.got_fin:
            self._forget_if_done(frame.stream)

    def _accept(self, frame: Frame) -> _Stream | None:
        """A stream the peer opens, or None for the rest of one that we have dropped."""
        if frame.stream == 0:
            raise ProtocolError(f"peer {self._name()} sent data on stream 0 after the greeting")
        if frame.stream % 2 == self._next_stream % 2 and frame.stream >= self._next_stream:
            raise ProtocolError(f"peer {self._name()} sent on stream {frame.stream}, which was never opened")
        if self._remote_ids.use(frame.stream):
            if len(self._streams) < MAX_STREAMS:
                return self._open(frame.stream, announced=True)
            self._control.append(pack_frame(Kind.RESET, frame.stream, b"too many open streams"))
        self._give_back(len(frame.payload))
        return None

    def _receive_window(self, frame: Frame) -> None:
        if len(frame.payload) != _U32.size:
            raise ProtocolError("a window frame carries 4 bytes")
        (amount,) = _U32.unpack(frame.payload)
        self._outbox.credit(frame.stream, amount)

    def _give_back(self, size: int) -> None:
        """Room on the connection that is free again; told to the peer in steps."""
        self._unread += size
        if self._unread >= WINDOW_STEP and self.state is State.OPEN:
            self._control.append(pack_frame(Kind.WINDOW, 0, _U32.pack(self._unread)))
            self._unread = 0

    def _give_back_on(self, stream: int, state: _Stream, size: int) -> None:
        """The same on one stream, while the peer may still send on it."""
        state.unread += size
        if state.unread >= WINDOW_STEP and not state.got_fin:
            self._control.append(pack_frame(Kind.WINDOW, stream, _U32.pack(state.unread)))
            state.unread = 0

    def _drop_parts(self, stream: int, state: _Stream) -> None:
        """The room of a message that nobody will see whole goes back to the peer."""
        if state.parts is not None:
            size, state.parts = len(state.parts), None
            self._held -= size
            state.held -= size
            self._give_back(size)
            self._give_back_on(stream, state, size)

    # ---- beginnings and ends --------------------------------------------------------------------------------------

    def _open(self, stream: int, *, announced: bool = False) -> _Stream:
        self._outbox.open(stream)
        state = self._streams[stream] = _Stream(announced=announced)
        return state

    def _forget_if_done(self, stream: int) -> None:
        state = self._streams.get(stream)
        if state is None or self._outbox.is_sending(stream):
            return
        # A stream that nobody reads lives on until its sender ends it, who needs credit for what is dropped here.
        if state.sent_fin and state.got_fin:
            self._drop(stream)

    def _drop(self, stream: int) -> bool:
        """Forget a stream."""
        state = self._streams.pop(stream, None)
        if state is None:
            return False
        self._outbox.drop(stream)
        state.got_fin = True
        self._drop_parts(stream, state)
        return True

    def _close(self, error: SwarmError | None) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            for stream in list(self._streams):
                self._drop(stream)
            self._outbox.clear()
            self._held = self._delivered
            self._remote_ids.clear()
            self._events.append(Closed(error))

    def _name(self) -> str:
        return self.peer_id.short if self.peer_id is not None else "(unknown)"
