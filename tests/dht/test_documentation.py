"""What docs/dht.md shows runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from dht import allowance, region, routing, server, store
from dht.lookup import ALPHA, LIAR_AFTER, MAX_PER_PREFIX
from dht.search import AGREEING
from dht.state import MAX_CONTACTS
from dht.votes import MIN_VOTERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dht.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    done = subprocess.run([sys.executable, "-c", example[1]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "[Endpoint(host='127.0.0.1', port=6881)]",
        "{b'any': [b'bencode', 1]}",
        "b'version two' 2",
        "1",
    ]


def test_the_limits_it_names_are_those_of_the_code() -> None:
    assert (server.MAX_ANSWER, store.MAX_TARGETS, store.MAX_PEERS, store.MAX_ITEMS) == (1400, 2048, 256, 4096)
    assert (store.MAX_PEERS_PER_PREFIX, store.MAX_TARGETS_PER_PREFIX, store.MAX_ITEMS_PER_PREFIX) == (32, 256, 256)
    assert (routing.MAX_PER_PREFIX_IN_BUCKET, routing.MAX_PER_PREFIX, MAX_PER_PREFIX) == (2, 10, 3)
    assert (allowance.UNPROVEN_RATE, allowance.UNPROVEN_BURST) == (2 * 1024, 16 * 1024)
    assert (allowance.PROVEN_RATE, allowance.PROVEN_BURST) == (64 * 1024, 256 * 1024)
    assert (ALPHA, AGREEING, LIAR_AFTER, MIN_VOTERS, region.MEMBERS, MAX_CONTACTS) == (5, 3, 4, 4, 16, 64)
