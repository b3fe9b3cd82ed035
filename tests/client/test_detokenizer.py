"""Pieces of text join up to the text of all ids at once, for every decoder in use and every way to cut the ids."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.detokenizer import WINDOW, Detokenizer
from client.tokenizer import Tokenizer
from tests.client.tokenizers_here import BYTES, DECODERS, demo_objects, tokenizer_json

DEMO = Tokenizer.load(demo_objects())
TOKENIZERS = {"demo": DEMO} | {
    name: Tokenizer.load({"tokenizer.json": tokenizer_json(decoder)}) for name, decoder in DECODERS.items()
}
BYTE_HEAVY = st.sampled_from([*"é😀\ufffd𝄞 ".encode(), 0x80, 0xC3, 0xE2, 0xF0, 0xFF])


def _pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in pairwise(edges)]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_ids_in_any_pieces_give_the_text_of_all_at_once(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    byte_ids = [tokenizer.token_id(BYTES[value]) for value in range(256)]
    known = [token for token in byte_ids if token is not None]
    anything = st.integers(0, tokenizer.vocabulary - 1)
    token = anything | BYTE_HEAVY.map(lambda value: known[value]) if known else anything
    ids = data.draw(st.lists(token, max_size=5 * WINDOW))
    cuts = data.draw(st.lists(st.integers(0, 5 * WINDOW), max_size=5 * WINDOW))
    assert "".join(_pieces(tokenizer, ids, cuts)) == tokenizer.decode(ids)


@given(raw=st.binary(max_size=60))
@settings(max_examples=80, deadline=None)
def test_bytes_of_the_demo_model_one_by_one_are_decoded_as_one(raw: bytes) -> None:
    # A byte's token in a byte-level vocabulary is found by encoding text that holds it: the alphabet's ids are 5 on.
    alphabet = [token for token in range(5, 261) if len(DEMO.decode([token])) == 1]
    ids = [alphabet[value % len(alphabet)] for value in raw]
    assert "".join(_pieces(DEMO, ids, list(range(len(ids))))) == DEMO.decode(ids)


@given(text=st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_text_comes_back_and_no_piece_holds_part_of_a_character(text: str) -> None:
    ids = list(DEMO.encode(text))
    pieces = _pieces(DEMO, ids, list(range(len(ids))))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_over_four_tokens_comes_whole() -> None:
    ids = DEMO.encode("😀", special=False)
    assert len(ids) > 1
    detokenizer = DEMO.detokenizer()
    assert [detokenizer.push((token,)) for token in ids] == ["", "", "", "😀"][-len(ids) :]


def test_what_is_never_completed_comes_at_the_end() -> None:
    detokenizer = DEMO.detokenizer()
    ids = DEMO.encode("a😀", special=False)[:-1]
    assert detokenizer.push(ids) == "a"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_run_of_byte_tokens_waits_for_its_end() -> None:
    tokenizer = TOKENIZERS["llama-2"]
    first, second, word = (tokenizer.token_id(token) for token in ("<0xC3>", "<0xA9>", "b"))
    assert first is not None
    assert second is not None
    assert word is not None
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push((token,)) for token in (first, second, word)] == ["", "", "éb"]
    spoilt = tokenizer.detokenizer()
    assert "".join(spoilt.push((token,)) for token in (first, second, first, word)) == "\ufffd\ufffd\ufffdb"


def test_the_window_stays_small() -> None:
    decoded: list[int] = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return "x" * len(ids)

    detokenizer = Detokenizer(lambda ids: decode(list(ids)))
    assert "".join(detokenizer.push((1,)) for _ in range(1000)) == "x" * 1000
    assert max(decoded) <= 2 * WINDOW + 1
