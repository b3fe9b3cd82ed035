"""The shape of the code: who imports whom, which library is seen where, what is pure, and how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("swarm", "dht", "worker", "client")
MAX_MODULE_LINES = 450  # the habit is 400
MAX_FUNCTION_LINES = 70  # the habit is 60

# Library → the modules that may import it; a trailing slash is a folder.
SEAMS = {
    "apsw": ["swarm/ledger.py"],
    "bencodepy": ["swarm/codec.py"],
    "eth": ["swarm/embedded_chain.py"],
    "eth_account": ["swarm/evm.py", "swarm/settlement_evm.py"],
    "eth_tester": ["swarm/embedded_chain.py"],
    "libtorrent": ["swarm/torrents.py"],
    "nacl": ["swarm/identity.py"],
    "safetensors": ["worker/", "swarm/demo/train.py"],
    "torch": ["worker/", "swarm/demo/train.py", "swarm/demo/reference.py"],
    "transformers": ["swarm/demo/", "swarm/cli/"],
    "uvloop": [],
    "vyper": ["swarm/contracts/build.py"],
    "web3": ["swarm/embedded_chain.py", "swarm/evm.py", "swarm/settlement_evm.py"],
}

# Modules that only compute: bytes, messages and the time go in, and no two runs differ.
PURE = [
    "client/bill.py", "client/budget.py", "client/detokenizer.py", "client/route.py", "client/stops.py",
    "dht/calls.py", "dht/cards.py", "dht/contacts.py", "dht/engine.py", "dht/errors.py", "dht/heartbeat.py",
    "dht/items.py", "dht/keys.py", "dht/krpc.py", "dht/lookup.py", "dht/names.py", "dht/operations.py",
    "dht/outcomes.py", "dht/publications.py", "dht/roster.py", "dht/roster_queries.py", "dht/roster_search.py",
    "dht/roster_store.py", "dht/routing.py", "dht/server.py", "dht/statistics.py", "dht/store.py", "dht/tokens.py",
    "dht/votes.py", "swarm/architecture.py", "swarm/batch_board.py", "swarm/batch_check.py", "swarm/batches.py",
    "swarm/checked.py", "swarm/codec.py", "swarm/deployment.py", "swarm/errors.py", "swarm/events.py",
    "swarm/failures.py", "swarm/frames.py", "swarm/greeting.py", "swarm/health.py", "swarm/ids.py",
    "swarm/layout.py", "swarm/ledger_rows.py", "swarm/ledger_schema.py", "swarm/manifest.py", "swarm/merkle.py",
    "swarm/messages.py", "swarm/metadata.py", "swarm/outbox.py", "swarm/pieces.py", "swarm/protocol.py",
    "swarm/quota.py", "swarm/receipts.py", "swarm/records.py", "swarm/safetensors_header.py", "swarm/settlement.py",
    "swarm/sharing.py", "swarm/stream_ids.py", "swarm/strict_json.py", "swarm/torrent_events.py",
    "swarm/torrent_settings.py", "swarm/units.py", "worker/adverts.py", "worker/config.py", "worker/credit.py",
    "worker/session.py", "worker/stage.py",
]  # fmt: skip
IMPURE = {
    "anyio", "apsw", "asyncio", "libtorrent", "multiprocessing", "random", "requests", "secrets", "select", "selectors",
    "socket", "ssl", "subprocess", "threading", "time", "torch", "trio", "web3",
}  # fmt: skip
IMPURE_CALLS = {"os.urandom", "datetime.now", "datetime.utcnow", "datetime.today", "uuid.uuid4", "uuid.uuid1"}


def sources() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    )


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def type_checking(tree: ast.Module) -> set[ast.AST]:
    """All nodes under ``if TYPE_CHECKING:``, which never run."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(top-level name of what is imported, line), inside functions too, ``importlib.import_module`` included."""
    skipped = type_checking(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value.partition(".")[0], node.lineno


def impurities(tree: ast.Module) -> Iterator[str]:
    for name, line in imports(tree):
        if name in IMPURE:
            yield f"line {line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS | {"open", "print", "input"}:
            yield f"line {node.lineno} calls {ast.unparse(node.func)}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield f"line {node.lineno} imports from os"


def function_lengths(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def allowed(name: str, places: list[str]) -> bool:
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


def test_the_packages_are_layered() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_nothing_imports_the_command_line() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name in sources()
        if not name.startswith(("swarm/cli/", "swarm/__main__.py"))
        for node in ast.walk(parsed(name))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swarm.cli"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("swarm.cli") for alias in node.names))
    ]
    assert found == []


@pytest.mark.parametrize("library", SEAMS)
def test_a_library_is_imported_at_its_seam_alone(library: str) -> None:
    found = [
        f"{name}:{line}"
        for name in sources()
        for imported, line in imports(parsed(name))
        if imported == library and not allowed(name, SEAMS[library])
    ]
    assert found == []


@pytest.mark.parametrize("library", [library for library, places in SEAMS.items() if places])
def test_every_seam_is_one(library: str) -> None:
    for place in SEAMS[library]:
        if not place.endswith("/") and (ROOT / place).exists():
            assert library in {imported for imported, _ in imports(parsed(place))}, place


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_is_pure(name: str) -> None:
    assert list(impurities(parsed(name))) == []


def test_modules_and_functions_are_short() -> None:
    long_modules = {
        name: lines for name in sources() if (lines := len((ROOT / name).read_text().splitlines())) > MAX_MODULE_LINES
    }
    long_functions = {
        f"{name}:{function}": lines
        for name in sources()
        for function, lines in function_lengths(parsed(name))
        if lines > MAX_FUNCTION_LINES
    }
    assert (long_modules, long_functions) == ({}, {})


def test_no_module_has_a_name_that_means_nothing() -> None:
    meaningless = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "shared"}
    assert [name for name in sources() if Path(name).stem in meaningless] == []


def test_annotations_are_not_evaluated_early() -> None:
    defining = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.AnnAssign
    without = [
        name
        for name in sources()
        if any(isinstance(node, defining) for node in parsed(name).body)
        and not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in parsed(name).body)
    ]
    assert without == []


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_relative_imports_are_not_used() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name in sources()
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert found == []


class TestTheGuardsThemselves:
    """Each guard is shown code that breaks its rule."""

    @pytest.mark.parametrize(
        "code",
        [
            "import torch",
            "import torch.nn as nn",
            "from torch import nn",
            "from torch.nn import Linear",
            "def f():\n    import torch",
            "import importlib\nimportlib.import_module('torch.nn')",
            "try:\n    import torch\nexcept ImportError:\n    pass",
        ],
    )
    def test_an_import_is_seen_wherever_it_hides(self, code: str) -> None:
        assert "torch" in {name for name, _ in imports(ast.parse(code))}

    def test_an_import_for_types_alone_is_not_one(self) -> None:
        code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"
        assert "torch" not in {name for name, _ in imports(ast.parse(code))}

    @pytest.mark.parametrize(
        "code",
        [
            "import time",
            "import random",
            "import os\nos.urandom(4)",
            "from os import urandom",
            "import trio",
            "open('x')",
        ],
    )
    def test_an_impurity_is_seen(self, code: str) -> None:
        assert list(impurities(ast.parse(code)))

    def test_a_long_function_is_measured(self) -> None:
        code = "def f():\n" + "    x = 1\n" * 80
        assert dict(function_lengths(ast.parse(code))) == {"f": 81}

    def test_a_broken_layer_is_found(self, tmp_path: Path) -> None:
        for package in PACKAGES:
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").touch()
        (tmp_path / "swarm" / "bad.py").write_text("def f():\n    import worker\n")
        (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from importlinter.cli import lint_imports_command; lint_imports_command()",
                "--no-cache",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "swarm.bad -> worker" in done.stdout
