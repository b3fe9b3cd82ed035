"""A development chain in one process: py-evm behind JSON-RPC on loopback, the contracts deployed at start.

It mines a block per transaction and keeps everything in memory, and its one account's key is public: nothing on it is
worth anything. Other processes reach it by URL like any node. A signature check costs it several tenths of a second
of processor time; requests are served one after another.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

import trio
from eth.abc import SignedTransactionAPI, StateAPI
from eth.exceptions import PyEVMError
from eth.vm.spoof import SpoofTransaction
from eth_abi.abi import encode
from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from eth_tester.exceptions import ValidationError as TesterError
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError as EvmError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]
from web3 import EthereumTesterProvider, Web3
from web3.datastructures import NamedElementOnion
from web3.types import RPCEndpoint

from swarm import contracts
from swarm.deployment import Terms, creation_record
from swarm.errors import ResourceError, UsageError
from swarm.ids import Address

# py-evm raises the interpreter's recursion limit tenfold when imported, for depths of calls that no contract here
# reaches; nested JSON would then overflow the C stack. Back to Python's own.
sys.setrecursionlimit(1000)

CHAIN_ID = 1337
CLOSE_WINDOW = 24 * 3600  # seconds
POOL = Address(b"\x0f" * Address.size)  # nobody's account: on this chain the fee is shown, not spent
DEPLOY_GAS = 8_000_000  # the settlement contracts take 5.3 M each
MAX_REQUEST = 1 << 20  # bytes: the largest that comes is a contract's deployment, 45 kB in hexadecimal
MAX_CALLS = 100  # calls in one batch request; web3 sends at most as many
SOCKET_TIMEOUT = 10.0  # seconds that a client may stall inside its request
LOOPBACK = ("127.0.0.1", "localhost")
METHODS = frozenset(
    {
        "eth_accounts", "eth_blockNumber", "eth_call", "eth_chainId", "eth_estimateGas", "eth_feeHistory",
        "eth_gasPrice", "eth_getBalance", "eth_getBlockByHash", "eth_getBlockByNumber", "eth_getCode", "eth_getLogs",
        "eth_getStorageAt", "eth_getTransactionByHash", "eth_getTransactionCount", "eth_getTransactionReceipt",
        "eth_maxPriorityFeePerGas", "eth_sendRawTransaction", "eth_sendTransaction", "eth_syncing",
        "evm_increaseTime", "evm_mine", "net_version", "web3_clientVersion",
    }
)  # fmt: skip
STAMPED = frozenset({"eth_sendRawTransaction", "eth_sendTransaction", "evm_mine"})  # methods that make a block

PARSE_ERROR = -32700  # the codes of the JSON-RPC 2.0 specification
INVALID_REQUEST = -32600
NO_SUCH_METHOD = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REFUSED = -32000  # what nodes answer to a transaction they do not take
REVERTED = 3  # what nodes answer to a call that reverts


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainAddress:
    """Where a running embedded chain is, and what was deployed on it."""

    url: str
    chain_id: int
    contract: Address
    token: Address
    batches: Address


class RpcError(Exception):
    """A call that is answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class EmbeddedChain:
    """The chain itself: JSON-RPC calls in, results out. Usable from any thread; calls run one at a time."""

    def __init__(self, *, close_window: int = CLOSE_WINDOW, terms: Terms | None = None) -> None:
        """Make a chain and deploy the test token and the settlement contracts.

        Without ``terms`` they are the defaults with this window in seconds, and the fee goes to `POOL`.
        """
        terms = terms or Terms(close_window=close_window, pool=POOL)
        self._lock = threading.Lock()
        self._ahead = 0
        self._backend = PyEVMBackend(genesis_state=PyEVMBackend.generate_genesis_state(num_accounts=1))
        # The class is made anew for every backend, so this changes no other chain in the process.
        type(self._backend.chain).chain_id = CHAIN_ID
        self._backend.chain.gas_estimator = _estimate
        provider = EthereumTesterProvider(EthereumTester(self._backend))
        self._request = provider.request_func(Web3(provider), NamedElementOnion([]))
        self.token = self._deploy("TestToken", b"")
        # Each deployment takes one nonce of the deployer, the token's took the first.
        deployer = Address.parse(self.call("eth_accounts", [])[0])
        self.batches = Address(keccak(creation_record(deployer, 2))[12:])
        self.contract = self._deploy("Settlement", terms.settlement_arguments(self.token, self.batches))
        if self._deploy("Batches", terms.batches_arguments(self.contract, self.token)) != self.batches:
            raise ResourceError("the embedded chain deployed Batches elsewhere; reinstall swarm-inference")

    def _deploy(self, name: str, arguments: bytes) -> Address:
        code = contracts.load(name).bytecode + arguments
        creation = {"from": self.call("eth_accounts", [])[0], "data": "0x" + code.hex(), "gas": hex(DEPLOY_GAS)}
        receipt = self.call("eth_getTransactionReceipt", [self.call("eth_sendTransaction", [creation])])
        if receipt["status"] != "0x1":
            raise ResourceError(f"the embedded chain did not deploy {name}; reinstall swarm-inference")
        return Address.parse(receipt["contractAddress"])

    def call(self, method: str, params: Sequence[Any]) -> Any:
        """One JSON-RPC call; the result is ready for JSON. Raises `RpcError` where it is refused."""
        if method not in METHODS:
            raise RpcError(NO_SUCH_METHOD, f"this chain has no method {method}")
        with self._lock:
            try:
                return self._dispatch(method, list(params))
            except TransactionFailed as error:
                raise _reverted(error) from error
            except (TesterError, EvmError, PyEVMError, RLPException) as error:
                raise RpcError(REFUSED, " ".join(str(error).split())) from error
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                raise RpcError(INVALID_PARAMS, f"{method} does not take these parameters") from error

    def _dispatch(self, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_chainId":
                return hex(CHAIN_ID)
            case "net_version":
                return str(CHAIN_ID)
            case "eth_gasPrice":
                return hex(2 * self._backend.get_base_fee())
            case "eth_getStorageAt":
                slot = int(params[1], 16)
                return f"0x{self._backend.get_storage(bytes.fromhex(params[0][2:]), slot):064x}"
            case "evm_increaseTime":
                seconds = params[0] if isinstance(params[0], int) else int(params[0], 16)
                if seconds < 0:
                    raise RpcError(INVALID_PARAMS, "time on a chain only moves forward")
                self._advance(seconds)
                return hex(self._ahead)
        if method in STAMPED:
            self._stamp()
        if method == "eth_call":
            params = [params[0], "latest" if params[1:2] == ["pending"] else (params[1:2] or ["latest"])[0]]
        if method == "evm_mine":
            params = []
        answer = self._request(RPCEndpoint(method), params)
        if "error" in answer:
            raise RpcError(NO_SUCH_METHOD, f"this chain has no method {method}")
        if method == "evm_mine":
            return "0x0"
        return _finish(method, _to_json(answer["result"]))

    def _advance(self, seconds: int) -> None:
        """Move the clock, and mine a block so that calls and estimates see the new time."""
        latest = self._backend.get_block_by_number("latest")["timestamp"]
        self._ahead = max(self._ahead, latest - int(time.time())) + seconds
        self._stamp()
        self._backend.mine_blocks()

    def _stamp(self) -> None:
        """Give the block in the making the present time: py-evm fixed it when the one before was mined."""
        chain = self._backend.chain
        now = int(time.time()) + self._ahead
        if now > chain.header.timestamp:
            chain.header = chain.header.copy(timestamp=now)


def answer_rpc(chain: EmbeddedChain, body: bytes) -> bytes:
    """The JSON answer to one JSON-RPC request body, a single call or a batch; empty for notifications."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return json.dumps(_error(None, RpcError(PARSE_ERROR, "not JSON"))).encode()
    if not isinstance(request, list):
        reply = _answer_call(chain, request)
        return b"" if reply is None else json.dumps(reply).encode()
    if not 0 < len(request) <= MAX_CALLS:
        return json.dumps(_error(None, RpcError(INVALID_REQUEST, f"a batch has 1 to {MAX_CALLS} calls"))).encode()
    replies = [reply for reply in (_answer_call(chain, call) for call in request) if reply is not None]
    return json.dumps(replies).encode() if replies else b""


async def serve_chain(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    close_window: int = CLOSE_WINDOW,
    terms: Terms | None = None,
    task_status: trio.TaskStatus[ChainAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a chain until cancelled; hands its `ChainAddress` on once it answers.

    Raises `UsageError` for a host that is not loopback, and `ResourceError` if the port is taken.
    """
    if host not in LOOPBACK:
        raise UsageError(f"an embedded chain serves this machine alone; use 127.0.0.1, not {host}")
    try:
        server = _Server(("127.0.0.1", port))  # takes connections from here on, and answers once there is a chain
    except OSError as error:
        raise ResourceError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
    try:
        server.chain = chain = await trio.to_thread.run_sync(
            lambda: EmbeddedChain(close_window=close_window, terms=terms)
        )
    except BaseException:
        server.server_close()
        raise
    url = f"http://127.0.0.1:{server.server_address[1]}"
    address = ChainAddress(
        url=url, chain_id=CHAIN_ID, contract=chain.contract, token=chain.token, batches=chain.batches
    )
    async with trio.open_nursery() as nursery:
        # A thread of its own for the accept loop; it ends by shutdown, below.
        nursery.start_soon(trio.to_thread.run_sync, server.serve_forever, 0.05)
        try:
            task_status.started(address)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(server.stop)


class _Server(ThreadingTCPServer):
    """Accepts connections, a thread for each; `stop` ends them all."""

    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True

    chain: EmbeddedChain  # set before it serves

    def __init__(self, address: tuple[str, int]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or stalled: nothing to tell anyone."""

    def stop(self) -> None:
        """End the accept loop, cut stalled clients off and wait for the calls in progress."""
        self.shutdown()
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                continue  # it closed by itself meanwhile
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """JSON-RPC over HTTP POST, one request per connection."""

    timeout = SOCKET_TIMEOUT
    server: _Server

    def do_POST(self) -> None:
        """Answer one request body."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Origin") is not None:
            # A page in a browser has no business with a chain whose accounts are unlocked.
            self._reply(403, b"")
        elif not (length.isascii() and length.isdigit()):
            self._reply(411, b"")
        elif int(length) > MAX_REQUEST:
            self._reply(413, b"")
        else:
            self._reply(200, answer_rpc(self.server.chain, self.rfile.read(int(length))))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _answer_call(chain: EmbeddedChain, request: Any) -> dict[str, Any] | None:
    call_id = request.get("id") if isinstance(request, dict) else None
    try:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            raise RpcError(INVALID_REQUEST, "not a JSON-RPC call")
        params = request.get("params", [])
        if not isinstance(params, list):
            raise RpcError(INVALID_PARAMS, "parameters are a list")
        result = chain.call(request["method"], params)
    except RpcError as error:
        return _error(call_id, error)
    except Exception as error:  # noqa: BLE001  # the caller is told; one bad call must not end its thread
        return _error(call_id, RpcError(INTERNAL_ERROR, f"the chain failed: {type(error).__name__}"))
    return {"jsonrpc": "2.0", "id": call_id, "result": result} if "id" in request else None


def _estimate(state: StateAPI, transaction: SignedTransactionAPI) -> int:
    """Gas by one execution and a tenth more, where py-evm's own estimator searches with a dozen executions."""
    spoofed: Any = SpoofTransaction(transaction, gas=state.gas_limit, gas_price=0)
    snapshot = state.snapshot()
    try:
        computation = state.apply_transaction(spoofed)
    finally:
        state.revert(snapshot)
    if computation.is_error:
        raise computation.error
    return (transaction.intrinsic_gas + computation.get_gas_used()) * 11 // 10


def _error(call_id: Any, error: RpcError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": call_id, "error": body}


def _reverted(error: TransactionFailed) -> RpcError:
    """A revert as nodes report it: the reason in the message, and ABI-encoded as `Error(string)` in the data."""
    reason = str(error.args[0]).removeprefix("execution reverted").removeprefix(": ")
    if not reason or reason.startswith("b'"):
        return RpcError(REVERTED, "execution reverted", "0x")
    return RpcError(REVERTED, f"execution reverted: {reason}", "0x08c379a0" + encode(["string"], [reason]).hex())


def _to_json(value: Any) -> Any:
    """Quantities and bytes as hexadecimal strings, all the way down."""
    match value:
        case bool() | None | str() | float():
            return value
        case int():
            return hex(value)
        case bytes():
            return "0x" + value.hex()
        case Mapping():
            return {key: _to_json(item) for key, item in value.items()}
        case _:
            return [_to_json(item) for item in value]


def _finish(method: str, result: Any) -> Any:
    """What eth-tester leaves out or writes in its own way."""
    if not isinstance(result, dict):
        return result
    if method == "eth_getTransactionReceipt":
        result.pop("state_root", None)
        result["to"] = result["to"] or None
        result.setdefault("logsBloom", "0x" + "00" * 256)
    if method.startswith("eth_getBlockBy"):
        result["logsBloom"] = "0x" + result["logsBloom"][2:].rjust(512, "0")
    return result
