"""What a worker serves over the peer protocol: objects, quotes, and stages of sessions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from swarm.errors import (
    BusyError,
    PaymentError,
    ProtocolError,
    RemoteError,
    UnavailableError,
    UnknownModelError,
    UsageError,
    VerificationError,
)
from swarm.events import Received
from swarm.identity import Identity
from swarm.ids import ContentHash, ManifestId, PeerId, SessionId
from swarm.ledger import Ledger
from swarm.links import Links
from swarm.manifest import Manifest, SignedManifest
from swarm.messages import GetObject, GetQuote, OpenLink, OpenSession, QuoteReply, unpack_ids
from swarm.objects import send_object
from swarm.peer import Peer, Stream
from swarm.receipts import FREE_CHANNEL, NO_ACCOUNT, WINDOW_TOKENS, Channel, Price, Receipt, SignedVoucher, Voucher
from swarm.records import QUOTE_SECONDS, Quote, SignedQuote
from swarm.settlement import ChannelState, Settlement
from worker.credit import Account
from worker.ring import RingStage
from worker.session import StageSession
from worker.stage import Engine

MAX_SESSIONS = 256  # stages of sessions at once; key-value memory is usually the tighter bound
BUSY_RETRY = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What this worker serves and asks. Rates are tokens per second for the whole span, as measured."""

    start: int
    stop: int
    price: Price
    decode_rate: float
    prefill_rate: float


class Service:
    """Serves one span of one model. Its `handle` is the handler of every connection."""

    def __init__(
        self,
        *,
        identity: Identity,
        signed: SignedManifest,
        objects: Mapping[ContentHash, bytes],
        engine: Engine,
        offer: Offer,
        ledger: Ledger,
        settlement: Settlement | None,
    ) -> None:
        """``settlement`` is None for a worker that serves for nothing; its price must then be zero."""
        if settlement is None and (offer.price.per_1k_input or offer.price.per_1k_output):
            raise PaymentError(
                "a worker that asks a price needs a chain; give --chain, or --price 0 to serve for nothing"
            )
        self._identity = identity
        self._signed = signed
        self._manifest: Manifest = signed.manifest
        self._objects = objects
        self._engine = engine
        self._offer = offer
        self._ledger = ledger
        self._settlement = settlement
        self._accounts: dict[Channel, Account] = {}
        self._spending_keys: dict[Channel, PeerId] = {}
        self._sessions: dict[SessionId, RingStage] = {}
        self.links: Links | None = None
        """Connections to neighbours; set by whoever opens them with this service's handler."""
        self.address: tuple[str, int] = ("", 0)
        """Where it takes calls, once it does."""

    @property
    def manifest_id(self) -> ManifestId:
        """The model that it serves."""
        return self._signed.manifest_id

    async def handle(self, peer: Peer, stream: Stream, request: Received) -> None:
        """Serve one stream."""
        match request.message:
            case OpenLink(session_id, _):
                await self._attach(peer, stream, session_id)
            case OpenSession() as opening:
                try:
                    await self._open(peer, stream, opening, request.raw)
                except (RemoteError, PaymentError, UsageError) as error:
                    error.peer_id = error.peer_id or peer.peer_id  # what nobody else is blamed for, the client sent
                    raise
            case GetQuote(manifest_id):
                quote = self.quote(manifest_id)
                await stream.send(QuoteReply(quote.record, quote.signature), fin=True)
            case GetObject(wanted):
                await send_object(stream, self._objects, wanted)
            case other:
                raise ProtocolError(f"{type(other).__name__} opens no stream")

    def quote(self, manifest_id: bytes) -> SignedQuote:
        """What this worker offers now. Raises `UnknownModelError` for a model it does not serve."""
        if manifest_id != self._signed.manifest_id:
            raise UnknownModelError(f"this worker serves another model, {self._manifest.name}")
        capacity, now = self._engine.capacity(), int(time.time())
        settlement = self._settlement
        return Quote(
            worker=self._identity.peer_id,
            manifest_id=self._signed.manifest_id,
            start=self._offer.start,
            stop=self._offer.stop,
            price=self._offer.price,
            account=settlement.account if settlement is not None else NO_ACCOUNT,
            chain_id=settlement.chain_id if settlement is not None else 0,
            contract=settlement.contract if settlement is not None else NO_ACCOUNT,
            window=WINDOW_TOKENS,
            device=capacity.device,
            device_name=capacity.device_name[:120],
            memory_bytes=capacity.memory_bytes,
            host=self.address[0],
            port=self.address[1],
            free_slots=MAX_SESSIONS - len(self._sessions),
            free_positions=capacity.kv_positions_free,
            queue=capacity.queue,
            decode_rate=int(self._offer.decode_rate * 1000),
            prefill_rate=int(self._offer.prefill_rate * 1000),
            context=self._manifest.context,
            issued=now,
            valid_until=now + QUOTE_SECONDS,
        ).sign(self._identity)

    # ---- sessions -------------------------------------------------------------------------------------------------

    async def _attach(self, peer: Peer, stream: Stream, session_id: SessionId) -> None:
        session = self._sessions.get(session_id)
        if session is None:
            raise UnavailableError("no such session here")
        await session.attach(peer, stream)

    async def _open(self, peer: Peer, stream: Stream, opening: OpenSession, raw: memoryview) -> None:
        if self.links is None:
            raise UnavailableError("this worker is still starting")
        quote = self._check(peer, opening)
        prompt_ids = _prompt_ids(opening, raw)
        account = await self._account(opening, quote)
        if opening.session_id in self._sessions:
            raise ProtocolError("this session is already open here")
        if len(self._sessions) >= MAX_SESSIONS:
            raise BusyError(f"{MAX_SESSIONS} sessions are open", retry_after=BUSY_RETRY)
        core = StageSession(
            opening,
            client=peer.peer_id,
            price=quote.quote.price,
            account=account,
            row_bytes=self._manifest.row_bytes,
            now_ms=time.time_ns() // 1_000_000,
        )
        try:
            await self._serve(core, prompt_ids, stream, quote, self.links)
        finally:
            if not core.closed:
                core.close(0, now_ms=0)
            self._wake(account)  # what this call did not use is there for others

    async def _serve(
        self, core: StageSession, prompt_ids: tuple[int, ...], stream: Stream, quote: SignedQuote, links: Links
    ) -> None:
        """One session, from its reservation to its receipt."""
        opening, account = core.opening, core.account
        stage = self._engine.open_stage(
            core.stage.start,
            core.stage.stop,
            core.max_positions,
            opening.sampling if core.is_last else None,
            prompt_ids,
        )

        async def accept(record: bytes, signature: bytes) -> int:
            signed = SignedVoucher(voucher=Voucher.unpack(record), signature=signature)
            if signed.voucher.channel != account.channel:
                raise PaymentError("the voucher is for another channel than this session's")
            promised = (await self._accept(signed, quote)).promised
            self._wake(account)
            return promised

        async def store(receipt: Receipt, client_signature: bytes | None) -> bytes:
            signature = receipt.sign(self._identity)
            await self._ledger.record_receipt(
                account.channel or FREE_CHANNEL, receipt, worker_signature=signature, client_signature=client_signature
            )
            return signature

        session = self._sessions[opening.session_id] = RingStage(core, stage, stream, links)
        try:
            await session.serve(accept, store)
        finally:
            stage.close()
            del self._sessions[opening.session_id]

    def _wake(self, account: Account) -> None:
        """The account's credit has risen: every session that it pays may go on, whichever the voucher came from."""
        for session in self._sessions.values():
            if session.core.account is account:
                session.wake()

    def _check(self, peer: Peer, opening: OpenSession) -> SignedQuote:
        """Everything about an opening that can be judged at once; returns the quote it stands on."""
        if opening.manifest_id != self._signed.manifest_id:
            raise UnknownModelError(f"this worker serves another model, {self._manifest.name}")
        try:
            me = self._identity.peer_id
            quote = SignedQuote.read(opening.quote, opening.quote_signature, sender=me, now=time.time())
        except VerificationError as error:  # it blames this worker, whose quote it should be
            raise VerificationError(
                "the quote is not this worker's or holds no longer; ask for a new one", peer_id=peer.peer_id
            ) from error
        if quote.quote.manifest_id != opening.manifest_id:
            raise VerificationError("the quote is for another model; ask for a new one", peer_id=peer.peer_id)
        if opening.index >= len(opening.chain):
            raise ProtocolError("the session names a stage that its chain does not have")
        position = 0
        for stage in opening.chain:
            if stage.start != position or stage.stop <= stage.start:
                raise ProtocolError(f"the chain does not cover layer {position}")
            position = stage.stop
        if position != self._manifest.layers:
            raise ProtocolError(f"the chain covers {position} of {self._manifest.layers} layers")
        if len({stage.peer_id for stage in opening.chain}) != len(opening.chain):
            raise ProtocolError("a worker has one stage in a chain")
        mine = opening.chain[opening.index]
        if mine.peer_id != self._identity.peer_id:
            raise ProtocolError("this stage is another worker's")
        if not self._offer.start <= mine.start < mine.stop <= self._offer.stop:
            raise UnavailableError(
                f"layers {mine.start} to {mine.stop} are not in this worker's span, "
                f"{self._offer.start} to {self._offer.stop}; ask for a new quote"
            )
        positions = opening.prompt_tokens + opening.max_tokens
        if positions > self._manifest.context:
            raise ProtocolError(
                f"{opening.prompt_tokens} prompt and {opening.max_tokens} new tokens are more than "
                f"the context of {self._manifest.context}"
            )
        return quote

    # ---- money ----------------------------------------------------------------------------------------------------

    async def _account(self, opening: OpenSession, quote: SignedQuote) -> Account:
        """The account that pays this session, its opening voucher accepted."""
        price = quote.quote.price
        if not price.per_1k_input and not price.per_1k_output:
            return Account(None)
        if not opening.voucher:
            raise PaymentError("this worker is paid by voucher; open a channel to it first")
        voucher = SignedVoucher(voucher=Voucher.unpack(opening.voucher), signature=opening.voucher_signature)
        return await self._accept(voucher, quote)

    async def _accept(self, signed: SignedVoucher, quote: SignedQuote) -> Account:
        """Check a voucher against the chain, store it, count it. Acknowledged only once it is on disk."""
        channel = signed.voucher.channel
        account = await self._known_account(channel, at_least=signed.voucher.cumulative)
        if signed == self._ledger.accepted(channel):
            return account  # the last one again: its unearned rest pays this call
        try:
            signed.verify(self._spending_keys[channel])
        except VerificationError as error:  # it names the spending key, which is no peer
            raise VerificationError("the voucher is not signed with the channel's spending key") from error
        if signed.voucher.terms_hash != quote.terms_hash:
            raise PaymentError("the voucher pays under other terms than this session's quote; sign one for these")
        account.check(signed.voucher.cumulative)
        await self._ledger.accept_voucher(signed)
        account.promise(signed.voucher.cumulative)
        return account

    async def _known_account(self, channel: Channel, *, at_least: int) -> Account:
        """The channel's account; its allocation is read from the chain at first and when a voucher goes above it."""
        settlement = self._settlement
        if settlement is None:
            raise PaymentError("this worker serves for nothing and takes no vouchers")
        if (channel.chain_id, channel.contract, channel.worker) != (
            settlement.chain_id,
            settlement.contract,
            settlement.account,
        ):
            raise VerificationError("the voucher is for another chain, contract or worker")
        account = self._accounts.get(channel)
        if account is not None and account.cap >= at_least:
            return account
        state: ChannelState | None = await trio.to_thread.run_sync(settlement.channel, channel.client, channel.worker)
        if state is None or state.epoch != channel.epoch:
            raise PaymentError("there is no such channel on the chain; allocate to this worker first")
        if state.closing_at:
            raise PaymentError("this channel is being closed; open a new one")
        account = self._accounts.get(channel)  # another session may have read it meanwhile
        if account is None:
            account = self._accounts[channel] = Account(channel, earned=self._ledger.earned(channel))
            accepted = self._ledger.accepted(channel)
            account.promised = accepted.voucher.cumulative if accepted is not None else 0
        account.cap = state.cap
        self._spending_keys[channel] = state.spending_key
        return account


def _prompt_ids(opening: OpenSession, raw: memoryview) -> tuple[int, ...]:
    """The prompt as the last stage is given it; nothing at the others. Raises `ProtocolError` for anything else."""
    ids = unpack_ids(raw)
    wanted = opening.prompt_tokens if opening.index == len(opening.chain) - 1 else 0
    if len(ids) != wanted:
        raise ProtocolError(f"the session's opening carries {len(ids)} prompt ids, this stage takes {wanted}")
    return ids
