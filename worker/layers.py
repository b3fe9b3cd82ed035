"""One decoder layer of the Llama family, written for few launches: fused weights, in-place writes, no modules.

Two paths compute the same thing. ``chunk_layer`` takes any number of positions on any device. ``decode_layer`` takes
one position in float32 on a CPU, where a step is bound by the number of torch calls and by reading the weights once:
matrices lie input-major, which the matrix-vector product reads fastest; queries are grouped by KV head, so nothing is
repeated; rotation and the attention scale are one in-place complex product over queries, keys and values.

Rotary pairs are (i, i + D/2) in the published weights; ``interleave`` reorders the rows of the query and key matrices
so that they lie beside each other. Attention sees the same permutation on both sides and does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from swarm.errors import ModelFolderError
from worker.config import ModelConfig, RopeConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Matrices are [inputs, outputs]; H heads, K KV heads, D head size, I intermediate."""

    attention_norm: torch.Tensor
    """[hidden]"""
    qkv: torch.Tensor
    """[hidden, (H + 2K)·D], queries and keys interleaved"""
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    """[H·D, hidden]"""
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    """[hidden]"""
    gate_up: torch.Tensor
    """[hidden, 2·I]"""
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    """[I, hidden]"""
    down_bias: torch.Tensor | None

    @classmethod
    def build(cls, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> LayerWeights:
        """Fuse the tensors of one layer, named without their ``model.layers.N.`` prefix.

        Raises ModelFolderError for one that is missing or has another shape than the configuration says.
        """
        hidden, size = config.hidden, config.head_dim
        queries, keys = config.heads * size, config.kv_heads * size

        def take(name: str, *shape: int) -> torch.Tensor:
            return take_tensor(tensors, name, *shape)

        bias = output_bias = gate_up_bias = down_bias = None
        if config.qkv_bias:
            bias = torch.cat(
                [
                    interleave(take("self_attn.q_proj.bias", queries), size),
                    interleave(take("self_attn.k_proj.bias", keys), size),
                    take("self_attn.v_proj.bias", keys),
                ]
            )
        if config.output_bias:
            output_bias = take("self_attn.o_proj.bias", hidden)
        qkv = torch.cat(
            [
                interleave(take("self_attn.q_proj.weight", queries, hidden), size),
                interleave(take("self_attn.k_proj.weight", keys, hidden), size),
                take("self_attn.v_proj.weight", keys, hidden),
            ]
        )
        inner = config.intermediate
        if config.mlp_bias:
            gate_up_bias = torch.cat([take("mlp.gate_proj.bias", inner), take("mlp.up_proj.bias", inner)])
            down_bias = take("mlp.down_proj.bias", hidden)
        gate_up = torch.cat([take("mlp.gate_proj.weight", inner, hidden), take("mlp.up_proj.weight", inner, hidden)])
        return cls(
            attention_norm=take("input_layernorm.weight", hidden),
            qkv=input_major(qkv),
            qkv_bias=bias,
            output=input_major(take("self_attn.o_proj.weight", hidden, queries)),
            output_bias=output_bias,
            mlp_norm=take("post_attention_layernorm.weight", hidden),
            gate_up=input_major(gate_up),
            gate_up_bias=gate_up_bias,
            down=input_major(take("mlp.down_proj.weight", hidden, inner)),
            down_bias=down_bias,
        )


def take_tensor(tensors: Mapping[str, torch.Tensor], name: str, *shape: int) -> torch.Tensor:
    """The named tensor; raises ModelFolderError when it is missing or has another shape."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelFolderError(f"the model's files lack the tensor {name}")
    if tensor.shape != shape:
        raise ModelFolderError(f"{name} has shape {list(tensor.shape)}; config.json says {list(shape)}")
    return tensor


def input_major(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] → [inputs, outputs]; on a CPU the memory is reordered too, elsewhere it is a view."""
    return weight.t().contiguous() if weight.device.type == "cpu" else weight.t()


def interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of a query or key matrix (or bias) so that rotary partners are neighbours."""
    return weight.view(-1, 2, head_dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians per position, [D/2] float32; ``llama3`` as published with Llama 3.1."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "default":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    smooth = (rope.original_context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    stretched = torch.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, stretched)


class Rotary:
    """Unit complex numbers by position, grown as sessions need them."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._frequencies = rotary_frequencies(config.rope, config.head_dim)
        self._device = device
        self._heads, self._kv_heads = config.heads, config.kv_heads
        self._scale = config.head_dim**-0.5
        self._neutral = torch.ones(config.kv_heads, config.head_dim // 2, dtype=torch.complex64, device=device)
        self._table = torch.empty(0, 1, config.head_dim // 2, dtype=torch.complex64, device=device)

    def chunk(self, position: int, count: int) -> torch.Tensor:
        """[count, 1, D/2] complex64."""
        stop = position + count
        if stop > self._table.shape[0]:
            size = max(256, 1 << (stop - 1).bit_length())
            angles = torch.arange(size, dtype=torch.float32)[:, None] * self._frequencies
            table = torch.polar(torch.ones_like(angles), angles)
            self._table = table[:, None].to(self._device)
        return self._table[position:stop]

    def fused(self, position: int) -> torch.Tensor:
        """[1, (H + 2K)·D/2] complex64: turns and scales queries, turns keys, leaves values, in one product."""
        turn = self.chunk(position, 1)[0]
        parts = [(turn * self._scale).expand(self._heads, -1), turn.expand(self._kv_heads, -1), self._neutral]
        return torch.cat(parts).view(1, -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension of [count, hidden]."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm_row(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The same for one row [1, hidden] in half the calls; ``eps`` is a [1, 1] tensor."""
    return torch.addmm(eps, x, x.t(), alpha=1.0 / x.shape[1]).rsqrt_().mul(x).mul_(weight)


def causal_mask(position: int, count: int, like: torch.Tensor) -> torch.Tensor | None:
    """[count, position + count]: 0 where a query may look, -inf elsewhere, in the dtype and on the device of ``like``.

    None where torch's own causal flag, or no mask at all, says the same.
    """
    if count == 1 or position == 0:
        return None
    return like.new_full((count, position + count), -torch.inf).triu_(diagonal=position + 1)


def chunk_layer(
    config: ModelConfig,
    weights: LayerWeights,
    x: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    turns: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """One layer over [count, hidden], in place.

    ``kv`` is (writes, keys, values) of kv.KvWindow for this layer, ``turns`` of Rotary.chunk, ``mask`` of causal_mask.
    """
    count, heads, kv_heads = x.shape[0], config.heads, config.kv_heads
    writes, keys, values = kv
    normed = rms_norm(x, weights.attention_norm, config.rms_norm_eps)
    qkv = _affine(normed, weights.qkv, weights.qkv_bias)
    rows = qkv.view(count, heads + 2 * kv_heads, config.head_dim)
    pairs = torch.view_as_complex(rows[:, : heads + kv_heads].float().reshape(count, heads + kv_heads, -1, 2))
    turned = torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    writes[0].copy_(turned[:, heads:].transpose(0, 1))
    writes[1].copy_(rows[:, heads + kv_heads :].transpose(0, 1))
    mixed = F.scaled_dot_product_attention(
        turned[:, :heads].transpose(0, 1)[None],
        keys.transpose(-1, -2)[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        enable_gqa=heads != kv_heads,
    )
    _add_product(x, mixed[0].transpose(0, 1).reshape(count, -1), weights.output, weights.output_bias)
    inner = _affine(rms_norm(x, weights.mlp_norm, config.rms_norm_eps), weights.gate_up, weights.gate_up_bias)
    gate, up = inner.chunk(2, dim=-1)
    _add_product(x, F.silu(gate).mul_(up), weights.down, weights.down_bias)


def decode_layer(
    config: ModelConfig,
    weights: LayerWeights,
    x: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    turns: torch.Tensor,
    eps: torch.Tensor,
) -> None:
    """One layer over one position [1, hidden], in place; float32 on a CPU. ``turns`` is Rotary.fused."""
    heads, kv_heads, size = config.heads, config.kv_heads, config.head_dim
    writes, keys, values = kv
    normed = rms_norm_row(x, weights.attention_norm, eps)
    qkv = _affine(normed, weights.qkv, weights.qkv_bias)
    qkv.view(torch.complex64).mul_(turns)
    queries = qkv.narrow(1, 0, heads * size).view(kv_heads, heads // kv_heads, size)
    writes.copy_(qkv.narrow(1, heads * size, 2 * kv_heads * size).view(2, kv_heads, 1, size))
    scores = torch.bmm(queries, keys)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
    _add_product(x, mixed.view(1, heads * size), weights.output, weights.output_bias)
    inner = _affine(rms_norm_row(x, weights.mlp_norm, eps), weights.gate_up, weights.gate_up_bias)
    gate, up = inner.chunk(2, dim=1)
    _add_product(x, F.silu(gate).mul_(up), weights.down, weights.down_bias)


def _affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _add_product(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    x.addmm_(y, weight)
    if bias is not None:
        x.add_(bias)
