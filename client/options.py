"""What can be asked for when text is generated. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from client.stops import check_stops
from swarm.errors import UsageError
from swarm.messages import Sampling

MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 20  # as in the usual HTTP interfaces
MAX_LOGIT_BIASES = 1024  # what a worker accepts
MAX_SEED = 2**63 - 1


class Options(TypedDict, total=False):
    """The keyword arguments that every way to generate takes; `GenerateOptions` says what they mean."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int | None
    stop: str | Sequence[str]
    max_spend: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How to generate. Raises `UsageError` for what cannot be."""

    max_tokens: int = 128
    """The most tokens to write; fewer where the model's context ends."""
    temperature: float = 0.0
    """0 is greedy: always the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 from all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the likeliest."""
    seed: int | None = None
    """The same seed draws the same text; None takes one at random."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    """Token id → what is added to its logit."""
    logprobs: int | None = None
    """None for none, else each token's log-probability and those of this many likeliest."""
    stop: str | Sequence[str] = ()
    """The text ends before the first of these; what comes after is not billed."""
    max_spend: int | None = None
    """Base units that the call may cost at most."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        check_stops(stop)
        check_whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
        check_whole("top_k", self.top_k, 0, 2**31 - 1)
        check_whole("seed", 0 if self.seed is None else self.seed, 0, MAX_SEED)
        check_whole("logprobs", 0 if self.logprobs is None else self.logprobs, 0, MAX_LOGPROBS)
        check_whole("max_spend", 0 if self.max_spend is None else self.max_spend, 0, 2**127)
        _number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), -100.0, 100.0)
        if self.top_p == 0 or self.repetition_penalty == 0:
            raise UsageError("top_p and repetition_penalty must be above 0")
        self._check_bias()

    def sampling(self) -> Sampling:
        """The settings as they travel; without a seed, with a fresh one."""
        seed = self.seed
        if seed is None:
            seed = secrets.randbits(63) if self.temperature else 0
        return Sampling(
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            top_k=self.top_k,
            min_p=float(self.min_p),
            seed=seed,
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            repetition_penalty=float(self.repetition_penalty),
            logit_bias={token: float(bias) for token, bias in (self.logit_bias or {}).items()},
            logprobs=-1 if self.logprobs is None else self.logprobs,
        )

    def _check_bias(self) -> None:
        bias = self.logit_bias or {}
        if len(bias) > MAX_LOGIT_BIASES:
            raise UsageError(f"logit_bias names {len(bias)} tokens, more than {MAX_LOGIT_BIASES}; name fewer")
        for token, value in bias.items():
            check_whole("a token in logit_bias", token, 0, 2**31 - 1)
            _number("a value in logit_bias", value, -1e4, 1e4)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise `UsageError` unless ``value`` is a whole number of that range."""
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; give a whole number from {least} to {most}")


def _number(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; give a number from {least:g} to {most:g}")
