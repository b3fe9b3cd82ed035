"""anvil, a real EVM node: `npm install` in the repository's root puts it into node_modules."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARY = Path(__file__).parents[2] / "node_modules" / ".bin" / "anvil"
_LISTENING = re.compile(r"Listening on ([0-9.]+):([0-9]+)")


@contextmanager
def running_anvil() -> Iterator[str]:
    """The URL of a node on a free port for the length of the block. Skips the test where it is not installed."""
    if not BINARY.exists():
        pytest.skip("anvil is not installed; run: npm install")
    command = [str(BINARY), "--port", "0", "--chain-id", "1337", "--hardfork", "prague"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                found = _LISTENING.search(line)
                if found:
                    break
            else:
                pytest.fail("anvil ended before it listened")
            # Whoever does not read what it says stops it once the pipe is full.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"http://{found.group(1)}:{found.group(2)}"
        finally:
            process.terminate()
