"""Model architectures a swarm can place: what their config.json must say and which tensors a layer has.

Llama, Qwen2 and Mistral share one set of tensor names; they differ in which projections carry a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarm.layout import LayoutError
from swarm.strict_json import decode_object

MAX_CONFIG = 2**20  # real ones are a few KB
MAX_LAYERS = 1024
MAX_HIDDEN = 2**17
MAX_INTERMEDIATE = 2**20
MAX_HEADS = 2**12
MAX_VOCABULARY = 2**22
MAX_CONTEXT = 2**28

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER_PREFIX = "model.layers."
IGNORED_IN_LAYER = frozenset({"self_attn.rotary_emb.inv_freq"})  # in old Llama exports; it follows from the config

# architecture -> (default of attention_bias for q, k, v; whether the output projection follows it)
_ARCHITECTURES = {
    "LlamaForCausalLM": (False, True),
    "MistralForCausalLM": (False, False),
    "Qwen2ForCausalLM": (True, False),
}
SUPPORTED = tuple(_ARCHITECTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The sizes that decide a model's tensors, from its config.json."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Positions up to which plain causal attention is what the model was trained with."""
    tied: bool
    """The head is the embedding."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool


def parse_config(raw: bytes) -> ModelConfig:
    """Read config.json. Raises `LayoutError` for an architecture or setting that no worker can serve."""
    fields = decode_object(raw, limit=MAX_CONFIG)
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        shown = name if isinstance(name, str) and name.isprintable() else "(none)"
        raise LayoutError(f"names the architecture {shown[:64]}, which is not supported; use {', '.join(SUPPORTED)}")
    if fields.get("quantization_config") is not None:
        raise LayoutError("describes quantised weights, which are not supported; use the F32, F16 or BF16 variant")
    default_bias, output_follows = _ARCHITECTURES[name]
    hidden = _size(fields, "hidden_size", MAX_HIDDEN)
    heads = _size(fields, "num_attention_heads", MAX_HEADS)
    kv_heads = _size(fields, "num_key_value_heads", MAX_HEADS, default=heads)
    head_dim = _size(fields, "head_dim", MAX_HIDDEN, default=hidden // heads)
    if heads % kv_heads:
        raise LayoutError(f"has {heads} attention heads, not a multiple of its {kv_heads} key-value heads")
    llama = name == "LlamaForCausalLM"
    bias = _flag(fields, "attention_bias") if llama else default_bias
    return ModelConfig(
        architecture=name,
        layers=_size(fields, "num_hidden_layers", MAX_LAYERS),
        hidden=hidden,
        intermediate=_size(fields, "intermediate_size", MAX_INTERMEDIATE),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_size(fields, "vocab_size", MAX_VOCABULARY),
        context=_context(fields, name),
        tied=_flag(fields, "tie_word_embeddings"),
        qkv_bias=bias,
        output_bias=bias and output_follows,
        mlp_bias=llama and _flag(fields, "mlp_bias"),
    )


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name behind ``model.layers.N.`` → shape, for every tensor that one layer needs."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (config.hidden,),
        "post_attention_layernorm.weight": (config.hidden,),
    }
    linear = (
        ("self_attn.q_proj", query, config.hidden, config.qkv_bias),
        ("self_attn.k_proj", key, config.hidden, config.qkv_bias),
        ("self_attn.v_proj", key, config.hidden, config.qkv_bias),
        ("self_attn.o_proj", config.hidden, query, config.output_bias),
        ("mlp.gate_proj", config.intermediate, config.hidden, config.mlp_bias),
        ("mlp.up_proj", config.intermediate, config.hidden, config.mlp_bias),
        ("mlp.down_proj", config.hidden, config.intermediate, config.mlp_bias),
    )
    for name, rows, columns, bias in linear:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def _context(fields: dict[str, Any], name: str) -> int:
    """The trained context, cut to the sliding window where one is in use: up to there both attentions agree."""
    context = _size(fields, "max_position_embeddings", MAX_CONTEXT)
    windowed = name == "MistralForCausalLM" or (name == "Qwen2ForCausalLM" and _flag(fields, "use_sliding_window"))
    if windowed and fields.get("sliding_window") is not None:
        context = min(context, _size(fields, "sliding_window", MAX_CONTEXT))
    return context


def _size(fields: dict[str, Any], key: str, most: int, *, default: int | None = None) -> int:
    value = fields.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= most:
        raise LayoutError(f"has no {key} between 1 and {most}")
    return value


def _flag(fields: dict[str, Any], key: str) -> bool:
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise LayoutError(f"has a {key} that is neither true nor false")
    return value
