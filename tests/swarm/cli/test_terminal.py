from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.cli.terminal import (
    RED,
    ProgressBar,
    colours,
    paint,
    print_error,
    print_json,
    print_progress,
    print_table,
    print_text,
    printable,
)
from swarm.ids import PeerId


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    peer: PeerId


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colours(Terminal())
    assert not colours(io.StringIO())
    assert paint("no", RED, Terminal()) == "\033[31mno\033[0m"
    assert paint("no", RED, io.StringIO()) == "no"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours(Terminal())
    monkeypatch.setenv("NO_COLOR", "")
    assert colours(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not colours(Terminal())


def test_what_peers_send_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\nb\x1b[2Jc\u202ed") == "a b [2Jc d"
    print_error("peer says \x1b]0;title\x07")
    print_progress("one\ntwo")
    assert capsys.readouterr() == ("", "swarm: peer says  ]0;title \none two\n")


def test_a_models_text_is_data_but_for_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_text("a\n\tb\x1b[2J")
    assert capsys.readouterr() == ("a\n\tb\x1b[2J", "")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    print_text("a\n\tb\x1b[2J")
    assert terminal.getvalue() == "a\n\tb [2J"


def test_json_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {"peer": PeerId(b"\xab" * 32), "row": Row(name="é", peer=PeerId(bytes(32))), "path": Path("/x"), "t": (1,)}
    )
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert json.loads(out) == {
        "peer": "ab" * 32,
        "row": {"name": "é", "peer": "00" * 32},
        "path": "/x",
        "t": [1],
    }


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        print_json({"x": object()})


def test_a_table_shows_every_cell_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(["name", "amount"], [["[red]x[/red]", 1234567], [None, 5]], title="Payments")
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("Payments", "name", "amount", "[red]x[/red]", "1,234,567"):
        assert text in out


def test_a_bar_writes_over_itself_on_a_terminal_and_ends_before_other_lines() -> None:
    terminal = Terminal()
    bar = ProgressBar(terminal)
    bar.show(1, 4, "one\nlayer")
    bar.show(4, 4, "all")
    bar.close()
    bar.close()
    first, second, third = terminal.getvalue().split("\r\033[K")
    assert first == ""
    assert second.startswith("[#####...............]  25% one layer")
    assert third == f"[{'#' * 20}] 100% all\n"


def test_a_log_gets_a_line_of_progress_now_and_then() -> None:
    log = io.StringIO()
    now = 0.0
    bar = ProgressBar(log, now=lambda: now)
    for done, now in enumerate((0.0, 1.0, 4.9, 5.0)):  # noqa: B007 - the clock
        bar.show(done, 4, f"part {done}")
    bar.close()
    assert log.getvalue() == " 75% part 3\n"


def test_a_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    with ProgressBar(terminal) as bar:
        bar.show(1, 4, "x" * 100)
    assert len(terminal.getvalue().removeprefix("\r\033[K").removesuffix("\n")) == 39


def test_the_demos_widest_table_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("worker", "layers", "fetched", "tokens", "ms/token", "price in / out", "earned")
    print_table(columns, [("1e844c38", "0–2", "3.7 of 8.1 MB", 900, "10.16", "1,000 / 3,000", 12_345)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert "12,345" in lines[-1]
