"""Train the bundled demo model and write its folder: ``python -m swarm.demo.train --out FOLDER``.

The text is the standard library of the Python that runs this (or ``--corpus``): whole files, single
definitions and question-answer samples made from them. A byte-level BPE tokenizer is learnt first, then a
Llama of about two million parameters: Muon for the matrices of the layers, AdamW for the embedding and the
norms, a short warm-up and a linear decay to zero. The decay follows the time spent, or the step with
``--steps``; apart from that clock a run is deterministic for its ``--seed``. The folder is in Hugging Face
layout, readable from the first checkpoint on; ``TRAINING.json`` records the held-out loss beside a unigram
baseline. Needs torch 2.9 or later, tokenizers and safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from swarm.demo import corpus, vocabulary
from swarm.demo.run import Run, Tally
from swarm.demo.shape import Shape
from swarm.errors import SwarmError, UsageError

WARM_UP = 0.02  # part of the run over which the learning rate rises
# From here on sequences have the model's full context; before, a quarter of it. A run that goes on from earlier
# weights has it throughout: shorter sequences made them forget the far positions (held out 2.64 became 3.09).
LONG_FROM = 0.85
# Muon's, on the layers' matrices: several epochs over a small corpus overfit without it.
WEIGHT_DECAY = 0.05
MATRIX_RATE, VECTOR_RATE = 0.02, 0.004  # Muon's on the layers' matrices, AdamW's on the rest
RESTART = 0.5  # of both rates, where training goes on from weights that had come to rest
REPORT_EVERY = 20.0  # seconds
CHECKPOINT_EVERY = 240.0  # seconds; what a killed run loses at most


class Attention(nn.Module):
    """Grouped-query attention with rotary positions in the half-split layout of ``LlamaForCausalLM``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, self.shape.head_dim)
        q, k, v = (proj(x).view(split).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """The gated feed-forward (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Model(nn.Module):
    """The decoder; its state's keys are ``LlamaForCausalLM``'s less ``model.``; the head is tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        places = torch.arange(shape.context, dtype=torch.float32)
        angles = torch.outer(places, shape.rope_theta**-half).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(batch, length, vocab)`` of token ids ``(batch, length)``."""
        x = self.embed_tokens(ids)
        cos, sin = self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean nats per token of predicting ``ids[:, 1:]``; ``ids`` is ``(batch, length + 1)``."""
        logits = self(ids[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Stream:
    """Endless batches of windows over the corpus; each epoch shuffles documents, cuts and windows anew."""

    def __init__(self, files: list[corpus.SourceFile], tokenizer: Tokenizer, seed: int) -> None:
        self._files = files
        self._pieces = [piece for file in files for piece in corpus.definitions(file)]
        self._tokenizer = tokenizer
        self._seed = seed
        self._order = torch.Generator().manual_seed(seed)
        self._windows = torch.empty(0, 1, dtype=torch.int64)
        self._at = 0
        self.epochs = 0

    def batch(self, tokens: int, length: int) -> Tensor:
        """Token ids ``(tokens // length, length + 1)``; another ``length`` begins a new epoch."""
        rows = tokens // length
        if self._windows.shape[1] != length + 1 or self._at + rows > len(self._windows):
            self._windows, self._at = self._epoch().unfold(0, length + 1, length), 0
            self._windows = self._windows[torch.randperm(len(self._windows), generator=self._order)]
        self._at += rows
        return self._windows[self._at - rows : self._at]

    def _epoch(self) -> Tensor:
        rng = random.Random(self._seed * 1_000_003 + self.epochs)  # noqa: S311 (shuffling, not secrecy)
        self.epochs += 1
        documents = corpus.epoch(self._files, self._pieces, rng)
        return _flat(vocabulary.encode(self._tokenizer, documents))


def _flat(documents: list[list[int]]) -> Tensor:
    return torch.tensor([token for ids in documents for token in ids], dtype=torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out files as one row of tokens, their bytes, and the unigram loss in nats per token."""

    ids: Tensor
    size: int
    unigram: float

    @classmethod
    def of(cls, files: list[corpus.SourceFile], tokenizer: Tokenizer, counts: Tensor) -> HeldOut:
        """Measure with the token ``counts`` of the training text, one added to each."""
        documents = [corpus.Document((file.text,)) for file in files]
        ids = _flat(vocabulary.encode(tokenizer, documents))
        logs = torch.log((counts + 1.0) / (counts + 1.0).sum())
        size = sum(len(file.text.encode()) for file in files)
        return cls(ids=ids, size=size, unigram=-logs[ids[1:]].mean().item())

    @torch.no_grad()
    def loss(self, model: Model, *, context: int, at_most: int | None = None) -> float:
        """Mean nats per token in float32, each token predicted from at most ``context`` tokens before it."""
        ids = self.ids[:at_most]
        total = 0.0
        for start in range(0, len(ids) - 1, context):
            window = ids[start : start + context + 1]
            total += model.loss(window[None]).item() * (len(window) - 1)
        return total / (len(ids) - 1)


def _optimizers(model: Model) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("layers.")]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or not name.startswith("layers.")]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(progress: float) -> float:
    """The learning rate's factor at ``progress`` in [0, 1): up over ``WARM_UP``, then down to zero."""
    return min(progress / WARM_UP, (1.0 - progress) / (1.0 - WARM_UP), 1.0)


def _train(run: Run, model: Model, stream: Stream, held_out: HeldOut, tally: Tally) -> None:
    """The loop, counting in ``tally``. Reports a running loss; measures the held-out text at every checkpoint."""
    optimizers = _optimizers(model)
    rates = [
        group["lr"] * (RESTART if run.start else 1.0) for optimizer in optimizers for group in optimizer.param_groups
    ]
    can_compile = run.compiled and shutil.which(os.environ.get("CXX", "g++")) is not None
    loss_of = torch.compile(model.loss, dynamic=False) if can_compile else model.loss
    lengths = (run.shape.context // 4, run.shape.context)
    for length in lengths if can_compile else ():  # the clock starts once both are compiled
        with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
            warm: Tensor = loss_of(torch.zeros(run.batch_tokens // length, length + 1, dtype=torch.int64))
        warm.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
    begun = ended = reported = saved = time.monotonic()
    for progress in _progress(run, begun):
        length = lengths[run.start is not None or progress >= LONG_FROM]
        ids = stream.batch(run.batch_tokens, length)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.bf16):
            loss = loss_of(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        groups = (group for optimizer in optimizers for group in optimizer.param_groups)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * _rate(max(progress, 1e-3))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value, now = loss.item(), time.monotonic()
        tally.steps += 1
        tally.tokens += ids[:, 1:].numel()
        tally.seconds += now - ended
        ended = now
        tally.loss = value if math.isnan(tally.loss) else 0.95 * tally.loss + 0.05 * value
        if now - reported >= REPORT_EVERY:
            reported = now
            line = f"{progress:6.1%}  step {tally.steps}  loss {tally.loss:.3f}  epoch {stream.epochs}"
            print(line, flush=True)
        if now - saved >= CHECKPOINT_EVERY:
            saved = now
            save_weights(model, run.out)
            part = held_out.loss(model, context=length, at_most=20_000)
            print(f"        held out {part:.3f} (part of it, {length} tokens of context)", flush=True)


def _progress(run: Run, begun: float) -> Iterator[float]:
    """Progress before each step, from 0 until the run's steps or its minutes are used up."""
    step = 0
    while True:
        done = step / run.steps if run.steps else (time.monotonic() - begun) / (60.0 * run.minutes)
        if done >= 1.0:
            return
        yield done
        step += 1


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_weights(model: Model, folder: Path) -> None:
    """Write ``model.safetensors`` under the reference's tensor names; the tied head is not repeated."""
    state = {f"model.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / "model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # it is written for its owner alone, and is to be shared
    partial.replace(folder / "model.safetensors")


def load_weights(model: Model, folder: Path) -> None:
    """Read what ``save_weights`` wrote."""
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})


def train(run: Run) -> dict[str, object]:
    """Train as ``run`` says, write the folder and return what ``TRAINING.json`` records."""
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    tally = Tally.of(run.start)
    files = corpus.collect(run.corpus)
    training = [file for file in files if not file.held_out]
    if len(training) in {0, len(files)}:
        raise UsageError(
            f"{len(files)} usable .py files: none left to train on or to measure with; name a larger --corpus"
        )
    if run.start:
        tokenizer = Tokenizer.from_file(str(run.start / "tokenizer.json"))
    else:
        tokenizer = vocabulary.train(file.text for file in training)
    run.out.mkdir(parents=True, exist_ok=True)
    vocabulary.save(tokenizer, run.out, context=run.shape.context)
    _write_json(run.out / "config.json", run.shape.configuration())
    _write_json(run.out / "generation_config.json", run.shape.generation())
    whole = _flat(vocabulary.encode(tokenizer, [corpus.Document((file.text,)) for file in training]))
    if len(whole) <= run.batch_tokens + run.shape.context:
        raise UsageError(f"{len(whole)} tokens of text are less than a batch; name a larger --corpus")
    counts = torch.bincount(whole, minlength=run.shape.vocab)
    held_out = HeldOut.of([file for file in files if file.held_out], tokenizer, counts)
    print(f"{len(files)} files, {len(whole)} training tokens, {len(held_out.ids)} held out", flush=True)
    model = Model(run.shape)
    if run.start:
        load_weights(model, run.start)
    stream = Stream(training, tokenizer, run.seed)
    _train(run, model, stream, held_out, tally)
    save_weights(model, run.out)
    loss = held_out.loss(model, context=run.shape.context)
    record: dict[str, object] = {
        "held_out_nats_per_token": round(loss, 4),
        "held_out_bits_per_byte": round(loss / math.log(2) * (len(held_out.ids) - 1) / held_out.size, 4),
        "unigram_nats_per_token": round(held_out.unigram, 4),
        "held_out_tokens": len(held_out.ids),
        "held_out_bytes": held_out.size,
        "corpus": "the Python standard library's sources (PSF-2.0)",
        "corpus_files": len(files),
        "corpus_bytes": sum(len(file.text.encode()) for file in files),
        "training_tokens_per_epoch_of_whole_files": len(whole),
        "tokens_seen": tally.tokens,
        "steps": tally.steps,
        "seconds": round(tally.seconds, 1),
        "python": platform.python_version(),
        "seed": run.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shape": asdict(run.shape),
    }
    _write_json(run.out / "TRAINING.json", record)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, print the record."""
    parser = argparse.ArgumentParser(prog="python -m swarm.demo.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall time of the training (default 25)")
    parser.add_argument("--steps", type=int, help="this many steps instead, whatever time they take")
    parser.add_argument("--corpus", type=Path, help="a folder of .py files (default: the standard library)")
    parser.add_argument("--start", type=Path, help="a folder this script wrote: go on from its weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="float32 throughout: without bfloat16 in hardware")
    parser.add_argument(
        "--no-compile", action="store_true", help="do not compile the step, even if a C++ compiler is there"
    )
    given = parser.parse_args(arguments)
    if given.minutes <= 0 or (given.steps is not None and given.steps <= 0):
        parser.error("--minutes and --steps must be positive")
    run = Run(
        out=given.out,
        minutes=given.minutes,
        steps=given.steps,
        corpus=given.corpus,
        start=given.start,
        seed=given.seed,
        threads=given.threads,
        bf16=not given.fp32,
        compiled=not given.no_compile,
    )
    try:
        print(json.dumps(train(run), indent=2))
    except SwarmError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
