"""The bundled demo model: a small Llama trained on Python's own standard library.

Layout:

- ``model/``      the model folder, in plain Hugging Face layout
- ``corpus``      what it was trained on: the standard library's sources, split, cut and mixed (no torch)
- ``vocabulary``  its byte-level BPE tokenizer and chat template (no torch)
- ``shape``       its sizes, and the configuration files that state them (no torch)
- ``run``         what a training run is told and counts (no torch)
- ``train``       the script that makes ``model/`` (the one module here that needs torch)
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["model_folder"]


def model_folder() -> Path:
    """The folder of the bundled model; the packages are installed unzipped, so it is a real directory."""
    return Path(str(files(__name__) / "model"))
