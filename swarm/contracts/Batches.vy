# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# pragma nonreentrancy off
"""
@title Batches of vouchers
@license Apache-2.0
@notice Bonded settlers post snapshots of every batched channel's highest voucher. Within a window anyone can prove a
        lie with one transaction, or demand data that is withheld; after it, workers claim cumulative totals. Holds bonds
        and deposits; payments for work are in the contract `Settlement`, which pays no worker more than its clients'
        caps whatever happens here. No administrator, no upgrade. Unaudited: test networks only.
@dev A batch's file is a header record and `count` records of 256 bytes, padded with zeros to blocks of 64 records.
     `record_root` is a SHA-256 tree over records, `pieces_root` the BEP 52 root of the file. Both trees are filled up
     to a power of two blocks: the one with zero records, the other with zero hashes. Leaves are hashes of 256 bytes or
     16 KiB and nodes of 64, so that none can stand for another.

     Every byte that a proof hashes comes from the record, from the chain or from storage.

     There is no tree of payouts: nobody could prove a lie in leaves that nobody else has seen. A claim shows a record,
     whose running sum is the worker's due, and the sums are proven record by record.

     Order: batches are resolved in the order of posting, and their snapshots never go back. A channel's close is
     finalised only when no batch from before the request is pending or can still be posted.
"""

from ethereum.ercs import IERC20

RECORDS: constant(uint256) = 64
BLOCK: constant(uint256) = 16384
# Blocks of a file: 16 MiB, so that a torrent of one piece needs no piece layer and follows from root and size.
MOST_BLOCKS: constant(uint256) = 1024
DEPTH: constant(uint256) = 16
# Claims in one transaction, as in Settlement.
MOST: constant(uint256) = 32
# Batches resolved in one transaction at most.
STEPS: constant(uint256) = 32
# sha256 of 256 zeros.
EMPTY: constant(bytes32) = 0x5341e6b2646979a70e57653007a1f310169421ec9bdd9f1a5648f75ade005af1
# "swarm-batch/v1" and two zeros.
TAG: constant(bytes16) = 0x737761726d2d62617463682f76310000

M128: constant(uint256) = 2**128 - 1
M96: constant(uint256) = 2**96 - 1
M64: constant(uint256) = 2**64 - 1
M40: constant(uint256) = 2**40 - 1
BATCHED: constant(uint256) = 2**207

# A batch's standing.
PENDING: constant(uint256) = 1
FINAL: constant(uint256) = 2
VOID: constant(uint256) = 3


interface Money:
    def token() -> address: view
    def close_window() -> uint256: view
    def exit_state(client: address, worker: address) -> (uint256, uint256, uint256): view
    def is_signed(client: address, worker: address, digest: bytes32, r: bytes32, s: bytes32) -> bool: view
    def pay_batched(payments: DynArray[Payment, MOST]): nonpayable
    def begin_close(client: address, worker: address): nonpayable
    def finish_close(client: address, worker: address, total: uint256): nonpayable


struct Payment:
    worker: address
    entitled: uint256


struct Batch:
    record_root: bytes32
    pieces_root: bytes32
    # The block whose state it was made from, its records without the header, and the sum of what they count.
    snapshot: uint256
    count: uint256
    total: uint256
    # When it was posted, in seconds.
    posted: uint256


struct Terms:
    # Base units that a settler stakes on a batch, and that a challenger of data puts down.
    bond: uint256
    deposit: uint256
    # Seconds in which a lie can be proven, and in which data must be shown.
    challenge_window: uint256
    data_window: uint256
    # The most blocks that a snapshot may lie back.
    lag: uint256


struct Proof:
    # 0 is the header; records count from 1.
    index: uint256
    # The record's 256 bytes.
    words: uint256[8]
    path: DynArray[bytes32, DEPTH]


# Where a channel stands in a batch, or would stand.
struct Place:
    # Its own record or the last before it; the header if there is none.
    at: Proof
    # The next one; not looked at if `at` is the channel's own or the last.
    after: Proof


struct Record:
    client: address
    worker: address
    # worker 160 | client 160 is the order; this is what is compared.
    epoch: uint256
    nonce: uint256
    cumulative: uint256
    counted: uint256
    worker_running: uint256
    total_running: uint256
    receipts_root: uint256
    r: uint256
    s: uint256
    terms_hash: uint256
    reserved: uint256


event Posted:
    id: indexed(uint256)
    settler: indexed(address)
    batch: Batch


event Finalised:
    id: indexed(uint256)


event Voided:
    id: indexed(uint256)
    challenger: indexed(address)
    reason: String[2]


event DataDemanded:
    id: indexed(uint256)
    number: uint256
    deadline: uint256


event DataShown:
    id: indexed(uint256)
    number: uint256


event Exited:
    client: indexed(address)
    worker: indexed(address)
    total: uint256
    counted: uint256


# The contract that holds the money of channels.
settlement: public(immutable(address))
token: public(immutable(address))
terms: public(immutable(Terms))

# Tokens here that belong to an account: free bond money, returned deposits and rewards.
balance_of: public(HashMap[address, uint256])
# Bonds that nobody can take any more.
burnt: public(uint256)

# batch -> hash of its `Batch`.
commitments: public(HashMap[uint256, bytes32])
# batch -> settler 160 | deadline 40 | snapshot 40 | open questions 8 | standing 8, from the lowest bit.
states: HashMap[uint256, uint256]
# Batches posted, resolved and final.
posted: public(uint256)
resolved: public(uint256)
finals: public(uint256)
# number -> batch 128 | snapshot 128, from the lowest bit; numbers count from 1.
final_batches: HashMap[uint256, uint256]
# batch -> block number -> challenger 160 | deadline 40; zero once answered.
questions: HashMap[uint256, HashMap[uint256, uint256]]

# worker -> totals of its channels that have closed.
exited: public(HashMap[address, uint256])
# batch -> worker -> what of its sum belongs to channels that have closed since.
excluded: public(HashMap[uint256, HashMap[address, uint256]])
# client -> worker -> epoch 128 | counted 128, from the highest bit: records of older batches shown for a close.
shown: HashMap[address, HashMap[address, uint256]]
# The same with one added: the total that both sides agreed on.
agreed: HashMap[address, HashMap[address, uint256]]


@deploy
def __init__(money: address, erc20: address, fixed: Terms):
    """
    @notice Fixes the terms for good.
    @param money The contract `Settlement`, which names this one and may be deployed after it.
    @param erc20 Its token, in which bonds are.
    @param fixed Bond, deposit and windows.
    """
    assert fixed.bond != 0, "no bond"
    assert 0 < fixed.lag and fixed.lag <= 255, "lag outside 1 to 255"
    assert fixed.challenge_window <= 366 * 86400, "window above a year"
    assert fixed.data_window <= 366 * 86400, "window above a year"
    settlement = money
    token = erc20
    terms = fixed


# Bonds.


@external
@nonreentrant
def deposit_bond(amount: uint256):
    """
    @notice Takes tokens from the caller, who has approved them, for bonds and deposits.
    @param amount Base units. Reverts unless exactly as much arrives.
    """
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "token refused the transfer"
    assert staticcall IERC20(token).balanceOf(self) - before == amount, "token took a fee"
    self.balance_of[msg.sender] += amount


@external
@nonreentrant
def withdraw_bond(amount: uint256):
    """
    @notice Pays out what no batch and no demand holds.
    @param amount Base units.
    """
    assert amount <= self.balance_of[msg.sender], "bond balance too low"
    self.balance_of[msg.sender] -= amount
    assert extcall IERC20(token).transfer(
        msg.sender, amount, default_return_value=True
    ), "token refused the transfer"


# Posting.


@external
def post(record_root: bytes32, pieces_root: bytes32, snapshot: uint256, count: uint256, total: uint256, hash: bytes32):
    """
    @notice Posts a batch and stakes the bond on its truth.
    @param record_root The SHA-256 tree over its records.
    @param pieces_root The BEP 52 root of its file.
    @param snapshot The block whose state it was made from.
    @param count Records without the header.
    @param total The sum of what they count.
    @param hash The hash of that block: after a reorganisation this reverts, rather than be judged by another state.
    """
    assert snapshot < block.number and block.number - snapshot <= terms.lag, "snapshot is too old"
    assert blockhash(snapshot) == hash, "snapshot was reorganised"
    assert count < MOST_BLOCKS * RECORDS, "batch is too large"
    assert total <= M128 and (count != 0 or total == 0), "total is out of range"
    self._advance()
    assert self.balance_of[msg.sender] >= terms.bond, "bond balance too low"
    self.balance_of[msg.sender] -= terms.bond
    id: uint256 = self.posted
    assert snapshot >= (self.states[id] >> 200) & M40, "snapshot goes back"
    id += 1
    self.posted = id
    batch: Batch = Batch(
        record_root=record_root,
        pieces_root=pieces_root,
        snapshot=snapshot,
        count=count,
        total=total,
        posted=block.timestamp,
    )
    self.commitments[id] = keccak256(abi_encode(batch))
    self.states[id] = (
        convert(msg.sender, uint256)
        | ((block.timestamp + terms.challenge_window) << 160)
        | (snapshot << 200)
        | (PENDING << 248)
    )
    log Posted(id=id, settler=msg.sender, batch=batch)


@external
def advance():
    """
    @notice Resolves batches whose time has come; every call that depends on it does so too.
    """
    self._advance()


# Lies.


@external
def prove_forged(id: uint256, batch: Batch, proof: Proof):
    """
    @notice F1: a record whose voucher the channel's key did not sign.
    @param id The batch.
    @param batch What was posted.
    @param proof The record.
    """
    self._pending(id, batch)
    record: Record = self._record(batch, proof)
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = staticcall Money(settlement).exit_state(record.client, record.worker)
    # A channel that is not open has no key to judge by; its record is a lie of the next kind.
    assert word & M128 != 0 and record.epoch == word >> 208, "record is of another epoch"
    digest: bytes32 = sha256(
        concat(
            convert(chain.id, bytes32),
            convert(settlement, bytes20),
            convert(record.client, bytes20),
            convert(record.worker, bytes20),
            convert(convert(record.epoch, uint64), bytes8),
            convert(convert(record.nonce, uint64), bytes8),
            convert(convert(record.cumulative, uint128), bytes16),
            convert(record.receipts_root, bytes32),
            convert(record.terms_hash, bytes32),
        )
    )
    assert not staticcall Money(settlement).is_signed(
        record.client, record.worker, digest, convert(record.r, bytes32), convert(record.s, bytes32)
    ), "voucher is signed"
    self._void(id, msg.sender, "F1")


@external
def prove_unbacked(id: uint256, batch: Batch, proof: Proof):
    """
    @notice F2: a record that counts more than its voucher or the cap, or whose channel is not open, not batched, of
            another epoch, or was already closing at the snapshot.
    @dev An honest record stays provable: caps only rise, and no close that began after the snapshot is finalised
         before the batch is resolved.
    @param id The batch.
    @param batch What was posted.
    @param proof The record.
    """
    self._pending(id, batch)
    record: Record = self._record(batch, proof)
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = staticcall Money(settlement).exit_state(record.client, record.worker)
    backed: bool = word & M128 != 0 and word & BATCHED != 0 and record.epoch == word >> 208
    if backed:
        backed = record.counted <= min(record.cumulative, word & M128)
        if (word >> 128) & M40 != 0:
            backed = backed and closing > batch.snapshot
    assert not backed, "record is backed"
    self._void(id, msg.sender, "F2")


@external
def prove_step(id: uint256, batch: Batch, first: Proof, second: Proof):
    """
    @notice F3: a channel twice or out of order. F4: running sums that do not follow from the record before.
    @param id The batch.
    @param batch What was posted.
    @param first A record, or anything with index 0 for the header, before which all sums are zero.
    @param second The next record.
    """
    self._pending(id, batch)
    assert second.index == first.index + 1, "records are not adjacent"
    record: Record = self._record(batch, second)
    worker_running: uint256 = record.counted
    total_running: uint256 = record.counted
    if first.index != 0:
        before: Record = self._record(batch, first)
        if not self._precedes(before, record.client, record.worker):
            self._void(id, msg.sender, "F3")
            return
        total_running += before.total_running
        if before.worker == record.worker:
            worker_running += before.worker_running
    assert record.worker_running != worker_running or record.total_running != total_running, "sums follow"
    self._void(id, msg.sender, "F4")


@external
def prove_end(id: uint256, batch: Batch, proof: Proof):
    """
    @notice F5: the last record's sum is not the total, or a record's reserved bytes are not zero.
    @param id The batch.
    @param batch What was posted.
    @param proof The record.
    """
    self._pending(id, batch)
    record: Record = self._record(batch, proof)
    assert record.reserved != 0 or (
        proof.index == batch.count and record.total_running != batch.total
    ), "record is in order"
    self._void(id, msg.sender, "F5")


@external
def prove_filling(id: uint256, batch: Batch, index: uint256, leaf: bytes32, path: DynArray[bytes32, DEPTH]):
    """
    @notice F5: the header is not what was posted, or what fills the last block up is not zero.
    @param id The batch.
    @param batch What was posted.
    @param index 0, or above the number of records.
    @param leaf The hash that stands there.
    @param path Its path to the record root.
    """
    self._pending(id, batch)
    assert index == 0 or index > batch.count, "index is a record's"
    assert len(path) == self._depth(batch.count) + 6, "path has another length"
    assert self._root(leaf, index, path) == batch.record_root, "path leads elsewhere"
    expected: bytes32 = EMPTY
    if index == 0:
        expected = sha256(
            concat(
                TAG,
                convert(chain.id, bytes32),
                convert(settlement, bytes20),
                convert(convert(batch.snapshot, uint64), bytes8),
                convert(convert(batch.count, uint64), bytes8),
                convert(convert(batch.total, uint128), bytes16),
                empty(bytes32),
                empty(bytes32),
                empty(bytes32),
                empty(bytes32),
                empty(bytes28),
            )
        )
    assert leaf != expected, "filling is in order"
    self._void(id, msg.sender, "F5")


@external
def prove_differing(
    id: uint256,
    batch: Batch,
    number: uint256,
    data: Bytes[BLOCK],
    pieces_path: DynArray[bytes32, DEPTH],
    subtree: bytes32,
    record_path: DynArray[bytes32, DEPTH],
):
    """
    @notice F7: a block of the file whose 64 records are not those under the record root.
    @param id The batch.
    @param batch What was posted.
    @param number The block.
    @param data Its 16 KiB.
    @param pieces_path Its path to the pieces root.
    @param subtree What stands in its place under the record root.
    @param record_path The path from there.
    """
    self._pending(id, batch)
    self._check_block(batch, number, data, pieces_path)
    assert len(record_path) == self._depth(batch.count), "path has another length"
    assert self._root(subtree, number, record_path) == batch.record_root, "path leads elsewhere"
    assert self._subtree(data) != subtree, "block is the same"
    self._void(id, msg.sender, "F7")


# Data.


@external
def demand_data(id: uint256, batch: Batch, number: uint256):
    """
    @notice F8: puts a deposit down for a block of the file and its place under both roots. The batch is void unless
            someone shows them in time, and whoever does gets the deposit.
    @param id The batch.
    @param batch What was posted.
    @param number The block.
    """
    self._pending(id, batch)
    assert block.timestamp < batch.posted + terms.challenge_window, "challenge window is over"
    assert number < self._blocks(batch.count), "no such block"
    assert self.questions[id][number] == 0, "already demanded"
    assert self.balance_of[msg.sender] >= terms.deposit, "bond balance too low"
    state: uint256 = self.states[id]
    assert (state >> 240) & 255 < 255, "too many demands"
    self.balance_of[msg.sender] -= terms.deposit
    self.states[id] = state + (1 << 240)
    deadline: uint256 = block.timestamp + terms.data_window
    self.questions[id][number] = convert(msg.sender, uint256) | (deadline << 160)
    log DataDemanded(id=id, number=number, deadline=deadline)


@external
def show_data(
    id: uint256,
    batch: Batch,
    number: uint256,
    data: Bytes[BLOCK],
    pieces_path: DynArray[bytes32, DEPTH],
    layer: DynArray[bytes32, MOST_BLOCKS],
):
    """
    @notice Answers a demand. Lies in what is shown can be proven for another data window at least.
    @dev The whole layer is asked for because without it nobody could make a path to a record root that differs from
         the file's. The rest of that tree is zero records by construction.
    @param id The batch.
    @param batch What was posted.
    @param number The block.
    @param data Its 16 KiB.
    @param pieces_path Its path to the pieces root.
    @param layer What stands under the record root for each block of the file.
    """
    self._pending(id, batch)
    question: uint256 = self.questions[id][number]
    assert question != 0, "nothing was demanded"
    self._check_block(batch, number, data, pieces_path)
    assert len(layer) == self._blocks(batch.count), "layer has another length"
    row: DynArray[bytes32, MOST_BLOCKS] = layer
    size: uint256 = len(layer)
    pad: bytes32 = EMPTY
    for i: uint256 in range(6):
        pad = sha256(concat(pad, pad))
    for level: uint256 in range(self._depth(batch.count), bound=10):
        half: uint256 = (size + 1) // 2
        for i: uint256 in range(half, bound=512):
            right: bytes32 = pad
            if 2 * i + 1 < size:
                right = row[2 * i + 1]
            row[i] = sha256(concat(row[2 * i], right))
        size = half
        pad = sha256(concat(pad, pad))
    assert row[0] == batch.record_root, "layer leads elsewhere"
    self.questions[id][number] = 0
    state: uint256 = self.states[id] - (1 << 240)
    deadline: uint256 = max((state >> 160) & M40, block.timestamp + terms.data_window)
    self.states[id] = (state & ~(M40 << 160)) | (deadline << 160)
    self.balance_of[msg.sender] += terms.deposit
    log DataShown(id=id, number=number)


@external
def void_withheld(id: uint256, number: uint256):
    """
    @notice Voids a batch whose data was demanded and not shown in time; the reward is the demander's.
    @param id The batch.
    @param number The block.
    """
    question: uint256 = self.questions[id][number]
    assert question != 0, "nothing was demanded"
    assert self.states[id] >> 248 == PENDING, "batch is resolved"
    assert block.timestamp > question >> 160, "data window is open"
    challenger: address = convert(question & (2**160 - 1), address)
    self.questions[id][number] = 0
    self.balance_of[challenger] += terms.deposit
    self._void(id, challenger, "F8")


@external
def reclaim_deposit(id: uint256, number: uint256):
    """
    @notice Gives the deposit back for a demand on a batch that was voided for something else.
    @param id The batch.
    @param number The block.
    """
    question: uint256 = self.questions[id][number]
    assert question != 0, "nothing was demanded"
    assert self.states[id] >> 248 == VOID, "batch is not void"
    self.questions[id][number] = 0
    self.balance_of[convert(question & (2**160 - 1), address)] += terms.deposit


# Payment.


@external
@nonreentrant
def claim(id: uint256, batch: Batch, proofs: DynArray[Proof, MOST]):
    """
    @notice Pays workers what the last final batch and their closed channels come to. Anyone may submit.
    @dev The running sum of any of a worker's records is due to it; that of the last is all of it.
    @param id The last final batch.
    @param batch What was posted.
    @param proofs A record of each worker.
    """
    self._advance()
    assert id == self._latest() and id != 0, "not the last final batch"
    assert keccak256(abi_encode(batch)) == self.commitments[id], "another batch was posted"
    payments: DynArray[Payment, MOST] = []
    for proof: Proof in proofs:
        record: Record = self._record(batch, proof)
        payments.append(
            Payment(worker=record.worker, entitled=self._entitled(record.worker, record.worker_running, id))
        )
    extcall Money(settlement).pay_batched(payments)


@external
@nonreentrant
def claim_exited(workers: DynArray[address, MOST]):
    """
    @notice Pays workers for their closed channels alone: no batch is needed.
    @param workers Their accounts.
    """
    self._advance()
    payments: DynArray[Payment, MOST] = []
    for worker: address in workers:
        payments.append(Payment(worker=worker, entitled=self._entitled(worker, 0, self._latest())))
    extcall Money(settlement).pay_batched(payments)


# Closing batched channels.


@external
def show_record(id: uint256, batch: Batch, proof: Proof):
    """
    @notice Puts a final batch's record on record for the close of its channel, which then pays that much at least.
    @dev Needed only where a later batch left the channel out or put it lower. Anyone may, until it is finalised.
    @param id Any final batch.
    @param batch What was posted.
    @param proof The channel's record.
    """
    self._advance()
    assert self.states[id] >> 248 == FINAL, "batch is not final"
    assert keccak256(abi_encode(batch)) == self.commitments[id], "another batch was posted"
    record: Record = self._record(batch, proof)
    old: uint256 = self.shown[record.client][record.worker]
    if record.epoch == old >> 128:
        assert record.counted > old & M128, "nothing new in it"
    else:
        assert record.epoch > old >> 128, "record is of another epoch"
    self.shown[record.client][record.worker] = (record.epoch << 128) | record.counted


@external
@nonreentrant
def finalize_close(client: address, worker: address, number: uint256, batch: Batch, place: Place):
    """
    @notice Closes a batched channel: proves what the last final batch from before the request counted of it, and
            returns the rest to the client. Anyone may.
    @param client The channel's client.
    @param worker The channel's worker.
    @param number Which of the final batches that is, from 1; 0 if there is none, and nothing below is looked at.
    @param batch What was posted.
    @param place The channel's record, or those between which it would stand.
    """
    self._advance()
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = self._closing(client, worker)
    finals: uint256 = self.finals
    assert number <= finals, "no such batch"
    if number < finals:
        assert self.final_batches[number + 1] >> 128 >= closing, "a later batch counts"
    counted: uint256 = 0
    id: uint256 = 0
    if number != 0:
        id = self.final_batches[number] & M128
        assert self.final_batches[number] >> 128 < closing, "batch is from after the request"
        assert keccak256(abi_encode(batch)) == self.commitments[id], "another batch was posted"
        counted = self._counted(batch, place, client, worker, word >> 208)
        if number == finals:
            self.excluded[id][worker] += counted
    self._finish(client, worker, word, settled, counted)


@external
@nonreentrant
def finalize_unproven(client: address, worker: address):
    """
    @notice The same where nobody has the batch's data any more: after a second window, only what was shown counts.
    @param client The channel's client.
    @param worker The channel's worker.
    """
    self._advance()
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = self._closing(client, worker)
    until: uint256 = ((word >> 128) & M40) + 2 * staticcall Money(settlement).close_window()
    assert block.timestamp >= until, "second window is open"
    self._finish(client, worker, word, settled, 0)


@external
@nonreentrant
def close_together(worker: address, total: uint256, v: uint256, r: uint256, s: uint256):
    """
    @notice Closes the caller's channel at a total that the worker has signed, without the closing window. A direct one
            at once; a batched one can be finalised as soon as no batch from before is pending.
    @param worker The channel's worker.
    @param total What the channel has earned in all.
    @param v Of the worker's signature (EIP-191) over keccak256 of this contract, the chain, the channel and the total.
    @param r The same.
    @param s The same.
    """
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = staticcall Money(settlement).exit_state(msg.sender, worker)
    cap: uint256 = word & M128
    assert cap != 0, "channel is not open"
    assert total <= cap, "total is above the cap"
    inner: bytes32 = keccak256(abi_encode(TAG, chain.id, self, msg.sender, worker, word >> 208, total))
    signer: address = ecrecover(keccak256(concat(b"\x19Ethereum Signed Message:\n32", inner)), v, r, s)
    assert signer == worker and worker != empty(address), "worker did not sign"
    if word & BATCHED == 0:
        assert total >= settled, "more was paid already"
        extcall Money(settlement).finish_close(msg.sender, worker, total)
        return
    if (word >> 128) & M40 == 0:
        extcall Money(settlement).begin_close(msg.sender, worker)
    self.agreed[msg.sender][worker] = ((word >> 208) << 129) | (total + 1)


# Views.


@external
@view
def state(id: uint256) -> (address, uint256, uint256, uint256, uint256):
    """
    @notice Where a batch stands, as far as it was resolved.
    @param id The batch.
    @return Its settler; the deadline in seconds, before which lies can be proven; its snapshot; demands that are
            open; and 0 for unknown, 1 pending, 2 final, 3 void.
    """
    word: uint256 = self.states[id]
    return (
        convert(word & (2**160 - 1), address),
        (word >> 160) & M40,
        (word >> 200) & M40,
        (word >> 240) & 255,
        word >> 248,
    )


@external
@view
def final_batch(number: uint256) -> (uint256, uint256):
    """
    @notice One of the final batches.
    @param number From 1; `finals` is the last one's.
    @return The batch and its snapshot.
    """
    return self.final_batches[number] & M128, self.final_batches[number] >> 128


@external
@view
def question(id: uint256, number: uint256) -> (address, uint256):
    """
    @notice A demand that is open.
    @param id The batch.
    @param number The block.
    @return Who demanded and until when it must be shown; zeros if there is none.
    """
    word: uint256 = self.questions[id][number]
    return convert(word & (2**160 - 1), address), word >> 160


# Inside.


@internal
def _advance():
    """
    @notice Marks batches final, in the order of posting, whose time is over and whose demands are answered.
    """
    id: uint256 = self.resolved
    if id == self.posted:
        return
    start: uint256 = id
    for step: uint256 in range(STEPS):
        word: uint256 = self.states[id + 1]
        if word >> 248 != VOID:
            if word >> 248 != PENDING or (word >> 240) & 255 != 0 or block.timestamp < (word >> 160) & M40:
                break
            self.states[id + 1] = word + ((FINAL - PENDING) << 248)
            self.finals += 1
            self.final_batches[self.finals] = (id + 1) | (((word >> 200) & M40) << 128)
            self.balance_of[convert(word & (2**160 - 1), address)] += terms.bond
            log Finalised(id=id + 1)
        id += 1
    if id != start:
        self.resolved = id


@internal
@view
def _pending(id: uint256, batch: Batch):
    """
    @notice Reverts unless this is what was posted and it can still be judged.
    @param id The batch.
    @param batch What was posted.
    """
    assert keccak256(abi_encode(batch)) == self.commitments[id], "another batch was posted"
    word: uint256 = self.states[id]
    assert word >> 248 == PENDING, "batch is resolved"
    assert block.timestamp < (word >> 160) & M40 or (word >> 240) & 255 != 0, "challenge window is over"


@internal
def _void(id: uint256, challenger: address, reason: String[2]):
    """
    @notice Voids a batch; half of the bond is the challenger's and half is nobody's any more.
    @param id The batch.
    @param challenger Who gets it.
    @param reason The kind of lie.
    """
    word: uint256 = self.states[id]
    self.states[id] = word + ((VOID - PENDING) << 248)
    half: uint256 = terms.bond // 2
    self.balance_of[challenger] += half
    self.burnt += terms.bond - half
    log Voided(id=id, challenger=challenger, reason=reason)


@internal
@view
def _latest() -> uint256:
    """
    @notice The last final batch.
    @return Zero if there is none.
    """
    return self.final_batches[self.finals] & M128


@internal
@view
def _entitled(worker: address, running: uint256, id: uint256) -> uint256:
    """
    @notice What a worker is due in all.
    @param worker Its account.
    @param running Its running sum in the last final batch.
    @param id That batch.
    @return Base units, of which some may be paid already.
    """
    due: uint256 = running + self.exited[worker]
    gone: uint256 = self.excluded[id][worker]
    return due - min(due, gone)


@internal
@view
def _closing(client: address, worker: address) -> (uint256, uint256, uint256):
    """
    @notice A batched channel whose close can be finalised. Reverts if it cannot.
    @param client The channel's client.
    @param worker The channel's worker.
    @return Its word, the block of the request, and what vouchers on record promise.
    """
    word: uint256 = 0
    closing: uint256 = 0
    settled: uint256 = 0
    word, closing, settled = staticcall Money(settlement).exit_state(client, worker)
    assert word & M128 != 0 and word & BATCHED != 0, "channel is not open"
    assert (word >> 128) & M40 != 0, "close was not requested"
    if self._agreed(client, worker, word) == 0:
        assert block.timestamp >= (word >> 128) & M40, "closing window is open"
    # From here on, snapshots are of the request's block or later, and leave the channel out.
    assert block.number > closing + terms.lag, "a batch may still count it"
    if self.resolved != self.posted:
        assert (self.states[self.resolved + 1] >> 200) & M40 >= closing, "a batch is pending"
    return word, closing, settled


@internal
@view
def _agreed(client: address, worker: address, word: uint256) -> uint256:
    """
    @notice The total that both sides agreed on, and one more.
    @param client The channel's client.
    @param worker The channel's worker.
    @param word The channel's word.
    @return Zero if they did not.
    """
    found: uint256 = self.agreed[client][worker]
    if found >> 129 != word >> 208:
        return 0
    return found & (2**129 - 1)


@internal
def _finish(client: address, worker: address, word: uint256, settled: uint256, counted: uint256):
    """
    @notice Closes a channel at the highest of what is known of it.
    @param client The channel's client.
    @param worker The channel's worker.
    @param word Its word.
    @param settled What vouchers on record promise.
    @param counted What the batch counted.
    """
    total: uint256 = settled
    agreed: uint256 = self._agreed(client, worker, word)
    if agreed != 0:
        total = agreed - 1
    found: uint256 = self.shown[client][worker]
    if found >> 128 == word >> 208:
        total = max(total, found & M128)
    total = min(max(total, counted), word & M128)
    self.exited[worker] += total
    log Exited(client=client, worker=worker, total=total, counted=counted)
    extcall Money(settlement).finish_close(client, worker, total)


@internal
@view
def _counted(batch: Batch, place: Place, client: address, worker: address, epoch: uint256) -> uint256:
    """
    @notice What a batch counts of a channel. Reverts unless the place is right.
    @param batch The batch.
    @param place The channel's record, or those between which it would stand.
    @param client The channel's client.
    @param worker The channel's worker.
    @param epoch The channel's epoch.
    @return Zero if it is not there, or of an earlier epoch.
    """
    if place.at.index != 0:
        record: Record = self._record(batch, place.at)
        if record.client == client and record.worker == worker:
            return record.counted if record.epoch == epoch else 0
        assert self._precedes(record, client, worker), "the channel stands before"
    if place.at.index != batch.count:
        assert place.after.index == place.at.index + 1, "records are not adjacent"
        record: Record = self._record(batch, place.after)
        assert not self._precedes(record, client, worker), "the channel stands after"
        assert record.client != client or record.worker != worker, "the channel stands there"
    return 0


@internal
@pure
def _precedes(record: Record, client: address, worker: address) -> bool:
    """
    @notice Whether a record stands before a channel's: by worker, then by client.
    @param record The record.
    @param client The channel's client.
    @param worker The channel's worker.
    @return False also for the channel's own.
    """
    if record.worker != worker:
        return convert(record.worker, uint256) < convert(worker, uint256)
    return convert(record.client, uint256) < convert(client, uint256)


@internal
@view
def _record(batch: Batch, proof: Proof) -> Record:
    """
    @notice Checks a record's place and reads it.
    @param batch The batch.
    @param proof The record.
    @return Its fields.
    """
    assert 0 < proof.index and proof.index <= batch.count, "index is no record's"
    assert len(proof.path) == self._depth(batch.count) + 6, "path has another length"
    w: uint256[8] = proof.words
    assert self._root(sha256(abi_encode(w)), proof.index, proof.path) == batch.record_root, "path leads elsewhere"
    return Record(
        client=convert(w[0] >> 96, address),
        worker=convert(((w[0] & M96) << 64) | (w[1] >> 192), address),
        epoch=(w[1] >> 128) & M64,
        nonce=(w[1] >> 64) & M64,
        cumulative=((w[1] & M64) << 64) | (w[2] >> 192),
        counted=(w[2] >> 64) & M128,
        worker_running=((w[2] & M64) << 64) | (w[3] >> 192),
        total_running=(w[3] >> 64) & M128,
        receipts_root=((w[3] & M64) << 192) | (w[4] >> 64),
        r=((w[4] & M64) << 192) | (w[5] >> 64),
        s=((w[5] & M64) << 192) | (w[6] >> 64),
        terms_hash=((w[6] & M64) << 192) | (w[7] >> 64),
        reserved=w[7] & M64,
    )


@internal
@pure
def _root(leaf: bytes32, index: uint256, path: DynArray[bytes32, DEPTH]) -> bytes32:
    """
    @notice The root that a path leads to.
    @param leaf Where it begins.
    @param index The leaf's place; callers have checked it against the path's length.
    @param path The siblings, from the lowest.
    @return The root.
    """
    node: bytes32 = leaf
    place: uint256 = index
    for sibling: bytes32 in path:
        if place & 1 == 0:
            node = sha256(concat(node, sibling))
        else:
            node = sha256(concat(sibling, node))
        place >>= 1
    assert place == 0, "index is outside the tree"
    return node


@internal
@view
def _check_block(batch: Batch, number: uint256, data: Bytes[BLOCK], path: DynArray[bytes32, DEPTH]):
    """
    @notice Reverts unless this is a block of the file.
    @param batch The batch.
    @param number The block.
    @param data Its 16 KiB.
    @param path Its path to the pieces root.
    """
    assert len(data) == BLOCK, "a block is 16 KiB"
    assert number < self._blocks(batch.count), "no such block"
    assert len(path) == self._depth(batch.count), "path has another length"
    assert self._root(sha256(data), number, path) == batch.pieces_root, "path leads elsewhere"


@internal
@view
def _subtree(data: Bytes[BLOCK]) -> bytes32:
    """
    @notice The record tree over one block.
    @param data 16 KiB.
    @return Its root.
    """
    row: bytes32[RECORDS] = empty(bytes32[RECORDS])
    for i: uint256 in range(RECORDS):
        row[i] = sha256(slice(data, 256 * i, 256))
    size: uint256 = RECORDS
    for level: uint256 in range(6):
        size //= 2
        for i: uint256 in range(size, bound=32):
            row[i] = sha256(concat(row[2 * i], row[2 * i + 1]))
    return row[0]


@internal
@pure
def _blocks(count: uint256) -> uint256:
    """
    @notice Blocks of a file.
    @param count Records without the header.
    @return At least one.
    """
    return count // RECORDS + 1


@internal
@pure
def _depth(count: uint256) -> uint256:
    """
    @notice Levels of the trees above blocks.
    @param count Records without the header.
    @return 0 for one block, up to 10.
    """
    depth: uint256 = 0
    width: uint256 = 1
    for i: uint256 in range(10):
        if width >= self._blocks(count):
            break
        width *= 2
        depth += 1
    return depth
