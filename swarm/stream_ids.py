"""Which stream ids the other side has used. Pure.

Urgent messages overtake others, so a later stream may be heard of before an earlier one: ids that were skipped are
remembered, in bounded number, and each may be used once.
"""

from __future__ import annotations

from swarm.errors import ProtocolError
from swarm.frames import MAX_STREAM_ID


class RemoteIds:
    """The ids of one parity, from the first that the other side may use."""

    __slots__ = ("_most", "_next", "_skipped")

    def __init__(self, first: int, *, most_skipped: int) -> None:
        self._next = first
        self._most = most_skipped
        self._skipped: set[int] = set()

    def use(self, stream: int) -> bool:
        """Whether this is the first use of one of these ids; from then on it is used.

        Raises `ProtocolError` for an id out of range or one that skips too many.
        """
        if stream == 0 or stream % 2 != self._next % 2:
            return False
        if stream < self._next:
            unused = stream in self._skipped
            self._skipped.discard(stream)
            return unused
        skipped = (stream - self._next) // 2
        if stream > MAX_STREAM_ID or len(self._skipped) + skipped > self._most:
            raise ProtocolError(f"stream {stream} was opened after it skipped too many")
        self._skipped.update(range(self._next, stream, 2))
        self._next = stream + 2
        return True

    def __len__(self) -> int:
        """How many ids were skipped and not used yet."""
        return len(self._skipped)

    def clear(self) -> None:
        """Forget what was skipped."""
        self._skipped.clear()
