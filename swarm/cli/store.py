"""``swarm store`` and ``swarm models``: what of which model is on this disk, and what the swarm knows of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from swarm.cli.options import BootstrapOption, HomeOption, JsonOption, load
from swarm.cli.terminal import print_json, print_progress, print_table
from swarm.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from swarm.catalogue import Catalogue
    from swarm.config import Settings
    from swarm.manifest import Manifest, SignedManifest
    from swarm.metadata import TorrentMetadata
    from swarm.store import Store, StoredFile

store = typer.Typer(
    name="store",
    help="List, check and clean up the weights on this disk.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)


@store.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


@store.command("ls")
def ls(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the files of weights: which models they belong to, and how much of each is there."""
    opened, catalogue, settings = _open(home)
    files = opened.files()
    owners = _owners(catalogue)
    if json:
        rows = [_described(file, owners) for file in files]
        print_json({"path": opened.path, "quota": settings.disk_quota, "used": opened.used(), "files": rows})
        return
    print_table(
        ("file", "model", "size", "on disk", "checked", "in use"),
        [
            (
                file.root.hex()[:12],
                _names(file, owners),
                file.size,
                file.on_disk,
                file.checked,
                _yes(file.in_use),
            )
            for file in files
        ],
    )
    quota = f" of {settings.disk_quota:,}" if settings.disk_quota else ""
    print_progress(f"{opened.used():,} bytes{quota} in {opened.path}")


@store.command("verify")
def verify(home: HomeOption = None, json: JsonOption = False) -> None:
    """Hash everything again. What is wrong is forgotten, so that it is fetched again."""
    opened, catalogue, _ = _open(home)
    torrents = dict(_torrents(catalogue))
    rows: list[dict[str, Any]] = []
    for file in opened.files():
        if file.root not in torrents:
            rows.append({"file": file.root, "checked": 0, "wrong": [], "unknown": True})
            continue
        metadata, number = torrents[file.root]
        wrong = opened.verify(metadata, number)
        rows.append({"file": file.root, "checked": file.checked, "wrong": wrong, "unknown": False})
        if not json:
            print_progress(f"{file.root.hex()[:12]}: {file.checked:,} bytes, {_verdict(wrong)}")
    bad = [row for row in rows if row["wrong"]]
    if json:
        print_json({"files": rows})
    unknown = sum(row["unknown"] for row in rows)
    if unknown and not json:
        print_progress(f"{unknown} files belong to no model that is known here; swarm store gc removes them")
    if bad:
        raise ResourceError(
            f"{len(bad)} files of the store do not hold what was written, the first {bad[0]['file'].hex()}, piece "
            f"{bad[0]['wrong'][0]}; check the disk, then start the worker again: it fetches those pieces"
        )


@store.command("gc")
def gc(home: HomeOption = None, json: JsonOption = False) -> None:
    """Remove files that no known model needs, then by disk_quota the longest unused. What is in use stays."""
    opened, catalogue, _ = _open(home)
    removed = opened.collect(needed=set(_owners(catalogue)))
    freed = sum(file.on_disk for file in removed)
    if json:
        print_json({"removed": [file.root for file in removed], "freed": freed, "used": opened.used()})
    else:
        print_progress(f"{len(removed)} files removed, {freed:,} bytes freed, {opened.used():,} left")


def models(home: HomeOption = None, bootstrap: BootstrapOption = None, json: JsonOption = False) -> None:
    """List the models that this home knows.

    With a DHT node to ask, also how many share each, and whether the swarm knows a newer revision.
    """
    import trio

    found, settings = load(home, bootstrap=bootstrap)
    opened, catalogue, _ = _open(home)
    here = {file.root: file.checked for file in opened.files()}
    known = [*catalogue.models(), *_published(found.path / "published" / "models")]
    newest = {(signed.manifest.publisher, signed.manifest.name): signed for signed in known}
    entries = [_entry(signed, here) for signed in newest.values()]
    if settings.bootstrap:
        trio.run(_ask_swarm, settings, entries, list(newest.values()))
    if json:
        print_json({"models": [entry.row() for entry in entries]})
        return
    for entry in entries:
        print(entry.model)
        print(f"  revision {entry.revision}, {entry.layers} layers, {entry.here:,} of {entry.size:,} bytes are here")
        if entry.peers is not None:
            news = "nothing newer is known" if entry.newest else "the swarm knows a newer revision"
            print(f"  {entry.peers} peers share it, {news}")
    if not entries:
        print_progress("no model is known here yet; publish one, or serve one: swarm work PUBLISHER/NAME")


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One known model. Sizes in bytes."""

    model: str
    revision: int
    manifest_id: bytes
    layers: int
    size: int
    here: int
    peers: int | None = None
    newest: bool | None = None
    """Whether the swarm knows nothing newer; None if nobody was asked."""

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def _entry(signed: SignedManifest, here: dict[bytes, int]) -> _Entry:
    manifest = signed.manifest
    return _Entry(
        model=f"{manifest.publisher}/{manifest.name}",
        revision=manifest.revision,
        manifest_id=signed.manifest_id,
        layers=manifest.layers,
        size=sum(file.size for file in manifest.files),
        here=sum(here.get(file.root, 0) for file in manifest.files),
    )


async def _ask_swarm(settings: Settings, entries: list[_Entry], known: list[SignedManifest]) -> None:
    from dht.config import DhtConfig
    from dht.directory import Directory
    from dht.node import open_node
    from swarm.errors import UnknownModelError

    async with open_node(DhtConfig(host=settings.listen_host, bootstrap=settings.bootstrap_addresses)) as node:
        directory = Directory(node)
        for entry, signed in zip(entries, known, strict=True):
            try:
                newest = await directory.find_model(signed.manifest.publisher, signed.manifest.name)
                entry.newest = newest == signed.manifest_id
            except UnknownModelError:
                entry.newest = True  # nobody announces it now
            entry.peers = len(await directory.find_torrent_peers(signed.manifest.info_hash))


def _open(home: Any) -> tuple[Store, Catalogue, Settings]:
    from swarm.catalogue import Catalogue
    from swarm.store import Store

    found, settings = load(home)
    return Store(found.store, quota=settings.disk_quota), Catalogue(found.store), settings


def _published(folder: Any) -> Iterator[SignedManifest]:
    from swarm.errors import SwarmError
    from swarm.manifest import SignedManifest

    for path in sorted(folder.glob("*.manifest")):
        try:
            yield SignedManifest.decode(path.read_bytes())
        except (OSError, SwarmError):
            print_progress(f"{path} cannot be read; publish the folder again")


def _owners(catalogue: Catalogue) -> dict[bytes, list[Manifest]]:
    owners: dict[bytes, list[Manifest]] = {}
    for signed in catalogue.models():
        for file in signed.manifest.files:
            owners.setdefault(file.root, []).append(signed.manifest)
    return owners


def _torrents(catalogue: Catalogue) -> Iterator[tuple[bytes, tuple[TorrentMetadata, int]]]:
    """Root → a torrent with that file, and the file's number in it."""
    for signed in catalogue.models():
        raw = catalogue.object(signed.manifest.torrent)
        if raw is not None:
            metadata = signed.manifest.check_torrent(raw)
            for number, file in enumerate(metadata.files):
                yield file.root, (metadata, number)


def _described(file: StoredFile, owners: dict[bytes, list[Manifest]]) -> dict[str, Any]:
    return {
        "root": file.root,
        "models": [f"{manifest.publisher}/{manifest.name}" for manifest in owners.get(file.root, [])],
        "size": file.size,
        "on_disk": file.on_disk,
        "checked": file.checked,
        "used": file.used,
        "in_use": file.in_use,
    }


def _names(file: StoredFile, owners: dict[bytes, list[Manifest]]) -> str:
    return ", ".join(manifest.name for manifest in owners.get(file.root, [])) or "none that is known"


def _verdict(wrong: list[int]) -> str:
    return f"pieces {', '.join(map(str, wrong[:10]))} are wrong" if wrong else "all right"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
