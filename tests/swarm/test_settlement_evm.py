"""The web3 seam: what is particular to a real node. The rules are in test_settlement.py."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.deployment import Terms
from swarm.embedded_chain import CHAIN_ID, ChainAddress
from swarm.errors import PaymentError, ResourceError, UnreachableError, UsageError, VerificationError
from swarm.identity import Identity
from swarm.ids import Address
from swarm.settlement import AccountState, Settlement, Transaction
from swarm.settlement_evm import EvmSettlement, account_address, deploy, deploy_test_token, load_account
from tests.swarm.chains import running_chain

KEY = bytes(range(1, 33))
WINDOW = 600


@pytest.fixture(scope="module")
def chain() -> Iterator[ChainAddress]:
    with running_chain(WINDOW) as address:
        yield address


def connect(chain: ChainAddress, key: bytes = KEY) -> EvmSettlement:
    return EvmSettlement.connect(chain.url, chain.contract, account_key=key, chain_id=CHAIN_ID)


def test_it_says_what_it_is_connected_to(chain: ChainAddress) -> None:
    settlement: Settlement = connect(chain)
    assert settlement.chain_id == chain.chain_id == CHAIN_ID
    assert settlement.contract == chain.contract
    assert settlement.account == account_address(KEY)
    assert settlement.close_window == WINDOW
    assert connect(chain).token == chain.token


def test_a_wrong_chain_or_contract_is_refused(chain: ChainAddress) -> None:
    with pytest.raises(VerificationError, match="is on chain 1337, not 1; use another node"):
        EvmSettlement.connect(chain.url, chain.contract, account_key=KEY, chain_id=1)
    for address in (Address(b"\x01" * 20), chain.token):
        with pytest.raises(VerificationError, match="there is no settlement contract at 0x"):
            EvmSettlement.connect(chain.url, address, account_key=KEY)
    with pytest.raises(UsageError, match="account key"):
        EvmSettlement.connect(chain.url, chain.contract, account_key=bytes(32))


def test_no_node_is_one_line_that_says_what_to_do() -> None:
    with running_chain(WINDOW) as chain:
        settlement = connect(chain)
    with pytest.raises(UnreachableError, match="no chain node answers at http") as caught:
        settlement.deposit(1)
    assert "swarm chain" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreachableError, match="no chain node answers"):
        EvmSettlement.connect(chain.url, chain.contract, account_key=KEY)


def test_an_account_without_coins_cannot_pay_the_fee(chain: ChainAddress) -> None:
    poor = connect(chain, b"\x02" * 32)
    with pytest.raises(PaymentError, match="the account cannot pay the fee"):
        poor.register_spending_key(Identity(bytes(32)).peer_id)


def test_funding_and_a_deposit_that_approves_only_once(chain: ChainAddress) -> None:
    settlement = connect(chain, b"\x03" * 32)
    settlement.fund(settlement.account, native=10**18, tokens=500)
    before = AccountState(address=settlement.account, free_balance=0, spending_key=None, token_balance=500)
    assert settlement.account_state(settlement.account) == before
    with pytest.raises(PaymentError, match="token balance too low; fund the account"):
        settlement.deposit(501)
    # The approval of the refused deposit stands, so that this one needs none.
    first = settlement.deposit(300)
    second = settlement.deposit(200)
    assert isinstance(first, Transaction)
    assert len(first.hash) == 32
    assert first.gas > second.gas > 21_000
    assert settlement.account_state(settlement.account).free_balance == 500


def test_threads_share_one_account(chain: ChainAddress) -> None:
    settlement = connect(chain, b"\x04" * 32)
    settlement.fund(settlement.account, native=10**18, tokens=100)
    settlement.deposit(40)
    failures: list[PaymentError] = []

    def withdraw() -> None:
        try:
            settlement.withdraw(10)
        except PaymentError as error:
            failures.append(error)

    threads = [threading.Thread(target=withdraw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert settlement.account_state(settlement.account).token_balance == 100


def test_a_second_contract_with_its_own_token(chain: ChainAddress) -> None:
    connect(chain).fund(account_address(KEY), native=10**18, tokens=0)
    token = deploy_test_token(chain.url)
    contract, _ = deploy(chain.url, account_key=KEY, token=token, terms=Terms(close_window=5, fee_bps=0))
    settlement = EvmSettlement.connect(chain.url, contract, account_key=KEY)
    assert (settlement.token, settlement.close_window) == (token, 5)
    assert token != chain.token
    with pytest.raises(PaymentError, match="token has no code"):
        deploy(chain.url, account_key=KEY, token=Address(b"\x01" * 20), terms=Terms(close_window=5, fee_bps=0))


def test_an_account_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "account"
    with pytest.raises(ResourceError, match="cannot use the account key"):
        load_account(path, create=False)
    key, address = load_account(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_account(path) == (key, address)
    assert address == account_address(key)
    assert os.listdir(path.parent) == ["account"]
    path.chmod(0o644)
    with pytest.raises(ResourceError, match="run: chmod 600"):
        load_account(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ResourceError, match="is damaged"):
        load_account(path)


def test_the_address_of_a_key_is_the_usual_one() -> None:
    assert account_address((1).to_bytes(32, "big")).hex() == "7e5f4552091a69125d5dfcb7b8c2659029395bdf"
