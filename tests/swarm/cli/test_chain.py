from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "from swarm.cli import main; main()", "chain"]


def test_it_prints_its_address_answers_and_ends_by_interrupt() -> None:
    with subprocess.Popen(
        [*COMMAND, "--port", "0", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        assert set(address) == {"rpc_url", "chain_id", "contract", "token"}
        body = json.dumps(
            {"jsonrpc": "2.0", "id": 1, "method": "eth_getCode", "params": [address["contract"], "latest"]}
        )
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address["rpc_url"], body.encode(), headers)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
            assert len(json.load(response)["result"]) > 1000
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")


def test_a_port_in_use_and_a_public_address_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "")
    assert f"port {port} cannot be used" in done.stderr
    done = subprocess.run([*COMMAND, "--host", "192.0.2.1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
