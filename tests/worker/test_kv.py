"""Leases, windows and the budget of keys and values."""

from __future__ import annotations

import json

import pytest
import torch

from swarm.errors import BusyError, ProtocolError
from tests.worker.test_config import LLAMA
from worker.config import ModelConfig
from worker.kv import KvPool

CONFIG = ModelConfig.parse(json.dumps(LLAMA).encode())
POSITION_BYTES = 3 * 2 * 2 * 16 * 4  # layers, keys and values, KV heads, head size, float32


def pool(positions: int) -> KvPool:
    budget = positions * POSITION_BYTES
    return KvPool(CONFIG, budget_bytes=budget, dtype=torch.float32, device=torch.device("cpu"))


def test_the_budget_is_leased_and_given_back() -> None:
    kv = pool(100)
    assert kv.positions_free(3) == 100
    first = kv.lease(3, 60)
    with pytest.raises(BusyError, match="40 are free") as caught:
        kv.lease(3, 41)
    assert caught.value.retry_after > 0
    second = kv.lease(3, 40)
    assert kv.positions_free(3) == 0
    first.close()
    first.close()
    assert kv.positions_free(3) == 60
    second.close()
    assert kv.used_bytes == 0


def test_a_window_has_one_entry_per_layer_and_views_the_same_memory() -> None:
    cache = pool(10).lease(3, 10)
    window = cache.window(0, 4)
    assert [len(window.writes), len(window.keys), len(window.values)] == [3, 3, 3]
    assert (window.writes[0].shape, window.keys[0].shape, window.values[0].shape) == (
        (2, 2, 4, 16),
        (2, 16, 4),
        (2, 4, 16),
    )
    for layer in range(3):
        window.writes[layer][0].fill_(layer)
        window.writes[layer][1].fill_(-layer)
        assert bool((window.keys[layer] == layer).all())
        assert bool((window.values[layer] == -layer).all())


def test_positions_follow_without_gaps_within_the_lease() -> None:
    cache = pool(10).lease(3, 10)
    cache.window(0, 6)
    assert cache.length == 0  # nothing counts before it is computed
    cache.length = 6
    with pytest.raises(ProtocolError, match="does not follow"):
        cache.window(7, 1)
    with pytest.raises(ProtocolError, match="beyond the 10"):
        cache.window(6, 5)
    assert cache.length == 6
    cache.window(2, 1)
    assert cache.length == 2


@pytest.mark.parametrize("position", [-1, 7])
def test_truncation_only_goes_back(position: int) -> None:
    cache = pool(10).lease(3, 10)
    cache.length = 6
    with pytest.raises(ProtocolError, match="truncate"):
        cache.truncate(position)
    cache.truncate(3)
    assert cache.length == 3


def test_a_closed_cache_takes_nothing() -> None:
    cache = pool(10).lease(3, 10)
    cache.close()
    with pytest.raises(ProtocolError, match="beyond"):
        cache.window(0, 1)
