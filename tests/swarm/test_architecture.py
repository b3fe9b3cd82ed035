from __future__ import annotations

import json
from typing import Any

import pytest

from swarm.architecture import SUPPORTED, layer_shapes, parse_config
from swarm.layout import LayoutError
from tests.tiny_models import llama_config


def parse(**changes: Any) -> Any:
    return parse_config(json.dumps(llama_config(**changes)).encode())


def test_defaults_are_those_of_the_architecture() -> None:
    config = parse(num_key_value_heads=None)
    assert (config.kv_heads, config.head_dim, config.tied, config.qkv_bias) == (4, 24, False, False)
    qwen = layer_shapes(parse(architectures=["Qwen2ForCausalLM"]))
    assert qwen["self_attn.k_proj.bias"] == (48,)
    assert "self_attn.o_proj.bias" not in qwen
    biased = layer_shapes(parse(attention_bias=True, mlp_bias=True))
    assert biased.keys() >= {"self_attn.o_proj.bias", "mlp.up_proj.bias"}


def test_the_context_ends_where_a_sliding_window_begins_to_matter() -> None:
    assert parse(sliding_window=128).context == 1024  # Llama has none
    assert parse(architectures=["MistralForCausalLM"], sliding_window=128).context == 128
    assert parse(architectures=["Qwen2ForCausalLM"], sliding_window=128).context == 1024
    assert parse(architectures=["Qwen2ForCausalLM"], sliding_window=128, use_sliding_window=True).context == 128


def test_an_unsupported_architecture_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(LayoutError, match=", ".join(SUPPORTED)):
        parse(architectures=["GPT2LMHeadModel"])
    for names in (None, [], "LlamaForCausalLM", ["LlamaForCausalLM", "GPT2LMHeadModel"], [["LlamaForCausalLM"]]):
        with pytest.raises(LayoutError, match="not supported"):
            parse(architectures=names)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "12"},
        {"num_hidden_layers": 10**9},
        {"hidden_size": True},
        {"vocab_size": None},
        {"num_key_value_heads": 3},
        {"tie_word_embeddings": "yes"},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_a_setting_that_cannot_be_served_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LayoutError):
        parse(**changes)
