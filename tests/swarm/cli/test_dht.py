from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "from swarm.cli import main; main()", "dht"]
HASH = "a1" * 20


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node on loopback that remembers itself, ended by an interrupt."""
    state = tmp_path_factory.mktemp("dht") / "state"
    with subprocess.Popen(
        [*COMMAND, "node", "--state", str(state), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"address", "node_id", "contacts"}
        yield ready["address"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    assert state.exists()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def ask(address: str, *arguments: str) -> Any:
    done = run(*arguments, "--bootstrap", address, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_items_are_put_and_read(address: str, tmp_path: Path) -> None:
    target = ask(address, "put", "a value")["target"]
    assert ask(address, "get", target) == {"value": "a value", "target": target}
    key = ("--key", str(tmp_path / "publisher.key"))
    first = ask(address, "put", "c0ffee00", "--hex", *key, "--salt", "s")
    assert first["seq"] == 1
    assert ask(address, "put", "second", *key, "--salt", "s", "--cas", "1")["seq"] == 2
    found = ask(address, "get", first["public_key"], "--salt", "s")
    assert (found["value"], found["seq"], found["target"]) == ("second", 2, first["target"])
    done = run("put", "third", *key, "--salt", "s", "--cas", "1", "--bootstrap", address)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the stored item has seq 2, not 1" in done.stderr


def test_peers_and_the_network_are_listed(address: str) -> None:
    assert ask(address, "peers", HASH, "--scrape") == {"peers": [], "seeds": 0, "downloaders": 0}
    found = ask(address, "crawl")
    assert [node["address"] for node in found["nodes"]] == [address]
    assert (found["silent"], found["info_hashes"], found["total"]) == (0, [], 0)
    done = run("crawl", "--bootstrap", address)
    assert address in done.stdout
    assert done.stderr == "1 nodes answered, 0 did not; 0 info-hashes\n"


def test_what_nobody_has_says_so(address: str) -> None:
    done = run("get", HASH, "--bootstrap", address)
    assert (done.returncode, done.stdout) == (5, "")
    assert f"no DHT node has an item under {HASH}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["get", "xyz"], "no row of hex digits"),
        (["get", "abcd"], "has 4 hex digits, not 40 or 64"),
        (["peers", "abcd"], "has 4 hex digits"),
        (["put", "v", "--salt", "s"], "give --key FILE"),
        (["put", "v", "--seq", "1"], "give --key FILE"),
        (["put", "v"], "no DHT node to join through"),
        (["crawl", "--nodes", "0"], "--nodes"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(*arguments, *(() if arguments[0] == "crawl" else ("--home", str(tmp_path))))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_group_alone_shows_its_commands() -> None:
    done = run()
    assert done.returncode == 2
    for command in ("node", "get", "put", "peers", "crawl"):
        assert f"\n  {command}" in done.stderr
