"""One stage of one session, without I/O: what comes in, what may be computed next, what goes out.

Theory of operation
-------------------
A stage computes positions in order. Inputs are steps of the chain's current epoch: token ids at the first stage (from
the client's `Begin`, then from the last stage, one per trip), activations at every other. They wait in a queue until
the channel's credit covers them; a stage without credit says so once and goes on at the next voucher.

    input                  position < expected   = expected    > expected      older epoch   newer epoch
    step of the chain      truncate, compute     compute       culprit error   dropped       culprit error

The expected position is the one after everything that was computed, is being computed or waits. A rewind goes back to
the beginning of a step, never into what is being computed or past a token that the client has, and recomputing is free
of charge, so its positions are bounded by one window in all. A step ends within the prompt and draws nothing, or ends
it, or carries one position after it, and draws a token.

After computing, a stage that is not the last sends the activations on; the last draws a token after the step marked
SAMPLE, tells the client, and sends the token to the first stage unless the call is at its end. The call's end is the
client's to declare (`close`): a stop string, a cancel, or the finish that the last stage reported.

Each side of a link appends the wire bytes of every step to a chained root, so that a stage's output root is the next
one's input root, and both are in the receipt that ends the call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from swarm.errors import PaymentError, ProtocolError, ResourceError
from swarm.ids import PeerId
from swarm.merkle import EMPTY_ROOT, ChainedRoot
from swarm.messages import (
    PREFILL_CHUNK,
    STEP_HIDDEN,
    STEP_SAMPLE,
    STEP_TOKENS,
    Begin,
    OpenSession,
    Step,
    Tokens,
    pack_ids,
    unpack_ids,
)
from swarm.receipts import FREE_CHANNEL, WINDOW_TOKENS, Price, Receipt
from worker.credit import Account

MAX_WAITING = 1024  # steps that may wait for credit or for the device; a ring has one, a prefill its chunks
MAX_REWOUND = WINDOW_TOKENS  # positions computed again for nothing: a worker risks one window, whatever the way

Bytes = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the device is to compute: ids at the first stage, activations at the others, for ``count`` positions."""

    position: int
    count: int
    ids: tuple[int, ...] | None
    hidden: Bytes | None
    sample: bool
    flags: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Send a step to the next stage."""

    step: Step
    raw: bytes


@dataclass(frozen=True, slots=True)
class Return:
    """Send a drawn token round to the first stage."""

    step: Step
    raw: bytes


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the client."""

    tokens: Tokens


Action = Forward | Return | Emit


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that the device has drawn, with what was asked for about it."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class StageSession:
    """The state of one session at one stage."""

    def __init__(
        self, opening: OpenSession, *, client: PeerId, price: Price, account: Account, row_bytes: int, now_ms: int
    ) -> None:
        """``row_bytes``: the wire size of one position's activations. Times are Unix milliseconds."""
        self.opening = opening
        self.client = client
        self.price = price
        self.account = account
        self.stage = opening.chain[opening.index]
        self.epoch = opening.chain_epoch
        self.is_first = opening.index == 0
        self.is_last = opening.index == len(opening.chain) - 1
        self.length = 0
        self.closed = False
        self._row_bytes = row_bytes
        self._queue: deque[Work] = deque()
        self._queued_to = 0
        self._running: Work | None = None
        self._begun = False
        self._rewound = 0
        self._told_needed = 0
        self._told_to = 0
        self._finished = False
        self._inputs = ChainedRoot()
        self._outputs = ChainedRoot()
        self._started_ms = now_ms
        account.open(opening.session_id)

    @property
    def upstream(self) -> PeerId:
        """Whose steps this stage takes: the stage before, or the last for the first."""
        return self.opening.chain[self.opening.index - 1].peer_id

    @property
    def max_positions(self) -> int:
        """Positions to reserve: the prompt and every token but the last, which nobody computes."""
        return self.opening.prompt_tokens + self.opening.max_tokens - 1

    # ---- in -------------------------------------------------------------------------------------------------------

    def begin(self, message: Begin, raw: Bytes) -> None:
        """The client starts the call at the first stage with the prompt's ids. Raises `ProtocolError` naming it."""
        if self.closed:
            return
        if not self.is_first:
            raise self._blame_client("only the first stage of a chain begins")
        if self._begun:
            raise self._blame_client("this session has already begun")
        if message.chain_epoch != self.epoch or message.position or message.rebuild_until:
            raise self._blame_client(f"a session begins at position 0 of its epoch, {self.epoch}")
        wanted = self.opening.prompt_tokens
        if len(raw) != len(pack_ids([0])) * wanted:
            raise self._blame_client(f"the session was opened for {wanted} ids, {len(raw)} bytes of them came")
        self._begun = True
        ids = unpack_ids(raw)
        for start in range(0, len(ids), PREFILL_CHUNK):
            part = ids[start : start + PREFILL_CHUNK]
            sample = STEP_SAMPLE if start + len(part) == len(ids) else 0
            self._inputs.append(pack_ids(part), tokens=len(part))
            self._enqueue(start, len(part), part, None, sample)

    def receive(self, step: Step, raw: Bytes) -> None:
        """A step from upstream. Raises `ProtocolError` naming it when the step breaks the rules."""
        if self.closed or step.chain_epoch < self.epoch:
            return
        if step.chain_epoch > self.epoch:
            raise self._blame(f"sent a step of chain epoch {step.chain_epoch}, this stage is in {self.epoch}")
        if (step.kind == STEP_TOKENS) != self.is_first:
            raise self._blame("sent activations for token ids or the other way round")
        self._check_place(step)
        size = len(pack_ids([0])) if self.is_first else self._row_bytes
        if len(raw) != step.count * size:
            raise self._blame(f"sent {len(raw)} bytes for {step.count} positions of {size}")
        if step.position < self._queued_to:
            self._rewind(step.position)
        if len(self._queue) >= MAX_WAITING:
            raise self._blame(f"sent more than {MAX_WAITING} steps ahead")
        self._inputs.append(raw, tokens=step.count)
        if self.is_first:
            self._enqueue(step.position, step.count, unpack_ids(raw), None, step.flags)
        else:
            self._enqueue(step.position, step.count, None, raw, step.flags)

    def _check_place(self, step: Step) -> None:
        """Whether a step may come here and now."""
        prompt, end = self.opening.prompt_tokens, step.position + step.count
        if step.position > self._queued_to:
            raise self._blame(f"sent position {step.position}, this stage is at {self._queued_to}")
        if end > self.max_positions:
            raise self._blame(f"sent position {end - 1} of {self.max_positions} reserved")
        if self.is_first and step.position < prompt:
            raise self._blame("sent ids of the prompt, which is the client's")
        if end > prompt and step.count > 1:
            raise self._blame(f"sent {step.count} positions at once after the prompt")
        if step.flags != (STEP_SAMPLE if end >= prompt else 0):
            raise self._blame(f"sent a step to position {end} with flags {step.flags}, in a prompt of {prompt}")
        if self._finished or end <= self._told_to:
            raise self._blame("sent a step for a token that the client has")

    def _rewind(self, position: int) -> None:
        """Forget what waits from ``position`` on; what was computed is overwritten when its turn comes."""
        running = self._running
        if running is not None and position < running.position + running.count:
            raise self._blame("rewound a position that is being computed")
        self._rewound += self._queued_to - position
        if self._rewound > MAX_REWOUND:
            raise self._blame(f"rewound more than {MAX_REWOUND} positions")
        while self._queue and self._queue[-1].position >= position:
            self._queue.pop()
        if self._queue and self._queue[-1].position + self._queue[-1].count > position:
            raise self._blame(f"rewound to position {position}, in the middle of a step")

    def _enqueue(
        self, position: int, count: int, ids: tuple[int, ...] | None, hidden: Bytes | None, flags: int
    ) -> None:
        sample = self.is_last and bool(flags & STEP_SAMPLE)
        self._queue.append(Work(position=position, count=count, ids=ids, hidden=hidden, sample=sample, flags=flags))
        self._queued_to = position + count

    # ---- compute --------------------------------------------------------------------------------------------------

    @property
    def computing(self) -> bool:
        """Whether the device has work of this stage."""
        return self._running is not None

    def next_work(self) -> Work | None:
        """What to compute now, paid for; None when nothing waits, credit is short or something is being computed."""
        if not self._queue or self._running is not None or self.closed:
            return None
        work = self._queue[0]
        if not self.account.spend(self.opening.session_id, self._cost(work.position + work.count)):
            return None
        self._running = self._queue.popleft()
        return work

    def credit_needed(self) -> int:
        """The cumulative voucher that the waiting step needs, told once per amount; 0 when none is needed."""
        if not self._queue or self._running is not None or self.closed:
            return 0
        work = self._queue[0]
        needed = self.account.required(self.opening.session_id, self._cost(work.position + work.count))
        if needed <= self._told_needed:
            return 0
        self._told_needed = needed
        return needed

    def source(self, work: Work) -> PeerId:
        """Who answers for what ``work`` was given: the client for the prompt's ids, else upstream."""
        return self.client if self.is_first and work.position < self.opening.prompt_tokens else self.upstream

    def complete(self, work: Work, hidden: bytes | None, drawn: Drawn | None) -> list[Action]:
        """The device has computed ``work``: what goes out. Raises `ResourceError` when the device gave nothing."""
        self._running = None
        if self.closed:
            return []
        self.length = work.position + work.count
        if not self.is_last:
            if hidden is None:
                raise ResourceError("the engine gave no activations; restart the worker")
            step = Step(self.epoch, work.position, work.count, STEP_HIDDEN, work.flags)
            self._outputs.append(hidden, tokens=work.count)
            return [Forward(step, hidden)]
        if not work.sample:
            return []
        if drawn is None:
            raise ResourceError("the engine drew no token; restart the worker")
        return self._emit(drawn)

    def _emit(self, drawn: Drawn) -> list[Action]:
        position, raw = self.length, pack_ids([drawn.token])
        self._told_to = position
        self._outputs.append(raw, tokens=1)
        finish = ""
        if drawn.token in self.opening.stop_ids:
            finish = "stop"
        elif position - self.opening.prompt_tokens + 1 >= self.opening.max_tokens:
            finish = "length"
        self._finished = bool(finish)
        logprobs = () if drawn.logprob is None else ((drawn.logprob, drawn.top),)
        actions: list[Action] = [Emit(Tokens(self.epoch, position, (drawn.token,), finish, logprobs))]
        if not finish:
            actions.append(Return(Step(self.epoch, position, 1, STEP_TOKENS, STEP_SAMPLE), raw))
        return actions

    # ---- money ----------------------------------------------------------------------------------------------------

    def _cost(self, length: int) -> int:
        """What the call costs once ``length`` positions are computed: the prompt, then a token per position."""
        prompt = self.opening.prompt_tokens
        outputs = length - prompt + 1 if length >= prompt else 0
        return self.price.amount(
            layers=self.stage.stop - self.stage.start, input_tokens=min(length, prompt), output_tokens=outputs
        )

    def close(self, tokens: int | None, *, now_ms: int) -> Receipt | None:
        """The call is over. ``tokens``: how many the client accepted, None when it vanished.

        Returns the receipt, None for a call in which nothing was computed. A client may refuse at most one window of
        tokens that were computed for it; more is its loss.
        """
        if self.closed:
            raise PaymentError("this call is already closed")
        self.closed = True
        self._queue.clear()
        prompt = self.opening.prompt_tokens
        inputs = min(self.length, prompt)
        computed = self.length - prompt + 1 if self.length >= prompt else 0
        accepted = computed if tokens is None else min(computed, max(tokens, computed - WINDOW_TOKENS))
        layers = self.stage.stop - self.stage.start
        amount = self.price.amount(layers=layers, input_tokens=inputs, output_tokens=accepted)
        cumulative = self.account.close(self.opening.session_id, amount)
        if not self.length:
            return None
        channel = self.account.channel or FREE_CHANNEL
        return Receipt(
            manifest_id=self.opening.manifest_id,
            client=self.client,
            worker=self.stage.peer_id,
            session_id=self.opening.session_id,
            call_id=self.opening.call_id,
            chain_epoch=self.epoch,
            start=self.stage.start,
            stop=self.stage.stop,
            request_hash=self.opening.request_hash,
            input_root=self._inputs.value(),
            output_root=self._outputs.value(),
            fingerprint_root=EMPTY_ROOT,
            input_tokens=inputs,
            output_tokens=accepted,
            rebuilt_tokens=0,
            price=self.price,
            amount=amount,
            cumulative=cumulative,
            client_account=channel.client,
            worker_account=channel.worker,
            channel_epoch=channel.epoch,
            started_ms=self._started_ms,
            finished_ms=max(now_ms, self._started_ms),
        )

    def _blame(self, what: str) -> ProtocolError:
        return ProtocolError(f"peer {self.upstream.short} {what}", peer_id=self.upstream)

    def _blame_client(self, what: str) -> ProtocolError:
        return ProtocolError(what, peer_id=self.client)
