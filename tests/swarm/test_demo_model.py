"""The bundled model: its layout, that the reference loads it, and that it has learnt what it claims."""

from __future__ import annotations

import ast
import json
from collections import Counter
from itertools import pairwise
from math import log
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from swarm.demo import model_folder
from swarm.demo.shape import Shape
from swarm.demo.train import Model

FOLDER = model_folder()
FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
    "TRAINING.json",
}  # fmt: skip
LARGEST = 10_000_000  # bytes of the whole folder: it is part of every wheel
# Nats per token of EXCERPT, as first measured with transformers 5.23; another machine rounds differently.
EXCERPT_LOSS, ROUNDING = 2.1044, 0.02

# From modulefinder.py of CPython 3.11 (Python Software Foundation License 2), a file that is held out.
EXCERPT = """\
class ModuleFinder:

    def __init__(self, path=None, debug=0, excludes=None, replace_paths=None):
        if path is None:
            path = sys.path
        self.path = path
        self.modules = {}
        self.badmodules = {}
        self.debug = debug
        self.indent = 0
        self.excludes = excludes if excludes is not None else []
        self.replace_paths = replace_paths if replace_paths is not None else []
        self.processed_paths = []   # Used in debugging only

    def msg(self, level, str, *args):
        if level <= self.debug:
            for i in range(self.indent):
                print("   ", end=' ')
            print(str, end=' ')
            for arg in args:
                print(repr(arg), end=' ')
            print()

    def msgin(self, *args):
        level = args[0]
        if level <= self.debug:
            self.indent = self.indent + 1
            self.msg(*args)

    def msgout(self, *args):
        level = args[0]
        if level <= self.debug:
            self.indent = self.indent - 1
            self.msg(*args)

    def run_script(self, pathname):
        self.msg(2, "run_script", pathname)
        with io.open_code(pathname) as fp:
            stuff = ("", "rb", _PY_SOURCE)
            self.load_module('__main__', fp, pathname, stuff)

    def load_file(self, pathname):
        dir, name = os.path.split(pathname)
        name, ext = os.path.splitext(name)
        with io.open_code(pathname) as fp:
            stuff = (ext, "rb", _PY_SOURCE)
            self.load_module(name, fp, pathname, stuff)

    def import_hook(self, name, caller=None, fromlist=None, level=-1):
        self.msg(3, "import_hook", name, caller, fromlist, level)
        parent = self.determine_parent(caller, level=level)
        q, tail = self.find_head_package(parent, name)
        m = self.load_tail(q, tail)
        if not fromlist:
            return q
        if m.__path__:
            self.ensure_fromlist(m, fromlist)
        return None
"""


@pytest.fixture(scope="module")
def reference() -> Any:
    """The model as ``transformers`` loads it."""
    model, seen = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not seen[kind], f"{kind}: {seen[kind]}"
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as ``transformers`` loads it."""
    return AutoTokenizer.from_pretrained(FOLDER)


def record() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "TRAINING.json").read_text(encoding="utf-8"))
    return loaded


def excerpt_ids() -> torch.Tensor:
    return torch.tensor([Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(EXCERPT).ids])


def complete(reference: Any, tokenizer: Any, prompt: str, **settings: Any) -> list[int]:
    ids = tokenizer(prompt, return_tensors="pt")
    settings = {"do_sample": False, "max_new_tokens": 64} | settings
    out: list[int] = reference.generate(**ids, **settings)[0].tolist()
    return out


def test_layout_and_size() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= LARGEST


def test_configuration() -> None:
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.num_hidden_layers, config.max_position_embeddings, config.dtype) == (
        8,
        1_024,
        torch.float32,
    )
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.rope_parameters["rope_theta"] == 10_000.0


def test_tensors_are_the_reference_s_and_float32(reference: Any) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    del expected["lm_head.weight"]  # tied to the embedding
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        found = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
        assert {name: tuple(part.get_shape()) for name, part in found.items()} == expected
        assert {part.get_dtype() for part in found.values()} == {"F32"}


def test_the_training_model_computes_the_reference_s_logits(reference: Any) -> None:
    model = Model(Shape())
    model.load_state_dict({k: v for k, v in reference.model.state_dict().items() if "rotary" not in k})
    with torch.no_grad():
        torch.testing.assert_close(model(excerpt_ids()), reference(excerpt_ids()).logits, atol=1e-4, rtol=1e-4)


def test_both_libraries_tokenize_alike(tokenizer: Any) -> None:
    plain = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.is_fast
    assert tokenizer(EXCERPT).input_ids == plain.encode(EXCERPT).ids
    assert plain.encode(EXCERPT).ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(plain.encode(EXCERPT).ids, skip_special_tokens=True) == EXCERPT
    assert plain.get_vocab_size() == 2_048


def test_chat_template(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "Write push"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|user|>Write push<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [ids[0], ids[1], *ids[-2:]] == tokenizer.convert_tokens_to_ids(
        ["<|begin|>", "<|user|>", "<|end|>", "<|assistant|>"]
    )
    turns.append({"role": "assistant", "content": "x"})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == text + "x<|end|>"
    assert tokenizer.eos_token == "<|end|>"


def test_the_recorded_loss_is_far_below_the_unigram_s() -> None:
    figures = record()
    assert figures["held_out_nats_per_token"] < 0.5 * figures["unigram_nats_per_token"]
    assert figures["held_out_bits_per_byte"] < 1.5
    assert figures["held_out_tokens"] > 50_000
    for key in ("corpus_bytes", "tokens_seen", "steps", "seconds", "python", "seed"):
        assert figures[key]


def test_the_held_out_excerpt_costs_what_was_measured(reference: Any) -> None:
    ids = excerpt_ids()
    with torch.no_grad():
        loss = reference(ids, labels=ids).loss.item()
    assert loss == pytest.approx(EXCERPT_LOSS, abs=ROUNDING)
    # No unigram model can do better on the excerpt than the one fitted to the excerpt itself.
    counts = Counter(ids[0, 1:].tolist())
    best_unigram = -sum(n * log(n / counts.total()) for n in counts.values()) / counts.total()
    assert loss < 0.6 * best_unigram


@pytest.mark.parametrize("prompt", ["def ", "class ", "def fib(n):", "class Stack:"])
def test_greedy_text_is_visibly_python(reference: Any, tokenizer: Any, prompt: str) -> None:
    text = tokenizer.decode(complete(reference, tokenizer, prompt), skip_special_tokens=True)
    assert text.startswith(prompt)
    assert "\n    " in text
    assert any(word in text for word in ("self", "return", '"""', "def "))
    assert any(parses(text[: end + 1]) for end in range(len(prompt), len(text)) if text[end] == "\n"), text


def parses(text: str) -> bool:
    """True if ``text`` is a whole Python definition."""
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False


@pytest.mark.parametrize("prompt", ["def fib(n):", "class Stack:", "def ", "class ", "import os"])
def test_greedy_text_is_no_loop_of_one_token(reference: Any, tokenizer: Any, prompt: str) -> None:
    drawn = complete(reference, tokenizer, prompt)[len(tokenizer(prompt).input_ids) :]
    repeated = sum(one == other for one, other in pairwise(drawn))
    assert len(set(drawn)) >= min(3, len(drawn))
    assert repeated <= len(drawn) // 4


def test_a_chat_reply_is_code_that_ends(reference: Any, tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Write close"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    drawn = reference.generate(**ids, max_new_tokens=256, do_sample=False)[0, ids.input_ids.shape[1] :].tolist()
    assert drawn[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(drawn, skip_special_tokens=True).startswith("def close(")


def test_the_whole_context_is_usable(reference: Any) -> None:
    ids = excerpt_ids().repeat(1, 3)[:, :1_024]
    half = ids.shape[1] // 2
    with torch.no_grad():
        logits = reference(ids).logits[0, :-1]
    each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    assert ids.shape[1] == 1_024
    assert each[half:].mean() < EXCERPT_LOSS + 0.5  # far positions are no worse than near ones
