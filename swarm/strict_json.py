"""JSON objects without the freedoms that let two readers see two things: duplicate keys, NaN, bad UTF-8."""

from __future__ import annotations

import json
from typing import Any

from swarm.layout import LayoutError


def decode_object(raw: bytes, *, limit: int) -> dict[str, Any]:
    """The one JSON object in ``raw``, at most ``limit`` bytes of UTF-8.

    Raises `LayoutError` for anything else, duplicate keys, NaN and infinities at any depth included.
    """
    if len(raw) > limit:
        raise LayoutError(f"JSON of {len(raw)} bytes is over the limit of {limit}")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except LayoutError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, an endless integer, deep nesting
        raise LayoutError("is not valid JSON") from error
    if not isinstance(value, dict):
        raise LayoutError("is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise LayoutError("has the same JSON key twice")
    return value


def _no_constant(name: str) -> Any:
    raise LayoutError(f"holds {name}, which JSON has no number for")
