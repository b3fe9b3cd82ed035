"""A swarm for tests of programs that use this library: no network, no workers, no money.

    node = FakeNode(fake_model(tokenizer_files, name="demo"), FakeScript(text="return n"))
    with Swarm(open_node=node.open) as swarm:
        swarm.generate("demo", "def fib(n):").text

`FakeNode` answers every prompt with the same tokens, one at a time, and remembers the calls. It follows
`client.node.ClientNode`: limits, stop tokens, closing, receipts signed by both sides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import trio

from client.call import CallRequest, CallSummary, StageSummary
from client.node import Model
from client.tokenizer import Tokenizer
from swarm.architecture import layer_shapes, parse_config
from swarm.errors import SwarmError, UnknownModelError
from swarm.identity import Identity
from swarm.ids import Address, CallId, ContentHash, SessionId
from swarm.manifest import OBJECT_NAMES, Manifest, ModelFile
from swarm.merkle import EMPTY_ROOT
from swarm.messages import Tokens
from swarm.metadata import MIN_PIECE, TorrentFile, TorrentMetadata
from swarm.receipts import Price, Receipt, SignedReceipt

PUBLISHER = Identity(hashlib.sha256(b"client.testing publisher").digest())
WORKER = Identity(hashlib.sha256(b"client.testing worker").digest())
CLIENT = Identity(hashlib.sha256(b"client.testing client").digest())
PRICE = Price(per_1k_input=1000, per_1k_output=2000)  # so that the cost is prompt tokens and twice the output


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeScript:
    """What the fake workers write."""

    text: str = ""
    """This text, then the end token."""
    ids: Sequence[int] = ()
    """These ids instead of ``text``; nothing ends them but ``max_tokens``."""
    endless: bool = False
    """The ids over and over."""
    group: int = 1
    """Tokens that arrive at once."""
    error: SwarmError | None = None
    """Raised after the last token instead of an end."""
    hang: bool = False
    """Wait for ever after the last token instead of an end."""


class FakeCall:
    """One call on a `FakeNode`, and what became of it."""

    def __init__(
        self, model: Model, request: CallRequest, script: FakeScript, ids: Iterator[int], hanging: threading.Event
    ) -> None:
        self.call_id = CallId(os.urandom(CallId.size))
        self.request = request
        self.sent: list[int] = []
        """Ids handed out."""
        self.accepted: int | None = None
        """What `finish` was told; None before."""
        self.cancelled = False
        """Left without `finish`."""
        self._model = model
        self._script = script
        self._ids = ids
        self._hanging = hanging
        self._ended = False

    @property
    def chain(self) -> tuple[StageSummary, ...]:
        """One worker has all layers."""
        return (self._stage(0),)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens:
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise StopAsyncIteration
        room = self.request.max_tokens - len(self.sent)
        ids = tuple(itertools.islice(self._ids, min(self._script.group, room)))
        if not ids:
            if self._script.error is not None:
                raise self._script.error
            if self._script.hang:
                self._hanging.set()
                await trio.sleep_forever()
            raise StopAsyncIteration
        stop = next((index for index, token in enumerate(ids) if token in self.request.stop_ids), None)
        ids = ids if stop is None else ids[: stop + 1]
        position = len(self.request.prompt_ids) + len(self.sent)
        self.sent += ids
        finish = "stop" if stop is not None else "length" if len(self.sent) == self.request.max_tokens else ""
        self._ended = bool(finish)
        return Tokens(0, position, ids, finish, self._logprobs(ids))

    async def finish(self, tokens: int | None = None) -> CallSummary:
        """The summary with one receipt."""
        await trio.lowlevel.checkpoint()
        self.accepted = len(self.sent) if tokens is None else tokens
        receipt = self._receipt(self.accepted)
        signed = SignedReceipt(
            receipt=receipt, worker_signature=receipt.sign(WORKER), client_signature=receipt.sign(CLIENT)
        )
        return CallSummary(
            call_id=self.call_id,
            prompt_tokens=len(self.request.prompt_ids),
            output_tokens=self.accepted,
            cost=receipt.amount,
            receipts=(signed,),
            stages=(self._stage(receipt.amount),),
            seconds=1.0 + 0.01 * self.accepted,
            first_token_seconds=0.51,
            seconds_to_last_token=0.5 + 0.01 * self.accepted,
        )

    def _logprobs(self, ids: Sequence[int]) -> tuple[tuple[float, tuple[tuple[int, float], ...]], ...]:
        wanted = self.request.sampling.logprobs
        return () if wanted < 0 else tuple((-0.5, ((token, -0.5),)[:wanted]) for token in ids)

    def _stage(self, earned: int) -> StageSummary:
        stop = self._model.manifest.layers
        return StageSummary(peer_id=WORKER.peer_id, host="127.0.0.1", port=1, start=0, stop=stop, earned=earned)

    def _receipt(self, accepted: int) -> Receipt:
        prompt, layers = len(self.request.prompt_ids), self._model.manifest.layers
        amount = PRICE.amount(layers=layers, input_tokens=prompt, output_tokens=accepted)
        return Receipt(
            manifest_id=self._model.manifest_id,
            client=CLIENT.peer_id,
            worker=WORKER.peer_id,
            session_id=SessionId(os.urandom(SessionId.size)),
            call_id=self.call_id,
            chain_epoch=0,
            start=0,
            stop=layers,
            request_hash=EMPTY_ROOT,
            input_root=EMPTY_ROOT,
            output_root=EMPTY_ROOT,
            fingerprint_root=EMPTY_ROOT,
            input_tokens=prompt,
            output_tokens=accepted,
            rebuilt_tokens=0,
            price=PRICE,
            amount=amount,
            cumulative=amount,
            client_account=Address(bytes(Address.size)),
            worker_account=Address(bytes(Address.size)),
            channel_epoch=0,
            started_ms=0,
            finished_ms=0,
        )


class FakeNode:
    """Takes the place of `client.node.ClientNode`: ``Swarm(open_node=node.open)``."""

    def __init__(self, model: Model, script: FakeScript) -> None:
        self.calls: list[FakeCall] = []
        """All calls so far, in order."""
        self.opened = 0
        """How many times it is open now."""
        self.script = script
        self.hanging = threading.Event()
        """Set when a call that hangs has written all it has; tests may wait for it in any thread."""
        self._model = model
        self._tokenizer = Tokenizer.load(model.objects, model.manifest.config)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeNode]:
        """As `client.node.open_client` opens a real one."""
        self.opened += 1
        try:
            yield self
        finally:
            self.opened -= 1

    async def model(self, reference: str) -> Model:
        """The one model. Raises `UnknownModelError` for any other reference."""
        await trio.lowlevel.checkpoint()
        if reference != self._model.reference:
            raise UnknownModelError(f"nobody publishes {reference}; this fake knows {self._model.reference}")
        return self._model

    @asynccontextmanager
    async def open_call(self, model: Model, request: CallRequest) -> AsyncIterator[FakeCall]:
        """A call that writes what the script says."""
        ids = itertools.cycle(self._written()) if self.script.endless else iter(self._written())
        call = FakeCall(model, request, self.script, ids, self.hanging)
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        try:
            yield call
        finally:
            call.cancelled = call.accepted is None

    def _written(self) -> Iterable[int]:
        if self.script.ids or self.script.hang or self.script.error is not None:
            return tuple(self.script.ids) or self._tokenizer.encode(self.script.text, special=False)
        return (*self._tokenizer.encode(self.script.text, special=False), *self._tokenizer.eos_ids[:1])


def fake_model(objects: Mapping[str, bytes], *, name: str = "demo", context: int = 1024) -> Model:
    """A model with these tokenizer files, called ``name``, and with weights that nobody has."""
    vocabulary = Tokenizer.load(objects).vocabulary
    config = json.dumps(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
        }
    ).encode()
    header, size = _weights(config)
    file = ModelFile(name="model.safetensors", size=size, root=hashlib.sha256(header).digest(), header=header)
    piece_length = max(MIN_PIECE, 1 << (size - 1).bit_length())  # one piece: the root is all there is to it
    torrent = TorrentMetadata(
        files=(TorrentFile(name=file.name, size=size, root=file.root, layer=b""),), piece_length=piece_length
    )
    signed = Manifest.describe(
        name=name,
        revision=1,
        publisher=PUBLISHER.peer_id,
        config=config,
        files=(file,),
        torrent=torrent,
        objects={key: ContentHash(hashlib.sha256(raw).digest()) for key, raw in objects.items() if key in OBJECT_NAMES},
        licence="unknown",
        created=0,
    ).sign(PUBLISHER)
    return Model(reference=name, manifest=signed.manifest, manifest_id=signed.manifest_id, objects=dict(objects))


def _weights(config: bytes) -> tuple[bytes, int]:
    """(safetensors header, file size) of the smallest Llama with this configuration."""
    model = parse_config(config)
    table = (model.vocabulary, model.hidden)
    shapes = {"model.embed_tokens.weight": table, "model.norm.weight": (model.hidden,), "lm_head.weight": table}
    shapes |= {f"model.layers.0.{name}": shape for name, shape in layer_shapes(model).items()}
    entries, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position
