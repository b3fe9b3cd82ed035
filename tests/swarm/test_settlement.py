"""The values, and one conformance suite for every settlement there is: the fake, the contract in pyrevm, and the
contract on the embedded chain through web3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from swarm.embedded_chain import ChainAddress
from swarm.errors import PaymentError, UsageError
from swarm.identity import Identity
from swarm.ids import Address, PeerId
from swarm.receipts import Channel, SignedVoucher, Voucher
from swarm.settlement import ADVICE, MAX_BATCH, ChannelState, Claim, Settlement, refusal
from swarm.settlement_evm import EvmSettlement, account_address
from swarm.testing import FakeChain
from tests.swarm.chains import running_chain
from tests.swarm.revm import RevmChain

WINDOW = 600
SPENDING = Identity(bytes(range(32)))
numbers = count(1)


def fresh_address() -> Address:
    return Address(next(numbers).to_bytes(20, "big"))


@dataclass(frozen=True, kw_only=True)
class World:
    """A chain to run the suite on."""

    account: Callable[[int], Settlement]
    """A new account with so many tokens."""
    advance: Callable[[int], None]


def signed(
    settlement: Settlement,
    worker: Address,
    cumulative: int,
    *,
    client: Address | None = None,
    key: Identity = SPENDING,
    epoch: int = 1,
    nonce: int = 1,
) -> SignedVoucher:
    channel = Channel(
        chain_id=settlement.chain_id,
        contract=settlement.contract,
        client=client or settlement.account,
        worker=worker,
        epoch=epoch,
    )
    return Voucher(
        channel=channel, nonce=nonce, cumulative=cumulative, receipts_root=b"\x07" * 32, terms_hash=b"\x09" * 32
    ).sign(key)


@pytest.fixture(scope="module")
def embedded() -> Iterator[ChainAddress]:
    with running_chain(WINDOW) as address:
        yield address


def fake_world() -> World:
    chain = FakeChain(close_window=WINDOW)

    def account(tokens: int) -> Settlement:
        address = fresh_address()
        chain.mint(address, tokens)
        return chain.account(address)

    return World(account=account, advance=chain.advance)


def revm_world() -> World:
    chain = RevmChain(close_window=WINDOW)

    def account(tokens: int) -> Settlement:
        address = fresh_address()
        chain.mint(address, tokens)
        return chain.account(address)

    return World(account=account, advance=chain.advance)


def evm_world(embedded: ChainAddress) -> World:
    def account(tokens: int) -> Settlement:
        key = next(numbers).to_bytes(32, "big")
        settlement = EvmSettlement.connect(embedded.url, embedded.contract, account_key=key)
        settlement.fund(account_address(key), native=10**18, tokens=tokens)
        return settlement

    def advance(seconds: int) -> None:
        EvmSettlement.connect(embedded.url, embedded.contract, account_key=b"\x01" * 32).advance_clock(seconds)

    return World(account=account, advance=advance)


@pytest.fixture(params=["fake", "revm", "evm"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "evm":
        return evm_world(request.getfixturevalue("embedded"))
    return fake_world() if request.param == "fake" else revm_world()


@pytest.fixture
def client(world: World) -> Settlement:
    """A client with a key, 1000 tokens left outside and 1000 deposited."""
    client = world.account(2000)
    client.register_spending_key(SPENDING.peer_id)
    client.deposit(1000)
    return client


def held(settlement: Settlement, address: Address) -> tuple[int, int]:
    state = settlement.account_state(address)
    return state.token_balance, state.free_balance


def test_a_channel_from_deposit_to_withdrawal(world: World, client: Settlement) -> None:
    worker = world.account(0)
    other = fresh_address()
    assert client.account_state(client.account).spending_key == SPENDING.peer_id
    assert client.channel(client.account, worker.account) is None

    client.allocate({worker.account: 300, other: 200})
    assert held(client, client.account) == (1000, 500)
    assert worker.channel(client.account, worker.account) == ChannelState(
        client=client.account,
        worker=worker.account,
        epoch=1,
        cap=300,
        settled=0,
        spending_key=SPENDING.peer_id,
        closing_at=None,
    )

    worker.redeem([Claim(signed=signed(client, worker.account, 120), amount=100)])
    assert held(worker, worker.account) == (100, 0)
    client.allocate({worker.account: 400})
    transaction = worker.redeem([Claim(signed=signed(client, worker.account, 400, nonce=2), amount=250)])
    assert transaction.gas > 0
    assert held(worker, worker.account) == (250, 0)

    client.request_close(worker.account)
    channel = client.channel(client.account, worker.account)
    assert channel is not None
    assert channel.closing_at is not None
    with pytest.raises(PaymentError, match="closing window is open"):
        client.finalize_close(worker.account)
    with pytest.raises(PaymentError, match="channel is closing"):
        client.allocate({worker.account: 500})
    # The worker can still redeem, inside the window and after it, until the close is final.
    worker.redeem([Claim(signed=signed(client, worker.account, 400, nonce=2), amount=260)])
    world.advance(WINDOW)
    worker.redeem([Claim(signed=signed(client, worker.account, 400, nonce=2), amount=270)])
    client.finalize_close(worker.account)
    assert client.channel(client.account, worker.account) is None
    assert held(client, client.account) == (1000, 530)
    client.withdraw(530)
    assert held(client, client.account) == (1530, 0)
    assert held(worker, worker.account) == (270, 0)


def test_bad_claims_are_refused_and_pay_nothing(world: World, client: Settlement) -> None:
    worker = world.account(0)
    client.allocate({worker.account: 300})
    good = Claim(signed=signed(client, worker.account, 200), amount=150)
    worker.redeem([good])
    bad = {
        "claim is already paid": good,
        "voucher is above the cap": Claim(signed=signed(client, worker.account, 301), amount=151),
        "voucher is forged": Claim(signed=signed(client, worker.account, 300, key=Identity(bytes(32))), amount=300),
        "voucher is of another epoch": Claim(signed=signed(client, worker.account, 300, epoch=2), amount=300),
        "channel is not open": Claim(signed=signed(client, fresh_address(), 300), amount=300),
    }
    for reason, claim in bad.items():
        with pytest.raises(PaymentError, match=reason):
            worker.redeem([claim])
    # A good claim beside a bad one is not paid either.
    with pytest.raises(PaymentError, match="voucher is forged"):
        worker.redeem([Claim(signed=signed(client, worker.account, 300), amount=299), bad["voucher is forged"]])
    assert held(worker, worker.account) == (150, 0)
    elsewhere = signed(client, worker.account, 300).voucher
    channel = Channel(
        chain_id=client.chain_id + 1,
        contract=client.contract,
        client=client.account,
        worker=worker.account,
        epoch=1,
    )
    abroad = Voucher(
        channel=channel,
        nonce=1,
        cumulative=300,
        receipts_root=elsewhere.receipts_root,
        terms_hash=elsewhere.terms_hash,
    ).sign(SPENDING)
    with pytest.raises(PaymentError, match="redeem it there"):
        worker.redeem([Claim(signed=abroad, amount=300)])


def test_anyone_redeems_for_several_workers_at_once(world: World, client: Settlement) -> None:
    workers = [fresh_address() for _ in range(2)]
    client.allocate(dict.fromkeys(workers, 100))
    claims = [Claim(signed=signed(client, worker, 90), amount=40 + index) for index, worker in enumerate(workers)]
    world.account(0).redeem(claims)
    assert [held(client, worker) for worker in workers] == [(40, 0), (41, 0)]


def test_a_reopened_channel_has_a_new_epoch_and_the_new_key(world: World, client: Settlement) -> None:
    worker = world.account(0)
    client.allocate({worker.account: 300})
    old = signed(client, worker.account, 200)
    new_key = Identity(b"\x05" * 32)
    client.register_spending_key(new_key.peer_id)
    # The open channel keeps its key.
    worker.redeem([Claim(signed=old, amount=100)])
    with pytest.raises(PaymentError, match="voucher is forged"):
        worker.redeem([Claim(signed=signed(client, worker.account, 200, key=new_key), amount=200)])

    client.request_close(worker.account)
    world.advance(WINDOW)
    client.finalize_close(worker.account)
    client.allocate({worker.account: 300})
    channel = client.channel(client.account, worker.account)
    assert channel is not None
    assert (channel.epoch, channel.settled, channel.spending_key) == (2, 0, new_key.peer_id)
    with pytest.raises(PaymentError, match="voucher is of another epoch"):
        worker.redeem([Claim(signed=old, amount=200)])
    with pytest.raises(PaymentError, match="voucher is forged"):
        worker.redeem([Claim(signed=signed(client, worker.account, 200, epoch=2), amount=200)])
    worker.redeem([Claim(signed=signed(client, worker.account, 50, key=new_key, epoch=2), amount=50)])
    assert held(worker, worker.account) == (150, 0)


def test_what_the_account_cannot_do_is_refused(world: World, client: Settlement) -> None:
    worker = fresh_address()
    poor = world.account(0)
    with pytest.raises(PaymentError, match="no spending key registered"):
        poor.allocate({worker: 1})
    with pytest.raises(PaymentError, match="token balance too low"):
        poor.deposit(1)
    with pytest.raises(PaymentError, match="free balance too low"):
        client.allocate({worker: 600, fresh_address(): 600})
    with pytest.raises(PaymentError, match="free balance too low"):
        client.withdraw(1001)
    with pytest.raises(PaymentError, match="channel is not open"):
        client.request_close(worker)
    client.allocate({worker: 600})
    client.allocate({worker: 600})
    with pytest.raises(PaymentError, match="cap can only rise"):
        client.allocate({worker: 599})
    with pytest.raises(PaymentError, match="close was not requested"):
        client.finalize_close(worker)
    with pytest.raises(PaymentError, match="no worker named"):
        client.allocate({Address(bytes(20)): 1})
    assert held(client, client.account) == (1000, 400)
    with pytest.raises(UsageError, match="not an amount"):
        client.deposit(0)
    with pytest.raises(UsageError, match="not an amount"):
        client.withdraw(2**128)
    with pytest.raises(UsageError, match="split them"):
        client.allocate({fresh_address(): 1 for _ in range(MAX_BATCH + 1)})
    with pytest.raises(UsageError, match="split them"):
        client.redeem([])


NEUTRAL = (1).to_bytes(32, "little")
SMALL_ORDER = (
    NEUTRAL,
    (2**255 - 20).to_bytes(32, "little"),
    bytes(32),
    bytes(31) + b"\x80",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
)


def test_unusable_spending_keys_are_refused(world: World) -> None:
    client = world.account(0)
    for key in SMALL_ORDER:
        with pytest.raises(PaymentError, match="of small order"):
            client.register_spending_key(PeerId(key))
    for number in (2, 7, 2**255 - 21):
        with pytest.raises(PaymentError, match="off the curve"):
            client.register_spending_key(PeerId(number.to_bytes(32, "little")))
    for number in (2**255 - 19, 2**255 - 18, 2**256 - 1):
        with pytest.raises(PaymentError, match="not canonical"):
            client.register_spending_key(PeerId(number.to_bytes(32, "little")))
    assert client.account_state(client.account).spending_key is None


def test_a_claim_stays_within_its_voucher() -> None:
    chain = FakeChain()
    voucher = signed(chain.account(fresh_address()), fresh_address(), 10)
    for amount in (0, -1, 11):
        with pytest.raises(PaymentError, match="claim what was earned"):
            Claim(signed=voucher, amount=amount)
    assert Claim(signed=voucher, amount=10).amount == 10


def test_an_impossible_channel_is_not_believed() -> None:
    with pytest.raises(PaymentError, match="impossible"):
        ChannelState(
            client=fresh_address(),
            worker=fresh_address(),
            epoch=1,
            cap=1,
            settled=2,
            spending_key=SPENDING.peer_id,
            closing_at=None,
        )


def test_refusals_say_what_to_do() -> None:
    for reason, advice in ADVICE.items():
        assert str(refusal(reason)) == f"the settlement contract refused: {reason}; {advice}"
    assert "check the contract's address" in str(refusal("something new"))
    assert "\n" not in str(refusal("something new"))
