"""Compile the contracts: ``python -m swarm.contracts.build`` rewrites the JSON files beside the sources.

Needs the pinned vyper of the ``dev`` extra; nothing that runs imports this module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FileInput, FilesystemInputBundle
from vyper.compiler.settings import Settings

FOLDER = Path(__file__).resolve().parent
CONTRACTS = ("Settlement", "TestToken")


def compile_contract(name: str) -> str:
    """The text of ``name``'s JSON file: ABI, creation code, and the compiler that made it."""
    bundle = FilesystemInputBundle([FOLDER])
    source = bundle.load_file(f"{name}.vy")
    if not isinstance(source, FileInput):
        raise TypeError(f"{name}.vy is not a source file")
    # The pragmas in the sources decide; the bytecode carries no metadata, so that comments do not change it.
    settings = Settings(experimental_codegen=False)
    output = compile_from_file_input(
        source, input_bundle=bundle, output_formats=["abi", "bytecode"], settings=settings, no_bytecode_metadata=True
    )
    data = {"compiler": "vyper 0.4.3", "abi": output["abi"], "bytecode": output["bytecode"].removeprefix("0x")}
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write every contract's JSON file."""
    for name in CONTRACTS:
        (FOLDER / f"{name}.json").write_text(compile_contract(name), "utf-8")
        sys.stdout.write(f"{name}.json\n")


if __name__ == "__main__":
    main()
