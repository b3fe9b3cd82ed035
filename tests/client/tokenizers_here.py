"""Tokenizers for tests: the demo model's, and one for each way in which decoders differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import swarm.demo

DEMO = Path(swarm.demo.__file__).parent / "model"
NAMES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

BYTES = [f"<0x{value:02X}>" for value in range(256)]
WORDS = ["▁", "▁the", "the", "▁a", "b", "é", "\ufffd", "▁▁", "😀", "</w>", "lo</w>"]


def demo_objects() -> dict[str, bytes]:
    """The demo model's tokenizer files."""
    return {name: (DEMO / name).read_bytes() for name in NAMES}


def tokenizer_json(decoder: dict[str, Any], *, post_processor: Any = None) -> bytes:
    """A BPE of whole words, byte tokens and three special tokens, decoded by ``decoder``."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *WORDS]
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(tokens[:3])
    ]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": None,
            "added_tokens": special,
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            "pre_tokenizer": None,
            "post_processor": post_processor,
            "decoder": decoder,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": [],
            },
        }
    ).encode()


LLAMA_2_DECODER: dict[str, Any] = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama-2": LLAMA_2_DECODER,
    "metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "suffix": {"type": "BPEDecoder", "suffix": "</w>"},
    "wordpiece": {"type": "WordPiece", "prefix": "▁", "cleanup": True},
    "strip": {
        "type": "Sequence",
        "decoders": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}],
    },
}
