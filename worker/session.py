"""One stage of one session, without I/O: what comes in, what may be computed next, what goes out.

Theory of operation
-------------------
A stage computes positions in order. Inputs are steps of the chain's current epoch: token ids at the first stage (from
the client's `Begin`, then from the last stage, one per trip), activations at every other. They wait in a queue until
the channel's credit covers them; a stage without credit says so once and goes on at the next voucher.

    input                       position < length    = length     > length       older epoch   newer epoch
    step of the chain           truncate, compute    compute      culprit error  dropped       culprit error

After computing, a stage that is not the last sends the activations on; the last draws a token after the step marked
SAMPLE, tells the client, and sends the token to the first stage unless the call is at its end. The call's end is the
client's to declare (`close`): a stop string, a cancel, or the finish that the last stage reported.

Each side of a link appends the wire bytes of every step to a chained root, so that a stage's output root is the next
one's input root, and both are in the receipt that ends the call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from swarm.errors import PaymentError, ProtocolError
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
        self._running = False
        self._told_needed = 0
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
        """The client starts the call at the first stage with the prompt's ids."""
        ids = unpack_ids(raw)
        if not self.is_first:
            raise ProtocolError("only the first stage of a chain begins")
        if message.chain_epoch != self.epoch or message.position != 0 or self.length or self._queue:
            raise ProtocolError("this session has already begun")
        if len(ids) != self.opening.prompt_tokens:
            raise ProtocolError(f"the session was opened for {self.opening.prompt_tokens} ids, {len(ids)} came")
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
        if len(self._queue) >= MAX_WAITING:
            raise self._blame(f"sent more than {MAX_WAITING} steps ahead")
        if step.position > self._queued_to:
            raise self._blame(f"sent position {step.position}, this stage is at {self._queued_to}")
        if step.position < self._queued_to:
            self._queue = deque(work for work in self._queue if work.position + work.count <= step.position)
            if self._running:
                raise self._blame("rewound a position that is being computed")
        ids, hidden = None, None
        if self.is_first:
            ids = unpack_ids(raw)
            if len(ids) != step.count:
                raise self._blame(f"sent {len(ids)} ids for {step.count} positions")
        else:
            hidden = raw
            if len(raw) != step.count * self._row_bytes:
                raise self._blame(f"sent {len(raw)} bytes for {step.count} positions of {self._row_bytes}")
        if step.position + step.count > self.max_positions:
            raise self._blame(f"sent position {step.position + step.count - 1} of {self.max_positions} reserved")
        self._inputs.append(raw, tokens=step.count)
        self._enqueue(step.position, step.count, ids, hidden, step.flags)

    def _enqueue(
        self, position: int, count: int, ids: tuple[int, ...] | None, hidden: Bytes | None, flags: int
    ) -> None:
        sample = self.is_last and bool(flags & STEP_SAMPLE)
        self._queue.append(Work(position=position, count=count, ids=ids, hidden=hidden, sample=sample, flags=flags))
        self._queued_to = position + count

    # ---- compute --------------------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """What to compute now, paid for; None when nothing waits, credit is short or something is being computed."""
        if not self._queue or self._running or self.closed:
            return None
        work = self._queue[0]
        if self.account.spend(self.opening.session_id, self._cost(work.position + work.count)):
            return None
        self._running = True
        return self._queue.popleft()

    def credit_needed(self) -> int:
        """The cumulative voucher that the waiting step needs, told once per amount; 0 when none is needed."""
        if not self._queue or self._running or self.closed:
            return 0
        work = self._queue[0]
        missing = self.account.spend(self.opening.session_id, self._cost(work.position + work.count))
        needed = self.account.required(missing) if missing else 0
        if needed <= self._told_needed:
            return 0
        self._told_needed = needed
        return needed

    def complete(self, work: Work, hidden: bytes | None, drawn: Drawn | None) -> list[Action]:
        """The device has computed ``work``: what goes out."""
        self._running = False
        self.length = work.position + work.count
        if self.closed:
            return []
        if not self.is_last:
            if hidden is None:
                raise ProtocolError("a stage before the last gives activations")
            step = Step(self.epoch, work.position, work.count, STEP_HIDDEN, work.flags)
            self._outputs.append(hidden, tokens=work.count)
            return [Forward(step, hidden)]
        if not work.sample or self._finished:
            return []
        if drawn is None:
            raise ProtocolError("the last stage draws a token")
        return self._emit(drawn)

    def _emit(self, drawn: Drawn) -> list[Action]:
        position, raw = self.length, pack_ids([drawn.token])
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
