"""Units from a folder, and sources that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm.errors import ModelFolderError
from swarm.units import TensorEntry
from tests.worker.tiny_models import TinyModel
from worker.shards import FolderSource, UnitSource, load_unit

Tiny = Callable[[str], TinyModel]


class Altered:
    """A source whose entries or bytes are changed on the way."""

    def __init__(
        self,
        source: UnitSource,
        *,
        entry: Callable[[TensorEntry], TensorEntry] = lambda entry: entry,
        data: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        self._source, self._entry, self._data = source, entry, data

    def tensors(self, unit: str) -> Sequence[TensorEntry]:
        return [self._entry(entry) for entry in self._source.tensors(unit)]

    def read(self, file: int, start: int, stop: int) -> bytes:
        return self._data(bytes(self._source.read(file, start, stop)))


def test_units_hold_the_files_tensors(tiny: Tiny) -> None:
    model = tiny("qwen2")
    stored = load_file(model.folder / "model.safetensors")
    seen: set[str] = set()
    for unit in ("embed", "layer.0", "layer.1", "layer.2", "layer.3", "norm", "head"):
        for name, tensor in load_unit(model.source(), unit, None, "cpu").items():
            assert torch.equal(tensor, stored[name])
            seen.add(name)
    assert seen == set(stored)


def test_units_are_converted_to_the_dtype_asked_for(tiny: Tiny) -> None:
    half = load_unit(tiny("qwen2").source(), "layer.1", torch.bfloat16, "cpu")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}


def test_a_model_in_several_files_is_one_model(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("qwen2")
    tensors = load_file(model.folder / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, tmp_path / "a.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, tmp_path / "b.safetensors")
    (tmp_path / "config.json").write_bytes(model.source().config())
    unit = load_unit(FolderSource(tmp_path), "layer.2", None, "cpu")
    expected = load_unit(model.source(), "layer.2", None, "cpu")
    assert unit.keys() == expected.keys()
    assert all(torch.equal(unit[name], expected[name]) for name in unit)


def test_an_unknown_unit_is_named(tiny: Tiny) -> None:
    with pytest.raises(ModelFolderError, match=r"layer\.9"):
        load_unit(tiny("qwen2").source(), "layer.9", None, "cpu")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda real: Altered(real, data=lambda data: data[:-4]), "not valid safetensors"),
        (lambda real: Altered(real, data=lambda data: data + b"\0" * 4), "not valid safetensors"),
        (lambda real: Altered(real, entry=lambda entry: replace(entry, shape=(1 << 40,))), "not valid safetensors"),
        (lambda real: Altered(real, entry=lambda entry: replace(entry, dtype="I64")), "I64"),
        (lambda real: Altered(real, entry=lambda entry: replace(entry, name="twice")), "twice"),
    ],
    ids=["short", "long", "huge", "integers", "doubled"],
)
def test_lying_sources_are_refused(tiny: Tiny, source: Callable[[UnitSource], UnitSource], words: str) -> None:
    with pytest.raises(ModelFolderError, match=words):
        load_unit(source(tiny("qwen2").source()), "layer.0", None, "cpu")


def test_folders_that_are_no_model_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"no \.safetensors file"):
        FolderSource(tmp_path)
    whole = (tiny("qwen2").folder / "model.safetensors").read_bytes()
    target = tmp_path / "model.safetensors"
    target.write_bytes(whole)
    with pytest.raises(ModelFolderError, match=r"no readable config\.json"):
        FolderSource(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    with pytest.raises(ModelFolderError, match="Other"):
        FolderSource(tmp_path)
    (tmp_path / "config.json").write_bytes(tiny("qwen2").source().config())
    for broken in (b"", b"abc", whole[:-1], b"\xff" * 16, whole[:8] + b"[" + whole[9:]):
        target.write_bytes(broken)
        with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
            FolderSource(tmp_path)


def test_a_file_that_shrinks_while_it_is_served_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("qwen2")
    target = tmp_path / "model.safetensors"
    target.write_bytes((model.folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes(model.source().config())
    source = FolderSource(tmp_path)
    target.write_bytes(target.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match="truncated"):
        load_unit(source, "norm", None, "cpu")
