"""Reservations in pyrevm: the worker's consent, what time earns, refunds on refusal, and every unit accounted for."""

from __future__ import annotations

import random

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak

from swarm.ids import Address
from tests.swarm.revm import NOW, Deployed, Reverted, RevmChain

CLIENT, ANYONE, POOL = (Address(bytes([n]) * 20) for n in (0xCC, 0xAA, 0xF0))
KEY = bytes(31) + b"\x05"
WORKER = Address.parse(Account.from_key(KEY).address)
AGREE, REFUSE = b"swarm-slot/v1\0\0\0", b"swarm-refuse/v1\0"
Signature = tuple[int, int, int]


class Office:
    """The contract with a client who has approved it."""

    def __init__(self, fee: int = 100) -> None:
        self.chain = RevmChain()
        arguments = encode(["address", "address", "uint256"], [self.chain.token.address, f"0x{POOL}", fee])
        self.contract: Deployed = self.chain.deploy("Reservations", arguments)
        self.chain.mint(CLIENT, 100_000)
        self.chain.token.call(CLIENT, "approve", f"0x{self.contract.address}", 100_000)

    def terms(
        self, start: int = NOW + 100, stop: int = NOW + 1100, amount: int = 1000, rate: int = 50
    ) -> tuple[int, ...]:
        return rate, start, stop, amount

    def agreed(self, terms: tuple[int, ...], *, client: Address = CLIENT, key: bytes = KEY) -> Signature:
        types = ["bytes16", "uint256", "address", "address", "address"] + ["uint256"] * 4
        fields = (AGREE, 1337, f"0x{self.contract.address}", f"0x{client}", f"0x{WORKER}", *terms)
        return signature(keccak(encode(types, fields)), key)

    def reserve(self, terms: tuple[int, ...], signed: Signature | None = None, client: Address = CLIENT) -> bytes:
        found: bytes = self.contract.call(client, "reserve", f"0x{WORKER}", *terms, *(signed or self.agreed(terms)))
        return found

    def tokens(self, who: Address) -> int:
        held: int = self.chain.token.call(ANYONE, "balanceOf", f"0x{who}")
        return held


def signature(digest: bytes, key: bytes = KEY) -> Signature:
    signed = Account.sign_message(encode_defunct(digest), key)
    return signed.v, signed.r, signed.s


def test_a_slot_is_earned_evenly() -> None:
    office = Office()
    slot = office.reserve(office.terms())
    assert office.tokens(CLIENT) == 99_000
    with pytest.raises(Reverted, match="nothing is due"):
        office.contract.call(ANYONE, "collect", slot)
    office.chain.advance(600)
    office.contract.call(ANYONE, "collect", slot)
    assert office.tokens(WORKER) == 495
    office.chain.advance(10_000)
    office.contract.call(ANYONE, "collect", slot)
    assert office.tokens(WORKER) == 990
    with pytest.raises(Reverted, match="nothing is due"):
        office.contract.call(ANYONE, "collect", slot)
    with pytest.raises(Reverted, match="slot is over"):
        office.contract.call(WORKER, "refuse", slot)
    office.contract.call(ANYONE, "collect_fees")
    assert (office.tokens(POOL), office.tokens(office.contract.address)) == (10, 0)


def test_a_refusal_refunds_what_is_left() -> None:
    office = Office(fee=0)
    slot = office.reserve(office.terms())
    office.chain.advance(350)
    with pytest.raises(Reverted, match="did not sign"):
        office.contract.call(CLIENT, "refuse", slot)
    wrong = signature(keccak(encode(["bytes16", "bytes32"], [REFUSE, slot])), bytes(31) + b"\x06")
    for bad in (wrong, office.agreed(office.terms())):
        with pytest.raises(Reverted, match="did not sign"):
            office.contract.call(CLIENT, "refuse_signed", slot, *bad)
    office.contract.call(
        CLIENT, "refuse_signed", slot, *signature(keccak(encode(["bytes16", "bytes32"], [REFUSE, slot])))
    )
    with pytest.raises(Reverted, match="refused already"):
        office.contract.call(WORKER, "refuse", slot)
    office.chain.advance(10_000)
    office.contract.call(CLIENT, "take_refund")
    office.contract.call(ANYONE, "collect", slot)
    assert (office.tokens(CLIENT), office.tokens(WORKER)) == (99_750, 250)
    with pytest.raises(Reverted, match="nothing is due"):
        office.contract.call(CLIENT, "take_refund")


def test_a_slot_needs_the_worker_s_word_for_all_of_it_and_is_taken_once() -> None:
    office = Office()
    terms = office.terms()
    signed = office.agreed(terms)
    for at in range(4):
        changed = tuple(value + 1 if index == at else value for index, value in enumerate(terms))
        with pytest.raises(Reverted, match="did not sign"):
            office.reserve(changed, signed)
    with pytest.raises(Reverted, match="did not sign"):
        office.reserve(terms, signed, client=ANYONE)
    with pytest.raises(Reverted, match="did not sign"):
        office.reserve(terms, office.agreed(terms, key=bytes(31) + b"\x06"))
    office.reserve(terms, signed)
    with pytest.raises(Reverted, match="slot is taken"):
        office.reserve(terms, signed)
    for bad in (office.terms(stop=NOW), office.terms(start=NOW + 1100), office.terms(stop=NOW + 400 * 86400)):
        with pytest.raises(Reverted, match="no such time"):
            office.reserve(bad)
    with pytest.raises(Reverted, match="nothing to reserve"):
        office.reserve(office.terms(amount=0))
    with pytest.raises(Reverted, match="no such slot"):
        office.contract.call(ANYONE, "refuse_signed", bytes(32), *signed)


def test_any_sequence_accounts_for_every_unit() -> None:
    office, rng = Office(fee=0), random.Random(11)
    slots: dict[bytes, int] = {}
    for step in range(300):
        action = rng.choice(["reserve", "time", "collect", "refuse", "refund"])
        now = office.chain.now
        try:
            if action == "reserve":
                start = now + rng.randint(-50, 100)
                terms = office.terms(start, start + rng.randint(60, 500), rng.randint(1, 500), step + 1)
                slots[office.reserve(terms)] = terms[3]
            elif action == "time":
                office.chain.advance(rng.randint(1, 100))
            elif action == "refund":
                office.contract.call(CLIENT, "take_refund")
            elif slots:
                sender = WORKER if action == "refuse" else ANYONE
                office.contract.call(sender, action, rng.choice(list(slots)))
        except Reverted:
            continue
    office.chain.advance(10_000)
    for slot in slots:
        try:
            office.contract.call(ANYONE, "collect", slot)
        except Reverted:
            continue
    refund = office.contract.call(CLIENT, "refunds", f"0x{CLIENT}")
    assert office.tokens(office.contract.address) == refund
    assert office.tokens(CLIENT) + office.tokens(WORKER) + refund == 100_000
    assert office.tokens(WORKER) > 0
