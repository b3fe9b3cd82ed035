# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
"""
@title Test token
@license Apache-2.0
@notice An ERC-20 for demonstrations and tests. Whoever deploys it may mint without limit: it is worth nothing.
"""

from ethereum.ercs import IERC20

implements: IERC20


event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    amount: uint256


event Approval:
    owner: indexed(address)
    spender: indexed(address)
    amount: uint256


name: public(constant(String[32])) = "Swarm test token"
symbol: public(constant(String[8])) = "TEST"
decimals: public(constant(uint8)) = 6

minter: public(immutable(address))
totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__():
    """
    @notice Makes the deployer the minter.
    """
    minter = msg.sender


@external
def mint(receiver: address, amount: uint256):
    """
    @notice Makes tokens out of nothing; for the minter alone.
    @param receiver Who gets them.
    @param amount Base units.
    """
    assert msg.sender == minter, "only the minter mints"
    self.totalSupply += amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=empty(address), receiver=receiver, amount=amount)


@external
def transfer(receiver: address, amount: uint256) -> bool:
    """
    @notice Sends the caller's tokens.
    @param receiver Who gets them.
    @param amount Base units.
    @return True; a failure reverts.
    """
    self._move(msg.sender, receiver, amount)
    return True


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    """
    @notice Sends another's tokens that the caller was allowed to.
    @param sender Whose tokens.
    @param receiver Who gets them.
    @param amount Base units.
    @return True; a failure reverts.
    """
    assert self.allowance[sender][msg.sender] >= amount, "allowance too low"
    self.allowance[sender][msg.sender] -= amount
    self._move(sender, receiver, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Allows another to send the caller's tokens.
    @param spender Who may.
    @param amount Base units in all.
    @return True.
    """
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, amount=amount)
    return True


@internal
def _move(sender: address, receiver: address, amount: uint256):
    """
    @notice Moves tokens between balances.
    @param sender Whose tokens.
    @param receiver Who gets them.
    @param amount Base units.
    """
    assert self.balanceOf[sender] >= amount, "token balance too low"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, amount=amount)
