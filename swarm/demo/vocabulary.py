"""The demo model's tokenizer: byte-level BPE over source code, five special tokens, a chat template.

Pieces are words with at most one leading space, runs of up to three digits, runs of punctuation, and white
space, so that a line break and its indentation are one token. ``<|end|>`` ends documents and turns alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from swarm.demo.corpus import Document

SIZE = 2_048  # with the special tokens; a larger table would take its bytes from the layers
BEGIN, END, USER, ASSISTANT, PAD = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL = (BEGIN, END, USER, ASSISTANT, PAD)  # in order: their ids are 0 to 4
PIECE = r" ?[\p{L}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"
# The model knows two voices: whoever is not the assistant speaks as the user.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of ``SIZE`` tokens learnt from ``texts``; encoding puts ``BEGIN`` in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[list[int]]:
    """Token ids of each document, from ``BEGIN`` to ``END``; chat samples get their turns' marks."""
    begin, end, user, assistant = (SPECIAL.index(token) for token in (BEGIN, END, USER, ASSISTANT))
    texts = [text for document in documents for text in (document.question or "", *document.parts)]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    result: list[list[int]] = []
    for document in documents:
        question = next(encoded).ids
        ids = [begin] if document.question is None else [begin, user, *question, end, assistant]
        for _ in document.parts:
            ids.extend(next(encoded).ids)
        result.append([*ids, end])
    return result


def save(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` for a model of ``context`` positions."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
