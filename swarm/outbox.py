"""The sending half of a connection: which frame goes next, and how much may be on its way.

Each stream may have `STREAM_WINDOW` bytes on the way or unread at the other side, the connection `CONNECTION_WINDOW`.
**A message starts only when all of it fits both windows**, and messages of one class go one after another, so a
message that has started always can end: no deadlock over half-received messages. Urgent messages go before the
frames of bulk ones, frame by frame. A stream's own messages keep their order: what follows a bulk one waits behind it,
whatever it is, and a bulk one waits for the urgent ones before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.frames import END_STREAM, HEADER_SIZE, MAX_MESSAGE, Kind, pack_frame

WINDOW_STEP = 4 << 20  # credit is given back in steps, so that decode steps cost no extra frames
# At least one message of any allowed size, also while the last step of credit is still being held back.
STREAM_WINDOW = MAX_MESSAGE + WINDOW_STEP
CONNECTION_WINDOW = 64 << 20  # what one peer can make us hold in all
MAX_QUEUED = 8 << 20  # bytes of one class waiting to be sent beyond which its senders must wait
MESSAGE_COST = 512  # what a queued message takes beside its bytes, so that tiny ones are bounded as well


@dataclass(slots=True, eq=False)
class _Message:
    stream: int
    frames: deque[bytes]
    size: int
    fin: bool
    urgent: bool
    begun: bool = False


@dataclass(slots=True, eq=False)
class _Sender:
    window: int
    urgent: int = 0  # messages not wholly sent, by the queue they are in
    bulk: int = 0


class Outbox:
    """Queues by urgency, and the windows that the other side grants."""

    __slots__ = ("_bulk", "_queued", "_senders", "_urgent", "_window", "control")

    def __init__(self) -> None:
        self.control: deque[bytes] = deque()
        """Frames that go before everything else and count for no window: greeting, windows, resets, pings."""
        self._urgent: deque[_Message] = deque()
        self._bulk: deque[_Message] = deque()
        self._queued = {True: 0, False: 0}
        self._senders: dict[int, _Sender] = {}
        self._window = CONNECTION_WINDOW

    @property
    def queued(self) -> int:
        """What waits to be sent, in bytes, each message with its `MESSAGE_COST`."""
        return self._queued[True] + self._queued[False]

    @property
    def window(self) -> int:
        """Bytes that may be begun on the connection now."""
        return self._window

    def stream_window(self, stream: int) -> int:
        """Bytes that may be begun on an open stream now."""
        return self._senders[stream].window

    def is_full(self, stream: int, *, urgent: bool) -> bool:
        """Whether a sender of this class must wait. A prefill on its way holds up no other stream's token."""
        return self._queued[self._class(stream, urgent)] > MAX_QUEUED

    def is_sending(self, stream: int) -> bool:
        """Whether anything of the stream is not wholly sent."""
        sender = self._senders.get(stream)
        return sender is not None and sender.urgent + sender.bulk > 0

    # ---- streams --------------------------------------------------------------------------------------------------

    def open(self, stream: int) -> None:
        """Begin to count for a stream."""
        self._senders[stream] = _Sender(STREAM_WINDOW)

    def drop(self, stream: int) -> None:
        """Forget a stream and what was still to be sent on it; the room of frames never sent is free again."""
        sender = self._senders.pop(stream, None)
        if sender is not None and sender.urgent:
            self._urgent = self._without(stream, self._urgent)
        if sender is not None and sender.bulk:
            self._bulk = self._without(stream, self._bulk)

    def _without(self, stream: int, queue: deque[_Message]) -> deque[_Message]:
        for item in queue:
            if item.stream == stream:
                self._queued[item.urgent] -= item.size + MESSAGE_COST
                if item.begun:
                    self._window += sum(len(frame) - HEADER_SIZE for frame in item.frames)
        return deque(item for item in queue if item.stream != stream)

    def clear(self) -> None:
        """Forget all streams. Control frames stay: the reason for a goodbye is among them."""
        self._urgent.clear()
        self._bulk.clear()
        self._senders.clear()
        self._queued = {True: 0, False: 0}

    # ---- messages and credit --------------------------------------------------------------------------------------

    def push(self, stream: int, frames: Sequence[bytes], size: int, *, fin: bool, urgent: bool) -> None:
        """Queue the frames of a message of ``size`` bytes on an open stream."""
        urgent = self._class(stream, urgent)
        self._queued[urgent] += size + MESSAGE_COST
        if urgent:
            self._senders[stream].urgent += 1
        else:
            self._senders[stream].bulk += 1
        (self._urgent if urgent else self._bulk).append(_Message(stream, deque(frames), size, fin, urgent))

    def _class(self, stream: int, urgent: bool) -> bool:
        """What a message is queued as: nothing overtakes its own stream's bulk messages."""
        sender = self._senders.get(stream)
        return urgent and (sender is None or not sender.bulk)

    def push_end(self, stream: int) -> None:
        """Queue the end of our direction."""
        self.push(stream, [pack_frame(Kind.DATA, stream, flags=END_STREAM)], 0, fin=True, urgent=True)

    def credit(self, stream: int, amount: int) -> None:
        """The other side has room for that many more bytes; stream 0 is the connection. Never above the window."""
        if stream == 0:
            self._window = min(self._window + amount, CONNECTION_WINDOW)
        elif (sender := self._senders.get(stream)) is not None:
            sender.window = min(sender.window + amount, STREAM_WINDOW)

    def next_frame(self) -> tuple[bytes, int | None] | None:
        """The next frame, and the stream whose last one it was, if it was. None when nothing may go now."""
        for queue in (self._urgent, self._bulk):
            item = self._next_message(queue)
            if item is None:
                continue
            frame = item.frames.popleft()
            if item.frames:
                return frame, None
            queue.popleft()
            self._queued[item.urgent] -= item.size + MESSAGE_COST
            if item.urgent:
                self._senders[item.stream].urgent -= 1
            else:
                self._senders[item.stream].bulk -= 1
            return frame, item.stream if item.fin else None
        return None

    def _next_message(self, queue: deque[_Message]) -> _Message | None:
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

    def _admit(self, item: _Message) -> bool:
        sender = self._senders[item.stream]
        if item.size > sender.window or item.size > self._window or (sender.urgent and not item.urgent):
            return False
        sender.window -= item.size
        self._window -= item.size
        return True
