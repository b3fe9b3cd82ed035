"""The steps of the demo by hand: every role a command, found through one address and PUBLISHER/NAME."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from swarm.ledger import read_ledger
from tests.e2e.commands import HandMade, environment, files, plain, refused, run, without

HEAVY = ("torch", "libtorrent", "numpy", "safetensors", "web3", "transformers")
DEPOSIT = "9000000"  # three channels of a million each, twice
PROMPT = "class Stack:"


def test_a_client_pays_three_workers_and_they_redeem_what_they_earned(hand_made: HandMade) -> None:
    client = hand_made.home("client")
    for action in ("fund", "deposit"):
        done = run("wallet", action, DEPOSIT, *client, *hand_made.pay, "--json")
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["free_balance"] == int(DEPOSIT)

    done = run("generate", hand_made.model, PROMPT, *hand_made.join, *hand_made.pay, *client, "--json")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["usage"]["completion_tokens"] == len(reply["token_ids"]) > 10
    assert reply["cost"] > 0
    served = [worker.ready["peer_id"] for worker in hand_made.workers]
    assert [stage["peer_id"] for stage in reply["chain"]] == served
    check_ledgers(hand_made)

    homes = [text for name in ("first", "second", "third") for text in hand_made.home(name)]
    assert run("wallet", "fund", *hand_made.home("first"), *hand_made.pay).returncode == 0  # for the gas
    done = run("settle", *homes, *hand_made.pay, "--json")
    assert done.returncode == 0, done.stderr
    settled = json.loads(done.stdout)
    assert (settled["vouchers"], settled["paid"]) == (3, reply["cost"])
    done = run("settle", *homes, *hand_made.pay)
    assert (done.returncode, done.stdout) == (0, "")
    assert "every channel is settled" in done.stderr

    assert run("wallet", "close", *client, *hand_made.pay).stderr.count("asked to close") == 3
    done = run("wallet", "close", *client, *hand_made.pay, "--json")  # this chain's window is over at once
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["free_balance"] == int(DEPOSIT) - reply["cost"]


def test_the_text_is_on_stdout_and_the_rest_on_stderr(hand_made: HandMade, free: str) -> None:
    client = hand_made.home("reader")
    done = run("generate", free, "-", *hand_made.join, *client, "--max-tokens", "8", stdin=PROMPT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("8 tokens by 1 workers, ")
    assert done.stderr.count("\n") == 1
    asked = json.loads(run("generate", free, PROMPT, *hand_made.join, *client, "--max-tokens", "8", "--json").stdout)
    assert done.stdout == asked["text"] + "\n"
    assert asked["cost"] == 0


def test_a_client_needs_no_heavy_package(hand_made: HandMade, free: str, tmp_path: Path) -> None:
    env = without(tmp_path / "without", *HEAVY)
    arguments = ("generate", free, PROMPT, *hand_made.join, "--max-tokens", "8", "--json")
    light = run(*arguments, *hand_made.home("light"), env=env)
    assert light.returncode == 0, light.stderr
    assert (
        json.loads(light.stdout)["token_ids"]
        == json.loads(run(*arguments, *hand_made.home("full")).stdout)["token_ids"]
    )
    refused(7, run("work", free, *hand_made.join, *hand_made.home("light"), env=env), "worker extra")


def test_a_second_publisher_of_the_same_folder_and_its_seeder(hand_made: HandMade, free: str) -> None:
    """What was published is written down whole, and seeded again without hashing it anew."""
    home = hand_made.folder / "gratis"
    found = files(home / "published")
    assert {"models/free.manifest", "models/free.folder"} <= found
    refused(2, run("seed", "other", "--home", home), "nothing was published as other")
    seeder = hand_made.begin("seeder", "seed", "free", "--home", str(home), *hand_made.join).future.result()
    assert seeder.ready["model"] == free
    assert files(home / "published") == found


def test_progress_is_for_people_and_ends(hand_made: HandMade, free: str) -> None:
    """Each worker's log has a line for a step and few for the transfer, and nothing that steers a terminal."""
    for role in hand_made.workers:
        lines = role.log.read_text().splitlines()
        assert lines[0] == "looking for the model"
        assert len(lines) <= 6
        assert plain(role.log.read_text()) == role.log.read_text()


def check_ledgers(hand_made: HandMade) -> None:
    """The client and each worker have written down the same."""
    with read_ledger(hand_made.folder / "client" / "ledger-client.db") as ledger:
        given = {state.channel.worker: ledger.earned(state.channel) for state in ledger.channels()}
    assert len(given) == 3
    for role in hand_made.workers:
        with read_ledger(hand_made.folder / role.log.stem / "ledger-worker.db") as ledger:
            (state,) = ledger.channels()
            assert ledger.earned(state.channel) == given[state.channel.worker] > 0


@pytest.mark.slow
def test_a_client_in_an_environment_with_the_base_packages_alone(
    hand_made: HandMade, free: str, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt", root], check=True
    )
    env = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}

    def installed(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
        )

    absent = installed("-c", f"from importlib.util import find_spec; print([n for n in {HEAVY} if find_spec(n)])")
    assert absent.stdout == "[]\n"
    arguments = ("generate", free, PROMPT, *hand_made.join, "--max-tokens", "8", "--json")
    done = installed("-m", "swarm", *arguments, *hand_made.home("based"))
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["token_ids"] == json.loads(run(*arguments, *hand_made.home("full")).stdout)["token_ids"]
    )
