# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# pragma nonreentrancy off
"""
@title Settlement of payment channels
@license Apache-2.0
@notice Clients allocate tokens to workers, workers redeem the client's last Ed25519 voucher, and what was not earned
        goes back after a window. No administrator and no upgrade. Unaudited: test networks only.
@dev One channel per (client, worker). Its epoch rises at every opening and its spending key is fixed at opening, so a
     voucher of an earlier epoch or of a replaced key pays nothing. Every voucher byte comes from the claim, from
     storage or from the chain; the Ed25519 verifier takes no hint from the caller.

     A channel is direct or batched for its whole epoch, as it was opened. A direct one is paid by `redeem`. A batched
     one is paid by claims on batches, which the contract `batches` judges; here `redeem` only puts a voucher on
     record for its close. Whatever that contract says, a worker is never paid more than was committed to it.

     Solvent at all times: balance of the token >= fees + sum of free balances + sum over direct channels of
     (cap - settled) + sum over workers of (committed - paid).
"""

from ethereum.ercs import IERC20

import ed25519

# The first 15 bytes under every voucher's signature: "swarm-pay/v1" and three zeros, as a number.
TAG: constant(uint256) = 599535466019382223224298457234669568
# Channels in one transaction. 32 redemptions stay under 8 million gas, a quarter of a block in most places.
MOST: constant(uint256) = 32

M128: constant(uint256) = 2**128 - 1
M48: constant(uint256) = 2**48 - 1
M40: constant(uint256) = 2**40 - 1
# Key numbers.
M39: constant(uint256) = 2**39 - 1
# Set in the word of a batched channel.
BATCHED: constant(uint256) = 2**207
# The most that the protocol may take of a payment, in basis points.
FEE_CAP: constant(uint256) = 500


struct Allocation:
    worker: address
    # The channel's new cap in all, not an increment.
    cap: uint128


struct Claim:
    client: address
    worker: address
    epoch: uint64
    nonce: uint64
    # What the client promised on this channel in all.
    cumulative: uint128
    receipts_root: bytes32
    terms_hash: bytes32
    # What the worker has earned of that promise in all.
    amount: uint128
    # The signature's two halves.
    r: bytes32
    s: bytes32


struct Payment:
    worker: address
    # What the worker is owed in all, by batches and exits.
    entitled: uint256


struct ChannelState:
    epoch: uint64
    cap: uint128
    settled: uint128
    spending_key: bytes32
    # When the close can be finalised, in seconds; zero while nobody asked for it.
    closing_at: uint64
    batched: bool
    # The block in which a batched channel's close was requested.
    closing_block: uint64


event SpendingKeyRegistered:
    client: indexed(address)
    spending_key: bytes32


event Deposited:
    client: indexed(address)
    amount: uint256


event Withdrawn:
    client: indexed(address)
    amount: uint256


event Allocated:
    client: indexed(address)
    worker: indexed(address)
    epoch: uint64
    cap: uint128


event Redeemed:
    client: indexed(address)
    worker: indexed(address)
    epoch: uint64
    # What this channel has paid in all, after this claim; a batched one owes it at least when it closes.
    settled: uint128
    receipts_root: bytes32


event Paid:
    worker: indexed(address)
    # Before the fee.
    amount: uint256


event CloseRequested:
    client: indexed(address)
    worker: indexed(address)
    epoch: uint64
    closing_at: uint64


event Closed:
    client: indexed(address)
    worker: indexed(address)
    epoch: uint64
    settled: uint128
    refunded: uint128


# The ERC-20 in which everything is paid.
token: public(immutable(address))
# Seconds between a client's request to close a channel and the refund: the worker's time to redeem.
close_window: public(immutable(uint256))
# The contract that judges batches; empty where there are none.
batches: public(immutable(address))
# Where fees go, and how many basis points of every payment they are.
pool: public(immutable(address))
fee_bps: public(immutable(uint256))

# Deposited and allocated to nobody.
free_balance: public(HashMap[address, uint256])

# Registered keys by number, from 1; a channel names its key by number, so that opening one writes one slot.
keys: HashMap[uint256, ed25519.Key]
key_count: uint256
# The number of a client's current key.
key_of: HashMap[address, uint256]

# client -> worker -> cap 128 bits | closing_at 40 | key number 39 | batched 1 | epoch 48, from the lowest bit. Open if
# cap > 0.
channels: HashMap[address, HashMap[address, uint256]]
# client -> worker -> paid in this epoch; of a batched channel, what vouchers shown to this contract promise.
settled: HashMap[address, HashMap[address, uint256]]
# client -> worker -> the block in which the batched channel's close was requested.
closing_blocks: HashMap[address, HashMap[address, uint256]]
# worker -> committed 128 | paid 128, from the highest bit: over batched channels, caps of the open ones and totals of
# the closed, and what was paid of it.
totals: HashMap[address, uint256]
# Taken and not yet sent to the pool.
fees: public(uint256)


@deploy
def __init__(erc20: address, window: uint256, judge: address, fee_pool: address, fee: uint256):
    """
    @notice Fixes the token, the closing window, who judges batches, and the fee for good.
    @param erc20 The token. One that takes a fee on transfer is refused at the first deposit.
    @param window Seconds from a request to close to the refund, at most a year.
    @param judge The contract `Batches`, which may be deployed later at this address; empty for none.
    @param fee_pool Where fees go.
    @param fee Basis points of every payment, at most 500.
    """
    assert erc20.is_contract, "token has no code"
    assert window <= 366 * 86400, "window above a year"
    assert fee <= FEE_CAP, "fee above its cap"
    assert fee == 0 or fee_pool != empty(address), "no pool for the fee"
    token = erc20
    close_window = window
    batches = judge
    pool = fee_pool
    fee_bps = fee


@external
def register_spending_key(spending_key: bytes32):
    """
    @notice Sets the Ed25519 key that signs the caller's vouchers on channels opened from now on.
    @param spending_key The public key's 32 bytes. Refused if not canonical, off the curve or of small order.
    """
    number: uint256 = self.key_count + 1
    assert number <= M39, "key numbers are used up"
    self.keys[number] = ed25519._expand(spending_key)
    self.key_count = number
    self.key_of[msg.sender] = number
    log SpendingKeyRegistered(client=msg.sender, spending_key=spending_key)


@external
@nonreentrant
def deposit(amount: uint256):
    """
    @notice Takes tokens from the caller, who has approved them, into the caller's free balance.
    @param amount Base units. Reverts unless exactly as much arrives.
    """
    assert amount != 0, "nothing to deposit"
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "token refused the transfer"
    assert staticcall IERC20(token).balanceOf(self) - before == amount, "token took a fee"
    self.free_balance[msg.sender] += amount
    log Deposited(client=msg.sender, amount=amount)


@external
@nonreentrant
def withdraw(amount: uint256):
    """
    @notice Pays free balance out to the caller.
    @param amount Base units, at most the free balance.
    """
    free: uint256 = self.free_balance[msg.sender]
    assert amount != 0, "nothing to withdraw"
    assert amount <= free, "free balance too low"
    self.free_balance[msg.sender] = free - amount
    self._pay(msg.sender, amount)
    log Withdrawn(client=msg.sender, amount=amount)


@external
@nonreentrant
def allocate(allocations: DynArray[Allocation, MOST]):
    """
    @notice Opens the caller's direct channels to these workers, or raises caps, out of the free balance.
    @dev A cap equal to the present one changes nothing, so that a repeated call is harmless.
    @param allocations Workers with their channels' new caps.
    """
    self._allocate(allocations, 0)


@external
@nonreentrant
def allocate_batched(allocations: DynArray[Allocation, MOST]):
    """
    @notice The same, but channels that are opened are batched. Open ones stay what they are.
    @param allocations Workers with their channels' new caps.
    """
    assert batches != empty(address), "this contract has no batches"
    self._allocate(allocations, BATCHED)


@internal
def _allocate(allocations: DynArray[Allocation, MOST], kind: uint256):
    """
    @notice Opens channels or raises caps.
    @param allocations Workers with their channels' new caps.
    @param kind `BATCHED` or zero, for channels that are opened.
    """
    free: uint256 = self.free_balance[msg.sender]
    key: uint256 = self.key_of[msg.sender]
    assert key != 0, "no spending key registered"
    for wanted: Allocation in allocations:
        assert wanted.worker != empty(address), "no worker named"
        word: uint256 = self.channels[msg.sender][wanted.worker]
        cap: uint256 = word & M128
        new_cap: uint256 = convert(wanted.cap, uint256)
        if cap == 0:
            assert new_cap != 0, "cap is zero"
            epoch: uint256 = (word >> 208) + 1
            assert epoch <= M48, "channel epochs are used up"
            word = (epoch << 208) | kind | (key << 168)
        else:
            assert (word >> 128) & M40 == 0, "channel is closing"
            assert new_cap >= cap, "cap can only rise"
        more: uint256 = new_cap - cap
        assert more <= free, "free balance too low"
        free = unsafe_sub(free, more)
        if word & BATCHED != 0:
            # Tokens of a supply below 2**128 cannot carry it over; the assertion is for other ones.
            committed: uint256 = (self.totals[wanted.worker] >> 128) + more
            assert committed <= M128, "caps are out of range"
            self.totals[wanted.worker] += more << 128
        self.channels[msg.sender][wanted.worker] = ((word >> 128) << 128) | new_cap
        log Allocated(
            client=msg.sender,
            worker=wanted.worker,
            epoch=convert(word >> 208, uint64),
            cap=wanted.cap,
        )
    self.free_balance[msg.sender] = free


@external
@nonreentrant
def redeem(claims: DynArray[Claim, MOST]):
    """
    @notice Pays workers what their clients' vouchers promise. Anyone may submit; the worker named is paid. A batched
            channel's voucher is put on record for its close instead.
    @dev A claim that is paid already is skipped, so that nobody can spoil a transaction by sending a part of it first.
         One that is forged, of another epoch or above the cap reverts the transaction.
    @param claims Each channel's last voucher with what was earned of it. Claims on one worker are cheapest in a row.
    """
    payee: address = empty(address)
    due: uint256 = 0
    fresh: bool = False
    for claim: Claim in claims:
        word: uint256 = self.channels[claim.client][claim.worker]
        amount: uint256 = convert(claim.amount, uint256)
        paid: uint256 = self.settled[claim.client][claim.worker]
        assert word & M128 != 0, "channel is not open"
        assert convert(claim.epoch, uint256) == word >> 208, "voucher is of another epoch"
        assert convert(claim.cumulative, uint256) <= word & M128, "voucher is above the cap"
        assert claim.amount <= claim.cumulative, "claim is above the voucher"
        if amount <= paid:
            continue
        fresh = True
        assert ed25519._verify(
            self.keys[(word >> 168) & M39],
            TAG,
            convert(self._digest(claim), uint256),
            convert(claim.r, uint256),
            convert(claim.s, uint256),
        ), "voucher is forged"
        self.settled[claim.client][claim.worker] = amount
        log Redeemed(
            client=claim.client,
            worker=claim.worker,
            epoch=claim.epoch,
            settled=claim.amount,
            receipts_root=claim.receipts_root,
        )
        if word & BATCHED == 0:
            if claim.worker != payee:
                self._pay_worker(payee, due)
                payee = claim.worker
                due = 0
            due += unsafe_sub(amount, paid)
    assert fresh, "claim is already paid"
    self._pay_worker(payee, due)


@external
def request_close(worker: address):
    """
    @notice Starts the closing window of the caller's channel; the worker can redeem until it is finalised.
    @param worker The channel's worker.
    """
    self._request_close(msg.sender, worker, block.timestamp + close_window)


@external
def request_exit(client: address):
    """
    @notice The same from the worker's side: what batches leave out is paid when the channel has closed.
    @param client The channel's client.
    """
    self._request_close(client, msg.sender, block.timestamp + close_window)


@external
@nonreentrant
def finalize_close(worker: address):
    """
    @notice Closes the caller's direct channel after the window; what was not paid returns to the free balance.
    @param worker The channel's worker.
    """
    word: uint256 = self._open(msg.sender, worker)
    assert (word >> 128) & M40 != 0, "close was not requested"
    assert block.timestamp >= (word >> 128) & M40, "closing window is open"
    assert word & BATCHED == 0, "channel is batched"
    self._close(msg.sender, worker, word, self.settled[msg.sender][worker])


@external
@nonreentrant
def pay_batched(payments: DynArray[Payment, MOST]):
    """
    @notice Pays workers up to what batches and exits entitle them to; for the contract `batches` alone.
    @dev Never more than was committed to the worker; what is paid already is skipped.
    @param payments Workers with their entitlements in all.
    """
    self._only_batches()
    fresh: bool = False
    for payment: Payment in payments:
        word: uint256 = self.totals[payment.worker]
        paid: uint256 = word & M128
        entitled: uint256 = min(payment.entitled, word >> 128)
        if entitled <= paid:
            continue
        fresh = True
        due: uint256 = unsafe_sub(entitled, paid)
        self.totals[payment.worker] = word + due
        log Paid(worker=payment.worker, amount=due)
        self._pay_worker(payment.worker, due)
    assert fresh, "claim is already paid"


@external
def begin_close(client: address, worker: address):
    """
    @notice Starts a close without a window, which both sides want; for the contract `batches` alone.
    @param client The channel's client.
    @param worker The channel's worker.
    """
    self._only_batches()
    self._request_close(client, worker, block.timestamp)


@external
@nonreentrant
def finish_close(client: address, worker: address, total: uint256):
    """
    @notice Closes a channel that has earned this much in all; for the contract `batches` alone.
    @param client The channel's client.
    @param worker The channel's worker.
    @param total What the channel has earned in this epoch; counted up to the cap.
    """
    self._only_batches()
    word: uint256 = self._open(client, worker)
    self._close(client, worker, word, min(total, word & M128))


@external
@nonreentrant
def collect_fees():
    """
    @notice Sends the fees taken so far to the pool. Anyone may.
    """
    due: uint256 = self.fees
    assert due != 0, "no fees to collect"
    self.fees = 0
    self._pay(pool, due)


@external
@view
def spending_key(client: address) -> bytes32:
    """
    @notice The key that a channel opened now would have.
    @param client The client's account.
    @return The public key, or zero if none is registered.
    """
    return self.keys[self.key_of[client]].encoded


@external
@view
def channel(client: address, worker: address) -> ChannelState:
    """
    @notice A channel's state.
    @param client The client's account.
    @param worker The worker's account.
    @return The state; a cap of zero means that no channel is open, and the epoch is then the last one.
    """
    word: uint256 = self.channels[client][worker]
    return ChannelState(
        epoch=convert(word >> 208, uint64),
        cap=convert(word & M128, uint128),
        settled=convert(self.settled[client][worker], uint128),
        spending_key=self.keys[(word >> 168) & M39].encoded,
        closing_at=convert((word >> 128) & M40, uint64),
        batched=word & BATCHED != 0,
        closing_block=convert(self._closing_block(client, worker, word), uint64),
    )


@external
@view
def exit_state(client: address, worker: address) -> (uint256, uint256, uint256):
    """
    @notice What a judge of batches asks of a channel, in as few reads as can be.
    @param client The client's account.
    @param worker The worker's account.
    @return The channel's word as stored, the block of the request to close a batched channel (zero if there was
            none), and what vouchers on record promise.
    """
    word: uint256 = self.channels[client][worker]
    return word, self._closing_block(client, worker, word), self.settled[client][worker]


@external
@view
def worker_totals(worker: address) -> (uint256, uint256):
    """
    @notice The sums over a worker's batched channels.
    @param worker The worker's account.
    @return What is committed to it, open caps and totals of closed channels, and what it was paid.
    """
    return self.totals[worker] >> 128, self.totals[worker] & M128


@external
@view
def is_signed(client: address, worker: address, digest: bytes32, r: bytes32, s: bytes32) -> bool:
    """
    @notice Whether a voucher with this SHA-256 is signed by the channel's key. Costs as much as redeeming it.
    @param client The client's account.
    @param worker The worker's account.
    @param digest SHA-256 of the 188-byte voucher.
    @param r The signature's first half.
    @param s The signature's second half.
    @return False also if the channel never had a key.
    """
    number: uint256 = (self.channels[client][worker] >> 168) & M39
    if number == 0:
        return False
    return ed25519._verify(
        self.keys[number],
        TAG,
        convert(digest, uint256),
        convert(r, uint256),
        convert(s, uint256),
    )


@internal
@view
def _digest(claim: Claim) -> bytes32:
    """
    @notice SHA-256 of the voucher: chain_id 32 | contract 20 | client 20 | worker 20 | epoch 8 | nonce 8 |
            cumulative 16 | receipts_root 32 | terms_hash 32, big-endian, 188 bytes.
    @param claim The claim.
    @return The digest.
    """
    return sha256(
        concat(
            convert(chain.id, bytes32),
            convert(self, bytes20),
            convert(claim.client, bytes20),
            convert(claim.worker, bytes20),
            convert(claim.epoch, bytes8),
            convert(claim.nonce, bytes8),
            convert(claim.cumulative, bytes16),
            claim.receipts_root,
            claim.terms_hash,
        )
    )


@internal
@view
def _only_batches():
    """
    @notice Reverts unless the contract `batches` calls.
    """
    assert msg.sender == batches, "only for the batch contract"


@internal
@view
def _open(client: address, worker: address) -> uint256:
    """
    @notice The word of an open channel. Reverts if it is not open.
    @param client The client's account.
    @param worker The worker's account.
    @return The word as stored.
    """
    word: uint256 = self.channels[client][worker]
    assert word & M128 != 0, "channel is not open"
    return word


@internal
@view
def _closing_block(client: address, worker: address, word: uint256) -> uint256:
    """
    @notice The block in which a batched channel's close was requested.
    @param client The client's account.
    @param worker The worker's account.
    @param word The channel's word.
    @return Zero if it is direct or not closing.
    """
    if word & BATCHED == 0 or (word >> 128) & M40 == 0:
        return 0
    return self.closing_blocks[client][worker]


@internal
def _request_close(client: address, worker: address, closing_at: uint256):
    """
    @notice Marks a channel as closing.
    @param client The client's account.
    @param worker The worker's account.
    @param closing_at When it can be finalised.
    """
    word: uint256 = self._open(client, worker)
    assert (word >> 128) & M40 == 0, "channel is closing"
    self.channels[client][worker] = word | (closing_at << 128)
    if word & BATCHED != 0:
        self.closing_blocks[client][worker] = block.number
    log CloseRequested(
        client=client,
        worker=worker,
        epoch=convert(word >> 208, uint64),
        closing_at=convert(closing_at, uint64),
    )


@internal
def _close(client: address, worker: address, word: uint256, total: uint256):
    """
    @notice Ends a channel: pays a direct one's rest, and returns what was not earned.
    @param client The client's account.
    @param worker The worker's account.
    @param word The channel's word.
    @param total What it has earned, at most the cap.
    """
    refund: uint256 = (word & M128) - total
    due: uint256 = 0
    if word & BATCHED != 0:
        # What others of this worker's channels were paid too much stays here rather than being taken from them.
        sums: uint256 = self.totals[worker]
        refund = min(refund, (sums >> 128) - (sums & M128))
        self.totals[worker] = sums - (refund << 128)
    else:
        due = total - self.settled[client][worker]
    # The epoch outlives the channel, so that no voucher of it counts after a re-opening.
    self.channels[client][worker] = (word >> 208) << 208
    self.settled[client][worker] = 0
    self.free_balance[client] += refund
    log Closed(
        client=client,
        worker=worker,
        epoch=convert(word >> 208, uint64),
        settled=convert(total, uint128),
        refunded=convert(refund, uint128),
    )
    self._pay_worker(worker, due)


@internal
def _pay_worker(worker: address, amount: uint256):
    """
    @notice Pays for work, less the fee.
    @param worker The payee.
    @param amount Base units before the fee, below 2**128; nothing happens for zero.
    """
    if amount == 0:
        return
    fee: uint256 = unsafe_div(unsafe_mul(amount, fee_bps), 10000)
    if fee != 0:
        self.fees += fee
    self._pay(worker, unsafe_sub(amount, fee))


@internal
def _pay(to: address, amount: uint256):
    """
    @notice Sends tokens, after every change of state that belongs to them.
    @param to The payee.
    @param amount Base units.
    """
    assert extcall IERC20(token).transfer(to, amount, default_return_value=True), "token refused the transfer"
