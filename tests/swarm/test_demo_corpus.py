"""The demo model's corpus and vocabulary, on a few small files and on the standard library itself."""

from __future__ import annotations

import random
from pathlib import Path

from swarm.demo import corpus, vocabulary

FILE = '''"""A module."""


class Stack:
    """Last in, first out."""

    def push(self, item):
        """Add an item on top."""
        self.items.append(item)
        self.size = len(self.items)

    def pop(self): return self.items.pop()
'''


def source(name: str = "stack.py", text: str = FILE) -> corpus.SourceFile:
    return corpus.SourceFile(name=name, text=text)


def test_collect_leaves_out_tests_tables_copies_and_what_is_not_python(tmp_path: Path) -> None:
    for name in ("a.py", "copy.py", "test/b.py", "site-packages/c.py", "pkg/test_d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FILE, encoding="utf-8")
    (tmp_path / "pkg" / "e.py").write_text(FILE + "# another\n", encoding="utf-8")
    (tmp_path / "table.py").write_text("decoding_table = (" + "0, " * 99 + ")\n", encoding="utf-8")
    (tmp_path / "broken.py").write_bytes(b"# coding: no-such-encoding\n" + b"x" * 99)
    assert [file.name for file in corpus.collect(tmp_path)] == ["a.py", "pkg/e.py"]


def test_the_standard_library_is_there_and_some_of_it_is_held_out() -> None:
    files = corpus.collect()
    held = [file for file in files if file.held_out]
    assert sum(len(file.text) for file in files) > 5_000_000
    assert 0.005 < len(held) / len(files) < 0.2
    assert source("operator.py").held_out, "the excerpt in test_demo_model.py must never be trained on"


def test_definitions_are_dedented_and_summed_up() -> None:
    found = {piece.name: piece for piece in corpus.definitions(source())}
    assert set(found) == {"Stack", "push"}  # pop is a stub
    assert found["push"].source.startswith("def push(self, item):\n    ")
    assert (found["push"].summary, found["push"].kind) == ("Add an item on top.", "function")
    assert found["Stack"].kind == "class"
    assert list(corpus.definitions(source(text="def (:\n"))) == []


def test_an_epoch_repeats_for_a_seed_and_loses_no_text() -> None:
    files = [source(f"m{number}.py", FILE * (number + 1)) for number in range(20)]
    pieces = [piece for file in files for piece in corpus.definitions(file)]
    first, again, other = (corpus.epoch(files, pieces, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    whole = {"".join(document.parts) for document in first}
    assert {file.text for file in files} <= whole
    assert any(document.question for document in first)
    assert any(document.parts[0] in {"def ", "class "} for document in first)


def test_encoding_marks_documents_and_turns() -> None:
    tokenizer = vocabulary.train([FILE])
    begin, end, user, assistant, _ = range(len(vocabulary.SPECIAL))
    plain, chat = vocabulary.encode(
        tokenizer,
        [corpus.Document(("class ", "Stack:\n")), corpus.Document(("x = 1\n",), question="Write x")],
    )
    assert (plain[0], plain[-1]) == (begin, end)
    assert tokenizer.decode(plain) == "class Stack:\n"
    assert (chat[0], chat[1], chat[-1]) == (begin, user, end)
    turn = chat.index(end)
    assert tokenizer.decode(chat[2:turn]) == "Write x"
    assert chat[turn + 1] == assistant
    assert tokenizer.decode(chat[turn + 2 : -1]) == "x = 1\n"


def test_any_bytes_survive_the_tokenizer() -> None:
    tokenizer = vocabulary.train([FILE])
    text = "\tné\r\n  𝛑 = 3.14159  # ''' \\\x00\n\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode(text).tokens[0] == vocabulary.BEGIN
