"""config.json as written by old and new transformers, and what must be refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swarm.errors import ModelFolderError
from worker.config import ModelConfig, RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 7,
}
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def parse(**changes: Any) -> ModelConfig:
    return ModelConfig.parse(json.dumps(LLAMA | changes).encode())


def test_sizes_and_defaults() -> None:
    config = parse()
    assert (config.architecture, config.layers, config.hidden, config.head_dim) == ("LlamaForCausalLM", 3, 64, 16)
    assert (config.kv_heads, config.tied, config.qkv_bias, config.eos_ids) == (2, False, False, (7,))
    assert config.rope == RopeConfig(kind="default", theta=10_000.0)
    assert config.kv_elements_per_position == 2 * 2 * 16


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500_000.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 500_000.0, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 500_000.0}},
        {"rope_theta": 1.0, "rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 500_000.0}},
    ],
    ids=["old", "older", "new", "new wins"],
)
def test_rope_scaling_in_old_and_new_words(changes: dict[str, Any]) -> None:
    assert parse(**changes).rope == RopeConfig(
        kind="llama3",
        theta=500_000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context=8192,
    )


def test_linear_rope_and_null_scaling() -> None:
    linear = {"rope_type": "linear", "factor": 4}
    assert parse(rope_scaling=linear).rope == RopeConfig(kind="linear", theta=10_000.0, factor=4.0)
    assert parse(rope_theta=1e6, rope_scaling=None).rope == RopeConfig(theta=1e6)


def test_qwen2_has_biases_and_ignores_an_unused_window() -> None:
    config = parse(
        architectures=["Qwen2ForCausalLM"], use_sliding_window=False, sliding_window=128, tie_word_embeddings=True
    )
    assert config.qkv_bias
    assert not config.output_bias
    assert config.tied
    assert config.context == 512


def test_a_sliding_window_in_use_bounds_the_context() -> None:
    assert parse(architectures=["MistralForCausalLM"], sliding_window=128).context == 128


def test_end_tokens_of_the_generation_configuration_win() -> None:
    config = json.dumps(LLAMA).encode()
    assert ModelConfig.parse(config, b'{"eos_token_id": [3, 4]}').eos_ids == (3, 4)
    assert ModelConfig.parse(config, b"{}").eos_ids == (7,)
    assert parse(eos_token_id=None).eos_ids == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "not supported"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 15}, "even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "positive"),
        ({"rope_scaling": LLAMA3 | {"rope_type": "llama3", "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"eos_token_id": 100}, "vocabulary"),
        ({"eos_token_id": "end"}, "eos_token_id"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFolderError, match=words) as caught:
        parse(**changes)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        ModelConfig.parse(data)
    with pytest.raises(ModelFolderError, match=r"generation_config\.json"):
        ModelConfig.parse(json.dumps(LLAMA).encode(), data)
