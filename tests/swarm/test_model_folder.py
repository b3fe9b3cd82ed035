from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm.errors import ModelFolderError
from swarm.model_folder import hash_file, open_model_folder
from tests.tiny_models import llama_config, write_model


def test_a_single_file_model(tmp_path: Path) -> None:
    folder = open_model_folder(write_model(tmp_path))
    assert [file.name for file in folder.files] == ["model.safetensors"]
    assert folder.size == (tmp_path / "model.safetensors").stat().st_size
    assert folder.objects == {"tokenizer.json": b'{"version": "1.0"}'}
    assert folder.licence == "apache-2.0"
    assert folder.smallest_layer == 406_272


def test_shards_come_from_the_index_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_model(tmp_path, shards=3)
    (tmp_path / "consolidated.safetensors").write_bytes(b"something else")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    (tmp_path / "README.md").unlink()
    folder = open_model_folder(tmp_path)
    assert [file.name for file in folder.files] == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert folder.licence == "unknown"


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs = write_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert open_model_folder(snapshot).files == open_model_folder(blobs).files


@pytest.mark.parametrize(
    ("lost", "added", "message"),
    [
        ("model.safetensors", "", "no .safetensors"),
        ("model.safetensors", "pytorch_model.bin", "pickle files"),
        ("model.safetensors", "model.pt", "pickle files"),
        ("model.safetensors", "model.ckpt", "pickle files"),
        ("config.json", "", r"config\.json is missing"),
        ("tokenizer.json", "a.safetensors", ""),
    ],
)
def test_a_folder_without_what_is_needed(tmp_path: Path, lost: str, added: str, message: str) -> None:
    write_model(tmp_path)
    (tmp_path / lost).unlink()
    if added:
        (tmp_path / added).write_bytes(b"\x80\x04.")
    if not message:  # neither a tokenizer nor a stray file is in the way of the weights
        assert open_model_folder(tmp_path).objects == {}
        return
    with pytest.raises(ModelFolderError, match=message) as caught:
        open_model_folder(tmp_path)
    assert "\n" not in caught.value.message


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="not a folder"):
        open_model_folder(tmp_path / "nothing")


def test_several_files_without_an_index(tmp_path: Path) -> None:
    write_model(tmp_path)
    weights = (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    assert [file.name for file in open_model_folder(tmp_path).files] == ["a.safetensors"]
    (tmp_path / "b.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ModelFolderError, match="index"):
        open_model_folder(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../up.safetensors"}}', "{"],
)
def test_an_index_that_leads_nowhere(tmp_path: Path, index: str) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFolderError):
        open_model_folder(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="model-00002-of-00002"):
        open_model_folder(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        open_model_folder(tmp_path)


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(llama_config(architectures=["MambaForCausalLM"])))
    with pytest.raises(ModelFolderError, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        open_model_folder(tmp_path)


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path) -> None:
    folder = open_model_folder(write_model(tmp_path))
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    for changed in (raw + b"x", raw[:-1], raw[:20] + bytes([raw[20] ^ 1]) + raw[21:]):
        path.write_bytes(changed)
        with pytest.raises(ModelFolderError, match="changed"):
            hash_file(folder, folder.files[0], 32 * 1024, lambda count: None)
