"""From token ids to text, a few ids at a time: the pieces join up to what decoding all ids at once gives.

How far a decoder looks
-----------------------
The text of a token depends on its neighbours: the first loses its space, bytes of one character are spread over
tokens, and a run of byte tokens (``<0xE2>``) that is not UTF-8 as a whole becomes a replacement sign for every byte.
So a window of the last ids is decoded again with each new one, and what it shows beyond the last time is new text.
Held back are a replacement sign at the end, which may be a character begun (at most three bytes of one, so four
tokens of window always hold its beginning), and a run of byte tokens, until a token that is none ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

WINDOW = 8  # ids decoded again with new ones; four would do for every decoder known here
REPLACEMENT = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of one stream of ids. Made by `client.tokenizer.Tokenizer.detokenizer`."""

    __slots__ = ("_byte_ids", "_decode", "_hidden", "_ids", "_shown")

    def __init__(
        self, decode: Decode, *, hidden: frozenset[int] = frozenset(), byte_ids: frozenset[int] = frozenset()
    ) -> None:
        """``decode`` gives the text of ids at once; ``hidden`` ids have no text, ``byte_ids`` stand for single bytes
        that the decoder joins (empty for one that works on bytes throughout)."""
        self._decode = decode
        self._hidden = hidden
        self._byte_ids = byte_ids
        self._ids: list[int] = []
        self._shown = 0

    def push(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` add and that no later id can change; never part of a character."""
        fresh = [token for token in ids if token not in self._hidden]
        self._ids += fresh
        if not fresh or self._ids[-1] in self._byte_ids:
            return ""
        text = self._stable()
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        if len(self._ids) > 2 * WINDOW:
            del self._ids[:-WINDOW]
            self._shown = len(self._stable())
        return new

    def flush(self) -> str:
        """What was held back, at the end of the stream; the next id begins another stream."""
        text = self._decode(self._ids)[self._shown :] if self._ids else ""
        self._ids, self._shown = [], 0
        return text

    def _stable(self) -> str:
        """The window's text without a sign at its end that may be a character begun."""
        return self._decode(self._ids).removesuffix(REPLACEMENT)
