from __future__ import annotations

from pathlib import Path

import pytest

from client.publish import publish_folder
from swarm.health import ENOUGH_COPIES, model_health, piece_copies, replicas
from swarm.identity import Identity
from swarm.manifest import Manifest, span_ranges
from swarm.pieces import PieceMap
from tests.tiny_models import write_model


@pytest.fixture
async def manifest(tmp_path: Path) -> Manifest:
    published = await publish_folder(write_model(tmp_path / "m", shards=2), name="tiny", publisher=Identity(bytes(32)))
    return published.signed.manifest


def layout(manifest: Manifest) -> PieceMap:
    return PieceMap(sizes=tuple(file.size for file in manifest.files), piece_length=manifest.piece_length)


def held(manifest: Manifest, start: int, stop: int) -> set[int]:
    return layout(manifest).pieces(span_ranges(manifest, start, stop))


async def test_copies_and_workers_of_every_unit_are_known_together(manifest: Manifest) -> None:
    total = layout(manifest).total
    everything = set(range(total))
    copies = piece_copies(total, [everything, held(manifest, 0, 4), held(manifest, 2, 4)])
    health = {unit.unit: unit for unit in model_health(manifest, copies, [(0, 4), (2, 4)])}
    assert list(health) == [unit.name for unit in manifest.units]
    assert (health["embed"].copies, health["embed"].workers) == (2, 1)
    assert (health["layer.3"].copies, health["layer.3"].workers) == (3, 2)
    assert (health["layer.5"].copies, health["layer.5"].workers) == (1, 0)
    assert health["layer.3"].thin, "a third worker is missing"
    safe = model_health(manifest, [ENOUGH_COPIES] * total, [(0, 12)] * ENOUGH_COPIES)
    assert not any(unit.thin for unit in safe)


async def test_the_rarest_pieces_of_the_least_served_layers_are_kept_first(manifest: Manifest) -> None:
    total = layout(manifest).total
    everything = set(range(total))
    twice = held(manifest, 0, 6)
    copies = piece_copies(total, [everything, twice])
    health = model_health(manifest, copies, [(0, 6), (8, 10)])
    have = held(manifest, 0, 1)
    order = replicas(manifest, copies, health, have, room=10**9)
    assert not set(order) & have
    assert set(order) == everything - have, "nothing is there three times"
    assert [copies[piece] for piece in order] == sorted(copies[piece] for piece in order)
    first = order[0]
    nobody_serves = held(manifest, 6, 8) | held(manifest, 10, 12)
    assert first in nobody_serves - twice
    few = replicas(manifest, copies, health, have, room=3 * manifest.piece_length)
    assert few == order[:3]
    assert replicas(manifest, [ENOUGH_COPIES] * total, health, set(), room=10**9) == []
