"""Byte ranges within a model's files, and what is wrong when a layout does not add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class LayoutError(ValueError):
    """A header, configuration or list of ranges that does not add up.

    Internal: whoever knows where the bytes came from turns it into `ModelFolderError` (a folder of ours) or
    `ProtocolError` (a peer's manifest). The message is one line without a subject, to be put after the name of the
    file or manifest.
    """


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ByteRange:
    """Bytes ``[start, stop)`` of file number ``file``, offsets counted from the file's first byte."""

    file: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.file < 0 or not 0 <= self.start < self.stop:
            raise LayoutError(f"range [{self.start}, {self.stop}) of file {self.file} is empty or negative")

    @property
    def size(self) -> int:
        """Bytes in it."""
        return self.stop - self.start


def merge_ranges(ranges: Iterable[ByteRange]) -> tuple[ByteRange, ...]:
    """The same bytes as the fewest ranges, in order of file and offset."""
    merged: list[ByteRange] = []
    for item in sorted(ranges):
        last = merged[-1] if merged else None
        if last is not None and last.file == item.file and item.start <= last.stop:
            merged[-1] = ByteRange(file=last.file, start=last.start, stop=max(last.stop, item.stop))
        else:
            merged.append(item)
    return tuple(merged)
