"""From a prompt to a reply over a call, with the shipped fake in the place of workers."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from client.generate import Chat, Prompt, Reply, TextDelta, Transcript, load_text_model, prompt_ids, stream_text
from client.options import GenerateOptions, Options
from client.stops import cut_at_stop
from client.testing import FakeNode, FakeScript, fake_model
from client.tokenizer import Tokenizer
from swarm.errors import ClosedError, ProtocolError, SwarmError, UnreachableError, UsageError
from swarm.messages import Tokens
from tests.client.tokenizers_here import demo_objects

MODEL = fake_model(demo_objects())
DEMO = Tokenizer.load(demo_objects())
TEXT = "    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)  # héé 😀\n"


async def _generate(
    node: FakeNode, prompt: Prompt = "def fib(n):", options: Options | None = None
) -> tuple[list[TextDelta], Reply]:
    text_model = await load_text_model(await node.model("demo"))
    deltas: list[TextDelta] = []
    async with stream_text(node, text_model, prompt, GenerateOptions(**(options or {}))) as channel:
        async for item in channel:
            if isinstance(item, Reply):
                return deltas, item
            deltas.append(item)
    raise AssertionError("no reply")


@pytest.mark.parametrize("group", [1, 3, 1000])
async def test_the_pieces_are_the_reply(group: int) -> None:
    node = FakeNode(MODEL, FakeScript(text=TEXT, group=group))
    deltas, reply = await _generate(node)
    assert reply.text == TEXT == "".join(delta.text for delta in deltas)
    assert reply.token_ids == (*DEMO.encode(TEXT, special=False), 1)
    assert reply.token_ids == tuple(token for delta in deltas for token in delta.ids)
    assert [delta.finish for delta in deltas] == [""] * (len(deltas) - 1) + ["stop"]
    assert reply.finish_reason == "stop"
    (call,) = node.calls
    assert call.request.prompt_ids == DEMO.encode("def fib(n):")
    assert call.request.stop_ids == (1,)
    assert (call.accepted, call.cancelled) == (len(reply.token_ids), False)
    assert reply.call_id == call.call_id
    assert reply.usage.total_tokens == len(call.request.prompt_ids) + len(reply.token_ids)
    assert reply.cost == len(call.request.prompt_ids) + 2 * len(reply.token_ids) == reply.chain[0].earned
    reply.receipts[0].verify()
    assert reply.ms_per_token == pytest.approx(10.0)


@given(stops=st.lists(st.sampled_from(["\n", "n", "return n\n", "fib(", "é 😀", "zzz", "if n < 2:"]), max_size=3))
@settings(max_examples=25, deadline=None)
def test_the_text_ends_before_a_stop_string_and_tokens_after_it_are_not_billed(stops: list[str]) -> None:
    for group in (1, 5):
        node = FakeNode(MODEL, FakeScript(text=TEXT, group=group))
        _, reply = trio.run(_generate, node, "def fib(n):", Options(stop=stops))
        expected, stop = cut_at_stop(TEXT, stops)
        assert reply.text == expected
        assert reply.finish_reason == "stop"
        accepted = list(reply.token_ids)
        assert node.calls[0].accepted == len(accepted)
        assert accepted == node.calls[0].sent[: len(accepted)]
        if stop is not None:
            assert stop in DEMO.decode(accepted)
            assert cut_at_stop(DEMO.decode(accepted[:-1]), stops)[1] is None, "a token too many was accepted"


async def test_a_stop_string_completed_by_the_last_token_ends_it_as_one() -> None:
    _, reply = await _generate(FakeNode(MODEL, FakeScript(text="one two")), options={"stop": "two", "max_tokens": 128})
    assert (reply.text, reply.finish_reason) == ("one ", "stop")


async def test_what_might_have_become_a_stop_string_is_shown_at_the_end() -> None:
    deltas, reply = await _generate(FakeNode(MODEL, FakeScript(text="one tw")), options={"stop": "two"})
    assert reply.text == "one tw"
    assert deltas[-1].text.endswith("tw")


async def test_max_tokens_is_a_length() -> None:
    node = FakeNode(MODEL, FakeScript(text=TEXT, endless=True))
    _, reply = await _generate(node, options={"max_tokens": 7})
    assert reply.finish_reason == "length"
    assert len(reply.token_ids) == 7
    assert reply.text == DEMO.decode(reply.token_ids)


async def test_max_tokens_is_cut_to_the_context() -> None:
    node = FakeNode(MODEL, FakeScript(text=TEXT, endless=True))
    await _generate(node, list(range(1000)), {"max_tokens": 500})
    assert node.calls[0].request.max_tokens == 24


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * 1024, "1024 tokens .* context of 1024"),
        ("x = 1\n" * 3000, r"\d{4,} tokens .* context of 1024"),
        ([], "empty"),
        ([2048], "2048.*0 to 2047"),
        ([-1], "-1"),
        ([True], "True"),
        (Chat(messages=[]), "at least one"),
    ],
    ids=["full", "long", "empty", "unknown", "negative", "bool", "no-messages"],
)
async def test_a_prompt_that_cannot_be_is_refused_before_any_call(prompt: Prompt, message: str) -> None:
    node = FakeNode(MODEL, FakeScript(text=TEXT))
    with pytest.raises(UsageError, match=message):
        await _generate(node, prompt)
    assert not node.calls


async def test_a_chat_is_written_by_the_template_with_no_second_begin() -> None:
    node = FakeNode(MODEL, FakeScript(text="Yes."))
    await _generate(node, Chat(messages=[{"role": "user", "content": "Is it?"}]))
    assert node.calls[0].request.prompt_ids == DEMO.encode("<|user|>Is it?<|end|><|assistant|>")
    assert node.calls[0].request.prompt_ids.count(0) == 1


async def test_a_model_without_template_says_so() -> None:
    objects = {name: raw for name, raw in demo_objects().items() if name != "tokenizer_config.json"}
    text_model = await load_text_model(fake_model(objects))
    with pytest.raises(UsageError, match="no chat template"):
        await prompt_ids(text_model, Chat(messages=[{"role": "user", "content": "x"}]))


async def test_logprobs_come_with_their_tokens() -> None:
    deltas, reply = await _generate(FakeNode(MODEL, FakeScript(text="one two")), options={"logprobs": 1})
    assert [entry.token for entry in reply.logprobs] == list(reply.token_ids)
    assert reply.logprobs[0].top == ((reply.token_ids[0], -0.5),)
    assert tuple(entry for delta in deltas for entry in delta.logprobs) == reply.logprobs


async def test_leaving_early_cancels_the_call() -> None:
    node = FakeNode(MODEL, FakeScript(text=TEXT, endless=True))
    text_model = await load_text_model(MODEL)
    async with stream_text(node, text_model, "x", GenerateOptions()) as channel:
        async for _ in channel:
            break
    assert node.calls[0].cancelled
    assert len(node.calls[0].sent) == 1


async def test_a_call_that_breaks_off_is_an_error_with_its_id() -> None:
    node = FakeNode(MODEL, FakeScript(ids=(300, 301)))
    with pytest.raises(ClosedError) as caught:
        await _generate(node)
    assert caught.value.call_id == node.calls[0].call_id
    assert node.calls[0].cancelled


async def test_the_calls_own_error_comes_out_as_it_is() -> None:
    error: SwarmError = UnreachableError("gone")
    with pytest.raises(UnreachableError, match="gone"):
        await _generate(FakeNode(MODEL, FakeScript(text="one", error=error)))


def test_ids_that_no_tokenizer_has_are_the_peers_fault() -> None:
    with pytest.raises(ProtocolError):
        Transcript(DEMO).take(Tokens(0, 0, (2**32,)))
    assert Transcript(DEMO).take(Tokens(0, 0, (2**32 - 1,))).text == ""


def test_the_end_token_has_no_text_even_where_it_is_not_special() -> None:
    transcript = Transcript(DEMO)
    (word,) = DEMO.encode(" return", special=False)
    assert transcript.take(Tokens(0, 0, (word,))).text == " return"
    assert transcript.take(Tokens(0, 1, (word,), "stop")).text == ""
    assert transcript.ids == [word, word]
