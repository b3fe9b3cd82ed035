"""One stage without I/O: the table of its theory of operation, its money, its receipts; then rings of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import PaymentError, ProtocolError, ResourceError
from swarm.merkle import EMPTY_ROOT, ChainedRoot
from swarm.messages import (
    PREFILL_CHUNK,
    STEP_HIDDEN,
    STEP_REBUILD,
    STEP_SAMPLE,
    STEP_TOKENS,
    Begin,
    Step,
    pack_ids,
)
from swarm.receipts import FREE_CHANNEL, WINDOW_TOKENS, Price
from tests.worker.sessions import CAP, CLIENT, PRICE, ROW, Ring, account_of, draw, row, stage, worker_id
from worker.credit import Account
from worker.session import MAX_REWOUND, MAX_WAITING, Drawn, Emit, Forward, Return, StageSession

IDS = [5, 6, 7]


def feed(core: StageSession, position: int, count: int = 1, *, epoch: int = 0, flags: int | None = None) -> None:
    """A step of activations, or of ids for a first stage, with the flags that belong there."""
    end = position + count
    kind, raw = (STEP_TOKENS, pack_ids([9] * count)) if core.is_first else (STEP_HIDDEN, row(position, count))
    sample = STEP_SAMPLE if end >= core.opening.prompt_tokens else 0
    core.receive(Step(epoch, position, count, kind, sample if flags is None else flags), raw)


def work_off(core: StageSession) -> int:
    """Compute everything that waits; how many steps that was."""
    steps = 0
    while (work := core.next_work()) is not None:
        core.complete(work, row(work.position, work.count), Drawn(1) if work.sample else None)
        steps += 1
    return steps


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_chain_of_one_gives_its_tokens_to_itself() -> None:
    core = stage()
    core.begin(Begin(0, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    assert (work.position, work.count, work.ids, work.sample) == (0, 3, tuple(IDS), True)
    assert core.computing
    assert core.next_work() is None  # one at a time
    emit, back = core.complete(work, None, Drawn(8, -0.5, ((8, -0.5),)))
    assert isinstance(emit, Emit)
    assert (emit.tokens.position, emit.tokens.ids, emit.tokens.finish) == (3, (8,), "")
    assert emit.tokens.logprobs == ((-0.5, ((8, -0.5),)),)
    assert back == Return(Step(0, 3, 1, STEP_TOKENS, STEP_SAMPLE), pack_ids([8]))
    assert core.upstream == worker_id(0)


def test_a_middle_stage_forwards_what_it_was_given_the_flags_of() -> None:
    core = stage(1, 3)
    feed(core, 0, 2)
    feed(core, 2, 1)
    first = core.next_work()
    assert first is not None
    assert core.complete(first, row(0, 2), None) == [Forward(Step(0, 0, 2, STEP_HIDDEN, 0), row(0, 2))]
    second = core.next_work()
    assert second is not None
    assert not second.sample  # only the last stage draws
    assert core.complete(second, row(2), None) == [Forward(Step(0, 2, 1, STEP_HIDDEN, STEP_SAMPLE), row(2))]


def test_the_last_stage_draws_once_at_the_end_of_the_prompt() -> None:
    core = stage(1, 2)
    feed(core, 0, 2)
    work = core.next_work()
    assert work is not None
    assert core.complete(work, None, None) == []
    feed(core, 2, 1)
    work = core.next_work()
    assert work is not None
    emit, back = core.complete(work, None, Drawn(4))
    assert isinstance(emit, Emit)
    assert isinstance(back, Return)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("ahead", [1, 50])
def test_a_position_ahead_is_upstreams_fault(index: int, ahead: int) -> None:
    core = stage(index, 3, tokens=100)
    with pytest.raises(ProtocolError, match="sent position") as caught:
        feed(core, 0 + ahead, flags=0)
    assert caught.value.peer_id == worker_id((index - 1) % 3)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_epochs_older_is_dropped_and_newer_is_a_fault(index: int) -> None:
    core = stage(index, 3, epoch=4)
    feed(core, 0, epoch=3)
    feed(core, 77, epoch=0)  # whatever it says
    assert core.next_work() is None
    assert core.close(None, now_ms=0) is None
    other = stage(index, 3, epoch=4)
    with pytest.raises(ProtocolError, match="epoch 5"):
        feed(other, 0, epoch=5)


def test_a_rewind_of_what_was_computed_truncates_and_computes() -> None:
    core = stage(1, 3, prompt=10)
    for position in range(4):
        feed(core, position)
    assert work_off(core) == 4
    assert core.length == 4
    feed(core, 1)
    work = core.next_work()
    assert work is not None
    assert work.position == 1
    core.complete(work, row(1), None)
    assert core.length == 2
    feed(core, 2)  # and from there
    assert work_off(core) == 1


def test_a_rewind_of_what_waits_drops_it() -> None:
    core = stage(1, 3, prompt=10)
    for position in range(5):
        feed(core, position)
    feed(core, 2)
    assert work_off(core) == 3
    assert core.length == 3


def test_a_rewind_while_another_step_is_computed_leaves_that_alone() -> None:
    core = stage(1, 3, prompt=10)
    for position in range(3):
        feed(core, position)
    work = core.next_work()
    assert work is not None
    feed(core, 1)  # waits, not computed
    core.complete(work, row(0), None)
    assert work_off(core) == 1
    assert core.length == 2


def test_rewinding_what_is_being_computed_or_into_a_step_is_a_fault() -> None:
    core = stage(1, 3, prompt=10)
    feed(core, 0, 2)
    assert core.next_work() is not None
    with pytest.raises(ProtocolError, match="being computed"):
        feed(core, 0, 2)
    core = stage(1, 3, prompt=10)
    feed(core, 0, 2)
    feed(core, 2, 3)
    with pytest.raises(ProtocolError, match="middle of a step"):
        feed(core, 4)


def test_rewinds_are_free_and_so_bounded_by_a_window() -> None:
    core = stage(1, 3, prompt=500)
    feed(core, 0, MAX_REWOUND)
    feed(core, MAX_REWOUND, 1)
    work_off(core)
    feed(core, 1, MAX_REWOUND)  # as far as it goes
    work_off(core)
    with pytest.raises(ProtocolError, match="rewound more than"):
        feed(core, MAX_REWOUND)


def test_a_token_that_the_client_has_is_not_drawn_again() -> None:
    core = stage(1, 2, tokens=10)
    feed(core, 0, 3)
    feed(core, 3)
    assert work_off(core) == 2
    for position in (2, 3):
        with pytest.raises(ProtocolError, match="the client has"):
            feed(core, position)
    feed(core, 4)


def test_nothing_comes_after_the_end() -> None:
    core = stage(1, 2, tokens=10, stop_ids=(1,))
    feed(core, 0, 3)
    assert work_off(core) == 1
    with pytest.raises(ProtocolError, match="the client has"):
        feed(core, 3)


@pytest.mark.parametrize(
    ("position", "count", "flags"),
    [
        (0, 2, STEP_SAMPLE),  # draws within the prompt
        (0, 3, 0),  # does not draw at its end: the ring would stand still
        (0, 2, STEP_REBUILD),
        (0, 3, STEP_SAMPLE | STEP_REBUILD),
        (0, 3, 128),
        (0, 4, STEP_SAMPLE),  # crosses the end: tokens would be left out
        (0, 8, STEP_SAMPLE),  # beyond what is reserved
    ],
)
def test_steps_that_would_draw_where_no_token_is_due(position: int, count: int, flags: int) -> None:
    core = stage(1, 2)
    with pytest.raises(ProtocolError) as caught:
        feed(core, position, count, flags=flags)
    assert caught.value.peer_id == worker_id(0)
    assert core.next_work() is None


def test_the_last_position_is_never_computed() -> None:
    core = stage(1, 2, prompt=3, tokens=4)
    assert core.max_positions == 6
    feed(core, 0, 3)
    for position in (3, 4, 5):
        feed(core, position)
        work_off(core)
    with pytest.raises(ProtocolError, match="of 6 reserved"):
        feed(core, 6)


def test_activations_and_ids_are_not_taken_for_each_other() -> None:
    with pytest.raises(ProtocolError, match="the other way round"):
        stage(0, 2).receive(Step(0, 0, 1, STEP_HIDDEN, 0), row(0))
    with pytest.raises(ProtocolError, match="the other way round"):
        stage(1, 2).receive(Step(0, 0, 1, STEP_TOKENS, 0), pack_ids([1]))


@pytest.mark.parametrize("raw", [b"", bytes(ROW - 1), bytes(ROW + 1), bytes(2 * ROW)])
def test_activations_have_the_size_of_their_positions(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"bytes for 1 positions"):
        stage(1, 2).receive(Step(0, 0, 1, STEP_HIDDEN, 0), raw)


@pytest.mark.parametrize("raw", [b"", b"123", pack_ids([1, 2])])
def test_ids_have_the_size_of_their_positions(raw: bytes) -> None:
    core = stage(0, 2)
    core.begin(Begin(0, 0), pack_ids(IDS))
    with pytest.raises(ProtocolError, match=r"bytes for 1 positions") as caught:
        core.receive(Step(0, 3, 1, STEP_TOKENS, STEP_SAMPLE), raw)
    assert caught.value.peer_id == worker_id(1)


def test_the_prompt_is_not_the_last_stages_to_send() -> None:
    core = stage(0, 2)
    with pytest.raises(ProtocolError, match="the client's"):
        feed(core, 0, flags=0)
    core.begin(Begin(0, 0), pack_ids(IDS))
    with pytest.raises(ProtocolError, match="the client's"):
        feed(core, 2)


def test_steps_that_wait_are_bounded() -> None:
    core = stage(1, 2, account=account_of(), prompt=2 * MAX_WAITING)
    for position in range(MAX_WAITING):
        feed(core, position)
    with pytest.raises(ProtocolError, match="steps ahead"):
        feed(core, MAX_WAITING)


# ---- beginning -------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_cut_into_chunks_and_the_last_draws() -> None:
    core = stage(0, 2, prompt=2 * PREFILL_CHUNK + 1)
    core.begin(Begin(0, 0), pack_ids([1] * (2 * PREFILL_CHUNK + 1)))
    flags = []
    while (work := core.next_work()) is not None:
        flags.append((work.position, work.count, work.flags))
        core.complete(work, row(work.position, work.count), None)
    assert flags == [(0, 512, 0), (512, 512, 0), (1024, 1, STEP_SAMPLE)]


@pytest.mark.parametrize("when", ["waits", "computing", "computed"])
def test_a_session_begins_once(when: str) -> None:
    core = stage(0, 2)
    core.begin(Begin(0, 0), pack_ids(IDS))
    if when != "waits":
        work = core.next_work()
        assert work is not None
        if when == "computed":
            core.complete(work, row(0, 3), None)
    with pytest.raises(ProtocolError, match="already begun") as caught:
        core.begin(Begin(0, 0), pack_ids(IDS))
    assert caught.value.peer_id == CLIENT


@pytest.mark.parametrize("begin", [Begin(1, 0), Begin(0, 1), Begin(0, 0, 2)])
def test_a_session_begins_at_its_beginning(begin: Begin) -> None:
    with pytest.raises(ProtocolError, match="position 0"):
        stage().begin(begin, pack_ids(IDS))


@pytest.mark.parametrize("raw", [b"", b"123", pack_ids([1, 2]), pack_ids([1, 2, 3, 4]), pack_ids(IDS) + b"x"])
def test_a_prompt_has_the_length_that_was_announced(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="opened for 3 ids") as caught:
        stage().begin(Begin(0, 0), raw)
    assert caught.value.peer_id == CLIENT


@pytest.mark.parametrize("index", [1, 2])
def test_only_the_first_stage_begins(index: int) -> None:
    with pytest.raises(ProtocolError, match="only the first"):
        stage(index, 3).begin(Begin(0, 0), pack_ids(IDS))


# ---- the device ------------------------------------------------------------------------------------------------------


def test_a_device_that_gives_nothing_is_this_workers_fault() -> None:
    core = stage(0, 2)
    core.begin(Begin(0, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    with pytest.raises(ResourceError):
        core.complete(work, None, None)
    core = stage()
    core.begin(Begin(0, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    with pytest.raises(ResourceError):
        core.complete(work, None, None)


def test_whoever_brought_the_input_answers_for_it() -> None:
    core = stage(0, 2)
    core.begin(Begin(0, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    assert core.source(work) == CLIENT
    core.complete(work, row(0, 3), None)
    feed(core, 3)
    work = core.next_work()
    assert work is not None
    assert core.source(work) == worker_id(1)
    other = stage(1, 2)
    feed(other, 0)
    work = other.next_work()
    assert work is not None
    assert other.source(work) == worker_id(0)


@pytest.mark.parametrize(
    ("token", "tokens", "finish"), [(42, 9, "stop"), (1, 1, "length"), (42, 1, "stop"), (1, 9, "")]
)
def test_how_a_call_ends_at_the_last_stage(token: int, tokens: int, finish: str) -> None:
    core = stage(tokens=tokens, stop_ids=(42,))
    core.begin(Begin(0, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    emit, *back = core.complete(work, None, Drawn(token))
    assert isinstance(emit, Emit)
    assert emit.tokens.finish == finish
    assert bool(back) == (finish == "")


# ---- credit ----------------------------------------------------------------------------------------------------------


def test_work_stops_and_resumes_exactly_where_the_prepayment_does() -> None:
    def cost(tokens: int) -> int:
        return PRICE.amount(layers=2, input_tokens=3, output_tokens=tokens)

    account = account_of(promised=cost(WINDOW_TOKENS))
    ring = Ring([stage(account=account, tokens=200)])
    ring.begin(IDS)
    ring.run()
    assert len(ring.tokens) == WINDOW_TOKENS
    (core,) = ring.cores
    assert core.credit_needed() == cost(WINDOW_TOKENS + 1)
    assert core.credit_needed() == 0  # told once
    account.promise(cost(WINDOW_TOKENS + 1) - 1)
    ring.run()
    assert len(ring.tokens) == WINDOW_TOKENS
    account.promise(cost(WINDOW_TOKENS + 1))
    ring.run()
    assert len(ring.tokens) == WINDOW_TOKENS + 1
    assert core.credit_needed() == cost(WINDOW_TOKENS + 2)
    account.promise(cost(200))
    ring.run()
    assert len(ring.tokens) == 200
    assert core.credit_needed() == 0
    receipt = core.close(200, now_ms=0)
    assert receipt is not None
    assert receipt.cumulative == receipt.amount == cost(200)


def test_the_prompt_is_paid_for_before_it_is_computed() -> None:
    account = account_of(promised=PRICE.amount(layers=2, input_tokens=3, output_tokens=1) - 1)
    core = stage(account=account)
    core.begin(Begin(0, 0), pack_ids(IDS))
    assert core.next_work() is None
    assert core.credit_needed() == account.promised + 1
    assert core.close(None, now_ms=0) is None
    assert account.earned == 0


def test_two_sessions_share_a_channels_credit() -> None:
    account = account_of(promised=PRICE.amount(layers=2, input_tokens=3, output_tokens=1))
    first = stage(account=account)
    first.begin(Begin(0, 0), pack_ids(IDS))
    assert first.next_work() is not None
    account.accrued[first.opening.session_id] -= 1  # as if another call had spent it all but one
    account.accrued[type(first.opening.session_id)(b"z" * 16)] = 1
    assert account.credit == 0


# ---- closing ---------------------------------------------------------------------------------------------------------


def test_an_unbegun_session_closes_without_a_receipt() -> None:
    core = stage()
    assert core.close(0, now_ms=0) is None
    assert core.account.accrued == {}
    core.begin(Begin(0, 0), pack_ids(IDS))  # too late, and harmless
    assert core.next_work() is None


def test_a_session_closes_once() -> None:
    core = stage()
    core.close(0, now_ms=0)
    with pytest.raises(PaymentError, match="already closed"):
        core.close(0, now_ms=0)


def test_closing_while_something_waits_or_is_computed_bills_what_is_done() -> None:
    core = stage(1, 3, prompt=10)
    feed(core, 0, 2)
    feed(core, 2, 2)
    feed(core, 4, 2)
    work = core.next_work()
    assert work is not None
    core.complete(work, row(0, 2), None)
    running = core.next_work()
    assert running is not None
    receipt = core.close(None, now_ms=5_000)
    assert receipt is not None
    assert (receipt.input_tokens, receipt.output_tokens) == (2, 0)
    assert receipt.amount == PRICE.amount(layers=2, input_tokens=2, output_tokens=0)
    assert core.complete(running, row(2, 2), None) == []
    assert core.length == 2
    feed(core, 4, 2)  # dropped
    assert core.next_work() is None
    assert core.credit_needed() == 0


@pytest.mark.parametrize(
    ("computed", "claimed", "billed"),
    [
        (100, 100, 100),
        (100, 90, 90),
        (100, 36, 36),
        (100, 35, 36),  # a window is the worker's risk, and no more
        (100, 0, 36),
        (100, 1000, 100),
        (100, None, 100),  # vanished
        (10, 0, 0),
    ],
)
def test_what_a_client_claims_is_believed_within_a_window(computed: int, claimed: int | None, billed: int) -> None:
    ring = Ring([stage(tokens=computed)])
    ring.begin(IDS)
    ring.run()
    (receipt,) = ring.close(claimed)
    assert receipt is not None
    assert (receipt.input_tokens, receipt.output_tokens) == (3, billed)
    assert ring.cores[0].account.earned == receipt.amount == receipt.due()
    assert ring.cores[0].account.accrued == {}


def test_a_receipt_says_what_it_was_for() -> None:
    account = account_of(promised=CAP)
    account.earned = 1_000
    core = stage(account=account, epoch=2)
    core.begin(Begin(2, 0), pack_ids(IDS))
    work = core.next_work()
    assert work is not None
    core.complete(work, None, Drawn(8))
    receipt = core.close(1, now_ms=500)  # a clock that went back
    assert receipt is not None
    opened, channel = core.opening, account.channel
    assert channel is not None
    assert (receipt.manifest_id, receipt.client, receipt.worker) == (opened.manifest_id, CLIENT, worker_id(0))
    assert (receipt.session_id, receipt.call_id, receipt.chain_epoch) == (opened.session_id, opened.call_id, 2)
    assert (receipt.start, receipt.stop, receipt.request_hash) == (0, 2, opened.request_hash)
    assert (receipt.client_account, receipt.worker_account, receipt.channel_epoch) == (
        channel.client,
        channel.worker,
        channel.epoch,
    )
    assert receipt.cumulative == 1_000 + receipt.amount
    assert receipt.fingerprint_root == EMPTY_ROOT
    assert (receipt.started_ms, receipt.finished_ms) == (1_000, 1_000)


def test_a_free_call_has_a_receipt_without_a_channel() -> None:
    ring = Ring([stage(account=Account(None), price=Price(per_1k_input=0, per_1k_output=0))])
    ring.begin(IDS)
    ring.run()
    (receipt,) = ring.close(None)
    assert receipt is not None
    assert (receipt.amount, receipt.cumulative, receipt.output_tokens) == (0, 0, 4)
    assert receipt.worker_account == FREE_CHANNEL.worker


# ---- rings -----------------------------------------------------------------------------------------------------------


def expected_roots(prompt: list[int], tokens: list[int]) -> tuple[bytes, bytes]:
    """The roots at the two ends of a whole call."""
    given, drawn = ChainedRoot(), ChainedRoot()
    for start in range(0, len(prompt), PREFILL_CHUNK):
        part = prompt[start : start + PREFILL_CHUNK]
        given.append(pack_ids(part), tokens=len(part))
    for token in tokens[:-1]:
        given.append(pack_ids([token]), tokens=1)
    for token in tokens:
        drawn.append(pack_ids([token]), tokens=1)
    return given.value(), drawn.value()


@settings(deadline=None, max_examples=60)  # a loaded machine is no failure
@given(
    stages=st.integers(1, 5),
    prompt=st.integers(1, 1100),
    tokens=st.integers(1, 150),
    price=st.builds(Price, per_1k_input=st.integers(0, 5_000), per_1k_output=st.integers(0, 5_000)),
    data=st.data(),
)
def test_rings_in_any_order_of_events(stages: int, prompt: int, tokens: int, price: Price, data: st.DataObject) -> None:
    """Whatever comes first: tokens in order, no work beyond the credit, no step lost, receipts that fit together."""
    accounts = [account_of(index) for index in range(stages)]
    cores = [
        stage(index, stages, account=account, price=price, prompt=prompt, tokens=tokens)
        for index, account in enumerate(accounts)
    ]
    ring = Ring(cores)
    ids = list(range(prompt))
    ring.begin(ids)

    def cost(count: int) -> int:
        return price.amount(layers=2, input_tokens=prompt, output_tokens=count)

    # The client pays each stage a window ahead, but its vouchers may be late; the order of everything is drawn.
    order = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, stages - 1)), max_size=60))
    stop_at = data.draw(st.integers(0, tokens))

    def happen(kind: int, index: int) -> bool:
        if kind == 0:
            moved = ring.deliver(index)
        elif kind == 1:
            moved = ring.compute(index)
        else:
            ceiling = cost(min(len(ring.tokens) + WINDOW_TOKENS, tokens))
            moved = ceiling > accounts[index].promised
            accounts[index].promise(ceiling)
        for account in accounts:
            assert account.credit >= 0
        assert ring.tokens == [draw(prompt + at) for at in range(len(ring.tokens))]
        return moved

    for kind, index in order:
        happen(kind, index)
    while len(ring.tokens) < stop_at and any(
        [happen(kind, index) for kind in (2, 0, 1) for index in range(stages)]  # noqa: C419 - all of them happen
    ):
        pass
    received = len(ring.tokens)
    assert received >= stop_at
    for index, core in enumerate(cores):
        computed = max(0, core.length - prompt + 1)
        assert price.amount(layers=2, input_tokens=min(core.length, prompt), output_tokens=computed) <= (
            accounts[index].promised
        )
        assert [work.position for work in ring.computed[index]] == sorted(
            {work.position for work in ring.computed[index]}
        )
    receipts = ring.close(received)
    for account, core, receipt in zip(accounts, cores, receipts, strict=True):
        assert account.accrued == {}
        if core.length == 0:
            assert receipt is None
            continue
        assert receipt is not None
        assert receipt.input_tokens == min(core.length, prompt)
        assert receipt.output_tokens <= received
        assert account.earned == receipt.amount == receipt.cumulative <= account.promised
    if received == tokens:
        whole = [receipt for receipt in receipts if receipt is not None]
        assert len(whole) == stages
        assert {receipt.output_tokens for receipt in whole} == {tokens}
        assert (whole[0].input_root, whole[-1].output_root) == expected_roots(ids, ring.tokens)
        for before, after in pairwise(whole):
            assert before.output_root == after.input_root
