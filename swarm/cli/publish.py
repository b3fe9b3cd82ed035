"""``swarm publish`` and ``swarm seed``: put a model into the swarm, and keep it there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.options import BootstrapOption, HomeOption, HostOption, JsonOption, PortOption, load
from swarm.cli.terminal import print_json, print_progress
from swarm.errors import UsageError

if TYPE_CHECKING:
    from client.publish import Published
    from client.seeder import SeederConfig, Seeding

DhtPortOption = Annotated[int, typer.Option("--dht-port", help="UDP port of the DHT node; 0 takes a free one.")]
OnceOption = Annotated[bool, typer.Option("--no-seed", help="Write the manifest and torrent, and stop.")]


def publish(
    folder: Annotated[Path, typer.Argument(help="A model folder in Hugging Face layout.")],
    name: Annotated[str, typer.Option("--name", help="What to call it: a-z, 0-9, dot, dash, underscore.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dht_port: DhtPortOption = 0,
    no_seed: OnceOption = False,
    json: JsonOption = False,
) -> None:
    """Sign a manifest for a model folder, make its torrent, announce both and seed until Ctrl-C.

    Without --bootstrap it starts a swarm of its own, which others join through the DHT address that it prints.
    """
    import trio

    from client.publish import publish_folder
    from client.seeder import SeederConfig
    from swarm.identity import Identity

    found, settings = load(home, bootstrap=bootstrap, listen_host=host, listen_port=port)
    publisher = Identity.load(found.publisher_key)
    config = SeederConfig(
        identity=Identity.load(found.peer_key),
        publisher=publisher,
        bootstrap=settings.bootstrap_addresses,
        host=settings.listen_host,
        port=settings.listen_port,
        dht_port=dht_port,
    )

    async def run() -> None:
        published = await publish_folder(folder, name=name, publisher=publisher, out=found.path / "published")
        (found.path / "published" / "models" / f"{name}.folder").write_text(f"{folder.resolve()}\n", encoding="utf-8")
        if no_seed:
            print_json({"model": f"{publisher.peer_id}/{name}", "manifest_id": published.signed.manifest_id})
        else:
            await _seed(config, published, json)

    trio.run(run)


def seed(
    name: Annotated[str, typer.Argument(help="The name it was published under.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dht_port: DhtPortOption = 0,
    json: JsonOption = False,
) -> None:
    """Seed a model that was published from this home before, until Ctrl-C."""
    import trio

    from client.publish import load_published
    from client.seeder import SeederConfig
    from swarm.identity import Identity

    found, settings = load(home, bootstrap=bootstrap, listen_host=host, listen_port=port)
    note = found.path / "published" / "models" / f"{name}.folder"
    if not note.exists():
        raise UsageError(f"nothing was published as {name} from {found.path}; run: swarm publish FOLDER --name {name}")
    published = load_published(
        found.path / "published", name, Path(note.read_text(encoding="utf-8").removesuffix("\n"))
    )
    config = SeederConfig(
        identity=Identity.load(found.peer_key),
        publisher=Identity.load(found.publisher_key),
        bootstrap=settings.bootstrap_addresses,
        host=settings.listen_host,
        port=settings.listen_port,
        dht_port=dht_port,
    )
    trio.run(_seed, config, published, json)


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
            print_progress(f"seeding {seeding.model_bytes:,} bytes; Ctrl-C stops it")
            print_progress(f"others serve it with: swarm work {model} --bootstrap {bootstrap}")
