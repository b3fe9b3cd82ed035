"""``swarm dht``: a DHT node of one's own, and single questions to the network for operators."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarm.cli.options import BootstrapOption, HomeOption, JsonOption, joined, load
from swarm.cli.terminal import print_json, print_progress, print_table
from swarm.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dht.config import DhtConfig
    from dht.node import Node

SaltOption = Annotated[str, typer.Option("--salt", metavar="TEXT", help="Which of a key's items; none by default.")]

dht = typer.Typer(
    name="dht",
    help="Run a DHT node, and ask the network single questions.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)


@dht.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


@dht.command()
def node(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Numeric address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="UDP port; 0 takes a free one.")
    ] = 0,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Where to remember id and contacts over restarts.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a node until Ctrl-C.

    It answers others and keeps what they store. Without --bootstrap and remembered contacts it is the first of a
    network.
    """
    from dht.config import DhtConfig
    from swarm.cli.interrupts import run_closing

    _, settings = load(home, bootstrap=bootstrap)
    config = DhtConfig(host=host, port=port, bootstrap=settings.bootstrap_addresses, state_path=state)
    run_closing(partial(_serve, config, json))


@dht.command()
def get(
    what: Annotated[
        str, typer.Argument(metavar="TARGET|KEY", help="A target of 40 hex digits, or a public key of 64.")
    ],
    salt: SaltOption = "",
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    json: JsonOption = False,
) -> None:
    """Read the item under a target, or the newest of a key."""
    key = _hex(what, 20, 32)

    async def ask(node: Node) -> None:
        item: dict[str, Any]
        if len(key) == 32:
            found = await node.get_mutable(key, salt.encode())
            item = {} if found is None else {"value": _shown(found.value), "seq": found.seq, "target": found.target}
        else:
            value = await node.get_immutable(key)
            item = {} if value is None else {"value": _shown(value), "target": key}
        if not item:
            raise UnavailableError(f"no DHT node has an item under {what}; check it, or ask whoever put it")
        _print(item, json)

    _ask(home, bootstrap, ask)


@dht.command()
def put(
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Text, or with --hex hex digits; up to 1000 bytes.")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Sign it with this key (made if it is not there).")
    ] = None,
    salt: SaltOption = "",
    seq: Annotated[int | None, typer.Option("--seq", min=0, help="Its number; the next one by default.")] = None,
    cas: Annotated[int | None, typer.Option("--cas", min=0, help="Put it only over the item of this number.")] = None,
    raw: Annotated[bool, typer.Option("--hex", help="The value is hex digits.")] = False,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    json: JsonOption = False,
) -> None:
    """Store an item under its hash, or under a key.

    With --key it is mutable: the next put replaces it. Nodes keep it for two hours; put it again to keep it longer.
    """
    from swarm.identity import Identity

    if key is None and (salt or seq is not None or cas is not None):
        raise UsageError("a salt, seq or cas belongs to a mutable item; give --key FILE")
    content = _hex(value) if raw else value.encode()
    identity = None if key is None else Identity.load(key)

    async def ask(node: Node) -> None:
        if identity is None:
            _print({"target": await node.put_immutable(content)}, json)
            return
        item = await node.put_mutable(identity, content, salt.encode(), seq, cas)
        _print({"public_key": item.public_key, "seq": item.seq, "target": item.target}, json)

    _ask(home, bootstrap, ask)


@dht.command()
def peers(
    info_hash: Annotated[str, typer.Argument(metavar="INFOHASH", help="40 hex digits, or 64 of a v2 torrent.")],
    scrape: Annotated[bool, typer.Option("--scrape", help="Count seeds and downloaders too.")] = False,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    json: JsonOption = False,
) -> None:
    """Who announced a torrent."""
    from swarm.ids import InfoHash

    given = _hex(info_hash, 20, 32)
    wanted = InfoHash(given) if len(given) == 32 else given

    async def ask(node: Node) -> None:
        found = [f"{host}:{port}" for host, port in sorted(await node.get_peers(wanted))]
        size = dataclasses.asdict(await node.scrape(wanted)) if scrape else {}
        if json:
            print_json({"peers": found} | size)
            return
        for address in found:
            print(address)
        counts = "".join(f", about {count} {what}" for what, count in size.items())
        print_progress(f"{len(found)} peers{counts}")

    _ask(home, bootstrap, ask)


@dht.command()
def crawl(
    most: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Ask so many nodes at most.")] = 1000,
    home: HomeOption = None,
    bootstrap: BootstrapOption = None,
    json: JsonOption = False,
) -> None:
    """List the nodes and info-hashes that a walk meets."""
    from dht.crawl import crawl as walk

    async def ask(node: Node) -> None:
        found = await walk(node, most=most)
        if json:
            nodes = [{"id": one.node_id, "address": str(one.endpoint)} for one in found.nodes]
            print_json({"nodes": nodes, "silent": found.silent, "info_hashes": found.info_hashes, "total": found.total})
            return
        print_table(("node", "address"), [(one.node_id.hex()[:16], str(one.endpoint)) for one in found.nodes])
        for info_hash in found.info_hashes:
            print(info_hash.hex())
        print_progress(
            f"{len(found.nodes)} nodes answered, {found.silent} did not; {len(found.info_hashes)} info-hashes"
        )

    _ask(home, bootstrap, ask)


async def _serve(config: DhtConfig, json: bool) -> None:
    import trio

    from dht.node import open_node

    async with open_node(config) as node:
        address = "{}:{}".format(*node.address) if ":" not in node.address[0] else "[{}]:{}".format(*node.address)
        print_json({"address": address, "node_id": node.node_id, "contacts": node.statistics().contacts})
        if not json:
            print_progress(f"swarm: others join with --bootstrap {address}; Ctrl-C stops it")
        await trio.sleep_forever()


def _ask(home: Path | None, bootstrap: list[str] | None, question: Callable[[Node], Awaitable[None]]) -> None:
    """Ask through a node that only asks, joined as the settings say."""
    import trio

    from dht.config import DhtConfig
    from dht.node import open_node
    from swarm.cli.interrupts import run_closing

    del trio  # imported before interrupts are let through
    _, settings = load(home, bootstrap=bootstrap)
    addresses = joined(settings)
    ipv6 = ":" in addresses[0][0]
    local = all(host in ("127.0.0.1", "localhost", "::1") for host, _ in addresses)
    host = ("::1" if ipv6 else "127.0.0.1") if local else ("::" if ipv6 else "0.0.0.0")  # noqa: S104 - asks only
    config = DhtConfig(host=host, bootstrap=addresses, read_only=True)

    async def run() -> None:
        async with open_node(config) as node:
            await question(node)

    run_closing(run)


def _print(fields: dict[str, Any], json: bool) -> None:
    if json:
        print_json(fields)
        return
    for name, value in fields.items():
        print(f"{name}: {value.hex() if isinstance(value, bytes) else value}")


def _hex(text: str, *sizes: int) -> bytes:
    """The bytes of hex digits. Raises `UsageError` for other text, or another size than one of ``sizes``."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no row of hex digits; check it") from error
    if sizes and len(raw) not in sizes:
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise UsageError(f"{text!r} has {2 * len(raw)} hex digits, not {wanted}; check it")
    return raw


def _shown(value: Any) -> Any:
    """A bencode value for JSON: bytes as text where they are text, else as hex after ``0x``."""
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return f"0x{value.hex()}"
        return text if text.isprintable() else f"0x{value.hex()}"
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {_shown(name): _shown(item) for name, item in value.items()}
    return value
