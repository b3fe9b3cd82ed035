"""Chains of real workers over real connections: the output is the reference's, whatever the cut."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import trio

from client.bill import compare_roots
from client.call import CallRequest, open_call
from client.route import plan_chain
from client.tokenizer import Tokenizer
from swarm.demo import model_folder
from swarm.errors import MissingLayersError, PaymentError, SwarmError
from swarm.messages import Sampling
from swarm.receipts import WINDOW_TOKENS
from tests.swarms import ALLOCATION, FREE, PRICE, open_local_swarm

LAYERS = 8
TOKENS = 24
WHOLE = (0, LAYERS)


@cache
def prompt_ids(text: str) -> tuple[int, ...]:
    """The prompt's ids with the bundled model's tokenizer."""
    folder = model_folder()
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    objects = {name: (folder / name).read_bytes() for name in names}
    return Tokenizer.load(objects, (folder / "config.json").read_bytes()).encode(text)


@cache
def reference(text: str, tokens: int) -> list[int]:
    """What transformers generates, greedy, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    prompt = torch.tensor([prompt_ids(text)])
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    return [int(token) for token in output[0, prompt.shape[1] :]]


def request(text: str, tokens: int = TOKENS, **options: object) -> CallRequest:
    """A call on this prompt."""
    return CallRequest(prompt_ids=prompt_ids(text), max_tokens=tokens, **options)  # type: ignore[arg-type]


async def test_every_two_and_three_way_cut_gives_the_reference(tmp_path: Path) -> None:
    expected = reference("class Stack:", TOKENS)
    async with open_local_swarm(tmp_path, [WHOLE] * 3) as swarm:
        for cuts in [(), *combinations(range(1, LAYERS), 1), *combinations(range(1, LAYERS), 2)]:
            tokens, _ = await swarm.generate(request("class Stack:"), swarm.legs(*cuts))
            assert tokens == expected, f"cut at {cuts}"


async def test_seeded_sampling_is_the_same_across_cuts_and_differs_by_seed(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE] * 3, price=FREE) as swarm:
        drawn = {}
        for seed in (1, 2):
            sampling = Sampling(temperature=0.9, top_p=0.95, seed=seed)
            outputs = [
                (await swarm.generate(request("def ", sampling=sampling), swarm.legs(*cuts)))[0]
                for cuts in ((), (4,), (2, 5))
            ]
            assert outputs[0] == outputs[1] == outputs[2]
            drawn[seed] = outputs[0]
        assert drawn[1] != drawn[2]


async def test_two_sessions_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    prompts = ("class Stack:", "import os", "def fib(n):", "for i in range(")
    outputs: dict[str, list[int]] = {}
    async with open_local_swarm(tmp_path, [WHOLE] * 3) as swarm:

        async def run(text: str) -> None:
            outputs[text], _ = await swarm.generate(request(text), swarm.legs(3, 6))

        async with trio.open_nursery() as nursery:
            for text in prompts:
                nursery.start_soon(run, text)
    assert outputs == {text: reference(text, TOKENS) for text in prompts}


async def test_a_long_prompt_goes_in_chunks_and_the_roots_still_meet(tmp_path: Path) -> None:
    ids = prompt_ids("class Stack:") * 150
    assert 512 < len(ids) < 1000
    async with open_local_swarm(tmp_path, [WHOLE] * 3) as swarm:
        whole, _ = await swarm.generate(CallRequest(prompt_ids=ids, max_tokens=8), swarm.legs())
        cut, call = await swarm.generate(CallRequest(prompt_ids=ids, max_tokens=8), swarm.legs(2, 5))
    assert cut == whole
    receipts = [stage.receipt.receipt for stage in call.stages if stage.receipt is not None]
    assert [receipt.input_tokens for receipt in receipts] == [len(ids)] * 3
    compare_roots(ids, cut, receipts)


async def test_money_follows_the_work_and_both_ledgers_agree(tmp_path: Path) -> None:
    tokens = WINDOW_TOKENS * 2 + 10
    async with open_local_swarm(tmp_path, [WHOLE] * 3) as swarm:
        _, call = await swarm.generate(request("class Stack:", tokens), swarm.legs(3, 6))
        prompt = len(call.request.prompt_ids)
        for worker, leg, stage in zip(swarm.workers, call.legs, call.stages, strict=False):
            owed = PRICE.amount(layers=leg.stop - leg.start, input_tokens=prompt, output_tokens=tokens)
            assert stage.receipt is not None
            stage.receipt.verify()
            assert stage.receipt.receipt.amount == owed
            (channel,) = [state.channel for state in worker.ledger.channels()]
            assert worker.ledger.earned(channel) == swarm.ledger.earned(channel) == owed
            assert worker.ledger.receipts(channel)[0].client_signature is not None
            assert worker.ledger.accepted(channel) == swarm.ledger.issued(channel)
            assert worker.ledger.receipts_root(channel) == swarm.ledger.receipts_root(channel)
            promised = swarm.ledger.issued(channel)
            assert promised is not None
            assert owed <= promised.voucher.cumulative <= ALLOCATION


async def test_unearned_prepayment_pays_for_the_next_call(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm:
        await swarm.generate(request("def ", 200), swarm.legs())
        (channel,) = [state.channel for state in swarm.ledger.channels()]
        first = swarm.ledger.issued(channel)
        await swarm.generate(request("def ", 4), swarm.legs())
        assert first is not None
        second = swarm.ledger.issued(channel)
        assert second is not None
        costs = swarm.ledger.earned(channel)
        assert costs <= second.voucher.cumulative
        assert second.voucher.nonce - first.voucher.nonce <= 1


async def test_a_voucher_above_the_allocation_is_refused_before_any_work(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE]) as swarm:
        swarm.settlement.withdraw(swarm.settlement.account_state(swarm.settlement.account).free_balance - 10)
        with pytest.raises(PaymentError, match="deposit more"):
            await swarm.generate(request("def "), swarm.legs())
        assert not swarm.workers[0].ledger.channels()


async def test_max_spend_ends_the_call_before_the_payment(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE] * 2) as swarm:
        tokens, call = await swarm.generate(request("class Stack:", 100, max_spend=500), swarm.legs(4))
        assert 0 < len(tokens) < 100
        assert sum(stage.receipt.receipt.amount for stage in call.stages if stage.receipt) <= 500
        with pytest.raises(PaymentError, match="max_spend"):
            swarm.call(request("class Stack:", 100, max_spend=1), swarm.legs(4))


async def test_cancelling_a_call_frees_the_workers_and_bills_what_was_done(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE] * 2) as swarm:
        free = [worker.engine.capacity().kv_positions_free for worker in swarm.workers]
        async with open_call(swarm.call(request("class Stack:", 500), swarm.legs(4))) as call:
            await anext(call)
        assert [worker.engine.capacity().kv_positions_free for worker in swarm.workers] == free
        for stage in call.stages:
            assert stage.receipt is not None
            assert 1 <= stage.receipt.receipt.output_tokens <= len(call.received)


async def test_stop_ids_end_the_call(tmp_path: Path) -> None:
    expected = reference("class Stack:", TOKENS)
    stop = expected[5]
    async with open_local_swarm(tmp_path, [WHOLE] * 2, price=FREE) as swarm:
        tokens, call = await swarm.generate(request("class Stack:", stop_ids=(stop,)), swarm.legs(4))
    assert tokens == expected[: expected.index(stop) + 1]
    assert call.finish_reason == "stop"


async def test_more_than_the_context_is_refused_by_every_stage(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [WHOLE] * 2, price=FREE) as swarm:
        with pytest.raises(SwarmError, match="context"):
            await swarm.generate(request("def ", 2000), swarm.legs(4))


async def test_a_layer_that_nobody_serves_is_named(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [(0, 3), (4, 8)], price=FREE) as swarm:
        with pytest.raises(MissingLayersError, match="layer 3") as caught:
            plan_chain([worker.candidate() for worker in swarm.workers], LAYERS)
    assert caught.value.layers == (3,)


async def test_overlapping_unequal_spans_make_a_chain(tmp_path: Path) -> None:
    async with open_local_swarm(tmp_path, [(0, 5), (2, 7), (6, 8)]) as swarm:
        legs = plan_chain([worker.candidate() for worker in swarm.workers], LAYERS)
        tokens, _ = await swarm.generate(request("class Stack:"), legs)
    assert len(legs) == 3
    assert tokens == reference("class Stack:", TOKENS)
