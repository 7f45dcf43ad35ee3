"""Sample several answers to each of some prompts: what a stage that learns from rewards learns on.

An answer is a function of the weights, of the prompts that are sampled together, and of numbers
that are keyed by (seed, row, answer, position). So answers need not be kept: a run that was killed
samples the same ones again. Tokens are drawn on the device, at temperature 1, and no id is left out
because it is unlikely.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pion.data.order import key_of
from pion.errors import BadInput
from pion.generation.decoding import PROMPT_PIECE, cache_tokens, every_logits, last_logits
from pion.generation.step_graphs import StepGraphs
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder

# Probabilities are added up in blocks of so many ids.
BLOCK = 256


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt, and the number of its row, which decides what is drawn."""

    row: int
    ids: Sequence[int]


@dataclass
class Rollout:
    """An answer, and the log-probability in nats of each of its ids, by the model that drew them.

    The last of `ids` is a stop id if the answer is `finished`.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True)
class RolloutSettings:
    """How answers are sampled: so many to each prompt, each of at most `max_tokens` ids.

    Ids of `vocab_size` and above are never drawn, and an id of `stop_ids` ends an answer.
    """

    answers: int
    max_tokens: int
    stop_ids: frozenset[int]
    vocab_size: int
    seed: int


class Sampler:
    """Samples answers to prompts of at most `longest` ids.

    At most `rows` answers are sampled together, and at least those to one prompt. Raises BadInput
    if a prompt and its answer don't fit the context.
    """

    def __init__(
        self, model: Decoder, sampling: RolloutSettings, *, rows: int, longest: int
    ) -> None:
        room = longest + sampling.max_tokens
        if room > model.config.seq_len:
            raise BadInput(
                f"a prompt of {longest} tokens and an answer of {sampling.max_tokens} do not fit "
                f"the model's context of {model.config.seq_len}: lower max_tokens"
            )
        self._model, self._sampling = model, sampling
        self._together = max(1, rows // sampling.answers)
        self._cache = KVCache(model.config, room, self._together * sampling.answers)
        # From the first token on: else the bits would depend on how long the process lives.
        self._graphs = StepGraphs(model, self._cache, captured_step=1)

    def sample(self, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Return the answers to each prompt. Raises BadInput if the model predicts NaN."""
        rollouts: list[list[Rollout]] = []
        for first in range(0, len(prompts), self._together):
            rollouts += self._sample_together(prompts[first : first + self._together])
        return rollouts

    def _sample_together(self, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        sampling = self._sampling
        rollouts = [[Rollout() for _ in range(sampling.answers)] for _ in prompts]
        rows = [answer for answers in rollouts for answer in answers]
        keys = [(prompt.row, n) for prompt in prompts for n in range(sampling.answers)]
        numbers = [uniform_numbers(sampling.seed, *key, sampling.max_tokens) for key in keys]
        uniform = torch.from_numpy(np.stack(numbers)).to(self._model.embed.weight.device)
        logits = self._read(prompts)
        for position in range(sampling.max_tokens):
            drawn = draw(logits, uniform[:, position], sampling.vocab_size).tolist()
            for answer, (token, log_prob) in zip(rows, drawn, strict=True):
                if not answer.finished:
                    _add(answer, int(token), log_prob, sampling.stop_ids)
            running = sum(not answer.finished for answer in rows)
            if not running or position + 1 == sampling.max_tokens:
                return rollouts
            if 2 * running <= len(rows):
                unfinished = _kept([answer.finished for answer in rows], running)
                for row, before in enumerate(unfinished):
                    self._cache.swap(row, before)
                rows, uniform = [rows[row] for row in unfinished], uniform[unfinished]
                drawn = [drawn[row] for row in unfinished]
            logits = self._next([int(token) for token, _ in drawn])
        return rollouts

    def _read(self, prompts: Sequence[Prompt]) -> Tensor:
        """Read each prompt, into a row for each answer; return the logits (B, vocab) after them."""
        cache, answers = self._cache, self._sampling.answers
        for row in range(len(cache.lengths)):
            cache.cut(row, 0)
        logits = []
        for number, prompt in enumerate(prompts):
            first = number * answers
            for begin in range(0, len(prompt.ids), PROMPT_PIECE):
                piece = prompt.ids[begin : begin + PROMPT_PIECE]
                hidden = cache_tokens(self._model, [piece], cache, first)
            for row in range(first + 1, first + answers):
                cache.copy(first, row, len(prompt.ids))
            logits.append(last_logits(self._model, hidden))
        return torch.cat(logits).repeat_interleave(answers, dim=0)

    def _next(self, tokens: Sequence[int]) -> Tensor:
        """Read the next token of each row; return the fp32 logits (B, vocab) after it."""
        if (graphed := self._graphs.step(tokens)) is not None:
            return graphed[1][:, 0]
        hidden = cache_tokens(self._model, [[token] for token in tokens], self._cache)
        return every_logits(self._model, hidden)[:, 0]


def _add(answer: Rollout, token: int, log_prob: float, stop_ids: Iterable[int]) -> None:
    if not math.isfinite(log_prob):
        raise BadInput("the model predicts NaN or infinity: its weights or settings are damaged")
    answer.ids.append(token)
    answer.log_probs.append(log_prob)
    answer.finished = token in stop_ids


def _kept(finished: Sequence[bool], running: int) -> list[int]:
    """Return the rows to continue: those that run, and others up to a power of two.

    Each number of rows has its own CUDA graphs.
    """
    over = [row for row, is_over in enumerate(finished) if is_over]
    spare = (1 << (running - 1).bit_length()) - running
    return sorted({*range(len(finished))} - {*over[spare:]})


def uniform_numbers(seed: int, row: int, answer: int, count: int) -> np.ndarray:
    """Return the numbers that draw the tokens of an answer: fp64 (count,), uniform in [0, 1).

    They are the same with each version of any library, and do not depend on `count`.
    """
    drawn = hashlib.shake_128(key_of("rollout", seed, row, answer)).digest(8 * count)
    numbers: np.ndarray = (np.frombuffer(drawn, dtype="<u8") >> 11) * 2.0**-53
    return numbers


@torch.inference_mode()
def draw(logits: Tensor, uniform: Tensor, vocab_size: int) -> Tensor:
    """Draw an id below `vocab_size` of each row of fp32 logits (B, vocab), by uniform numbers (B,).

    Return the ids and their log-probabilities among all ids, fp64 (B, 2). An id is where the
    cumulative probability reaches the number. It is found by sums over blocks: torch's cumulative
    sum of floats is not deterministic on a GPU.
    """
    log_probs = logits.log_softmax(dim=-1)
    shares = log_probs[:, :vocab_size].exp()
    blocks = pad(shares, (0, -vocab_size % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    block, rest = _reached(sums, uniform * sums.sum(dim=-1))
    inside = blocks[torch.arange(len(block), device=block.device), block].double()
    ids = block * BLOCK + _reached(inside, rest)[0]
    return torch.stack((ids.double(), log_probs.gather(1, ids[:, None])[:, 0].double()), dim=1)


def _reached(shares: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the cumulative sums of shares (B, N) exceed a number (B,), and by how much the
    number exceeds the sum before.

    It is never where a share is 0.
    """
    count = shares.shape[1]
    ends = shares @ torch.ones(count, count, dtype=shares.dtype, device=shares.device).triu()
    places = torch.arange(count, device=shares.device)
    last = (places * (shares > 0)).amax(dim=1)
    index = torch.minimum((ends <= number[:, None]).sum(dim=1), last)
    before = (ends - shares).gather(1, index[:, None])[:, 0]
    return index, (number - before).clamp(min=0)
