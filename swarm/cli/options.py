"""Options that several commands share, and what they come to: flags over environment over ``swarm.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.config import Home, Settings, parse_address
from swarm.errors import UsageError

if TYPE_CHECKING:
    from swarm.torrent_settings import TorrentConfig

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="FOLDER", help="Folder of keys, ledger and store.")]
BootstrapOption = Annotated[
    list[str] | None,
    typer.Option("--bootstrap", metavar="HOST:PORT", help="A DHT node to join through; may be repeated."),
]
ChainOption = Annotated[
    str | None, typer.Option("--chain", metavar="URL", help="JSON-RPC of the chain that calls are paid on.")
]
ContractOption = Annotated[
    str | None, typer.Option("--contract", metavar="0x…", help="The settlement contract's address.")
]
HostOption = Annotated[
    str | None, typer.Option("--host", metavar="ADDRESS", help="Numeric address to listen on; 0.0.0.0 for all.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", metavar="PORT", help="TCP port for peers; 0 takes a free one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
SpanOption = Annotated[
    str | None, typer.Option("--span", metavar="START:STOP", help="Layers to serve, STOP not included; by default all.")
]


def load(home: Path | None, **given: object) -> tuple[Home, Settings]:
    """The home and the settings with the command's flags on top; None leaves a setting as it is."""
    found = Home.find(home)
    bootstrap = given.pop("bootstrap", None)
    if isinstance(bootstrap, list) and bootstrap:
        given["bootstrap"] = tuple(bootstrap)
    return found, Settings.load(found).override(**given)


def joined(settings: Settings) -> tuple[tuple[str, int], ...]:
    """The bootstrap addresses. Raises `UsageError` when there are none: this command cannot start a swarm."""
    if not settings.bootstrap:
        raise UsageError("no DHT node to join through; give --bootstrap HOST:PORT (a publisher prints its own)")
    return tuple(parse_address(address) for address in settings.bootstrap)


def parse_span(text: str | None) -> tuple[int, int] | None:
    """Read ``START:STOP``. Raises `UsageError` for anything else."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit() or int(start) >= int(stop):
        raise UsageError(f"--span {text} is no range of layers; give START:STOP, for example 0:4")
    return int(start), int(stop)


def weights(settings: Settings) -> TorrentConfig:
    """Where weights are exchanged, and at which rates."""
    from swarm.torrent_settings import TorrentConfig

    return TorrentConfig(
        host=settings.listen_host,
        upload_rate=settings.upload_rate,
        download_rate=settings.download_rate,
        utp=settings.utp,
        map_ports=settings.map_ports,
    )
