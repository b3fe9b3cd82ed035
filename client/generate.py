"""Generating text: a prompt becomes a call, and the call's tokens become text, up to a stop.

`Transcript` is the decision part, without I/O: tokens in, text to show out, and how many tokens were accepted. What
comes after a stop string is neither shown nor billed. `stream_text` is the driver around one call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio

from client.options import GenerateOptions, check_whole
from client.stops import StopStrings
from client.template import ChatTemplate
from swarm.errors import ClosedError, ProtocolError, UsageError
from swarm.ids import CallId
from swarm.messages import Tokens

if TYPE_CHECKING:  # the calling half takes 0.2 s to import; whoever has a node has paid for it
    from client.call import CallRequest, CallSummary, StageSummary
    from client.node import Model
    from client.tokenizer import Tokenizer
    from swarm.receipts import SignedReceipt


class CallLike(Protocol):
    """What is used of `client.call.Call`."""

    call_id: CallId

    def __aiter__(self) -> AsyncIterator[Tokens]: ...

    async def finish(self, tokens: int | None = None) -> CallSummary: ...


class Node(Protocol):
    """What is used of `client.node.ClientNode`."""

    async def model(self, reference: str) -> Model: ...

    def open_call(self, model: Model, request: CallRequest) -> AbstractAsyncContextManager[CallLike]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt that the model's chat template writes."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None


Prompt = str | Sequence[int] | Chat


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A model with its tokenizer loaded."""

    model: Model
    tokenizer: Tokenizer

    def chat_template(self, *, tools: bool = False) -> ChatTemplate:
        """The template for chats, with ``tools`` the one for tools where the model has one of its own.

        Raises `UsageError` for a model without one.
        """
        sources = self.tokenizer.chat_template_sources
        source = sources.get("tool_use" if tools else "default", sources.get("default"))
        if source is None:
            raise UsageError(f"{self.model.manifest.name} has no chat template; give it a prompt instead of messages")
        return ChatTemplate(
            source=source, variables=self.tokenizer.special_tokens, publisher=self.model.manifest.publisher
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token's log-probability under the model, and the likeliest (id, log-probability) in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """The next piece of a text."""

    text: str
    """May be empty while a character, or what may be a stop string, is not complete."""
    ids: tuple[int, ...]
    finish: str = ""
    """``stop`` or ``length`` on the last piece."""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was counted and billed."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A finished generation."""

    text: str
    token_ids: tuple[int, ...]
    """The accepted tokens, an end token included."""
    finish_reason: str
    """``stop`` or ``length``."""
    usage: Usage
    cost: int
    """Base units, all stages together."""
    receipts: tuple[SignedReceipt, ...]
    chain: tuple[StageSummary, ...]
    call_id: CallId
    seconds: float
    ms_per_token: float | None
    """Between the first token and the last; None for fewer than two."""
    logprobs: tuple[TokenLogprob, ...] = ()


class Transcript:
    """The text of one call as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.ids: list[int] = []
        """The accepted tokens."""
        self.finish = ""
        self.logprobs: list[TokenLogprob] = []
        self._parts: list[str] = []
        self._vocabulary = tokenizer.vocabulary
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(stops)

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._parts)

    def take(self, tokens: Tokens) -> TextDelta:
        """The piece that these tokens add; nothing is taken after ``finish`` is set."""
        before, shown = len(self.ids), ""
        for index, token in enumerate(tokens.ids):
            if not 0 <= token < 2**32:
                raise ProtocolError(f"token id {token} is outside every vocabulary")
            last = index == len(tokens.ids) - 1
            shown += self._accept(token, tokens.finish if last else "")
            if index < len(tokens.logprobs):
                logprob, top = tokens.logprobs[index]
                self.logprobs.append(TokenLogprob(token=token, logprob=logprob, top=top))
            if self.finish:
                break
        self._parts.append(shown)
        logprobs = tuple(self.logprobs[before:]) if tokens.logprobs else ()
        return TextDelta(text=shown, ids=tuple(self.ids[before:]), finish=self.finish, logprobs=logprobs)

    def _accept(self, token: int, finish: str) -> str:
        """One token; ``finish`` if the call ends with it. A token that ends the text has none itself."""
        self.ids.append(token)
        text = "" if finish == "stop" else self._detokenizer.push((token,))
        if finish:
            text += self._detokenizer.flush()
        shown = self._stops.push(text)
        if self._stops.matched is not None:
            self.finish = "stop"
        elif finish:
            self.finish = "stop" if finish == "stop" else "length"
            shown += self._stops.flush()
        return shown


async def load_text_model(model: Model) -> TextModel:
    """Load the model's tokenizer, in a thread. Raises `UsageError`, `ProtocolError` for what cannot be loaded."""
    from client.tokenizer import Tokenizer

    tokenizer = await trio.to_thread.run_sync(Tokenizer.load, model.objects, model.manifest.config)
    return TextModel(model=model, tokenizer=tokenizer)


async def prompt_ids(text_model: TextModel, prompt: Prompt) -> tuple[int, ...]:
    """The prompt as token ids, checked against the model's vocabulary and context.

    Raises `UsageError` for an empty prompt, one that fills the context, or an id outside the vocabulary.
    """
    manifest, tokenizer = text_model.model.manifest, text_model.tokenizer
    if isinstance(prompt, Chat):
        template = text_model.chat_template(tools=bool(prompt.tools))
        rendered = await template.render(prompt.messages, tools=prompt.tools)
        ids = await trio.to_thread.run_sync(lambda: tokenizer.encode(rendered, special=False))
    elif isinstance(prompt, str):
        ids = await trio.to_thread.run_sync(tokenizer.encode, prompt)
    else:
        ids = tuple(prompt)
    if not ids:
        raise UsageError("the prompt is empty; give at least one token")
    for token in ids:
        check_whole("a token id of the prompt", token, 0, manifest.vocabulary - 1)
    if len(ids) >= manifest.context:
        raise UsageError(
            f"the prompt has {len(ids)} tokens and {manifest.name} a context of {manifest.context}, "
            "which must hold at least one more; shorten the prompt"
        )
    return ids


@trio.as_safe_channel
async def stream_text(
    node: Node, text_model: TextModel, prompt: Prompt, options: GenerateOptions
) -> AsyncGenerator[TextDelta | Reply, None]:
    """Generate: the text piece by piece, then the `Reply`. Leaving the channel's block early stops work and bill.

    Raises what `prompt_ids` and the node's ``open_call`` raise, and `ClosedError` for a call that ends without an end.
    """
    from client.call import CallRequest

    ids = await prompt_ids(text_model, prompt)
    request = CallRequest(
        prompt_ids=ids,
        max_tokens=min(options.max_tokens, text_model.model.manifest.context - len(ids)),
        sampling=options.sampling(),
        stop_ids=text_model.tokenizer.eos_ids,
        max_spend=options.max_spend,
    )
    transcript = Transcript(text_model.tokenizer, options.stop)
    async with node.open_call(text_model.model, request) as call:
        async for tokens in call:
            yield transcript.take(tokens)
            if transcript.finish:
                break
        if not transcript.finish:
            raise ClosedError("the call ended before its text did; call again", call_id=call.call_id)
        summary = await call.finish(len(transcript.ids))
    yield reply_of(transcript, summary)


def reply_of(transcript: Transcript, summary: CallSummary) -> Reply:
    """What the caller gets in the end."""
    count = len(transcript.ids)
    between = None
    if summary.first_token_seconds is not None and count > 1:
        between = 1000 * (summary.seconds_to_last_token - summary.first_token_seconds) / (count - 1)
    return Reply(
        text=transcript.text,
        token_ids=tuple(transcript.ids),
        finish_reason=transcript.finish,
        usage=Usage(prompt_tokens=summary.prompt_tokens, completion_tokens=count),
        cost=summary.cost,
        receipts=summary.receipts,
        chain=summary.stages,
        call_id=summary.call_id,
        seconds=summary.seconds,
        ms_per_token=between,
        logprobs=tuple(transcript.logprobs),
    )
