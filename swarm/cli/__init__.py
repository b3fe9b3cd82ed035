"""The command line: ``swarm COMMAND``. The composition root; nothing imports it.

    __init__    the commands by name, and what an error becomes
    terminal    what is written: data on stdout, progress and errors on stderr
    interrupts  Ctrl-C and SIGTERM
    chain doctor ...    one module per command group

A command is one function with typer's annotations in a module of its own and one line in `COMMANDS`; where that names
a `typer.Typer`, it is a group with commands of its own. A module
is imported when its command or a list of commands is asked for, so at its top it imports nothing heavy: torch,
libtorrent, web3, trio, dht, worker and client are imported inside the function.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from swarm.cli.interrupts import INTERRUPTED, is_interrupt, leave_at_once
from swarm.cli.terminal import print_error
from swarm.errors import ResourceError, SwarmError, UsageError

# The class of everything that typer says about options and arguments; it has no public name of its own.
WRONG_USAGE = typer.BadParameter.__mro__[1]

# Command → the function that runs it, as module:function. The order is that of the help.
COMMANDS = {
    "demo": "swarm.cli.demo:demo",
    "publish": "swarm.cli.publish:publish",
    "seed": "swarm.cli.publish:seed",
    "work": "swarm.cli.work:work",
    "models": "swarm.cli.store:models",
    "store": "swarm.cli.store:store",
    "generate": "swarm.cli.generate:generate",
    "wallet": "swarm.cli.settle:wallet",
    "settle": "swarm.cli.settle:settle",
    "watch": "swarm.cli.batches:watch",
    "dht": "swarm.cli.dht:dht",
    "chain": "swarm.cli.chain:chain",
    "doctor": "swarm.cli.doctor:doctor",
}

# Import name → the extra that installs it.
EXTRAS = {
    "libtorrent": "worker",
    "numpy": "worker",
    "psutil": "worker",
    "safetensors": "worker",
    "torch": "worker",
    "eth_account": "chain",
    "eth_typing": "chain",
    "hexbytes": "chain",
    "requests": "chain",
    "web3": "chain",
    "eth": "demo",
    "eth_abi": "demo",
    "eth_tester": "demo",
    "eth_utils": "demo",
    "transformers": "demo",
    "hypercorn": "gateway",
    "starlette": "gateway",
}


class Commands(typer.core.TyperGroup):
    """Finds commands by name and imports one when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(":")
        found = getattr(importlib.import_module(module), function)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name=cmd_name)(found)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    name="swarm",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"swarm-inference {version('swarm-inference')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Peer-to-peer inference: models as torrents, layers as spans, calls paid by voucher.

    Exit codes: 0 fine, 1 internal, 2 usage, 3 degraded, 4 layers missing, 5 unreachable or unknown, 6 payment,
    7 this machine (disk, port, permission, package), 130 interrupted. SWARM_DEBUG=1 shows where an error arose.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; an error is one line on stderr."""
    leave_at_once()
    try:
        # Not "standalone": typer would write several lines about wrong usage. It returns the code of `typer.Exit`.
        code = app(args=arguments, prog_name="swarm", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the boundary: every error becomes a line and a code
        sys.exit(report(error))
    except BaseExceptionGroup as group:
        sys.exit(report(group))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(code or 0)


def report(error: BaseException) -> int:
    """Print what is to be told about an error that came out of a command, and return the exit code for it."""
    leaves = list(_leaves(error))
    if is_interrupt(error):
        return INTERRUPTED
    known = [found for leaf in leaves if (found := _known(leaf)) is not None]
    if os.environ.get("SWARM_DEBUG"):
        traceback.print_exception(error)
    if len(known) == len(leaves):
        for message in dict.fromkeys(found.message for found in known):
            print_error(message)
        return known[0].exit_code
    odd = next(leaf for leaf in leaves if _known(leaf) is None)
    print_error(
        f"internal error: {type(odd).__name__}: {odd}; this is a bug, run again with SWARM_DEBUG=1 and report it"
    )
    return SwarmError.exit_code


def _known(error: BaseException) -> SwarmError | None:
    """The error as one of ours: itself, wrong usage, or a missing extra; None for a bug."""
    if isinstance(error, SwarmError):
        return error
    if isinstance(error, WRONG_USAGE):
        return _misused(error)
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return ResourceError(f"this needs the {extra} extra; run: pip install 'swarm-inference[{extra}]'")
    return None


def _misused(error: Any) -> UsageError:
    """What typer says about options and arguments, with the way to the help."""
    text = str(error.format_message()).rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "swarm"
    return UsageError(f"{text[:1].lower()}{text[1:]}; see: {command} --help")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested groups: nurseries wrap what came out of their tasks."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
