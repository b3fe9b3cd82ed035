"""Stop strings in a stream of text: everything before the first of them is shown, as early as it is certain. Pure.

The first is the one that ends first; of several that end at the same character, the longest. That does not depend on
how the text was cut into pieces. `cut_at_stop` is the specification: it looks at the whole text at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm.errors import UsageError

MAX_STOPS = 16  # the usual HTTP interfaces allow 4
MAX_STOP_LENGTH = 1024  # characters that may be held back


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that string; the whole text and None if there is none."""
    ends = [(at + len(stop), -len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


class StopStrings:
    """Watches one stream for stop strings; holds back what may be the beginning of one."""

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Raises `UsageError` for too many, an empty one or one too long."""
        check_stops(stops)
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing is shown after it."""

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + text
        shown, self.matched = cut_at_stop(text, self._stops)
        if self.matched is not None:
            self._held = ""
            return shown
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of a stream without a stop string."""
        held, self._held = self._held, ""
        return held


def check_stops(stops: Sequence[str]) -> None:
    """Raise `UsageError` unless these can be stop strings."""
    if len(stops) > MAX_STOPS:
        raise UsageError(f"{len(stops)} stop strings are more than the {MAX_STOPS} allowed; give fewer")
    if any(not 1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise UsageError(f"a stop string has 1 to {MAX_STOP_LENGTH} characters; change the one that has not")


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop`` without being all of it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
