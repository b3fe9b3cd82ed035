"""Compile the contracts: ``python -m swarm.contracts.build`` rewrites the JSON files beside the sources.

Needs the pinned vyper of the ``dev`` extra; nothing that runs imports this module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vyper.compiler import compile_code, compile_from_file_input
from vyper.compiler.input_bundle import FileInput, FilesystemInputBundle

from swarm.contracts import Compiled

FOLDER = Path(__file__).resolve().parent
CONTRACTS = ("Settlement", "Batches", "Reservations", "TestToken")
COMPILER = "vyper 0.4.3"


def compile_contract(name: str) -> str:
    """The text of ``name``'s JSON file: ABI, creation code, and the compiler that made it."""
    bundle = FilesystemInputBundle([FOLDER])
    source = bundle.load_file(f"{name}.vy")
    if not isinstance(source, FileInput):
        raise TypeError(f"{name}.vy is not a source file")
    # The pragmas in the sources decide; the bytecode carries no metadata, so that comments do not change it.
    output = compile_from_file_input(
        source, input_bundle=bundle, output_formats=["abi", "bytecode"], no_bytecode_metadata=True
    )
    data = {"compiler": COMPILER, "abi": output["abi"], "bytecode": output["bytecode"].removeprefix("0x")}
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def compile_source(text: str) -> Compiled:
    """Compile a contract that stands alone, as tests need it."""
    output = compile_code(text, output_formats=["abi", "bytecode"])
    return Compiled(abi=output["abi"], bytecode=bytes.fromhex(output["bytecode"].removeprefix("0x")))


def main() -> None:
    """Write every contract's JSON file."""
    for name in CONTRACTS:
        (FOLDER / f"{name}.json").write_text(compile_contract(name), "utf-8")
        sys.stdout.write(f"{name}.json\n")


if __name__ == "__main__":
    main()
