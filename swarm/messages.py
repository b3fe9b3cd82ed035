"""The peer protocol's messages: msgpack arrays through msgspec, each with a fixed tag and hard limits.

A message is encoded as ``[tag, field, ...]``. Fields are only ever appended, with a default, so an older peer reads a
newer one's messages. Tensors and objects travel as raw bytes beside a message, never inside it (`swarm.frames`).
Which message may come when is in `swarm.protocol` (the greeting) and in the docstrings here (streams).

A stream starts with one request and belongs to it until both sides have ended it:

    GetObject      → ObjectPart … or Failure                     objects by hash
    GetQuote       → Quote or Failure                            what a worker offers now
    OpenSession    → SessionOpened or Failure; then both ways    one session's control stream, client ↔ each stage:
                     client: Begin, Credit, CloseSession, ReceiptAck
                     stage:  Tokens, CreditAck, NeedCredit, ReceiptOffer, SessionClosed, Failure
    OpenLink       → (nothing); then Step …                      one session's data, stage → next stage
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from swarm.errors import ProtocolError
from swarm.ids import CallId, ContentHash, FixedBytes, ManifestId, PeerId, SessionId

VERSION = 1
MAX_HEADER = 1 << 20  # bytes of msgpack beside the raw part; a 128 k-token prompt travels raw, not here
MAX_OBJECT = 32 << 20  # an object served by hash: manifest, torrent, tokenizer, template
OBJECT_PART = 1 << 20  # bytes of an object in one message, so that other streams get their turn
MAX_STAGES = 256  # stages in one chain; more would spend its time on hops
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_RETRY_AFTER = 3600.0  # seconds; longer than any queue is worth waiting for
PREFILL_CHUNK = 512  # positions of a prompt in one step; part of the protocol, as each is a chunk of the signed roots

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Hash32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Layer = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# Bounds also keep NaN out, which no comparison catches later.
Bias = Annotated[float, msgspec.Meta(ge=-100.0, le=100.0)]
LogProb = Annotated[float, msgspec.Meta(le=1.0)]  # -inf is one: a token that cannot be drawn


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Hello(Message, frozen=True, tag=1):
    """First from the side that was called: its version and a fresh nonce for the caller's proof."""

    nonce: Hash32
    version: Count = VERSION
    agent: Text = ""


class Proof(Message, frozen=True, tag=2):
    """The caller's key and its signature over tag ‖ server key ‖ server nonce."""

    peer_id: PeerId
    signature: Signature
    version: Count = VERSION
    agent: Text = ""


class Failure(Message, frozen=True, tag=3):
    """The request cannot be served. ``code`` is one of swarm.errors'; ``culprit`` names the peer at fault, if any."""

    code: Text
    message: Text
    retry_after: Annotated[float, msgspec.Meta(ge=0.0, le=MAX_RETRY_AFTER)] = 0.0
    culprit: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class GetObject(Message, frozen=True, tag=10):
    """Ask for an object by its SHA-256."""

    hash: ContentHash


class ObjectPart(Message, frozen=True, tag=11):
    """The next bytes of the object (raw), out of ``size`` in all."""

    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_OBJECT)]


class GetQuote(Message, frozen=True, tag=12):
    """Ask a worker what it offers for a model now."""

    manifest_id: ManifestId


class QuoteReply(Message, frozen=True, tag=13):
    """A signed quote (`swarm.records.Quote`): its record and the worker's signature."""

    record: Annotated[bytes, msgspec.Meta(max_length=2048)]
    signature: Signature


class StageRef(Message, frozen=True):
    """One stage of a chain: who serves which layers, and where its next neighbour reaches it."""

    peer_id: PeerId
    host: Annotated[str, msgspec.Meta(max_length=255)]
    port: Port
    start: Layer
    stop: Layer


class Sampling(Message, frozen=True):
    """How the last stage draws a token. Temperature 0 is greedy; the seed and the position key the randomness."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Count = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    presence_penalty: Bias = 0.0
    frequency_penalty: Bias = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 1.0
    logit_bias: Annotated[dict[TokenId, Bias], msgspec.Meta(max_length=MAX_BIASES)] = {}
    logprobs: Annotated[int, msgspec.Meta(ge=-1, le=20)] = -1
    """-1 for none, n ≥ 0 for the drawn token's and the n likeliest tokens'."""


class OpenSession(Message, frozen=True, tag=20):
    """Reserve a stage for one session, once, before any step. Goes to every stage of the chain at the same time.

    Raw part: the prompt's token ids (u32, little-endian) to the last stage, which needs them for penalties; empty for
    the others. ``quote`` and ``quote_signature`` give the worker's own offer back to it, so that it holds to the price
    without remembering; the voucher's terms hash is SHA-256 of ``quote``.
    """

    session_id: SessionId
    call_id: CallId
    manifest_id: ManifestId
    chain: Annotated[tuple[StageRef, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)]
    index: Layer
    chain_epoch: Count
    prompt_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    request_hash: Hash32
    quote: Annotated[bytes, msgspec.Meta(max_length=2048)]
    quote_signature: Signature
    voucher: Annotated[bytes, msgspec.Meta(max_length=188)] = b""
    voucher_signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    sampling: Sampling = Sampling()
    stop_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=MAX_STOP_IDS)] = ()
    service_class: Text = "standard"
    audit: Text = "open"


class SessionOpened(Message, frozen=True, tag=21):
    """The stage is reserved; the opening voucher is stored."""

    max_positions: Count


class Begin(Message, frozen=True, tag=22):
    """To the first stage, once every stage is open: start at ``position`` with these ids (raw, u32 little-endian).

    At a repair it is sent again with the raised epoch, and the ids up to ``rebuild_until`` are replayed: computed but
    not sampled. Position 0 with nothing to rebuild is the ordinary start.
    """

    chain_epoch: Count
    position: Count
    rebuild_until: Count = 0


class Credit(Message, frozen=True, tag=23):
    """A newer voucher for the session's channel."""

    voucher: Annotated[bytes, msgspec.Meta(min_length=188, max_length=188)]
    voucher_signature: Signature


class CreditAck(Message, frozen=True, tag=24):
    """The voucher is on the worker's disk. ``cumulative`` is the highest it holds, as decimal digits (128 bits)."""

    cumulative: Text


class NeedCredit(Message, frozen=True, tag=25):
    """The stage has stopped until a voucher of at least ``cumulative`` (decimal digits) arrives."""

    cumulative: Text


class Tokens(Message, frozen=True, tag=26):
    """From the last stage: ids for ``position`` onwards. ``finish`` is "" while it goes on, else "stop" or "length".

    ``logprobs`` holds, when asked for, one entry per id: the drawn token's and the likeliest [(id, logprob)].
    """

    chain_epoch: Count
    position: Count
    ids: tuple[TokenId, ...]
    finish: Text = ""
    logprobs: tuple[tuple[LogProb, tuple[tuple[TokenId, LogProb], ...]], ...] = ()


class CloseSession(Message, frozen=True, tag=27):
    """The client is done and accepted ``tokens`` tokens; tokens past them are not billed."""

    tokens: Count


class ReceiptOffer(Message, frozen=True, tag=28):
    """The stage's receipt with its signature."""

    record: Annotated[bytes, msgspec.Meta(max_length=512)]
    signature: Signature


class ReceiptAck(Message, frozen=True, tag=29):
    """The client's signature under the offered receipt."""

    signature: Signature


class SessionClosed(Message, frozen=True, tag=30):
    """The receipt is on the worker's disk; the session's memory is free. Ends the stream."""


class OpenLink(Message, frozen=True, tag=40):
    """This stream carries one session's steps from the stage before (or from the last to the first)."""

    session_id: SessionId
    chain_epoch: Count


STEP_HIDDEN = 0  # raw: activations [count, hidden] in the manifest's wire type, little-endian
STEP_TOKENS = 1  # raw: token ids [count], u32 little-endian

STEP_REBUILD = 1  # fills state and journals, is not forwarded past the last rebuilt stage
STEP_SAMPLE = 2  # the last stage draws a token after this step's last position


class Step(Message, frozen=True, tag=41):
    """``count`` positions from ``position`` on, in chain epoch ``chain_epoch``; what they are is in ``kind``."""

    chain_epoch: Count
    position: Count
    count: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=1)] = STEP_HIDDEN
    flags: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


AnyMessage: TypeAlias = (
    Hello
    | Proof
    | Failure
    | GetObject
    | ObjectPart
    | GetQuote
    | QuoteReply
    | OpenSession
    | SessionOpened
    | Begin
    | Credit
    | CreditAck
    | NeedCredit
    | Tokens
    | CloseSession
    | ReceiptOffer
    | ReceiptAck
    | SessionClosed
    | OpenLink
    | Step
)

_T = TypeVar("_T")


def _decode_hook(kind: type[_T], value: object) -> _T:
    if issubclass(kind, FixedBytes) and isinstance(value, bytes):
        return kind(value)
    raise TypeError(f"no {kind.__name__} from {type(value).__name__}")


def _encode_hook(value: object) -> Any:
    if isinstance(value, FixedBytes):
        return bytes(value)
    raise TypeError(f"{type(value).__name__} has no form on the wire")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_DECODER: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage, dec_hook=_decode_hook)


def encode(message: Message) -> bytes:
    """The message's bytes."""
    return _ENCODER.encode(message)


def decode(data: bytes | memoryview) -> AnyMessage:
    """The message in ``data``. Raises `ProtocolError` for anything that is not exactly one within its limits."""
    if len(data) > MAX_HEADER:
        raise ProtocolError(f"a message of {len(data)} bytes is over the limit of {MAX_HEADER}")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"not a message of the peer protocol: {error}") from error


def pack_ids(ids: tuple[int, ...] | list[int]) -> bytes:
    """Token ids as they travel: u32, little-endian."""
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(raw: bytes | memoryview) -> tuple[int, ...]:
    """Token ids off the wire. Raises `ProtocolError` for a length that is no multiple of four."""
    if len(raw) % 4:
        raise ProtocolError(f"{len(raw)} bytes are no token ids")
    return struct.unpack(f"<{len(raw) // 4}I", raw)
