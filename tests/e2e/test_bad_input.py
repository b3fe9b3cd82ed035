"""What cannot be done, as a user is told it: one line that says what to do, the right code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm.architecture import SUPPORTED
from swarm.demo import model_folder
from tests.e2e.commands import COMMAND, HandMade, broken_model, environment, files, refused, run, run_all

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
CONTRACT = "0x" + "11" * 20


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickles(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 4_000_000)


def lying(folder: Path) -> None:
    """The header says that a tensor reaches further than its shape needs."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 64
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])


def unsupported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_weights, ("no .safetensors file",)),
        (pickles, ("pickle files", "safe_serialization")),
        (truncated, ("model.safetensors", "truncated")),
        (lying, ("model.safetensors gives tensor",)),
        (unsupported, ("GPT2LMHeadModel", *sorted(SUPPORTED))),
    ],
)
def test_a_folder_that_cannot_be_published(
    damage: Callable[[Path], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    damage(broken_model(tmp_path / "model"))
    refused(2, run("publish", tmp_path / "model", "--name", "x", "--home", tmp_path / "home"), *words)
    assert not (tmp_path / "home").exists()


def test_wrong_usage(tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    peer = "00" * 32 + "/demo"
    join = ("--bootstrap", "127.0.0.1:1")
    expected: list[tuple[tuple[str | Path, ...], tuple[str, ...]]] = [
        (("publish", model_folder(), "--nme", "x"), ("--nme", "swarm publish --help")),
        (("publish", model_folder(), "--name", "De mo", *home), ("cannot name a model",)),
        (("generate", "demo", "x", *join, *home), ("PUBLISHER/NAME",)),
        (("generate", peer, "x", *home), ("--bootstrap HOST:PORT",)),
        (("generate", peer, "x", "--bootstrap", "here", *home), ("HOST:PORT",)),
        (("work", "demo", *join, *home, "--price", "0"), ("PUBLISHER/NAME",)),
        (("work", peer, *join, *home), ("--chain", "--price 0")),
        (("work", peer, *join, *home, "--span", "4-9"), ("START:STOP",)),
        (("work", peer, *join, *home, "--host", "localhost"), ("numeric address",)),
        (("work", peer, *join, *home, "--chain", "http://127.0.0.1:1"), ("--contract",)),
        (("wallet", "show", *home), ("--chain URL",)),
        (("settle", *home), ("--chain URL",)),
    ]
    for done, (_, words) in zip(run_all([command for command, _ in expected]), expected, strict=True):
        refused(2, done, *words)
    assert not (tmp_path / "home").exists()


def test_settings_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "swarm.toml").write_text('bootstap = ["127.0.0.1:1"]\n')
    refused(2, run("generate", "00" * 32 + "/demo", "x", "--home", tmp_path), "swarm.toml", "did you mean 'bootstrap'?")


def test_nobody_there(tmp_path: Path) -> None:
    """Neither a swarm to join nor a chain."""
    home = ("--home", tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:  # takes datagrams and never answers
        silent.bind(("127.0.0.1", 0))
        join = ("--bootstrap", f"127.0.0.1:{silent.getsockname()[1]}")
        refused(5, run("generate", "00" * 32 + "/demo", "x", *join, *home), "no DHT node answered at 127.0.0.1:")
        chain = ("--chain", "http://127.0.0.1:1", "--contract", CONTRACT)
        refused(5, run("work", "00" * 32 + "/demo", *join, *home, *chain), "no chain node answers", "`swarm chain`")
        refused(5, run("wallet", "show", *home, *chain), "no chain node answers")


def test_a_model_that_nobody_knows_and_a_span_outside_of_it(hand_made: HandMade, tmp_path: Path) -> None:
    publisher = hand_made.model.partition("/")[0]
    where = (*hand_made.join, "--home", tmp_path)
    refused(5, run("generate", f"{publisher}/other", "x", *where), f"{publisher}/other", "publish")
    refused(5, run("work", f"{publisher}/other", *where, "--price", "0"), f"{publisher}/other")
    refused(2, run("work", hand_made.model, *where, "--price", "0", "--span", "4:9"), "span 4:9", "0:8")
    kept = {path.name for path in (tmp_path / "store").iterdir()}
    assert kept <= {"models", "objects"}  # the manifest that was found, and no weights


def test_a_prompt_that_does_not_fit(hand_made: HandMade, free: str) -> None:
    where = (*hand_made.join, *hand_made.home("reader"))
    refused(2, run("generate", free, "def f(): " * 900, *where), "context of 1024", "shorten the prompt")


def test_a_call_that_cannot_be_paid(hand_made: HandMade, tmp_path: Path) -> None:
    arguments = ("generate", hand_made.model, "x", *hand_made.join, "--home", tmp_path)
    refused(6, run(*arguments), "asks a price", "--chain")
    refused(6, run(*arguments, *hand_made.pay), "the free balance is 0", "swarm wallet deposit")
    refused(6, run(*arguments, *hand_made.pay, "--max-spend", "1"), "more than max_spend 1")
    refused(6, run("wallet", "deposit", "1", "--home", tmp_path, *hand_made.pay), "the chain's own coin")


def test_a_port_in_use(hand_made: HandMade, tmp_path: Path) -> None:
    """Said before anything is hashed, fetched or deployed."""
    home = ("--home", tmp_path / "home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        publish = ("publish", model_folder(), "--name", "x", *home)
        refused(7, run(*publish, "--port", port), f"127.0.0.1:{port}", "--port")
        refused(7, run("work", hand_made.model, *hand_made.join, *home, "--price", "0", "--port", port), port, "--port")
        refused(7, run("chain", "--port", port, "--json"), port, "--port")
    dht = hand_made.publisher["bootstrap"].partition(":")[2]
    refused(7, run(*publish, "--dht-port", dht), "UDP", dht, "--dht-port")
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_used_already(hand_made: HandMade) -> None:
    work = ("work", hand_made.model, *hand_made.join, *hand_made.home("first"), "--price", "0")
    refused(7, run(*work), "another process is using", "--home")


def test_keys_that_are_damaged_or_for_all_to_read(tmp_path: Path) -> None:
    generate = ("generate", "00" * 32 + "/demo", "x", "--bootstrap", "127.0.0.1:1", "--home", tmp_path)
    key = tmp_path / "peer.key"
    key.write_bytes(b"short")
    key.chmod(0o600)
    refused(7, run(*generate), str(key), "damaged")
    key.write_bytes(bytes(range(32)))
    key.chmod(0o644)
    refused(7, run(*generate), f"chmod 600 {key}")
    assert files(tmp_path) == {"peer.key"}


@pytest.fixture
def not_ours(tmp_path: Path) -> Iterator[Path]:
    """A home that cannot be written to, by whoever runs the command."""
    if os.getuid() == 0:
        able = shutil.which("setpriv") and subprocess.run(
            [*NOBODY, *COMMAND, "--version"], cwd="/", env=environment(), capture_output=True, check=False
        )
        if not able or able.returncode:
            pytest.skip("root may write everywhere, and nobody else may run this Python")
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    yield home
    home.chmod(0o755)


def test_a_home_that_cannot_be_written(not_ours: Path) -> None:
    prefix = NOBODY if os.getuid() == 0 else ()
    home = ("--home", not_ours)
    join = ("--bootstrap", "127.0.0.1:1")
    refused(
        7, run("generate", "00" * 32 + "/demo", "x", *join, *home, prefix=prefix), str(not_ours), "check the folder"
    )
    refused(7, run("publish", model_folder(), "--name", "x", *home, prefix=prefix), str(not_ours), "check the folder")
    work = ("work", "00" * 32 + "/demo", *join, "--price", "0")
    refused(7, run(*work, *home, prefix=prefix), str(not_ours), "check the folder")
    doctor = run("doctor", "--json", *home, prefix=prefix)
    assert doctor.returncode == 7
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert checks["home"]["verdict"] == "fail"
    assert files(not_ours) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, too small for the model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_too_small(hand_made: HandMade, small_disk: Path) -> None:
    home = small_disk / "home"
    work = ("work", hand_made.model, *hand_made.join, "--home", home, "--price", "0", "--threads", "1")
    refused(7, run(*work), str(home), "free some space")
    assert not [name for name in files(home) if name.endswith(".safetensors")]


def test_doctor_on_a_fresh_home(tmp_path: Path) -> None:
    done = run("doctor", "--json", "--home", tmp_path / "home")
    assert (done.returncode, done.stderr) == (3, "")
    report = json.loads(done.stdout)
    assert (report["schema"], report["exit_code"]) == ("swarm.doctor/1", 3)
    warned = {check["name"] for check in report["checks"] if check["verdict"] == "warn"}
    assert {"bootstrap", "chain"} <= warned <= {"bootstrap", "chain", "disk"}
    assert not [check for check in report["checks"] if check["verdict"] == "fail"]
    assert all(check["remedy"] for check in report["checks"] if check["verdict"] != "pass")
    assert not (tmp_path / "home").exists()
