"""Ids and settings as ``transformers`` has them, from files that may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.tokenizer import MAX_TEXT, Tokenizer
from swarm.errors import ProtocolError, UsageError
from tests.client.tokenizers_here import LLAMA_2_DECODER, demo_objects, tokenizer_json

TEXTS = ["", "def fib(n):\n    return n", " leading", "<|end|>", "a<|user|>b", "héé 😀\t\x00", "﷽ \u200d "]
PREFIX = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
NAMED = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>"},
    "tokenizer_class": "TokenizersBackend",
}


def _reference(folder: Path, objects: dict[str, bytes]) -> Any:
    from transformers import PreTrainedTokenizerFast

    for name, raw in objects.items():
        (folder / name).write_bytes(raw)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _objects(post_processor: Any = None, **settings: Any) -> dict[str, bytes]:
    raw = tokenizer_json(LLAMA_2_DECODER, post_processor=post_processor)
    return {"tokenizer.json": raw, "tokenizer_config.json": json.dumps(NAMED | settings).encode()}


@pytest.mark.parametrize(
    "objects",
    [
        demo_objects(),
        _objects(),
        _objects(PREFIX),
        _objects(PREFIX, add_bos_token=False),
        _objects(add_bos_token=True, add_eos_token=True),
        _objects(bos_token="▁the", unk_token="<nowhere>"),
    ],
    ids=["demo", "plain", "post-processor", "flag-off", "flags-on", "other-named-tokens"],
)
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, objects: dict[str, bytes]) -> None:
    ours, theirs = Tokenizer.load(objects), _reference(tmp_path, objects)
    for text in TEXTS:
        ids = ours.encode(text)
        assert list(ids) == theirs(text)["input_ids"]
        assert list(ours.encode(text, special=False)) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_that_truncates_no_longer_does() -> None:
    assert len(Tokenizer.load(_objects()).encode("b" * 20)) > 20


def test_the_demo_model_says_where_a_text_ends() -> None:
    tokenizer = Tokenizer.load(demo_objects())
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.vocabulary == 2048
    assert tokenizer.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    assert tokenizer.token_id("<|begin|>") == 0
    assert "default" in tokenizer.chat_template_sources


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 8, 7]}, {"eos_token_id": 9}, (7, 8)),
        ({}, {"eos_token_id": 9}, (9,)),
        ({"eos_token_id": None}, {}, (2,)),
        ({"eos_token_id": "nine"}, {"eos_token_id": [-1]}, (2,)),
        ({"eos_token_id": list(range(100))}, {}, tuple(range(64))),
    ],
)
def test_end_tokens_come_from_the_first_file_that_names_some(
    generation: dict[str, Any], config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    objects = _objects() | {"generation_config.json": json.dumps(generation).encode()}
    assert Tokenizer.load(objects, json.dumps(config).encode()).eos_ids == expected


def test_templates_come_from_their_own_file_first() -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, {"name": 3}, 4]
    assert Tokenizer.load(_objects(chat_template=named)).chat_template_sources == {"default": "d", "tool_use": "t"}
    both = _objects(chat_template="old") | {"chat_template.jinja": b"new"}
    assert Tokenizer.load(both).chat_template_sources == {"default": "new"}
    assert Tokenizer.load(_objects()).chat_template_sources == {}


def test_named_tokens_may_stand_in_their_own_file() -> None:
    objects = {"tokenizer.json": tokenizer_json(LLAMA_2_DECODER), "special_tokens_map.json": b'{"eos_token": "</s>"}'}
    assert Tokenizer.load(objects).eos_ids == (2,)


@pytest.mark.parametrize(
    ("objects", "kind"),
    [
        ({}, UsageError),
        ({"tokenizer.json": b""}, ProtocolError),
        ({"tokenizer.json": b'{"version": "1.0"}'}, ProtocolError),
        ({"tokenizer.json": b"\xff\xfe"}, ProtocolError),
        (_objects() | {"tokenizer_config.json": b"[]"}, ProtocolError),
        (_objects() | {"generation_config.json": b'{"a": 1, "a": 2}'}, ProtocolError),
        (_objects() | {"chat_template.jinja": b"\xff"}, ProtocolError),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(objects: dict[str, bytes], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Tokenizer.load(objects)
    assert "\n" not in str(caught.value)


def test_text_that_is_none_is_refused() -> None:
    tokenizer = Tokenizer.load(demo_objects())
    with pytest.raises(UsageError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(UsageError, match="shorten"):
        tokenizer.encode("a" * (MAX_TEXT + 1))
