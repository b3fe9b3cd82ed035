"""Small random models of every supported kind, made and run by transformers: the reference for the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from worker.config import ModelConfig
from worker.kv import KvPool
from worker.model import SpanModel
from worker.runner import StageRunner
from worker.sampling import Sampler
from worker.shards import FolderSource
from worker.stage import StageInput

torch.set_num_threads(1)  # for models this small, a second thread only waits

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "vocab_size": 199,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = ("llama-tied", "llama3-biased", "llama-linear", "qwen2", "mistral")


@dataclass(frozen=True)
class TinyModel:
    """A saved model and the transformers module that it came from."""

    folder: Path
    reference: Any

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.parse(self.source().config())

    def source(self) -> FolderSource:
        return FolderSource(self.folder)

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.reference(torch.tensor([ids])).logits[0]
        return logits

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        with torch.no_grad():
            output = self.reference.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def span(self, start: int, stop: int) -> SpanModel:
        return SpanModel.load(self.config, self.source(), start, stop)


def make_tiny(kind: str, folder: Path) -> TinyModel:
    """Build, randomise (biases and norms too, which start as zeros and ones) and save a model."""
    torch.manual_seed(KINDS.index(kind))
    model: Any
    if kind == "llama-tied":
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPE, num_hidden_layers=6, num_key_value_heads=2, tie_word_embeddings=True)
        )
    elif kind == "llama3-biased":
        model = LlamaForCausalLM(
            LlamaConfig(
                **SHAPE, num_hidden_layers=4, num_key_value_heads=4, attention_bias=True, rope_parameters=LLAMA3_ROPE
            )
        )
    elif kind == "llama-linear":
        rope = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPE, num_hidden_layers=4, num_key_value_heads=1, mlp_bias=True, rope_parameters=rope)
        )
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(**SHAPE, num_hidden_layers=4, num_key_value_heads=2, tie_word_embeddings=False)
        )
    else:
        model = MistralForCausalLM(
            MistralConfig(**SHAPE, num_hidden_layers=4, num_key_value_heads=2, head_dim=24, sliding_window=None)
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    model.eval()
    model.save_pretrained(folder)
    return TinyModel(folder, model)


class Chain:
    """The stages of one session, run one after the other in this thread, each over its own span's weights."""

    def __init__(self, spans: list[tuple[SpanModel, int, int]], positions: int, sampler: Sampler | None) -> None:
        self.runners: list[StageRunner] = []
        for model, start, stop in spans:
            pool = KvPool(model.config, budget_bytes=1 << 24, dtype=model.dtype, device=model.device)
            last = stop == model.config.layers
            cache = pool.lease(stop - start, positions)
            self.runners.append(StageRunner(model, start, stop, cache, sampler if last else None))

    def step(self, position: int, ids: list[int], *, sample: bool = True) -> int | None:
        """Feed ``ids`` at ``position`` through all stages; the drawn token."""
        hidden: bytes | None = None
        draw = None
        for index, runner in enumerate(self.runners):
            step = StageInput(
                position=position,
                count=len(ids),
                ids=tuple(ids) if index == 0 else None,
                hidden=hidden,
                sample=sample and index == len(self.runners) - 1,
            )
            with torch.inference_mode():
                output = runner.forward(step)
            hidden, draw = output.hidden, output.draw
        return None if draw is None else draw.token

    def generate(self, prompt: list[int], count: int, *, chunk: int = 10_000) -> list[int]:
        """Prefill in chunks, then draw ``count`` tokens."""
        token: int | None = None
        for at in range(0, len(prompt), chunk):
            token = self.step(at, prompt[at : at + chunk], sample=at + chunk >= len(prompt))
        tokens: list[int] = []
        for position in range(len(prompt), len(prompt) + count):
            assert token is not None
            tokens.append(token)
            token = self.step(position, [token])
        return tokens


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(2, SHAPE["vocab_size"], (length,), generator=generator).tolist()
    return ids
