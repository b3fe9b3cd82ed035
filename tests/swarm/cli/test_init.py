from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from swarm import cli
from swarm.errors import PaymentError, ResourceError, SwarmError, UnreachableError

ROOT = Path(__file__).parents[3]
HEAVY = ["torch", "libtorrent", "web3", "transformers", "eth_tester", "trio", "apsw", "nacl", "msgspec"]


def run(
    *arguments: str, code: str = "from swarm.cli import main; main()", **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environ},
    )


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = f"""
import sys
sys.stdout.flush()
from swarm.cli import main
try:
    main(["--help"])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = run(code=code)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    for command in cli.COMMANDS:
        assert f"\n  {command}" in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_a_first_line(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: swarm {command}")
    assert "--help" in done.stdout


def test_the_version_is_the_distributions() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"swarm-inference {version('swarm-inference')}\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["chain", "--port", "x"]])
def test_wrong_usage_exits_2_with_one_line_and_nothing_on_stdout(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("swarm: ")
    assert done.stderr.rstrip().endswith("--help")
    assert done.stderr.count("\n") == 1


def test_without_a_command_the_help_is_on_stderr() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


def test_the_list_of_commands_fits_80_columns_with_whole_sentences() -> None:
    done = run("--help", COLUMNS="80")
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_80_columns(command: str) -> None:
    done = run(command, "--help", COLUMNS="80")
    assert max(map(len, done.stdout.splitlines())) <= 80


class TestReport:
    def test_an_error_is_one_line_and_its_code(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.report(PaymentError("no funds; deposit some\nnow")) == 6
        assert capsys.readouterr() == ("", "swarm: no funds; deposit some now\n")

    def test_a_group_is_opened(self, capsys: pytest.CaptureFixture[str]) -> None:
        inner = BaseExceptionGroup("inner", [UnreachableError("nobody at a:1")])
        assert cli.report(BaseExceptionGroup("outer", [inner])) == 5
        assert capsys.readouterr().err == "swarm: nobody at a:1\n"

    def test_several_errors_are_a_line_each_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        errors = [ResourceError("port 1 is taken"), UnreachableError("nobody"), ResourceError("port 1 is taken")]
        assert cli.report(ExceptionGroup("several", errors)) == 7
        assert capsys.readouterr().err == "swarm: port 1 is taken\nswarm: nobody\n"

    def test_a_bug_beside_an_error_is_a_bug(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.report(ExceptionGroup("both", [SwarmError("known"), ZeroDivisionError("oh")])) == 1
        err = capsys.readouterr().err
        assert err == (
            "swarm: internal error: ZeroDivisionError: oh; this is a bug, run again with SWARM_DEBUG=1 and report it\n"
        )

    def test_an_interrupt_is_silent(self, capsys: pytest.CaptureFixture[str]) -> None:
        group = BaseExceptionGroup("group", [KeyboardInterrupt(), SwarmError("closed by it")])
        assert cli.report(group) == 130
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("module", "extra"), [("torch", "worker"), ("libtorrent", "worker"), ("web3.types", "chain"), ("eth", "demo")]
    )
    def test_a_missing_extra_is_named(self, module: str, extra: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.report(ModuleNotFoundError(f"No module named {module!r}", name=module)) == 7
        assert capsys.readouterr().err == (
            f"swarm: this needs the {extra} extra; run: pip install 'swarm-inference[{extra}]'\n"
        )

    def test_a_missing_module_of_ours_is_a_bug(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.report(ModuleNotFoundError("No module named 'swarm.lost'", name="swarm.lost")) == 1
        assert "this is a bug" in capsys.readouterr().err

    def test_debugging_shows_where_it_arose(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SWARM_DEBUG", "1")
        with pytest.raises(PaymentError) as caught:
            raise PaymentError("no funds")
        assert cli.report(caught.value) == 6
        assert "test_debugging_shows_where_it_arose" in capsys.readouterr().err


FAILING = """
import sys, types, trio
from swarm import cli, errors
module = types.ModuleType("failing")
def fail(kind: str) -> None:
    "Fail."
    async def main():
        async with trio.open_nursery():
            match kind:
                case "ours": raise errors.UnknownModelError("no such model; see swarm models")
                case "interrupt": raise KeyboardInterrupt
                case "bug": raise ZeroDivisionError
                case "exit": sys.exit(4)
    trio.run(main)
module.fail = fail
sys.modules["failing"] = module
cli.COMMANDS["fail"] = "failing:fail"
cli.main()
"""


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("ours", 5, "swarm: no such model; see swarm models\n"),
        ("interrupt", 130, ""),
        ("bug", 1, "swarm: internal error: ZeroDivisionError: ; this is a bug, run again with SWARM_DEBUG=1 and"),
        ("nothing", 0, ""),
    ],
)
def test_what_leaves_a_nursery_becomes_a_line_and_a_code(kind: str, code: int, line: str) -> None:
    done = run("fail", kind, code=FAILING)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == (1 if line else 0)


def test_debugging_prints_the_traceback() -> None:
    done = run("fail", "bug", code=FAILING, SWARM_DEBUG="1")
    assert "ZeroDivisionError" in done.stderr.splitlines()[-3]
    assert "Traceback" in done.stderr
