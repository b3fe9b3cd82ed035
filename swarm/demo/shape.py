"""The demo model's sizes, and the configuration files that state them in Hugging Face layout (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.demo import vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's sizes; the defaults make 2.03 M parameters, 8.1 MB in float32: a folder under 10 MB."""

    vocab: int = vocabulary.SIZE
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 448
    context: int = 1_024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2 or self.context % 4:
            raise ValueError("query heads come in groups per KV head, rotary pairs and quarter contexts are whole")

    def configuration(self) -> dict[str, object]:
        """What ``config.json`` says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.norm_eps,
            "initializer_range": 0.02,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "use_cache": True,
            **_special_ids(),
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    def generation(self) -> dict[str, object]:
        """What ``generation_config.json`` says: greedy, no penalties."""
        return {**_special_ids(), "do_sample": False}


def _special_ids() -> dict[str, int]:
    ids = {"bos_token_id": vocabulary.BEGIN, "eos_token_id": vocabulary.END, "pad_token_id": vocabulary.PAD}
    return {key: vocabulary.SPECIAL.index(token) for key, token in ids.items()}
