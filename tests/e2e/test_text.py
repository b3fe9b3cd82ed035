"""Text through the library over a real ring: real workers, wire, vouchers and receipts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from client import Swarm
from client.call import Call, CallRequest, open_call
from client.node import Model
from client.streams import OpenNode
from swarm.demo import model_folder
from swarm.manifest import OBJECT_NAMES
from tests.swarms import LocalSwarm, open_local_swarm

PROMPT = "def fib(n):\n"


class RingNode:
    """A node whose workers are known: what `client.node.ClientNode` does once it has found them."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self.swarm = swarm
        self.calls: list[Call] = []

    async def model(self, reference: str) -> Model:
        """The bundled model."""
        signed = self.swarm.published.signed
        files = {name: model_folder() / name for name in OBJECT_NAMES}
        objects = {name: path.read_bytes() for name, path in files.items() if path.exists()}
        return Model(reference=reference, manifest=signed.manifest, manifest_id=signed.manifest_id, objects=objects)

    def open_call(self, model: Model, request: CallRequest) -> AbstractAsyncContextManager[Call]:
        """A call on two stages."""
        call = self.swarm.call(request, self.swarm.legs(4))
        self.calls.append(call)
        return open_call(call)


def _opener(path: Path, nodes: list[RingNode]) -> OpenNode:
    @asynccontextmanager
    async def open_node() -> AsyncIterator[RingNode]:
        async with open_local_swarm(path, [(0, 8)] * 2) as swarm:
            nodes.append(RingNode(swarm))
            yield nodes[-1]

    return open_node


def test_plain_code_gets_text_receipts_and_only_what_it_accepted(tmp_path: Path) -> None:
    nodes: list[RingNode] = []
    with Swarm(open_node=_opener(tmp_path, nodes)) as swarm:
        reply = swarm.generate("demo", PROMPT, max_tokens=24)
        assert len(reply.token_ids) == 24
        assert reply.finish_reason == "length"
        assert reply.cost == sum(signed.receipt.amount for signed in reply.receipts) > 0
        for signed in reply.receipts:
            signed.verify()

        stop = reply.text[20:23]
        stream = swarm.stream("demo", PROMPT, max_tokens=24, stop=stop)
        text = "".join(delta.text for delta in stream)
        assert text == reply.text[: reply.text.index(stop)]
        stopped = stream.reply
        assert stopped is not None
        assert stopped.token_ids == reply.token_ids[: len(stopped.token_ids)]
        assert len(stopped.receipts) == 2
        assert {signed.receipt.output_tokens for signed in stopped.receipts} == {len(stopped.token_ids)}
        assert stopped.cost < reply.cost

        drawn = [swarm.generate("demo", PROMPT, max_tokens=16, temperature=1.0, seed=seed).text for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]

        with swarm.stream("demo", PROMPT, max_tokens=900) as abandoned:
            next(abandoned)
        assert nodes[0].calls[-1].finish_reason == ""
        assert swarm.chat("demo", [{"role": "user", "content": "What does sorted() do?"}], max_tokens=8).text
