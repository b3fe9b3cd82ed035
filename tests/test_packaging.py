"""What is installed: the wheel's contents, and that each role runs with its own packages alone."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("swarm", "dht", "worker", "client")
HEAVY = ("torch", "libtorrent", "web3", "transformers", "eth_tester", "safetensors", "numpy")
MODEL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would reuse what an earlier build left in the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_wheel_holds_the_four_packages_and_nothing_else(files: set[str]) -> None:
    assert {name.split("/")[0] for name in files} == {*PACKAGES, "swarm_inference-0.1.0.dist-info"}
    assert not [name for name in files if "test" in Path(name).parts or "tests" in Path(name).parts]


def test_the_wheel_holds_every_module(files: set[str]) -> None:
    here = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert here == {name for name in files if name.endswith(".py")}


def test_the_wheel_is_typed_and_licensed_and_has_the_model_and_the_contract(files: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
    assert {f"swarm/demo/model/{name}" for name in MODEL} <= files
    assert {"swarm/contracts/Settlement.vy", "swarm/contracts/Settlement.json"} <= files
    assert "swarm_inference-0.1.0.dist-info/licenses/LICENSE" in files


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 20 << 20


def test_the_wheels_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read("swarm_inference-0.1.0.dist-info/METADATA"))
        entry_points = archive.read("swarm_inference-0.1.0.dist-info/entry_points.txt").decode()
    assert (metadata["Name"], metadata["License-Expression"]) == ("swarm-inference", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert "swarm = swarm.cli:main" in entry_points


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, line
            pins[canonicalize_name(name)] = version
    assert pins[canonicalize_name("torch")] == "2.13.0"
    declared = project()
    extras = declared["optional-dependencies"]
    assert isinstance(extras, dict)
    asked = [
        Requirement(text)
        for group in (declared["dependencies"], *(extras[name] for name in extras if name not in ("gateway", "all")))
        for text in group
    ]
    for requirement in asked:
        if requirement.name != "swarm-inference":
            pinned = pins.get(canonicalize_name(requirement.name))
            assert pinned is not None, requirement
            assert requirement.specifier.contains(pinned, prereleases=True), (requirement, pinned)


@pytest.mark.parametrize("module", ["client", "swarm.cli", "dht", "swarm.ledger", "swarm.peer"])
def test_a_client_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_every_client_module_imports_without_the_extras() -> None:
    """The same for each module of client/ and dht/, with the heavy libraries made impossible to import."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("client", "dht")
        for path in (ROOT / package).rglob("*.py")
    )
    # Publishing and seeding make torrents: they are the worker extra's part of client/.
    modules = [module for module in modules if module not in ("client.publish", "client.seeder")]
    code = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for module in {modules!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_base_installation_is_enough_for_a_client(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pins = str(ROOT / "constraints.txt")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", pins, str(wheel)], check=True)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SWARM"))}
        return subprocess.run(
            [python, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )

    absent = run("-c", f"from importlib.util import find_spec; print([n for n in {HEAVY!r} if find_spec(n)])")
    assert absent.stdout == "[]\n"
    imported = run("-c", "import client; print(client.Swarm, client.AsyncSwarm)")
    assert imported.returncode == 0, imported.stderr
    help_ = run("-m", "swarm", "--help")
    assert (help_.returncode, help_.stderr) == (0, "")
    assert "generate" in help_.stdout

    doctor = run("-m", "swarm", "doctor", "--home", str(tmp_path / "home"))
    assert doctor.returncode == 3, doctor.stdout + doctor.stderr
    assert "pip install 'swarm-inference[worker]'" in doctor.stdout

    chain = run("-m", "swarm", "chain")
    assert chain.returncode == 7
    assert chain.stderr.splitlines()[-1].startswith("swarm: this needs the ")
    assert "run: pip install 'swarm-inference[" in chain.stderr
