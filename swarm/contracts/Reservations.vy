# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# pragma nonreentrancy off
"""
@title Reservations of capacity
@license Apache-2.0
@notice A client pays in advance for so many tokens per second of a worker over a time that the worker has agreed to. The
        payment becomes the worker's evenly over that time; what is left when the worker refuses goes back. Holds its own
        money, apart from channels. No administrator, no upgrade. Unaudited: test networks only.
@dev The rate is enforced off chain by a leaky bucket on either side, the worker's the larger; here it is what was agreed.
"""

from ethereum.ercs import IERC20

# "swarm-slot/v1" and three zeros, under an agreement; "swarm-refuse/v1" and a zero, under a refusal.
AGREE: constant(bytes16) = 0x737761726d2d736c6f742f7631000000
REFUSE: constant(bytes16) = 0x737761726d2d7265667573652f763100
FEE_CAP: constant(uint256) = 500


struct Slot:
    client: address
    worker: address
    # Tokens per second.
    rate: uint256
    # From when to when, in seconds.
    start: uint256
    stop: uint256
    # What it costs in all, and what was paid of it.
    amount: uint256
    paid: uint256
    # When the worker refused; zero while it serves.
    refused: uint256


event Reserved:
    id: indexed(bytes32)
    client: indexed(address)
    worker: indexed(address)
    rate: uint256
    start: uint256
    stop: uint256
    amount: uint256


event Refused:
    id: indexed(bytes32)
    refunded: uint256


event Collected:
    id: indexed(bytes32)
    amount: uint256


token: public(immutable(address))
pool: public(immutable(address))
fee_bps: public(immutable(uint256))
slots: public(HashMap[bytes32, Slot])
# Refunds that their clients can take.
refunds: public(HashMap[address, uint256])
fees: public(uint256)


@deploy
def __init__(erc20: address, fee_pool: address, fee: uint256):
    """
    @notice Fixes token, pool and fee for good.
    @param erc20 The token.
    @param fee_pool Where fees go.
    @param fee Basis points of every payment, at most 500.
    """
    assert erc20.is_contract, "token has no code"
    assert fee <= FEE_CAP, "fee above its cap"
    assert fee == 0 or fee_pool != empty(address), "no pool for the fee"
    token = erc20
    pool = fee_pool
    fee_bps = fee


@external
@nonreentrant
def reserve(
    worker: address, rate: uint256, start: uint256, stop: uint256, amount: uint256, v: uint256, r: uint256, s: uint256
) -> bytes32:
    """
    @notice Pays for a slot that the worker has signed for the caller. Each is taken once.
    @param worker Who serves.
    @param rate Tokens per second.
    @param start When it begins, in seconds.
    @param stop When it ends.
    @param amount The price of all of it, in base units.
    @param v Of the worker's signature (EIP-191) over the slot's id.
    @param r The same.
    @param s The same.
    @return The slot's id: keccak256 of the tag, the chain, this contract, the caller and the terms.
    """
    assert start < stop and stop > block.timestamp and stop - start <= 366 * 86400, "no such time"
    assert amount != 0 and amount < 2**128 and rate != 0, "nothing to reserve"
    id: bytes32 = keccak256(
        abi_encode(AGREE, chain.id, self, msg.sender, worker, rate, start, stop, amount)
    )
    assert self.slots[id].client == empty(address), "slot is taken"
    assert self._signer(id, v, r, s) == worker and worker != empty(address), "worker did not sign"
    self.slots[id] = Slot(
        client=msg.sender, worker=worker, rate=rate, start=start, stop=stop, amount=amount, paid=0, refused=0
    )
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "token refused the transfer"
    assert staticcall IERC20(token).balanceOf(self) - before == amount, "token took a fee"
    log Reserved(id=id, client=msg.sender, worker=worker, rate=rate, start=start, stop=stop, amount=amount)
    return id


@external
def refuse(id: bytes32):
    """
    @notice The worker ends a slot; what is left of it goes back.
    @param id The slot.
    """
    assert msg.sender == self.slots[id].worker and msg.sender != empty(address), "worker did not sign"
    self._refuse(id)


@external
def refuse_signed(id: bytes32, v: uint256, r: uint256, s: uint256):
    """
    @notice The same by anyone who holds the worker's signed refusal.
    @param id The slot.
    @param v Of the worker's signature (EIP-191) over keccak256 of the tag and the id.
    @param r The same.
    @param s The same.
    """
    worker: address = self.slots[id].worker
    assert worker != empty(address), "no such slot"
    assert self._signer(keccak256(abi_encode(REFUSE, id)), v, r, s) == worker, "worker did not sign"
    self._refuse(id)


@external
@nonreentrant
def collect(id: bytes32):
    """
    @notice Pays the worker what the slot has earned so far. Anyone may.
    @param id The slot.
    """
    slot: Slot = self.slots[id]
    due: uint256 = self._earned(slot) - slot.paid
    assert due != 0, "nothing is due"
    self.slots[id].paid = slot.paid + due
    fee: uint256 = due * fee_bps // 10000
    self.fees += fee
    assert extcall IERC20(token).transfer(
        slot.worker, due - fee, default_return_value=True
    ), "token refused the transfer"
    log Collected(id=id, amount=due)


@external
@nonreentrant
def take_refund():
    """
    @notice Pays the caller's refunds out.
    """
    due: uint256 = self.refunds[msg.sender]
    assert due != 0, "nothing is due"
    self.refunds[msg.sender] = 0
    assert extcall IERC20(token).transfer(msg.sender, due, default_return_value=True), "token refused the transfer"


@external
@nonreentrant
def collect_fees():
    """
    @notice Sends the fees taken so far to the pool. Anyone may.
    """
    due: uint256 = self.fees
    assert due != 0, "no fees to collect"
    self.fees = 0
    assert extcall IERC20(token).transfer(pool, due, default_return_value=True), "token refused the transfer"


@external
@view
def earned(id: bytes32) -> uint256:
    """
    @notice What a slot has earned so far.
    @param id The slot.
    @return Base units before the fee.
    """
    return self._earned(self.slots[id])


@internal
def _refuse(id: bytes32):
    """
    @notice Ends a slot now.
    @param id The slot.
    """
    slot: Slot = self.slots[id]
    assert slot.refused == 0, "slot is refused already"
    refund: uint256 = slot.amount - self._earned(slot)
    assert refund != 0, "slot is over"
    self.slots[id].refused = block.timestamp
    self.refunds[slot.client] += refund
    log Refused(id=id, refunded=refund)


@internal
@view
def _earned(slot: Slot) -> uint256:
    """
    @notice What a slot has earned so far: evenly over its time, until it was refused.
    @param slot The slot.
    @return Base units before the fee; zero before it starts.
    """
    now: uint256 = block.timestamp if slot.refused == 0 else slot.refused
    if now <= slot.start:
        return 0
    if now >= slot.stop:
        return slot.amount
    return slot.amount * (now - slot.start) // (slot.stop - slot.start)


@internal
@view
def _signer(digest: bytes32, v: uint256, r: uint256, s: uint256) -> address:
    """
    @notice Who signed a digest by EIP-191.
    @param digest 32 bytes.
    @param v Of the signature.
    @param r The same.
    @param s The same.
    @return The account, or zero.
    """
    return ecrecover(keccak256(concat(b"\x19Ethereum Signed Message:\n32", digest)), v, r, s)
