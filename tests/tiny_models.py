"""Small model folders in Hugging Face layout, written by hand: no torch, no safetensors library."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from swarm.architecture import layer_shapes, parse_config
from swarm.safetensors_header import DTYPE_SIZE

Shapes = dict[str, tuple[int, ...]]


def llama_config(**changes: Any) -> dict[str, Any]:
    """A 12-layer Llama whose layers have about 410 KB: 16 KiB pieces, and layer.10 lies before layer.2."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 12,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return config | changes


def model_shapes(config: dict[str, Any]) -> Shapes:
    """Every tensor the configuration asks for, in the order in which libraries write them."""
    model = parse_config(json.dumps(config).encode())
    table = (model.vocabulary, model.hidden)
    shapes: Shapes = {"model.embed_tokens.weight": table, "model.norm.weight": (model.hidden,)}
    if not model.tied:
        shapes["lm_head.weight"] = table
    for index in range(model.layers):
        for name, shape in layer_shapes(model).items():
            shapes[f"model.layers.{index}.{name}"] = shape
    return dict(sorted(shapes.items()))


def header_bytes(header: dict[str, Any]) -> bytes:
    """The prefix of a safetensors file: length and JSON, padded with spaces to 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def safetensors_bytes(shapes: Shapes, *, dtype: str = "F32", seed: int = 0) -> bytes:
    """A whole file of random tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = DTYPE_SIZE[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return header_bytes(header) + random.Random(seed).randbytes(position)


def write_model(folder: Path, *, dtype: str = "F32", shards: int = 1, seed: int = 0, **changes: Any) -> Path:
    """A publishable folder; ``changes`` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    shapes = model_shapes(config)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(shapes, dtype=dtype, seed=seed))
        return folder
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = safetensors_bytes({name: shapes[name] for name in mine}, dtype=dtype, seed=seed + shard)
        (folder / file).write_bytes(part)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
