"""`swarm demo` as its user meets it: the main job, in processes of its own."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.demo import model_folder
from swarm.metadata import choose_piece_length
from swarm.model_folder import open_model_folder
from tests.e2e.commands import Started, environment, run, started, without

DOCUMENTED = {
    "schema", "model", "prompt_ids", "token_ids", "text", "seconds", "ms_per_token", "reference_equal", "workers",
    "settlement",
}  # fmt: skip


def check(outcome: dict[str, Any], workers: int) -> None:
    """What holds for every run."""
    assert outcome.keys() >= DOCUMENTED
    assert outcome["schema"] == "swarm-demo/1"
    assert outcome["reference_equal"] is True
    assert outcome["prompt_ids"]
    assert outcome["token_ids"]
    assert outcome["text"]
    assert outcome["seconds"] > 0 < outcome["ms_per_token"]
    check_workers(outcome["workers"], workers, len(outcome["token_ids"]))
    settlement = outcome["settlement"]
    assert {"vouchers", "gas", "deposited", "paid", "refunded"} <= settlement.keys()
    assert settlement["vouchers"] == workers
    assert settlement["gas"] > 0
    assert settlement["paid"] + settlement["refunded"] == settlement["deposited"]
    assert sum(worker["earned"] for worker in outcome["workers"]) == settlement["paid"]


def check_workers(found: list[dict[str, Any]], count: int, tokens: int) -> None:
    model = open_model_folder(model_folder())
    piece = choose_piece_length(smallest=model.smallest_layer, total=model.size)
    assert len(found) == len({worker["peer_id"] for worker in found}) == count
    assert [worker["span"][0] for worker in found] == [0, *(worker["span"][1] for worker in found[:-1])]
    assert found[-1]["span"][1] == model.model.layers
    for worker in found:
        assert worker["model_bytes"] == model.size
        # A span is a few runs of bytes in the file, and begins and ends inside pieces that belong to neighbours too.
        boundaries = 2
        assert worker["span_bytes"] <= worker["bytes_fetched"] < worker["span_bytes"] + 2 * boundaries * piece
        assert worker["bytes_fetched"] < worker["model_bytes"] or count == 1
        assert worker["tokens"] == tokens
        assert worker["earned"] > 0


def folders(temporary: Path) -> list[Path]:
    """What the demo left there; torch leaves a folder of its own."""
    return list(temporary.glob("swarm-demo-*"))


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo makes its folder."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def kept(temporary: Path) -> Iterator[tuple[Started, dict[str, Any]]]:
    """`swarm demo --json --keep`, up, and its object."""
    with started("demo", "--json", "--keep", env=environment(TMPDIR=str(temporary))) as demo:
        line = demo.line()
        assert line, demo.process.communicate()[1]
        yield demo, json.loads(line)


def test_its_object_has_the_documented_keys_and_they_add_up(kept: tuple[Started, dict[str, Any]]) -> None:
    check(kept[1], 3)


def test_a_kept_swarm_answers_the_command_it_prints_and_ends_with_everything_it_started(
    kept: tuple[Started, dict[str, Any]], temporary: Path
) -> None:
    demo, outcome = kept
    assert demo.process.stderr is not None
    said = demo.process.stderr.readline()
    assert "Ctrl-C stops it" in said
    command = shlex.split(demo.process.stderr.readline())
    assert command[:3] == ["swarm", "generate", outcome["model"]]
    done = run(*command[1:], "--json")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert len(reply["chain"]) == 3
    assert reply["cost"] > 0
    assert len(demo.left()) >= 6  # itself, a chain, a publisher, three workers, the reference
    assert demo.end(signal.SIGINT) == (130, "", "")
    assert demo.left() == []
    assert folders(temporary) == []


def test_an_interrupt_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with started("demo", env=environment(TMPDIR=str(tmp_path))) as demo:
        assert "chain" in demo.line()
        code, _, err = demo.end(signal.SIGTERM)
        assert (code, err) == (130, "")
        assert demo.left() == []
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_for_people_it_streams_the_text_and_shows_tables(tmp_path: Path) -> None:
    done = run("demo", "--max-tokens", "20", env=environment(TMPDIR=str(tmp_path), COLUMNS="80", NO_COLOR="1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("fetched", "ms/token", "price in / out", "earned", "gas", "refunded", "equal to transformers"):
        assert word in done.stdout
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_other_workers_prompts_and_lengths(tmp_path: Path) -> None:
    prompt = "def fib(n):"
    done = run("demo", "--json", "--workers", "5", "--prompt", prompt, "--max-tokens", "40")
    assert (done.returncode, done.stderr) == (0, "")
    outcome = json.loads(done.stdout)
    check(outcome, 5)
    assert len(outcome["token_ids"]) <= 40
    other = json.loads(run("demo", "--json", "--workers", "1", "--prompt", prompt, "--max-tokens", "40").stdout)
    check(other, 1)
    assert (other["token_ids"], other["text"]) == (outcome["token_ids"], outcome["text"])


@pytest.mark.slow
def test_without_transformers_it_says_that_nothing_was_checked(tmp_path: Path) -> None:
    done = run("demo", "--max-tokens", "8", env=without(tmp_path / "without", "transformers"))
    assert done.returncode == 0, done.stderr
    assert "not checked: transformers is not installed" in done.stdout
    assert "equal to transformers" not in done.stdout
    done = run("demo", "--json", "--max-tokens", "8", env=without(tmp_path / "without", "transformers"))
    assert json.loads(done.stdout)["reference_equal"] is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_end_a_kept_swarm(number: signal.Signals, tmp_path: Path) -> None:
    with started("demo", "--json", "--keep", "--max-tokens", "4", env=environment(TMPDIR=str(tmp_path))) as demo:
        assert json.loads(demo.line())["reference_equal"]
        code, out, _ = demo.end(number)
        assert (code, out, demo.left()) == (130, "", [])
    assert folders(tmp_path) == []


def test_what_it_needs_is_named_when_it_is_missing(tmp_path: Path) -> None:
    done = run("demo", env=without(tmp_path, "web3"))
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == "swarm: this needs the chain extra; run: pip install 'swarm-inference[chain]'\n"
