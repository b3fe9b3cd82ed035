"""What the command line writes: data on stdout, everything for people's eyes on stderr."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

RED = "31"
GREEN = "32"
YELLOW = "33"
BAR_WIDTH = 20  # characters; with the numbers beside it the line fits 80 columns
LINE_EVERY = 5.0  # seconds between two lines of progress in a log


def colours(stream: TextIO) -> bool:
    """Whether to colour what goes to ``stream``: a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO) -> str:
    """``text`` in a colour, where ``stream`` shows colours."""
    return f"\033[{colour}m{text}\033[0m" if colours(stream) else text


def printable(text: str, *, keep: str = "") -> str:
    """``text`` on one line and without control characters: what peers send must not steer the terminal.

    Those in ``keep`` stay.
    """
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def print_text(text: str) -> None:
    """A piece of a model's text on stdout as it is, but for what would steer a terminal where stdout is one."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_error(message: str) -> None:
    """One red line on stderr."""
    print(paint(f"swarm: {printable(message)}", RED, sys.stderr), file=sys.stderr, flush=True)


def print_progress(message: str) -> None:
    """One line on stderr about what is going on."""
    print(printable(message), file=sys.stderr, flush=True)


class ProgressBar:
    """How far a transfer is: one line that is written over on a terminal, now and then a line elsewhere."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._rewrites = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._now = now
        self._written = now()  # what takes no longer than that needs no line in a log
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def show(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total`` bytes, and what else there is to say."""
        share = done / total if total else 1.0
        line = f"{share:4.0%} {printable(text)}"
        if self._rewrites:
            filled = round(share * BAR_WIDTH)
            line = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {line}"
            width = shutil.get_terminal_size().columns - 1  # a full line wraps, and cannot be written over
            self._stream.write(f"\r\033[K{line[:width]}")
            self._open = True
        elif self._now() - self._written >= LINE_EVERY:
            self._written = self._now()
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it is; what is printed next begins on a new line."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


def print_json(value: Any) -> None:
    """One line of JSON on stdout; ids and hashes as hex, paths as text, dataclasses as objects."""
    print(json.dumps(value, default=_jsonable, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout, for people; numbers to the right. It is as wide as its cells, so keep them short."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        print(printable(title))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for at, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[at], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(_cell(value))) for value in row))
    Console(highlight=False, no_color=not colours(sys.stdout)).print(table)
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _jsonable(value: object) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
