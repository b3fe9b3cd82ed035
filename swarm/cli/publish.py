"""``swarm publish`` and ``swarm seed``: put a model into the swarm, and keep it there."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.options import BootstrapOption, HomeOption, HostOption, JsonOption, PortOption, load
from swarm.cli.terminal import ProgressBar, print_json, print_progress
from swarm.errors import ResourceError, UsageError
from swarm.ports import check_port

if TYPE_CHECKING:
    from client.publish import Published
    from client.seeder import SeederConfig, Seeding
    from swarm.config import Home, Settings

DhtPortOption = Annotated[
    int,
    typer.Option("--dht-port", metavar="PORT", min=0, max=65535, help="UDP port of the DHT node; 0 takes a free one."),
]
OnceOption = Annotated[bool, typer.Option("--no-seed", help="Write the manifest and torrent, and stop.")]


def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder in Hugging Face layout.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call it: a-z, 0-9, dot, dash, underscore.")
    ],
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dht_port: DhtPortOption = 0,
    no_seed: OnceOption = False,
    json: JsonOption = False,
) -> None:
    """Publish a model folder under a name, and seed it until Ctrl-C.

    Signs a manifest, makes a torrent and announces both. Without --bootstrap it starts a swarm of its own, which
    others join through the DHT address that it prints.
    """
    from client.publish import check_name, publish_folder
    from client.seeder import SeederConfig
    from swarm.cli.interrupts import run_closing
    from swarm.identity import Identity
    from swarm.model_folder import open_model_folder

    check_name(name)
    found, settings = load(home, bootstrap=bootstrap, listen_host=host, listen_port=port)
    if not no_seed:
        _check_ports(settings, dht_port)
    open_model_folder(folder)  # a folder that is no model is refused before keys are made
    publisher = Identity.load(found.publisher_key)
    config = SeederConfig(
        identity=Identity.load(found.peer_key),
        publisher=publisher,
        bootstrap=settings.bootstrap_addresses,
        host=settings.listen_host,
        port=settings.listen_port,
        dht_port=dht_port,
        upload_rate=settings.upload_rate,
        utp=settings.utp,
        map_ports=settings.map_ports,
    )

    async def run() -> None:
        out = found.path / "published"
        with ProgressBar() as bar:
            progress = partial(bar.show, text="hashed")
            published = await publish_folder(folder, name=name, publisher=publisher, out=out, progress=progress)
        _note_folder(found, name, folder)
        if no_seed:
            print_json({"model": f"{publisher.peer_id}/{name}", "manifest_id": published.signed.manifest_id})
        else:
            await _seed(config, published, json)

    run_closing(run)


def seed(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name it was published under.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dht_port: DhtPortOption = 0,
    json: JsonOption = False,
) -> None:
    """Seed a model that was published from this home before.

    Its folder must be where it was, and as it was. Runs until Ctrl-C.
    """
    from client.publish import check_name, load_published
    from client.seeder import SeederConfig
    from swarm.cli.interrupts import run_closing
    from swarm.identity import Identity

    check_name(name)
    found, settings = load(home, bootstrap=bootstrap, listen_host=host, listen_port=port)
    _check_ports(settings, dht_port)
    published = load_published(found.path / "published", name, _noted_folder(found, name))
    config = SeederConfig(
        identity=Identity.load(found.peer_key),
        publisher=Identity.load(found.publisher_key),
        bootstrap=settings.bootstrap_addresses,
        host=settings.listen_host,
        port=settings.listen_port,
        dht_port=dht_port,
        upload_rate=settings.upload_rate,
        utp=settings.utp,
        map_ports=settings.map_ports,
    )
    run_closing(partial(_seed, config, published, json))


def _check_ports(settings: Settings, dht_port: int) -> None:
    """Before all bytes are hashed."""
    check_port(settings.listen_host, settings.listen_port)
    check_port(settings.listen_host, dht_port, option="--dht-port", udp=True)


def _note(home: Home, name: str) -> Path:
    """Where it is written down which folder was published under a name."""
    return home.path / "published" / "models" / f"{name}.folder"


def _note_folder(home: Home, name: str, folder: Path) -> None:
    note = _note(home, name)
    try:
        note.write_bytes(os.fsencode(folder.resolve()))
    except OSError as error:
        raise ResourceError(f"cannot write {note}: {error.strerror}; free some space and publish again") from error


def _noted_folder(home: Home, name: str) -> Path:
    note = _note(home, name)
    if not note.exists():
        raise UsageError(f"nothing was published as {name} from {home.path}; run: swarm publish FOLDER --name NAME")
    try:
        return Path(os.fsdecode(note.read_bytes()))
    except OSError as error:
        raise ResourceError(f"cannot read {note}: {error.strerror}; publish the folder again") from error


async def _seed(config: SeederConfig, published: Published, json: bool) -> None:
    from client.seeder import run_seeder
    from swarm.nurseries import open_nursery

    async with open_nursery() as nursery:
        seeding: Seeding = await nursery.start(partial(run_seeder, config, published))
        model = f"{seeding.publisher}/{seeding.name}"
        bootstrap = f"{seeding.host}:{seeding.dht_port}"
        if json:
            print_json(
                {
                    "model": model,
                    "manifest_id": seeding.manifest_id,
                    "bootstrap": bootstrap,
                    "peer_id": seeding.peer_id,
                    "address": f"{seeding.host}:{seeding.port}",
                    "model_bytes": seeding.model_bytes,
                }
            )
        else:
            print(model, flush=True)
            print_progress(f"seeding {seeding.model_bytes:,} bytes; Ctrl-C stops it. Others serve it with:")
            print_progress(f"  swarm work {model} --bootstrap {bootstrap}")
