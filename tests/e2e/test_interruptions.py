"""Roles that end: when they are asked to, and when they are not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from swarm.demo import model_folder
from swarm.ledger import read_ledger
from tests.e2e.commands import PRICES, HandMade, refused, run, started

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_publisher_ends_when_asked(number: signal.Signals, tmp_path: Path) -> None:
    with started("publish", model_folder(), "--name", "x", "--home", tmp_path, "--json") as publisher:
        assert json.loads(publisher.line())["model"].endswith("/x")
        code, out, err = publisher.end(number)
        assert (code, out) == (130, "")
        assert "Traceback" not in err
        assert "swarm: " not in err
        assert publisher.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_worker_ends_when_asked(number: signal.Signals, hand_made: HandMade, tmp_path: Path) -> None:
    arguments = ("work", hand_made.model, *hand_made.join, "--home", tmp_path, "--span", "0:1", "--threads", "1")
    with started(*arguments, "--price", "0", "--json") as worker:
        assert json.loads(worker.line())["span"] == [0, 1]
        code, out, err = worker.end(number)
        assert (code, out) == (130, "")
        assert "Traceback" not in err
        assert "swarm: " not in err
        assert worker.left() == []


def test_a_worker_ends_when_asked_while_it_starts(hand_made: HandMade, tmp_path: Path) -> None:
    arguments = ("work", hand_made.model, *hand_made.join, "--home", tmp_path, "--threads", "1", "--price", "0")
    with started(*arguments) as worker:
        assert worker.process.stderr is not None
        assert worker.process.stderr.readline() == "looking for the model\n"
        code, out, err = worker.end(signal.SIGTERM)
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_an_interrupted_call_ends_and_is_billed_for_what_came(hand_made: HandMade, free: str, tmp_path: Path) -> None:
    with started("generate", free, "class", *hand_made.join, "--home", tmp_path, "--max-tokens", "900") as call:
        assert call.line()
        code, _, err = call.end(signal.SIGINT)
    assert (code, err) == (130, "")
    with read_ledger(tmp_path / "ledger-client.db") as ledger:
        assert ledger.channels() is not None


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_goes_on_where_it_was(hand_made: HandMade) -> None:
    """The call ends with an error that names the peer; started again, the worker has its bytes and its vouchers."""
    model = hand_made.publish("frail", "frail")
    roles = [
        hand_made.begin_work(name, span, *PRICES, *hand_made.pay, model=model)
        for name, span in (("steady", "0:4"), ("fragile", "4:8"))
    ]
    _, fragile = (job.future.result() for job in roles)
    client = (*hand_made.home("witness"), *hand_made.pay)
    for action in ("fund", "deposit"):
        assert run("wallet", action, "4000000", *client).returncode == 0
    generate = ("generate", model, "class Stack:", *hand_made.join, *client)
    with started(*generate, "--max-tokens", "900") as call:
        stdout = call.process.stdout
        assert stdout is not None
        assert os.read(stdout.fileno(), 1)  # the first piece has come
        hand_made.kill(fragile)
        call.process.wait(timeout=60)
        err = call.process.stderr.read() if call.process.stderr is not None else ""
    assert call.process.returncode in (1, 5), err
    (told,) = err.splitlines()
    assert told.startswith("swarm: ")
    assert fragile.ready["peer_id"][:8] in told

    refused(4, run(*generate), "no worker serves layers 4 to 7 of 8", "--span 4:8")

    home = hand_made.folder / "fragile"
    with read_ledger(home / "ledger-worker.db") as ledger:
        (state,) = ledger.channels()
        kept = ledger.accepted(state.channel)
    assert kept is not None
    assert kept.voucher.cumulative > 0
    again = hand_made.work("fragile", "4:8", *PRICES, *hand_made.pay, model=model)
    assert again.ready["peer_id"] == fragile.ready["peer_id"]
    assert again.ready["bytes_fetched"] == 0
    done = run(*generate, "--max-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert again.ready["peer_id"] in {stage["peer_id"] for stage in json.loads(done.stdout)["chain"]}
    with read_ledger(home / "ledger-worker.db") as ledger:
        now = ledger.accepted(state.channel)
    assert now is not None
    assert now.voucher.cumulative >= kept.voucher.cumulative
