"""What a decoder needs to know about a model, read from Hugging Face's ``config.json``.

The sizes are those of `swarm.architecture`, which every role reads; here come the things that only arithmetic needs:
rotary positions, the norm's epsilon, the end tokens. Whatever the decoder does not compute is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from swarm.architecture import MAX_CONFIG, parse_config
from swarm.errors import ModelFolderError
from swarm.layout import LayoutError
from swarm.strict_json import decode_object

RopeKind = Literal["default", "linear", "llama3"]
DtypeName = Literal["F32", "BF16", "F16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the base, and how the frequencies are stretched beyond the trained context."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    """linear, llama3: how much longer the context became."""
    low_freq_factor: float = 1.0
    """llama3: below this many turns over the original context, a frequency is divided by ``factor``."""
    high_freq_factor: float = 4.0
    """llama3: above this many turns, a frequency is kept."""
    original_context: int = 8192
    """llama3: positions that the model was first trained with."""

    def __post_init__(self) -> None:
        if not self.theta > 0 or not self.factor > 0 or self.original_context < 1:
            raise ModelFolderError("config.json: rope theta, factor and original context must be positive")
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor > 0:
            raise ModelFolderError("config.json: llama3 rope needs high_freq_factor > low_freq_factor > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family. Sizes are in elements, positions or layers."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    """Positions the model was made for: prompt and completion together."""
    rms_norm_eps: float
    rope: RopeConfig
    tied: bool
    """The head is the embedding matrix."""
    qkv_bias: bool = False
    output_bias: bool = False
    """The attention's output projection has a bias."""
    mlp_bias: bool = False
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise ModelFolderError("config.json: head_dim must be even for rotary positions")
        if not 0 < self.rms_norm_eps < 1:
            raise ModelFolderError("config.json: rms_norm_eps must be within 0..1")
        if any(not 0 <= token < self.vocabulary for token in self.eos_ids):
            raise ModelFolderError("config.json: eos_token_id lies outside the vocabulary")

    @property
    def kv_elements_per_position(self) -> int:
        """Elements of keys and values that one layer keeps for one position."""
        return 2 * self.kv_heads * self.head_dim

    @classmethod
    def parse(cls, config: bytes, generation: bytes | None = None) -> ModelConfig:
        """Read ``config.json``, and the end tokens of ``generation_config.json`` where it is given.

        Raises ModelFolderError for malformed JSON, impossible sizes and anything the decoder does not compute.
        """
        try:
            sizes = parse_config(config)
            fields = decode_object(config, limit=MAX_CONFIG)
        except LayoutError as error:
            raise ModelFolderError(f"config.json {error}") from error
        _refuse_unsupported(fields)
        end_tokens = _end_tokens(fields)
        if generation is not None:
            try:
                end_tokens = _end_tokens(decode_object(generation, limit=MAX_CONFIG)) or end_tokens
            except LayoutError as error:
                raise ModelFolderError(f"generation_config.json {error}") from error
        return cls(
            architecture=sizes.architecture,
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            intermediate=sizes.intermediate,
            vocabulary=sizes.vocabulary,
            context=sizes.context,
            rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
            rope=_rope(fields),
            tied=sizes.tied,
            qkv_bias=sizes.qkv_bias,
            output_bias=sizes.output_bias,
            mlp_bias=sizes.mlp_bias,
            eos_ids=end_tokens,
        )


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelFolderError(f"config.json: {name} must be an integer")
    return value


def _number(fields: dict[str, Any], name: str, default: float | None = None) -> float:
    value = fields.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelFolderError(f"config.json: {name} must be a number")
    return float(value)


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation not in {"silu", "swish"}:
        raise ModelFolderError(f"config.json: hidden_act {activation!r} is not supported; only silu is")


def _rope(fields: dict[str, Any]) -> RopeConfig:
    """Newer files hold ``rope_parameters``; older ones ``rope_theta`` beside an optional ``rope_scaling``."""
    merged: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        section = fields.get(name)
        if section is not None and not isinstance(section, dict):
            raise ModelFolderError(f"config.json: {name} must be an object")
        merged.update(section or {})
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ModelFolderError(
            f"config.json: rope type {kind!r} is not supported; supported are default, linear, llama3"
        )
    if merged.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0)) not in (1.0, None):
        raise ModelFolderError("config.json: partial rotary positions are not supported")
    theta = _number(merged, "rope_theta", _number(fields, "rope_theta", 10_000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = _number(merged, "factor")
    if kind == "linear":
        return RopeConfig(kind="linear", theta=theta, factor=factor)
    return RopeConfig(
        kind="llama3",
        theta=theta,
        factor=factor,
        low_freq_factor=_number(merged, "low_freq_factor"),
        high_freq_factor=_number(merged, "high_freq_factor"),
        original_context=_integer(merged, "original_max_position_embeddings"),
    )


def _end_tokens(fields: dict[str, Any]) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in tokens):
        raise ModelFolderError("eos_token_id must be an integer or a list of integers")
    return tuple(tokens)
