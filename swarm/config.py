"""Where a participant keeps its things (`Home`) and what it was told (`Settings`)."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from platformdirs import user_data_dir

from swarm.errors import ResourceError, UsageError
from swarm.ids import Address

APPLICATION = "swarm-inference"
MAX_FILE = 64 * 1024  # bytes of swarm.toml: a page of settings, not a database
MAX_PORT = 65535
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The folder with a participant's keys, ledgers and model files; nothing is made until it is needed."""

    path: Path

    @classmethod
    def find(cls, given: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Self:
        """``given`` (``--home``), else ``SWARM_HOME``, else the platform's folder for user data."""
        named = str(given) if given is not None else environ.get("SWARM_HOME", "")
        return cls(path=Path(named or user_data_dir(APPLICATION, appauthor=False)).expanduser().absolute())

    @property
    def peer_key(self) -> Path:
        """The Ed25519 key that this peer is known by."""
        return self.path / "peer.key"

    @property
    def spending_key(self) -> Path:
        """The Ed25519 key that signs vouchers."""
        return self.path / "spending.key"

    @property
    def account_key(self) -> Path:
        """The secp256k1 key of the account on chain."""
        return self.path / "account.key"

    @property
    def publisher_key(self) -> Path:
        """The Ed25519 key that signs manifests."""
        return self.path / "publisher.key"

    @property
    def worker_ledger(self) -> Path:
        """Vouchers taken and receipts signed as a worker."""
        return self.path / "ledger-worker.db"

    @property
    def client_ledger(self) -> Path:
        """Vouchers given and receipts signed as a client."""
        return self.path / "ledger-client.db"

    @property
    def store(self) -> Path:
        """The folder of downloaded and published models."""
        return self.path / "store"

    @property
    def settings(self) -> Path:
        """The file that `Settings.load` reads."""
        return self.path / "swarm.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may stand in ``swarm.toml``, one key per field; ``SWARM_<FIELD>`` in the environment overrides it.

    Lists are TOML arrays in the file and separated by commas in the environment.
    """

    bootstrap: tuple[str, ...] = ()
    """Addresses (``host:port``) of DHT nodes to begin from. Empty begins a swarm of one's own."""

    chain_rpc: str = ""
    """URL of the JSON-RPC of an EVM node, such as ``http://127.0.0.1:8545``."""

    chain_contract: str = ""
    """The settlement contract's address, 40 hex digits after ``0x``."""

    price_input: int = 10
    """A worker's price for 1000 prompt tokens through one layer, in base units of the settlement token."""

    price_output: int = 30
    """A worker's price for 1000 written tokens through one layer, in base units of the settlement token."""

    listen_host: str = "127.0.0.1"
    """The numeric address to listen on; ``0.0.0.0`` listens on all."""

    listen_port: int = 0
    """The port to listen on, TCP and UDP alike; 0 takes free ones."""

    disk_quota: int = 0
    """Bytes that the store may take, as a number or text such as ``"20 GiB"``; 0 is whatever is free."""

    upload_rate: int = 0
    """Bytes of weights per second that are sent to others, as a number or text such as ``"2 MiB"``; 0 is unlimited."""

    download_rate: int = 0
    """The same for weights that are fetched."""

    utp: bool = False
    """Also carry weights over uTP, which yields to other traffic of a home's line; slower than TCP on fast links."""

    map_ports: bool = False
    """Ask the router (UPnP, NAT-PMP) to let peers in; never done on a loopback address."""

    def __post_init__(self) -> None:
        for name in ("price_input", "price_output", "disk_quota", "upload_rate", "download_rate"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give 0 or more")
        if not 0 <= self.listen_port <= MAX_PORT:
            raise UsageError(f"listen_port is {self.listen_port}; give a port from 0 to {MAX_PORT}")
        try:
            ipaddress.ip_address(self.listen_host)
        except ValueError as error:
            raise UsageError(f"listen_host is {self.listen_host!r}; give a numeric address like 127.0.0.1") from error
        for address in self.bootstrap:
            parse_address(address)
        if self.chain_rpc and not self.chain_rpc.startswith(("http://", "https://")):
            raise UsageError(f"chain_rpc is {self.chain_rpc!r}; give a URL such as http://127.0.0.1:8545")
        if self.chain_contract:
            try:
                Address.parse(self.chain_contract)
            except ValueError as error:
                raise UsageError(f"chain_contract is {self.chain_contract!r}; give 40 hex digits after 0x") from error

    @property
    def bootstrap_addresses(self) -> tuple[tuple[str, int], ...]:
        """`bootstrap` as (host, port)."""
        return tuple(parse_address(address) for address in self.bootstrap)

    @property
    def contract(self) -> Address | None:
        """`chain_contract` as an address; None if it is not set."""
        return Address.parse(self.chain_contract) if self.chain_contract else None

    @classmethod
    def load(cls, home: Home, *, environ: Mapping[str, str] = os.environ) -> Self:
        """The defaults, under what the home's ``swarm.toml`` says, under what the environment says.

        Raises `UsageError` for a key that does not exist or a value that does not fit, `ResourceError` for a file
        that cannot be read.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        found: dict[str, Any] = {}
        for key, value in _read_toml(home.settings).items():
            if key not in kinds:
                raise UsageError(f"{home.settings} has {key!r}, which is no setting; {_nearest(key, kinds)}")
            found[key] = _fit(f"{key} in {home.settings}", kinds[key], value)
        for key, kind in kinds.items():
            name = f"SWARM_{key.upper()}"
            if text := environ.get(name):
                found[key] = _fit(name, kind, _from_text(kind, text))
        return cls(**found)

    def override(self, **given: Any) -> Self:
        """These settings under what the command line gave; None leaves a setting as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def parse_address(text: str, *, name: str = "address") -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as (host, port), the port from 1. Raises `UsageError` for anything else."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    plain = not re.search(r"[\s\[\]/]", host) and (":" in host) == bracketed
    if not (colon and host and plain and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) <= MAX_PORT):
        raise UsageError(f"{text!r} is no {name}; give HOST:PORT, or [HOST]:PORT for IPv6")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The text that `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_size(text: str) -> int:
    """A number of bytes from text such as ``20 GiB``; K, M, G and T are powers of 1024. Raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size; give bytes, or a number with KiB, MiB, GiB or TiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}; check the file") from error
    if len(raw) > MAX_FILE:
        raise UsageError(f"{path} is over {MAX_FILE} bytes; it should hold settings alone")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def _nearest(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def _from_text(kind: type, text: str) -> Any:
    if kind is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind is bool:
        return _TRUTHS.get(text.strip().lower(), text)
    return text


def _fit(where: str, kind: type, value: Any) -> Any:
    """``value`` as the setting's type. Raises `UsageError` if it does not fit."""
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind is int and isinstance(value, str):
        try:
            return parse_size(value)
        except UsageError as error:
            raise UsageError(f"{where} is {value!r}; give a whole number") from error
    if type(value) is kind and kind is not tuple:
        return value
    expected = {tuple: "a list of texts", int: "a whole number", str: "a text", bool: "true or false"}[kind]
    raise UsageError(f"{where} is {value!r}; give {expected}")
