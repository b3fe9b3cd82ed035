"""The contract: its build, its signature check against libsodium's, its rules against a model, and its gas."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from eth_abi.abi import encode

from swarm.contracts.build import CONTRACTS, FOLDER, compile_contract, compile_source
from swarm.errors import PaymentError
from swarm.identity import Identity, verify_raw
from swarm.ids import Address, PeerId
from swarm.receipts import VOUCHER_TAG, Channel, SignedVoucher, Voucher
from swarm.settlement import ADVICE, MAX_BATCH, Claim, Settlement, refusal
from swarm.testing import FakeChain, key_fault
from tests.swarm.revm import DEPLOYER, NOW, Deployed, Reverted, RevmChain

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
ROOT = pow(2, (P - 1) // 4, P)
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_committed_build_is_what_the_sources_give(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text("utf-8") == compile_contract(name)


def test_the_contracts_fit_the_limit_of_a_chain() -> None:
    chain = RevmChain()
    for deployed in (chain.settlement, chain.batches):
        code = chain.evm.get_code(f"0x{deployed.address}")
        assert code is not None
        assert 0 < len(code) <= 24_576  # EIP-170


def test_every_reason_of_the_contract_has_advice() -> None:
    source = "".join((FOLDER / f"{name}.vy").read_text() for name in ("Settlement", "Batches", "ed25519"))
    reasons = set(re.findall(r'(?:assert [^\n]*|^\)), "([^"]+)"$', source, re.MULTILINE))
    reasons |= set(re.findall(r'^    \), "([^"]+)"$', source, re.MULTILINE))
    assert len(reasons) > 60
    rare = {"token has no code", "window above a year", "lag outside 1 to 255", "no bond"}
    rare |= {"fee above its cap", "no pool for the fee", "only for the batch contract"}
    rare |= {"key numbers are used up", "channel epochs are used up"}
    assert reasons - rare <= ADVICE.keys()


# The signature check.


def decompress(y: int) -> Point | None:
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == -u % P:
        x = x * ROOT % P
    return (x, y) if v * x * x % P == u else None


def add(p: Point, q: Point) -> Point:
    t = D * p[0] * q[0] * p[1] * q[1] % P
    x = (p[0] * q[1] + q[0] * p[1]) * pow(1 + t, -1, P)
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - t, -1, P)
    return x % P, y % P


def multiply(n: int, p: Point) -> Point:
    total = (0, 1)
    while n:
        if n & 1:
            total = add(total, p)
        p, n = add(p, p), n >> 1
    return total


def encoded(p: Point) -> bytes:
    return (p[1] | ((p[0] & 1) << 255)).to_bytes(32, "little")


def encodings(p: Point) -> list[bytes]:
    """The right one, that of the opposite point, and one that is not canonical if there is any."""
    right = int.from_bytes(encoded(p), "little")
    numbers = [right, right ^ (1 << 255)] + ([right + P] if p[1] < 19 else [])
    return [number.to_bytes(32, "little") for number in numbers]


def sign(secret: int, key: bytes, nonce: int, r: bytes, digest: bytes) -> bytes:
    """What the holder of ``secret`` would sign with ``r`` in R's place."""
    challenge = hashlib.sha512(r + key + VOUCHER_TAG + digest).digest()
    s = (nonce + int.from_bytes(challenge, "little") * secret) % L
    return r + s.to_bytes(32, "little")


def base_point() -> Point:
    point = decompress(4 * pow(5, -1, P) % P)
    assert point is not None
    return point if point[0] % 2 == 0 else (P - point[0], point[1])


def order_eight() -> Point:
    for y in range(2, 100):
        point = decompress(y)
        if point is not None:
            torsion = multiply(L, point)
            if multiply(4, torsion) != (0, 1):
                return torsion
    raise AssertionError("no point of order eight among the first hundred")


B = base_point()


class Verifier:
    """`is_signed` of the contract, for any key that it accepts."""

    def __init__(self) -> None:
        self.chain = RevmChain()
        self.worker = Address(b"\x77" * 20)
        self.clients: dict[bytes, Address] = {}

    def client(self, key: bytes) -> Address:
        if key not in self.clients:
            client = Address(hashlib.sha256(key).digest()[:20])
            self.chain.mint(client, 10)
            account = self.chain.account(client)
            account.register_spending_key(PeerId(key))
            account.deposit(10)
            account.allocate({self.worker: 10})
            self.clients[key] = client
        return self.clients[key]

    def accepts(self, key: bytes, digest: bytes, signature: bytes) -> bool:
        client = self.client(key)
        answer: bool = self.chain.settlement.call(
            client, "is_signed", f"0x{client}", f"0x{self.worker}", digest, signature[:32], signature[32:]
        )
        return answer


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier()


def mutations(rng: random.Random, signature: bytes) -> list[bytes]:
    """Signatures that are wrong in one way each."""
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    flipped = bytearray(signature)
    flipped[rng.randrange(64)] ^= 1 << rng.randrange(8)
    bad = [bytes(flipped), r[:31] + bytes([r[31] ^ 0x80]) + signature[32:], signature[32:] + r, bytes(64)]
    # S + L is the same number to the group; S is below L, so that up to fifteen times L can be added.
    bad += [r + (s + times * L).to_bytes(32, "little") for times in (1, 2, 15)]
    bad += [r + number.to_bytes(32, "little") for number in (0, 1, L - 1, L, L + 1, 2**252, 2**256 - 1)]
    bad += [r + (L - s).to_bytes(32, "little"), rng.randbytes(32) + signature[32:]]
    # R that is not canonical, or no point.
    bad += [number.to_bytes(32, "little") + signature[32:] for number in (P, P + 1, 2**255 - 1, 2**256 - 1, 2)]
    return bad


def test_the_contract_decides_as_libsodium_does(verifier: Verifier) -> None:
    accepted, refused = differential(verifier, 20260101, 16)
    assert accepted == 64
    assert refused > 1000


@pytest.mark.slow
def test_it_does_so_on_thousands_more(verifier: Verifier) -> None:
    accepted, refused = differential(verifier, 7, 60)
    assert accepted == 240
    assert refused > 4000


def differential(verifier: Verifier, seed: int, identities: int) -> tuple[int, int]:
    """Good and damaged signatures by so many keys; how many the contract, like libsodium, took and refused."""
    rng = random.Random(seed)
    accepted = refused = 0
    for _ in range(identities):
        identity = Identity(rng.randbytes(32))
        key = bytes(identity.peer_id)
        for _ in range(4):
            record = rng.randbytes(40)
            digest = hashlib.sha256(record).digest()
            signature = identity.sign_record(VOUCHER_TAG, record)
            cases = [signature, *mutations(rng, signature)]
            for case in cases:
                expected = verify_raw(key, VOUCHER_TAG + digest, case)
                assert verifier.accepts(key, digest, case) == expected, (key.hex(), digest.hex(), case.hex())
                accepted, refused = accepted + expected, refused + (not expected)
            wrong_digest = hashlib.sha256(digest).digest()
            assert not verifier.accepts(key, wrong_digest, signature)
            assert not verifier.accepts(bytes(Identity(rng.randbytes(32)).peer_id), digest, signature)
    return accepted, refused


def test_points_outside_the_prime_order_group_are_judged_as_libsodium_does(verifier: Verifier) -> None:
    """Keys and R with a component of small order, where careless verifiers disagree."""
    torsion = order_eight()
    rng = random.Random(7)
    outcomes = set()
    for key_torsion in range(8):
        secret = rng.randrange(1, L)
        point = add(multiply(secret, B), multiply(key_torsion, torsion))
        key = encoded(point)
        for r_torsion in range(8):
            for nonce in (0, rng.randrange(1, L)):
                point = add(multiply(nonce, B), multiply(r_torsion, torsion))
                for r in encodings(point):
                    digest = rng.randbytes(32)
                    signature = sign(secret, key, nonce, r, digest)
                    expected = verify_raw(key, VOUCHER_TAG + digest, signature)
                    assert verifier.accepts(key, digest, signature) == expected
                    outcomes.add(expected)
    assert outcomes == {True, False}


def test_the_scalars_extremes(verifier: Verifier) -> None:
    """Challenges are as they fall, but S and the key can be chosen: halves of zeros and of ones."""
    for secret in (1, 2, 2**128 - 1, 2**128, 2**128 + 1, L - 1, L - 2**128, 8):
        key = encoded(multiply(secret, B))
        for nonce in (1, 2**128, L - 1, (L - 1) // 2):
            r = encoded(multiply(nonce, B))
            digest = hashlib.sha256(r + key).digest()
            signature = sign(secret, key, nonce, r, digest)
            assert verify_raw(key, VOUCHER_TAG + digest, signature)
            assert verifier.accepts(key, digest, signature)


def test_keys_are_accepted_as_the_model_says() -> None:
    chain, rng = RevmChain(), random.Random(3)
    account = chain.account(Address(b"\x05" * 20))
    verdicts = set()
    for number in [*range(40), *range(P - 20, P + 19), *(rng.getrandbits(256) for _ in range(100))]:
        key = PeerId((number % 2**256).to_bytes(32, "little"))
        fault = key_fault(key)
        verdicts.add(fault)
        if fault is None:
            account.register_spending_key(key)
            assert account.account_state(account.account).spending_key == key
        else:
            with pytest.raises(PaymentError, match=fault):
                account.register_spending_key(key)
    assert len(verdicts) == 4


# The rules.


def voucher(settlement: Settlement, client: Address, worker: Address, epoch: int, cumulative: int) -> Voucher:
    return Voucher(
        channel=Channel(
            chain_id=settlement.chain_id, contract=settlement.contract, client=client, worker=worker, epoch=epoch
        ),
        nonce=cumulative,
        cumulative=cumulative,
        receipts_root=hashlib.sha256(b"receipts").digest(),
        terms_hash=hashlib.sha256(b"terms").digest(),
    )


ACCOUNTS = [Address(bytes([number]) * 20) for number in range(1, 6)]
KEYS = [Identity(bytes([number]) * 32) for number in range(3)]
METHODS = (
    ["register_spending_key", "deposit", "withdraw", "advance", "request_close", "finalize_close", "finalize_close"]
    + ["allocate"] * 3
    + ["redeem"] * 5
)


class Walk:
    """Random calls by a seeded generator, each made on the model and on the contract, which must agree."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = FakeChain(close_window=60, now=NOW)
        self.real = RevmChain(close_window=60)
        self.outcomes: Counter[str] = Counter()
        for account in ACCOUNTS:
            self.model.mint(account, 200)
            self.real.mint(account, 200)

    def both(self, account: Address, method: str, arguments: Callable[[Settlement], Any]) -> None:
        """Call both; they must agree, to the reason."""
        outcomes = []
        for settlement in (self.model.account(account), self.real.account(account)):
            try:
                getattr(settlement, method)(arguments(settlement))
                outcomes.append(f"{method} done")
            except PaymentError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        self.outcomes[outcomes[0]] += 1

    def step(self) -> None:
        """One call, or some time."""
        rng, account = self.rng, self.rng.choice(ACCOUNTS)
        method = rng.choice(METHODS)
        pairs = sorted(self.model.channels) or [(ACCOUNTS[0], ACCOUNTS[1])]
        match method:
            case "advance":
                seconds = rng.choice([1, 30, 59, 60])
                self.model.advance(seconds)
                self.real.advance(seconds)
            case "register_spending_key":
                key = rng.choice(KEYS).peer_id
                self.both(account, method, lambda _: key)
            case "deposit" | "withdraw":
                amount = rng.randint(1, 120)
                self.both(account, method, lambda _: amount)
            case "allocate":
                caps = {worker: rng.randint(1, 60) for worker in rng.sample(ACCOUNTS, rng.randint(1, 3))}
                self.both(account, method, lambda _: caps)
            case "request_close" | "finalize_close":
                client, worker = rng.choice([*pairs, rng.choice([(account, account), *pairs])])
                self.both(client, method, lambda _: worker)
            case "redeem":
                plans = [self.plan(pair) for pair in rng.choices(pairs, k=rng.choice([1, 1, 2, 3]))]
                self.both(account, method, lambda settlement: [self.claim(settlement, plan) for plan in plans])

    def plan(self, pair: tuple[Address, Address]) -> tuple[Any, ...]:
        """What to claim on a channel: mostly what is due, sometimes wrong in one way."""
        rng, channel = self.rng, self.model.channels.get(pair)
        if channel is None:
            return (*pair, 1, 10, 5, KEYS[0])
        cumulative = channel.cap + rng.choice([0, 0, 0, 0, 0, -1, 1])
        amount = channel.settled + rng.choice([0, 1, 1, 2, 3, 5, 8])
        epoch = channel.epoch + rng.choice([0] * 8 + [-1])
        right = next(key for key in KEYS if key.peer_id == channel.spending_key)
        cumulative = max(1, cumulative)
        return (*pair, epoch, cumulative, max(1, min(amount, cumulative)), rng.choice([right] * 8 + [KEYS[0]]))

    def claim(self, settlement: Settlement, plan: tuple[Any, ...]) -> Claim:
        """The claim of a plan on one of the two."""
        client, worker, epoch, cumulative, amount, key = plan
        return Claim(signed=voucher(settlement, client, worker, epoch, cumulative).sign(key), amount=amount)

    def check(self) -> None:
        """The two are in the same state, and every unit is somewhere."""
        model, real = self.model.account(ACCOUNTS[0]), self.real.account(ACCOUNTS[0])
        outside = inside = 0
        for account in ACCOUNTS:
            state = real.account_state(account)
            assert state == model.account_state(account)
            outside, inside = outside + state.token_balance, inside + state.free_balance
            for worker in ACCOUNTS:
                channel = real.channel(account, worker)
                assert channel == model.channel(account, worker)
                if channel is not None:
                    inside += channel.cap - channel.settled
        held = self.real.token.call(DEPLOYER, "balanceOf", f"0x{real.contract}")
        assert held == inside
        assert outside + held == 200 * len(ACCOUNTS)


def test_any_sequence_of_calls_does_what_the_model_does_and_conserves_every_unit() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(4):
        walk = Walk(seed)
        for _ in range(250):
            walk.step()
            walk.check()
        outcomes += walk.outcomes
    # The walk went everywhere: every method succeeded, and every refusal that these calls can meet was met.
    assert {f"{method} done" for method in METHODS if method != "advance"} <= outcomes.keys()
    reasons = (
        "free balance too low",
        "token balance too low",
        "no spending key registered",
        "cap can only rise",
        "channel is closing",
        "channel is not open",
        "close was not requested",
        "closing window is open",
        "voucher is of another epoch",
        "voucher is above the cap",
        "claim is already paid",
        "voucher is forged",
    )
    assert {str(refusal(reason)) for reason in reasons} <= outcomes.keys()
    assert outcomes["redeem done"] > 50


def opened(chain: RevmChain, cap: int, *workers: Address) -> SignedVoucher:
    """A client with channels to ``workers``; its voucher for the first."""
    client = chain.account(Address(b"\xcc" * 20))
    chain.mint(client.account, 10**9)
    client.register_spending_key(KEYS[0].peer_id)
    client.deposit(10**9)
    client.allocate(dict.fromkeys(workers, cap))
    return voucher(client, client.account, workers[0], 1, cap).sign(KEYS[0])


def test_each_field_of_a_voucher_is_under_the_signature() -> None:
    chain, worker, other = RevmChain(), Address(b"\xaa" * 20), Address(b"\xbb" * 20)
    signed = opened(chain, 100, worker, other)
    good = [*_fields(signed, 100)]
    changes = {1: f"0x{other}", 3: 99, 4: 99, 5: bytes(32), 6: bytes(32)}
    for index, value in changes.items():
        fields = [*good]
        fields[index] = value
        if index == 4:
            fields[7] = 99
        with pytest.raises(Reverted, match="voucher is forged"):
            chain.settlement.call(worker, "redeem", [tuple(fields)])
    refused = (("of another epoch", 2, 2), ("not open", 0, f"0x{other}"), ("above the voucher", 7, 101))
    for name, index, value in refused:
        fields = [*good]
        fields[index] = value
        with pytest.raises(Reverted, match=name):
            chain.settlement.call(worker, "redeem", [tuple(fields)])
    chain.settlement.call(worker, "redeem", [tuple(good)])


def _fields(signed: SignedVoucher, amount: int) -> tuple[Any, ...]:
    v, c = signed.voucher, signed.voucher.channel
    parties = (f"0x{c.client}", f"0x{c.worker}", c.epoch)
    halves = (signed.signature[:32], signed.signature[32:])
    return (*parties, v.nonce, v.cumulative, v.receipts_root, v.terms_hash, amount, *halves)


def test_a_voucher_for_another_chain_or_contract_is_forged_here() -> None:
    worker = Address(b"\xaa" * 20)
    here, abroad = RevmChain(), RevmChain(chain_id=1)
    opened(here, 100, worker)
    with pytest.raises(Reverted, match="voucher is forged"):
        here.settlement.call(worker, "redeem", [_fields(opened(abroad, 100, worker), 100)])
    second, _ = here.deploy_settlement(here.token.address)
    first, here.settlement = here.settlement, second
    elsewhere = opened(here, 100, worker)
    with pytest.raises(Reverted, match="voucher is forged"):
        first.call(worker, "redeem", [_fields(elsewhere, 100)])
    second.call(worker, "redeem", [_fields(elsewhere, 100)])


HOSTILE_TOKEN = """
# pragma version 0.4.3
balanceOf: public(HashMap[address, uint256])
fee: uint256
answer: bool

interface Victim:
    def withdraw(amount: uint256): nonpayable

@deploy
def __init__(fee: uint256, answer: bool):
    self.fee = fee
    self.answer = answer

@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    self.balanceOf[receiver] += amount - self.fee
    return self.answer

@external
def transfer(receiver: address, amount: uint256) -> bool:
    self.balanceOf[msg.sender] -= amount
    # Back into the contract before its call has ended.
    extcall Victim(msg.sender).withdraw(1)
    return True
"""


def hostile(chain: RevmChain, fee: int, answer: bool) -> Deployed:
    compiled = compile_source(HOSTILE_TOKEN)
    token = chain.deploy_code(compiled.abi, compiled.bytecode + encode(["uint256", "bool"], [fee, answer]))
    return chain.deploy_settlement(token.address)[0]


def test_tokens_that_misbehave_are_refused() -> None:
    chain, client = RevmChain(), Address(b"\xcc" * 20)
    with pytest.raises(Reverted, match="token took a fee"):
        hostile(chain, 1, True).call(client, "deposit", 10)
    with pytest.raises(Reverted, match="token refused the transfer"):
        hostile(chain, 0, False).call(client, "deposit", 10)
    settlement = hostile(chain, 0, True)
    settlement.call(client, "deposit", 10)
    with pytest.raises(Reverted):
        settlement.call(client, "withdraw", 5)
    assert settlement.call(client, "free_balance", f"0x{client}") == 10


def test_a_contract_needs_a_token_and_a_sane_window() -> None:
    chain = RevmChain()
    with pytest.raises(Reverted, match="token has no code"):
        chain.deploy("Settlement", encode(["address", "uint256"], [b"\x01" * 20, 60]))
    with pytest.raises(Reverted, match="window above a year"):
        chain.deploy("Settlement", encode(["address", "uint256"], [chain.token.address, 2**64]))


# The gas of whole transactions, with calldata, under Prague rules. The bars are the design's.


def test_gas_of_one_redemption() -> None:
    chain, worker = RevmChain(), Address(b"\xaa" * 20)
    signed = opened(chain, 10**6, worker)
    first = chain.account(worker).redeem([Claim(signed=signed, amount=10)]).gas
    later = chain.account(worker).redeem([Claim(signed=signed, amount=20)]).gas
    assert later < first < 290_000
    assert later < 268_000


def test_gas_of_a_full_batch_and_of_eight_allocations() -> None:
    chain = RevmChain()
    client = chain.account(Address(b"\xcc" * 20))
    workers = [Address(bytes([number]) * 20) for number in range(1, MAX_BATCH + 1)]
    opened(chain, 100, workers[0])
    assert client.allocate(dict.fromkeys(workers[1:9], 100)).gas < 240_000
    client.allocate(dict.fromkeys(workers[9:], 100))
    claims = [
        Claim(signed=voucher(client, client.account, worker, 1, 100).sign(KEYS[0]), amount=50) for worker in workers
    ]
    assert client.redeem(claims).gas < MAX_BATCH * 259_000
