"""Calls on whoever is found: what a node does about workers that refuse. Finding them is shown in tests/e2e."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from client.call import CallRequest
from client.node import ClientConfig, ClientNode, Model
from client.route import Candidate
from dht.directory import Directory
from swarm.errors import BusyError, MissingLayersError, PaymentError, UsageError
from tests.hostile import WHOLE
from tests.swarms import LocalSwarm, open_local_swarm
from worker import service

PROMPT = (20, 21, 22)


class Node(ClientNode):
    """A node that has found these workers."""

    found: list[Candidate]

    async def candidates(self, model: Model) -> list[Candidate]:
        """Them."""
        return list(self.found)


@asynccontextmanager
async def open_found(
    path: Path, *spans: tuple[int, int], most_price: int | None = None
) -> AsyncIterator[tuple[Node, Model, LocalSwarm]]:
    """A node that has found workers on these spans."""
    async with open_local_swarm(path, spans) as swarm:
        node = Node(
            ClientConfig(home=path, bootstrap=(), most_price=most_price),
            identity=swarm.client,
            directory=cast("Directory", None),
            links=swarm.links,
            ledger=swarm.ledger,
            wallet=swarm.wallet,
            settlement=swarm.settlement,
        )
        node.found = [worker.candidate() for worker in swarm.workers]
        signed = swarm.published.signed
        yield node, Model(reference="", manifest=signed.manifest, manifest_id=signed.manifest_id, objects={}), swarm


async def tokens_of(node: Node, model: Model) -> list[int]:
    """A short call."""
    tokens: list[int] = []
    async with node.open_call(model, CallRequest(prompt_ids=PROMPT, max_tokens=5)) as call:
        async for message in call:
            tokens.extend(message.ids)
        await call.finish()
    return tokens


async def test_a_call_goes_on_without_the_workers_that_refuse_it(tmp_path: Path) -> None:
    async with open_found(tmp_path, (0, 4), (0, 4), (4, 8)) as (node, model, swarm):
        expected = await tokens_of(node, model)
        first, second, _ = [worker.service for worker in swarm.workers]
        first.links, kept = None, first.links  # as if it were starting
        assert await tokens_of(node, model) == expected
        first.links, second.links = kept, None
        assert await tokens_of(node, model) == expected
        assert not any(budget.open or budget.reserved for budget in swarm.wallet._budgets.values())


async def test_a_channel_that_closes_excludes_its_worker_alone(tmp_path: Path) -> None:
    async with open_found(tmp_path, WHOLE, WHOLE) as (node, model, swarm):
        await tokens_of(node, model)
        (used,) = [worker for worker in swarm.workers if worker.ledger.channels()]
        swarm.settlement.request_close(used.settlement.account)
        swarm.wallet._budgets.clear()  # as after a restart
        assert len(await tokens_of(node, model)) == 5
        assert all(worker.ledger.channels() for worker in swarm.workers)


async def test_the_only_workers_refusal_is_what_the_caller_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_SESSIONS", 0)
    async with open_found(tmp_path, (0, 4), (4, 8)) as (node, model, _):
        with pytest.raises(BusyError):  # not that its layers are missing
            await tokens_of(node, model)


async def test_what_cannot_be_called_is_said(tmp_path: Path) -> None:
    async with open_found(tmp_path, (0, 7), most_price=1) as (node, model, swarm):
        with pytest.raises(MissingLayersError, match="layer 7"):
            await tokens_of(node, model)
        with pytest.raises(UsageError, match="empty prompt"):
            async with node.open_call(model, CallRequest(prompt_ids=(), max_tokens=1)):
                pass
        with pytest.raises(UsageError, match="context"):
            async with node.open_call(model, CallRequest(prompt_ids=PROMPT, max_tokens=model.manifest.context)):
                pass
        assert swarm.settlement.chain.transactions == 1


async def test_a_price_cap_is_kept(tmp_path: Path) -> None:
    async with open_found(tmp_path, WHOLE, most_price=1) as (node, model, _):
        with pytest.raises(PaymentError, match="at most 1"):
            await tokens_of(node, model)
