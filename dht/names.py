"""Names of models: ``NAME`` within a publisher's key, ``PUBLISHER/NAME`` for everybody."""

from __future__ import annotations

import re

from swarm.errors import UsageError
from swarm.ids import PeerId

SCHEME = "swarm://"

_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def check_name(name: str) -> str:
    """``name`` itself if it is 1 to 64 of a-z, 0-9, dot, underscore and hyphen; else raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"a model name is 1 to 64 of a-z, 0-9, '.', '_' and '-', not {name!r}; choose another")
    return name


def parse_model_reference(text: str) -> tuple[PeerId, str]:
    """Read ``PUBLISHER/NAME`` (64 hex digits, a name), with or without a leading ``swarm://``.

    Raises `UsageError` for anything else.
    """
    publisher, slash, name = text.strip().removeprefix(SCHEME).partition("/")
    if not slash or not re.fullmatch(r"[0-9a-fA-F]{64}", publisher):
        raise UsageError(f"a model is named PUBLISHER/NAME, with a publisher of 64 hex digits, not {text!r}")
    return PeerId.parse(publisher), check_name(name)


def format_model_reference(publisher: PeerId, name: str) -> str:
    """``PUBLISHER/NAME``, as `parse_model_reference` reads it."""
    return f"{publisher}/{check_name(name)}"
