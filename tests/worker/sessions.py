"""Stages of sessions without I/O for tests: what opens them, and a whole ring of them that a test drives by hand."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from swarm.ids import Address, CallId, ManifestId, PeerId, SessionId
from swarm.messages import Begin, OpenSession, StageRef, Step, Tokens, pack_ids
from swarm.receipts import Channel, Price, Receipt
from worker.credit import Account
from worker.session import Drawn, Emit, Forward, Return, StageSession, Work

PRICE = Price(per_1k_input=1_000, per_1k_output=3_000)
ROW = 8  # bytes of one position's activations
CLIENT = PeerId(b"c" * 32)
SESSION = SessionId(b"s" * 16)
CAP = 10**9


def worker_id(index: int) -> PeerId:
    """The peer id of a chain's stage."""
    return PeerId(bytes([index + 1]) * 32)


def account_of(index: int = 0, *, promised: int = 0, cap: int = CAP) -> Account:
    """An account that holds a voucher of ``promised``."""
    channel = Channel(
        chain_id=1,
        contract=Address(b"k" * 20),
        client=Address(b"c" * 20),
        worker=Address(bytes([index + 1]) * 20),
        epoch=1,
    )
    return Account(channel, cap=cap, promised=promised)


def opening(
    index: int = 0,
    stages: int = 1,
    *,
    prompt: int = 3,
    tokens: int = 4,
    epoch: int = 0,
    stop_ids: tuple[int, ...] = (),
    layers: int = 2,
) -> OpenSession:
    """What opens stage ``index`` of a chain with so many layers a stage."""
    return OpenSession(
        session_id=SESSION,
        call_id=CallId(b"i" * 16),
        manifest_id=ManifestId(b"m" * 32),
        chain=tuple(
            StageRef(worker_id(at), "127.0.0.1", 1 + at, at * layers, (at + 1) * layers) for at in range(stages)
        ),
        index=index,
        chain_epoch=epoch,
        prompt_tokens=prompt,
        max_tokens=tokens,
        request_hash=b"r" * 32,
        quote=b"",
        quote_signature=bytes(64),
        stop_ids=stop_ids,
    )


def stage(
    index: int = 0, stages: int = 1, *, account: Account | None = None, price: Price = PRICE, **options: Any
) -> StageSession:
    """A stage with all the credit there is, unless it has an account."""
    return StageSession(
        opening(index, stages, **options),
        client=CLIENT,
        price=price,
        account=account or account_of(index, promised=CAP),
        row_bytes=ROW,
        now_ms=1_000,
    )


def row(position: int, count: int = 1) -> bytes:
    """Activations that say which positions they are."""
    return b"".join(at.to_bytes(ROW, "little") for at in range(position, position + count))


def draw(position: int) -> int:
    """The token that every ring here draws at a position."""
    return int.from_bytes(hashlib.sha256(position.to_bytes(4, "little")).digest()[:2], "little") % 1000


@dataclass(slots=True)
class Ring:
    """A chain of stages, the links between them, and what the client has heard. Nothing moves by itself."""

    cores: list[StageSession]
    links: list[deque[tuple[Step, bytes]]] = field(init=False)
    heard: list[Tokens] = field(default_factory=list)
    computed: list[list[Work]] = field(init=False)

    def __post_init__(self) -> None:
        self.links = [deque() for _ in self.cores]
        self.computed = [[] for _ in self.cores]

    def begin(self, ids: list[int]) -> None:
        """The client's part."""
        self.cores[0].begin(Begin(self.cores[0].epoch, 0), pack_ids(ids))

    def deliver(self, index: int) -> bool:
        """Hand the next step that waits on the way to a stage to it."""
        if not self.links[index]:
            return False
        self.cores[index].receive(*self.links[index].popleft())
        return True

    def compute(self, index: int) -> bool:
        """Let a stage compute one step, if it may."""
        core = self.cores[index]
        work = core.next_work()
        if work is None:
            return False
        self.computed[index].append(work)
        last = core.is_last
        drawn = Drawn(draw(work.position + work.count)) if last and work.sample else None
        for action in core.complete(work, None if last else row(work.position, work.count), drawn):
            match action:
                case Emit(tokens):
                    self.heard.append(tokens)
                case Forward(step, raw):
                    self.links[index + 1].append((step, raw))
                case Return(step, raw):
                    self.links[0].append((step, raw))
        return True

    def run(self) -> None:
        """Go on until nothing moves."""
        while any([*map(self.deliver, range(len(self.cores))), *map(self.compute, range(len(self.cores)))]):
            pass

    def close(self, tokens: int | None) -> list[Receipt | None]:
        """End the call everywhere."""
        return [core.close(tokens, now_ms=2_000) for core in self.cores]

    @property
    def tokens(self) -> list[int]:
        """What the client has heard."""
        return [token for message in self.heard for token in message.ids]
