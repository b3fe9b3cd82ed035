"""A Llama of 111 M parameters with random weights, in Hugging Face layout: a model of a size that memory bounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from swarm.architecture import EMBEDDING, HEAD, LAYER_PREFIX, NORM, layer_shapes, parse_config

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}
SPREAD = 0.02  # standard deviation of the weights, as Llama is initialised


def write_random_llama(folder: Path, *, seed: int = 1, **changes: int) -> Path:
    """Write the model, 445 MB without ``changes`` of sizes; the same bytes for the same seed and numpy."""
    folder.mkdir(parents=True)
    encoded = json.dumps(CONFIG | changes).encode()
    config = parse_config(encoded)
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocabulary, config.hidden),
        NORM: (config.hidden,),
        HEAD: (config.vocabulary, config.hidden),
    }
    for index in range(config.layers):
        shapes |= {f"{LAYER_PREFIX}{index}.{name}": shape for name, shape in layer_shapes(config).items()}
    generator = np.random.default_rng(seed)
    tensors = {
        name: np.ones(shape, np.float32)  # norms
        if len(shape) == 1
        else generator.standard_normal(shape, np.float32) * np.float32(SPREAD)
        for name, shape in sorted(shapes.items())
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes(encoded)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')  # ids go in and come out
    return folder
