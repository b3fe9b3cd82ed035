"""Run ``swarm demo`` in a terminal of its own and draw it: ``python docs/record_demo.py docs/demo.svg``."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 88, 60


def record() -> str:
    """Everything the demo wrote to its terminal, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    process = subprocess.Popen(
        [sys.executable, "-m", "swarm", "demo"], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    output = bytearray()
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end of a terminal is closed
            break
        if not data:
            break
        output += data
    if process.wait():
        sys.exit(f"swarm demo failed:\n{output.decode('utf-8', 'replace')}")
    return output.decode("utf-8", "replace").replace("\r\n", "\n")


def draw(output: str, path: Path) -> None:
    """Write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ swarm demo", style="bold"))
    console.print(Text.from_ansi(output.rstrip("\n")))
    console.save_svg(str(path), title="swarm demo")


if __name__ == "__main__":
    draw(record(), Path(sys.argv[1]))
