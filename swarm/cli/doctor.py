"""``swarm doctor``: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import json as jsonlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from swarm.cli.options import BootstrapOption, ChainOption, ContractOption, HomeOption, JsonOption
from swarm.cli.terminal import GREEN, RED, YELLOW, paint, print_json, printable
from swarm.config import Home, Settings, format_address
from swarm.errors import ResourceError, SwarmError, UnreachableError, UsageError
from swarm.ports import port_problem

Verdict = Literal["pass", "warn", "fail"]

DEGRADED = 3  # exit code: it works, but not all of it
BROKEN = 7  # exit code: this machine lacks something
MIN_PYTHON = (3, 11)
KEY_SIZE = 32
MIN_FREE = 200 << 20  # bytes of disk: the ledgers, and the bundled model once
GOOD_FREE = 10 << 30  # bytes of disk: a span of a model of common size
PROBE_SECONDS = 5.0  # for an answer from a node of the DHT or the chain
MAX_ANSWER = 1 << 20  # bytes of an RPC answer that are read

# Role → the imports it needs; the extra has the role's name.
ROLES = {
    "client": ("anyio", "apsw", "bencodepy", "cryptography", "jinja2", "msgspec", "nacl", "tokenizers", "trio"),
    "worker": ("libtorrent", "numpy", "psutil", "safetensors", "torch", "web3"),
    "chain": ("web3",),
    "demo": ("eth_tester", "transformers"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding; ``remedy`` says what to do about anything but a pass."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def doctor(
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    contract: ContractOption = None,
    json: JsonOption = False,
) -> None:
    """Check this machine, and say what to do where it is not ready.

    Looks at packages, keys, disk, ports, ledgers, the DHT and the chain, and changes nothing. Exits 0 when all is
    well, 3 with warnings, 7 when something does not work.
    """
    place = Home.find(home)
    checks: list[Check] = []
    given = {"bootstrap": tuple(bootstrap) if bootstrap else None, "chain_rpc": chain, "chain_contract": contract}
    for check in examine(place, **given):
        checks.append(check)
        if not json:
            print_check(check)
    worst = {check.verdict for check in checks}
    code = BROKEN if "fail" in worst else DEGRADED if "warn" in worst else 0
    if json:
        print_json({"schema": "swarm.doctor/1", "home": place.path, "exit_code": code, "checks": checks})
    raise typer.Exit(code)


def print_check(check: Check) -> None:
    """One line, and one more with the remedy where there is one."""
    colour = {"pass": GREEN, "warn": YELLOW, "fail": RED}[check.verdict]
    print(f"{paint(check.verdict, colour, sys.stdout)}  {check.name}: {printable(check.detail)}", flush=True)
    if check.remedy:
        print(f"      {printable(check.remedy)}", flush=True)


def examine(home: Home, **given: object) -> Iterator[Check]:
    """All checks, one after the other, with the settings that the command line gave; nothing is written."""
    yield check_python(sys.version_info[:3])
    yield from check_packages()
    yield check_home(home.path)
    yield check_disk(home.path)
    yield from check_keys(home)
    yield from check_ledgers(home)
    try:
        settings = Settings.load(home).override(**given)
    except UsageError as error:
        remedy = f"correct it on the command line, in SWARM_* or in {home.settings}"
        yield Check(name="settings", verdict="fail", detail=error.message, remedy=remedy)
        return
    except ResourceError as error:
        yield Check(name="settings", verdict="fail", detail=error.message, remedy=f"run: chmod u+r {home.settings}")
        return
    yield Check(name="settings", verdict="pass", detail="understood" if home.settings.exists() else "the defaults")
    yield check_port(settings.listen_host, settings.listen_port)
    yield from check_bootstrap(settings)
    yield from check_chain(settings)


def check_python(version: tuple[int, ...]) -> Check:
    """Whether Python is new enough."""
    detail = ".".join(map(str, version))
    if version < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return Check(name="python", verdict="fail", detail=detail, remedy=f"install Python {wanted} or newer")
    return Check(name="python", verdict="pass", detail=detail)


def check_packages() -> Iterator[Check]:
    """Whether each role's packages are there; a role that is not installed is no fault, but cannot be taken."""
    for role, modules in ROLES.items():
        missing = [module for module in modules if find_spec(module) is None]
        extra = "swarm-inference" if role == "client" else f"'swarm-inference[{role}]'"
        if missing:
            yield Check(
                name=f"packages of the {role}",
                verdict="fail" if role == "client" else "warn",
                detail=f"without {', '.join(missing)}",
                remedy=f"to use it, run: pip install {extra}",
            )
        else:
            yield Check(name=f"packages of the {role}", verdict="pass", detail="installed")


def check_home(path: Path) -> Check:
    """Whether the home can be written, or made."""
    existing = _nearest_existing(path)
    if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"make {existing} writable, or choose another folder with --home"
        return Check(name="home", verdict="fail", detail=f"{path} cannot be written", remedy=remedy)
    return Check(name="home", verdict="pass", detail=f"{path}" if existing == path else f"{path}, made on first use")


def check_disk(path: Path) -> Check:
    """Whether there is room for ledgers and models."""
    free = shutil.disk_usage(_nearest_existing(path)).free
    detail = f"{free / (1 << 30):.1f} GiB free"
    if free < MIN_FREE:
        return Check(name="disk", verdict="fail", detail=detail, remedy=f"free {MIN_FREE >> 20} MiB or more")
    if free < GOOD_FREE:
        remedy = f"models of common size want {GOOD_FREE >> 30} GiB; free some space before lending this machine"
        return Check(name="disk", verdict="warn", detail=detail, remedy=remedy)
    return Check(name="disk", verdict="pass", detail=detail)


def check_keys(home: Home) -> Iterator[Check]:
    """Whether each key is whole and its owner's alone."""
    for path in (home.peer_key, home.spending_key, home.account_key, home.publisher_key):
        try:
            status = path.stat()
        except FileNotFoundError:
            yield Check(name=path.name, verdict="pass", detail="made on first use")
            continue
        except OSError as error:
            yield Check(name=path.name, verdict="fail", detail=str(error.strerror), remedy=f"check {path}")
            continue
        if os.name == "posix" and status.st_mode & 0o077:
            yield Check(name=path.name, verdict="fail", detail="others can read it", remedy=f"run: chmod 600 {path}")
        elif status.st_size != KEY_SIZE:
            detail = f"damaged: {status.st_size} bytes, not {KEY_SIZE}"
            yield Check(name=path.name, verdict="fail", detail=detail, remedy=f"put back a copy of {path}")
        else:
            yield Check(name=path.name, verdict="pass", detail="mode 0600")


def check_ledgers(home: Home) -> Iterator[Check]:
    """Whether each ledger that is there can be read."""
    from swarm.ledger import read_ledger

    for path in (home.worker_ledger, home.client_ledger):
        if not path.exists():
            yield Check(name=path.name, verdict="pass", detail="made on first use")
            continue
        try:
            with read_ledger(path) as ledger:
                detail = f"{len(ledger.channels())} channels, {len(ledger.unsettled())} to settle"
        except SwarmError as error:
            yield Check(name=path.name, verdict="fail", detail=error.message, remedy=f"look at {path}")
        else:
            yield Check(name=path.name, verdict="pass", detail=detail)


def check_port(host: str, port: int) -> Check:
    """Whether the port can be listened on, for TCP and UDP."""
    name = f"port {format_address(host, port)}"
    for udp in (False, True):
        if problem := port_problem(host, port, udp=udp):
            remedy = "stop what uses it, or choose another listen_port"
            return Check(name=name, verdict="fail", detail=f"{'UDP' if udp else 'TCP'}: {problem}", remedy=remedy)
    return Check(name=name, verdict="pass", detail="any free one" if port == 0 else "free for TCP and UDP")


def check_bootstrap(settings: Settings) -> Iterator[Check]:
    """Whether the DHT nodes to begin from answer."""
    if not settings.bootstrap:
        remedy = "to join one, name a node with --bootstrap HOST:PORT or set bootstrap in swarm.toml"
        yield Check(name="bootstrap", verdict="warn", detail="no swarm to join is named", remedy=remedy)
    for host, port in settings.bootstrap_addresses:
        name = f"bootstrap {format_address(host, port)}"
        try:
            yield Check(name=name, verdict="pass", detail=f"answers as {_ping((host, port))}")
        except SwarmError as error:
            remedy = "check the address, the network and the firewall for UDP"
            yield Check(name=name, verdict="fail", detail=error.message, remedy=remedy)


def check_chain(settings: Settings) -> Iterator[Check]:
    """Whether the chain answers and has the contract."""
    if not settings.chain_rpc:
        remedy = "to pay or be paid, set chain_rpc and chain_contract, or try one with: swarm chain"
        yield Check(name="chain", verdict="warn", detail="no chain is named", remedy=remedy)
        return
    name = f"chain {settings.chain_rpc}"
    try:
        chain_id = int(_ask(settings.chain_rpc, "eth_chainId", ()), 16)
        yield Check(name=name, verdict="pass", detail=f"answers for chain {chain_id}")
        if settings.contract is None:
            remedy = "set chain_contract to the settlement contract's address"
            yield Check(name="contract", verdict="warn", detail="none is named", remedy=remedy)
            return
        code = _ask(settings.chain_rpc, "eth_getCode", (f"0x{settings.contract}", "latest"))
        if len(code) > len("0x"):
            yield Check(name="contract", verdict="pass", detail=f"0x{settings.contract} holds code")
        else:
            remedy = "check chain_contract, and that chain_rpc is on the same chain"
            detail = f"0x{settings.contract} holds no code there"
            yield Check(name="contract", verdict="fail", detail=detail, remedy=remedy)
    except (UnreachableError, ValueError) as error:
        yield Check(name=name, verdict="fail", detail=str(error), remedy="start it, or correct chain_rpc")


def _ping(address: tuple[str, int]) -> str:
    """The id of the DHT node at ``address``, shortened. Raises `SwarmError`."""
    import trio

    from dht.config import DhtConfig
    from dht.node import open_node

    async def ping() -> str:
        config = DhtConfig(host="::" if ":" in address[0] else "0.0.0.0", read_only=True)  # noqa: S104 - asks only
        with trio.move_on_after(PROBE_SECONDS):
            async with open_node(config) as node:
                return (await node.ping(address)).hex()[:8]
        raise UnreachableError(f"no answer within {PROBE_SECONDS:.0f} s")

    return trio.run(ping)


def _ask(url: str, method: str, params: Iterable[str]) -> str:
    """The text that a JSON-RPC node answers. Raises `UnreachableError`."""
    body = jsonlib.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - http(s) by Settings
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:  # noqa: S310 - the same
            answer = jsonlib.loads(response.read(MAX_ANSWER))
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UnreachableError(f"no JSON-RPC answers there ({reason})") from error
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, str):
        raise UnreachableError(f"the node does not answer {method}")
    return result


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
