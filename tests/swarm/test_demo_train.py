"""The training script, on a small corpus and a small shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from swarm.demo.run import Run
from swarm.demo.shape import Shape
from swarm.demo.train import main, train
from swarm.errors import UsageError

MODULE = '''"""Module number {0}."""


class Stack{0}:
    """Last in, first out."""

    def push(self, item):
        """Add item {0} on top."""
        self.items.append(item)
        self.size = len(self.items) + {0}
'''
SHAPE = Shape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=64, context=64)


def library(folder: Path, files: int) -> Path:
    """A folder of small distinct modules, in the manner of a library."""
    for number in range(files):
        (folder / f"module{number}.py").write_text(MODULE.format(number), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are quicker without company; the process's own count comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(out: Path, text: Path, **settings: Any) -> Run:
    """A run of seconds on one thread."""
    settings = {"steps": 12, "batch_tokens": 512, "bf16": False, "compiled": False, "threads": 1} | settings
    return Run(out=out, corpus=text, shape=SHAPE, **settings)


def weights(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = load_file(folder / "model.safetensors")
    return loaded


def test_a_run_records_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    text = library(tmp_path / "library", 100)
    figures = train(small(tmp_path / "one", text))
    again = train(small(tmp_path / "two", text))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    assert json.loads((tmp_path / "one" / "TRAINING.json").read_text(encoding="utf-8")) == figures
    assert (figures["steps"], figures["tokens_seen"]) == (12, 12 * 512)
    assert figures["held_out_nats_per_token"] == again["held_out_nats_per_token"]
    other = train(small(tmp_path / "other", text, seed=2))
    assert other["held_out_nats_per_token"] != figures["held_out_nats_per_token"]


def test_a_run_goes_on_from_an_earlier_one_and_learns(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    text = library(tmp_path / "library", 100)
    first = train(small(tmp_path / "one", text))
    second = train(small(tmp_path / "two", text, start=tmp_path / "one"))
    assert second["steps"] == 24
    assert second["tokens_seen"] == 24 * 512
    losses = first["held_out_nats_per_token"], second["held_out_nats_per_token"]
    assert isinstance(losses[0], float)
    assert isinstance(losses[1], float)
    assert log(SHAPE.vocab) > losses[0] > losses[1]
    with pytest.raises(UsageError, match="no finished training run"):
        train(small(tmp_path / "three", text, start=tmp_path))


def test_without_steps_the_minutes_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    figures = train(small(tmp_path / "out", library(tmp_path / "library", 100), steps=None, minutes=0.001))
    assert isinstance(figures["steps"], int)
    assert figures["steps"] >= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
        "TRAINING.json",
    }  # fmt: skip


@pytest.mark.parametrize("files", [0, 60])
def test_too_small_a_corpus_is_one_line(tmp_path: Path, files: int, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "library").mkdir()
    text = library(tmp_path / "library", files)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "out"), "--corpus", str(text), "--steps", "1", "--threads", "1"])
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.count("\n") == 1
    assert "name a larger --corpus" in message
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_impossible_lengths_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), "--minutes", "0"])
    assert ended.value.code == 2
    assert "must be positive" in capsys.readouterr().err
    with pytest.raises(ValueError, match="groups per KV head"):
        Shape(heads=3)
