"""The embedded chain as a node: JSON-RPC, its limits, its clock, its end."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from swarm.embedded_chain import (
    CHAIN_ID,
    MAX_CALLS,
    MAX_REQUEST,
    ChainAddress,
    EmbeddedChain,
    RpcError,
    answer_rpc,
    serve_chain,
)
from swarm.errors import ResourceError, UsageError
from tests.swarm.chains import running_chain


@pytest.fixture(scope="module")
def served() -> Iterator[ChainAddress]:
    with running_chain(60) as address:
        yield address


@pytest.fixture(scope="module")
def chain() -> EmbeddedChain:
    return EmbeddedChain(close_window=60)


def post(served: ChainAddress, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", "/", body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(chain: EmbeddedChain, request: Any) -> Any:
    return json.loads(answer_rpc(chain, json.dumps(request).encode()))


def rpc(method: str, *params: Any, call_id: int = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "method": method, "params": list(params)}


def test_calls_and_batches(served: ChainAddress) -> None:
    status, body = post(served, json.dumps(rpc("eth_chainId")).encode())
    assert (status, json.loads(body)) == (200, {"jsonrpc": "2.0", "id": 1, "result": hex(CHAIN_ID)})
    batch = [rpc("net_version"), rpc("eth_nothing", call_id=2), {"jsonrpc": "2.0", "method": "eth_chainId"}]
    status, body = post(served, json.dumps(batch).encode())
    answers = json.loads(body)
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[0]["result"] == str(CHAIN_ID)
    assert answers[1]["error"]["code"] == -32601


def test_what_http_does_not_carry(served: ChainAddress) -> None:
    assert post(served, b"{}", {"Content-Length": str(MAX_REQUEST + 1)})[0] == 413
    assert post(served, b"", {"Content-Length": "-1"})[0] == 411
    assert post(served, b"{}", {"Origin": "http://a.page"})[0] == 403


def test_malformed_requests_are_answered_as_json_rpc_says(chain: EmbeddedChain) -> None:
    assert json.loads(answer_rpc(chain, b"{not json"))["error"]["code"] == -32700
    assert json.loads(answer_rpc(chain, b"[" * 100_000))["error"]["code"] == -32700
    for bad in (7, {"id": 1}, {"id": 1, "method": 5}, [], [rpc("eth_chainId")] * (MAX_CALLS + 1)):
        answer = ask(chain, bad)
        assert answer["error"]["code"] == -32600, bad
    for call in (
        {"id": 1, "method": "eth_chainId", "params": {}},
        rpc("eth_getBalance"),
        rpc("eth_getBalance", 5, "latest"),
        rpc("eth_sendRawTransaction", None),
        rpc("eth_getStorageAt", "0x00", "x"),
        rpc("evm_increaseTime", -1),
        rpc("eth_call", "no object", "latest"),
    ):
        assert ask(chain, call)["error"]["code"] in (-32602, -32000), call
    assert answer_rpc(chain, b'{"method": "eth_chainId"}') == b""


def test_a_bad_transaction_is_refused(chain: EmbeddedChain) -> None:
    for raw in ("0x", "0x00", "0x02" + "c0", "0xdeadbeef", "zz"):
        assert ask(chain, rpc("eth_sendRawTransaction", raw))["error"]["code"] in (-32602, -32000), raw
    assert int(chain.call("eth_blockNumber", []), 16) == 3


def test_blocks_receipts_and_state_have_a_nodes_form(chain: EmbeddedChain) -> None:
    account = chain.call("eth_accounts", [])[0]
    block = chain.call("eth_getBlockByNumber", ["0x2", False])
    assert len(block["logsBloom"]) == 2 + 512
    assert chain.call("eth_getBlockByHash", [block["hash"], False]) == block
    assert int(block["gasLimit"], 16) >= 30_000_000
    (created,) = block["transactions"]
    receipt = chain.call("eth_getTransactionReceipt", [created])
    assert (receipt["to"], receipt["status"]) == (None, "0x1")
    assert receipt["contractAddress"].lower() == f"0x{chain.contract}"
    assert chain.call("eth_getTransactionByHash", [created])["hash"] == created
    assert chain.call("eth_getTransactionReceipt", ["0x" + "11" * 32]) is None
    assert len(chain.call("eth_getCode", [f"0x{chain.contract}", "latest"])) > 10_000
    assert chain.call("eth_getStorageAt", [f"0x{chain.contract}", "0x0", "latest"]) == "0x" + "00" * 32
    assert int(chain.call("eth_getTransactionCount", [account, "pending"]), 16) == 3
    assert int(chain.call("eth_gasPrice", []), 16) > 0
    assert chain.call("eth_getLogs", [{"fromBlock": "0x0", "toBlock": "latest"}]) == []


def test_a_revert_carries_its_reason(chain: EmbeddedChain) -> None:
    # withdraw(uint256) of 1 by an account without a balance
    call = {"to": f"0x{chain.contract}", "data": "0x2e1a7d4d" + (1).to_bytes(32, "big").hex()}
    for method in ("eth_call", "eth_estimateGas"):
        with pytest.raises(RpcError, match="execution reverted: free balance too low") as caught:
            chain.call(method, [call] if method == "eth_estimateGas" else [call, "latest"])
        assert caught.value.code == 3
        assert caught.value.data is not None
        assert caught.value.data.startswith("0x08c379a0")


def test_the_clock_moves_on_request(chain: EmbeddedChain) -> None:
    def now() -> int:
        return int(chain.call("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)

    before = now()
    chain.call("evm_increaseTime", [1000])
    chain.call("evm_mine", [])
    assert before + 1000 <= now() <= before + 1100
    chain.call("evm_increaseTime", [hex(1000)])
    assert now() >= before + 2000


async def test_only_loopback_and_only_a_free_port() -> None:
    with pytest.raises(UsageError, match=r"use 127\.0\.0\.1"):
        await serve_chain("0.0.0.0")  # noqa: S104
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} cannot be used"):
            await serve_chain(port=port)


async def test_it_ends_at_once_though_a_client_stalls() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve_chain)
            stream = await trio.open_tcp_stream("127.0.0.1", int(address.url.rpartition(":")[2]))
            await stream.send_all(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
            nursery.cancel_scope.cancel()
        await stream.aclose()
