from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trio

from swarm.cli import doctor
from swarm.cli.doctor import Check
from swarm.config import Home, Settings
from swarm.identity import Identity
from swarm.ledger import open_ledger

CONTRACT = "0x" + "11" * 20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("SWARM_BOOTSTRAP", "SWARM_CHAIN_RPC", "SWARM_CHAIN_CONTRACT", "SWARM_LISTEN_PORT"):
        monkeypatch.delenv(name, raising=False)
    return Home(path=tmp_path / "home")


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def chain() -> Iterator[str]:
    """A JSON-RPC node that knows two methods."""

    class Node(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            results = {"eth_chainId": "0x539", "eth_getCode": "0x60" if asked["params"][:1] == [CONTRACT] else "0x"}
            body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": results[asked["method"]]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Node) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def by_name(home: Home, **given: object) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(home, **given)}  # type: ignore[arg-type]


def test_a_fresh_home_has_warnings_alone_and_is_not_made(home: Home) -> None:
    checks = by_name(home)
    assert {check.verdict for check in checks.values()} <= {"pass", "warn"}
    assert checks["bootstrap"].verdict == checks["chain"].verdict == "warn"
    assert not home.path.exists()


def test_whatever_is_not_a_pass_says_what_to_do(home: Home, closed_port: int) -> None:
    home.path.mkdir()
    home.peer_key.write_bytes(b"x")
    home.worker_ledger.write_bytes(b"no ledger" * 1000)
    checks = by_name(home, bootstrap=(f"127.0.0.1:{closed_port}",), chain_rpc=f"http://127.0.0.1:{closed_port}")
    assert all(bool(check.remedy) == (check.verdict != "pass") for check in checks.values())
    failed = {name for name, check in checks.items() if check.verdict == "fail"}
    assert failed == {
        "peer.key",
        "ledger-worker.db",
        f"bootstrap 127.0.0.1:{closed_port}",
        f"chain http://127.0.0.1:{closed_port}",
    }


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 10, 9)) == Check(
        name="python", verdict="fail", detail="3.10.9", remedy="install Python 3.11 or newer"
    )
    assert doctor.check_python((3, 11, 0)).verdict == "pass"


def test_missing_packages_are_a_warning_but_for_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "ROLES", {"client": ("trio", "no_such_a"), "worker": ("no_such_b",), "chain": ("trio",)}
    )
    client, worker, chain = doctor.check_packages()
    assert (client.verdict, client.detail) == ("fail", "without no_such_a")
    assert (worker.verdict, worker.remedy) == ("warn", "to use it, run: pip install 'swarm-inference[worker]'")
    assert chain.verdict == "pass"


def test_keys_are_whole_and_private(home: Home) -> None:
    for path in (home.peer_key, home.spending_key, home.account_key):
        Identity.load(path)
    home.spending_key.chmod(0o644)
    home.account_key.write_bytes(b"short")
    found = {check.name: (check.verdict, check.remedy) for check in doctor.check_keys(home)}
    assert found == {
        "peer.key": ("pass", ""),
        "spending.key": ("fail", f"run: chmod 600 {home.spending_key}"),
        "account.key": ("fail", f"put back a copy of {home.account_key}"),
        "publisher.key": ("pass", ""),
    }


async def test_a_ledger_in_use_is_read(home: Home) -> None:
    async with open_ledger(home.worker_ledger):
        checks = {
            check.name: check for check in await trio.to_thread.run_sync(lambda: list(doctor.check_ledgers(home)))
        }
    assert checks["ledger-worker.db"] == Check(
        name="ledger-worker.db", verdict="pass", detail="0 channels, 0 to settle"
    )


def test_a_home_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_home(tmp_path / "file" / "home").verdict == "fail"
    assert doctor.check_home(tmp_path / "new" / "home").verdict == "pass"


@pytest.mark.parametrize(("free", "verdict"), [(100 << 20, "fail"), (1 << 30, "warn"), (11 << 30, "pass")])
def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert doctor.check_disk(tmp_path).verdict == verdict


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_fails(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        check = doctor.check_port("127.0.0.1", taken.getsockname()[1])
    assert check.verdict == "fail"
    assert check.detail.startswith("TCP" if kind == socket.SOCK_STREAM else "UDP")


def test_a_free_port_passes(closed_port: int) -> None:
    assert doctor.check_port("127.0.0.1", closed_port).verdict == "pass"
    assert doctor.check_port("127.0.0.1", 0).verdict == "pass"


async def test_a_dht_node_that_answers_passes() -> None:
    from dht.config import DhtConfig
    from dht.node import open_node

    async with open_node(DhtConfig()) as node:
        settings = Settings(bootstrap=(f"127.0.0.1:{node.address[1]}",))
        [check] = await trio.to_thread.run_sync(lambda: list(doctor.check_bootstrap(settings)))
    assert (check.verdict, check.detail) == ("pass", f"answers as {node.node_id.hex()[:8]}")


def test_a_chain_with_the_contract_passes(chain: str) -> None:
    found = list(doctor.check_chain(Settings(chain_rpc=chain, chain_contract=CONTRACT)))
    assert [check.verdict for check in found] == ["pass", "pass"]
    assert found[0].detail == "answers for chain 1337"


def test_a_chain_without_the_contract_does_not(chain: str) -> None:
    assert [check.verdict for check in doctor.check_chain(Settings(chain_rpc=chain))] == ["pass", "warn"]
    other = Settings(chain_rpc=chain, chain_contract="0x" + "22" * 20)
    assert [check.verdict for check in doctor.check_chain(other)] == ["pass", "fail"]


def test_settings_that_are_wrong_fail_and_end_it(home: Home) -> None:
    home.path.mkdir()
    home.settings.write_text("listen_prot = 1")
    *_, last = doctor.examine(home)
    assert (last.name, last.verdict) == ("settings", "fail")
    assert "did you mean 'listen_port'" in last.detail


@pytest.mark.parametrize(("verdicts", "code"), [(["pass"], 0), (["pass", "warn"], 3), (["warn", "fail", "pass"], 7)])
def test_the_exit_code_is_the_worst(
    home: Home, verdicts: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swarm.cli import main

    def examine(*_: object, **__: object) -> Iterator[Check]:
        for verdict in verdicts:
            yield Check(name="x", verdict=verdict, detail="d", remedy="" if verdict == "pass" else "r")  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--home", str(home.path), "--json"])
    assert caught.value.code == code
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["exit_code"], len(report["checks"])) == ("swarm.doctor/1", code, len(verdicts))
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--home", str(home.path)])
    assert caught.value.code == code
    assert capsys.readouterr().out.count("x: d") == len(verdicts)
