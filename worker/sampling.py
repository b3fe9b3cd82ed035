"""From logits to a token, the same on every machine.

Greedy is the first of the largest logits. Otherwise the order is: logit bias, penalties, temperature, top-k, top-p,
min-p, then the Gumbel-max draw: arg max of logit/temperature + noise, where the noise of token t at a position is a
function of (session seed, position, t) alone: Philox 4x64, key (seed, position), the t-th raw 64-bit output. So any
stage, spare or auditor that has the logits draws the same token, whatever was drawn before.

A draw's *position* is that of the drawn token: one more than the last input position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from swarm.errors import ProtocolError, UsageError
from swarm.messages import Sampling
from worker.stage import Draw

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

MAX_TOP_LOGPROBS: Final = 20  # what the usual HTTP interfaces allow; each costs bytes on the token path
MAX_LOGIT_BIASES: Final = 1024  # the usual limit; bounds the work per token


class Sampler:
    """Draws one session's tokens. Keeps the ids of the session only when a penalty needs them."""

    def __init__(self, sampling: Sampling, vocabulary: int, prompt_ids: Sequence[int] = ()) -> None:
        """Raises UsageError for settings that cannot be used with this model."""
        _check(sampling, vocabulary, prompt_ids)
        self.sampling = sampling
        self.greedy = sampling.temperature == 0.0
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float64)
        self._penalised = (
            sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0
        )
        self.plain = self.greedy and not self._penalised and not self._bias_ids.size and sampling.logprobs < 0
        """Whether the first of the largest logits is the whole answer."""
        self._prompt_length = len(prompt_ids)
        self._prompt = np.unique(np.asarray(prompt_ids, np.int64)) if self._penalised else np.empty(0, np.int64)
        self._generated: list[int] = []

    def observe(self, position: int, ids: Iterable[int]) -> None:
        """Tokens known to stand from ``position`` on (an input of the session); they replace what was drawn there."""
        if not self._penalised:
            return
        for at, token in enumerate(ids, position - self._prompt_length):
            if at == len(self._generated):
                self._generated.append(token)
            elif 0 <= at < len(self._generated) and self._generated[at] != token:
                self._generated[at:] = [token]

    def draw(self, logits: Logits, position: int) -> Draw:
        """The token at ``position`` from its [vocabulary] logits.

        Raises ProtocolError when a penalty needs tokens that were drawn elsewhere and never seen here, or when the
        logits are not finite.
        """
        if not np.isfinite(logits).all():
            raise ProtocolError("the activations overflow at the last stage; open a new session elsewhere")
        scores: Scores = logits.astype(np.float64)
        if self._bias_ids.size:
            scores[self._bias_ids] += self._bias
        if self._penalised:
            self._penalise(scores, position)
        token = int(scores.argmax()) if self.greedy else self._sample(scores, position)
        if self._penalised:
            self._generated.append(token)
        return self._with_logprobs(logits, token)

    def _penalise(self, scores: Scores, position: int) -> None:
        """Repetition counts prompt and completion; presence and frequency count the completion alone."""
        known = position - self._prompt_length
        if known > len(self._generated):
            raise ProtocolError(f"penalties need the tokens before position {position}; open the session with them")
        del self._generated[max(known, 0) :]
        ids, counts = np.unique(np.asarray(self._generated, np.int64), return_counts=True)
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            seen = np.union1d(self._prompt, ids)
            values = scores[seen]
            factor = sampling.repetition_penalty
            scores[seen] = np.where(values > 0, values / factor, values * factor)
        scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts

    def _sample(self, scores: Scores, position: int) -> int:
        sampling = self.sampling
        scores /= sampling.temperature
        ids = kept_tokens(scores, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
        noise = gumbel_noise(sampling.seed, position, scores.size)
        if ids is None:
            return int((scores + _gumbel(noise)).argmax())
        return int(ids[(scores[ids] + _gumbel(noise[ids])).argmax()])

    def _with_logprobs(self, logits: Logits, token: int) -> Draw:
        wanted = self.sampling.logprobs
        if wanted < 0:
            return Draw(token)
        shifted = logits.astype(np.float64) - float(logits.max())
        logprobs = shifted - np.log(np.exp(shifted).sum())
        likeliest = _largest(logprobs, wanted) if wanted else ()
        return Draw(token, float(logprobs[token]), tuple((int(t), float(logprobs[t])) for t in likeliest))


def kept_tokens(scores: Scores, *, top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.int64] | None:
    """The ids that top-k, then top-p, then min-p leave, likeliest first (ties: lower id first); None for all.

    top-p keeps the fewest tokens whose probabilities, renormalised after top-k, reach it; min-p keeps what is at least
    that fraction of the likeliest. The likeliest always stays.
    """
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return None
    ids = _largest(scores, top_k) if 0 < top_k < scores.size else np.argsort(-scores, kind="stable")
    weights = np.exp(scores[ids] - scores[ids[0]])
    count = ids.size
    if top_p < 1.0:
        cumulative = np.cumsum(weights)
        count = min(count, int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1)
    if min_p > 0.0:
        count = min(count, int(np.count_nonzero(weights >= min_p)))
    return ids[: max(count, 1)]


def gumbel_noise(seed: int, position: int, vocabulary: int) -> npt.NDArray[np.uint64]:
    """The raw 64-bit randomness of every token at a position."""
    key = np.array([seed, position], np.uint64)
    raw: npt.NDArray[np.uint64] = np.random.Philox(key=key).random_raw(vocabulary)
    return raw


def _gumbel(raw: npt.NDArray[np.uint64]) -> Scores:
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # the open interval (0, 1)
    noise: Scores = -np.log(-np.log(uniform))
    return noise


def _largest(scores: Scores, count: int) -> npt.NDArray[np.int64]:
    """The ids of the largest, in descending order, the lower id first among equals."""
    count = min(count, scores.size)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    ids = np.flatnonzero(scores >= threshold)
    return ids[np.argsort(-scores[ids], kind="stable")][:count]


def _check(sampling: Sampling, vocabulary: int, prompt_ids: Sequence[int]) -> None:
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise UsageError(f"logit_bias names more than {MAX_LOGIT_BIASES} tokens; name fewer")
    if any(not 0 <= token < vocabulary for token in (*sampling.logit_bias, *prompt_ids)):
        raise UsageError(f"a token id lies outside the vocabulary of {vocabulary}")
    numbers = (
        sampling.temperature,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        *sampling.logit_bias.values(),
    )
    if not np.isfinite(np.asarray(numbers, np.float64)).all() or sampling.temperature < 0:
        raise UsageError("sampling settings must be finite numbers, the temperature not negative")
    if sampling.repetition_penalty <= 0 or not 0 < sampling.top_p <= 1 or not 0 <= sampling.min_p <= 1:
        raise UsageError("repetition_penalty must be positive, top_p within (0, 1] and min_p within [0, 1]")
    if sampling.top_k < 0 or not 0 <= sampling.seed < 2**64 or sampling.logprobs > MAX_TOP_LOGPROBS:
        raise UsageError(f"top_k and seed must not be negative and logprobs at most {MAX_TOP_LOGPROBS}")
