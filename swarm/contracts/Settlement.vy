# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# pragma nonreentrancy off
"""
@title Settlement of payment channels
@license Apache-2.0
@notice Clients allocate tokens to workers, workers redeem the client's last Ed25519 voucher, and what was not earned
        goes back after a window. No administrator, no upgrade, no fee. Unaudited: test networks only.
@dev One channel per (client, worker). Its epoch rises at every opening and its spending key is fixed at opening, so a
     voucher of an earlier epoch or of a replaced key pays nothing. Every voucher byte comes from the claim, from
     storage or from the chain; the Ed25519 verifier takes no hint from the caller.

     Solvent at all times: balance of the token >= sum of free balances + sum over channels of (cap - settled).
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


struct ChannelState:
    epoch: uint64
    cap: uint128
    settled: uint128
    spending_key: bytes32
    # When the close can be finalised, in seconds; zero while nobody asked for it.
    closing_at: uint64


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
    # What this channel has paid in all, after this claim.
    settled: uint128
    receipts_root: bytes32


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

# Deposited and allocated to nobody.
free_balance: public(HashMap[address, uint256])

# Registered keys by number, from 1; a channel names its key by number, so that opening one writes one slot.
keys: HashMap[uint256, ed25519.Key]
key_count: uint256
# The number of a client's current key.
key_of: HashMap[address, uint256]

# client -> worker -> cap 128 bits | closing_at 40 | key number 40 | epoch 48, from the lowest bit. Open if cap > 0.
channels: HashMap[address, HashMap[address, uint256]]
# client -> worker -> paid in this epoch.
settled: HashMap[address, HashMap[address, uint256]]


@deploy
def __init__(erc20: address, window: uint256):
    """
    @notice Fixes the token and the closing window for good.
    @param erc20 The token. One that takes a fee on transfer is refused at the first deposit.
    @param window Seconds from a request to close to the refund, at most a year.
    """
    assert erc20.is_contract, "token has no code"
    assert window <= 366 * 86400, "window above a year"
    token = erc20
    close_window = window


@external
def register_spending_key(spending_key: bytes32):
    """
    @notice Sets the Ed25519 key that signs the caller's vouchers on channels opened from now on.
    @param spending_key The public key's 32 bytes. Refused if not canonical, off the curve or of small order.
    """
    number: uint256 = self.key_count + 1
    assert number <= M40, "key numbers are used up"
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
    @notice Opens the caller's channels to these workers, or raises their caps, out of the free balance.
    @dev A cap equal to the present one changes nothing, so that a repeated call is harmless.
    @param allocations Workers with their channels' new caps.
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
            word = (epoch << 208) | (key << 168)
        else:
            assert (word >> 128) & M40 == 0, "channel is closing"
            assert new_cap >= cap, "cap can only rise"
        assert new_cap - cap <= free, "free balance too low"
        free = unsafe_sub(free, unsafe_sub(new_cap, cap))
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
    @notice Pays workers what their clients' vouchers promise. Anyone may submit; the worker named is paid.
    @dev All or nothing: one claim that is forged, replayed or above the cap reverts the transaction.
    @param claims Each channel's last voucher with what was earned of it. Claims on one worker are cheapest in a row.
    """
    payee: address = empty(address)
    due: uint256 = 0
    for claim: Claim in claims:
        word: uint256 = self.channels[claim.client][claim.worker]
        amount: uint256 = convert(claim.amount, uint256)
        paid: uint256 = self.settled[claim.client][claim.worker]
        assert word & M128 != 0, "channel is not open"
        assert convert(claim.epoch, uint256) == word >> 208, "voucher is of another epoch"
        assert convert(claim.cumulative, uint256) <= word & M128, "voucher is above the cap"
        assert claim.amount <= claim.cumulative, "claim is above the voucher"
        assert amount > paid, "claim is already paid"
        assert ed25519._verify(
            self.keys[(word >> 168) & M40],
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
        if claim.worker != payee:
            if due != 0:
                self._pay(payee, due)
            payee = claim.worker
            due = 0
        due += unsafe_sub(amount, paid)
    if due != 0:
        self._pay(payee, due)


@external
def request_close(worker: address):
    """
    @notice Starts the closing window of the caller's channel; the worker can redeem until it is finalised.
    @param worker The channel's worker.
    """
    word: uint256 = self.channels[msg.sender][worker]
    assert word & M128 != 0, "channel is not open"
    assert (word >> 128) & M40 == 0, "channel is closing"
    closing_at: uint256 = block.timestamp + close_window
    assert closing_at <= M40, "clock is out of range"
    self.channels[msg.sender][worker] = word | (closing_at << 128)
    log CloseRequested(
        client=msg.sender,
        worker=worker,
        epoch=convert(word >> 208, uint64),
        closing_at=convert(closing_at, uint64),
    )


@external
@nonreentrant
def finalize_close(worker: address):
    """
    @notice Closes the caller's channel after the window; what was not paid returns to the free balance.
    @param worker The channel's worker.
    """
    word: uint256 = self.channels[msg.sender][worker]
    assert word & M128 != 0, "channel is not open"
    assert (word >> 128) & M40 != 0, "close was not requested"
    assert block.timestamp >= (word >> 128) & M40, "closing window is open"
    paid: uint256 = self.settled[msg.sender][worker]
    refund: uint256 = (word & M128) - paid
    # The epoch outlives the channel, so that no voucher of it counts after a re-opening.
    self.channels[msg.sender][worker] = (word >> 208) << 208
    self.settled[msg.sender][worker] = 0
    self.free_balance[msg.sender] += refund
    log Closed(
        client=msg.sender,
        worker=worker,
        epoch=convert(word >> 208, uint64),
        settled=convert(paid, uint128),
        refunded=convert(refund, uint128),
    )


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
        spending_key=self.keys[(word >> 168) & M40].encoded,
        closing_at=convert((word >> 128) & M40, uint64),
    )


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
    number: uint256 = (self.channels[client][worker] >> 168) & M40
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
def _pay(to: address, amount: uint256):
    """
    @notice Sends tokens, after every change of state that belongs to them.
    @param to The payee.
    @param amount Base units.
    """
    assert extcall IERC20(token).transfer(to, amount, default_return_value=True), "token refused the transfer"
