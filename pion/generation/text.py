"""A text that is continued: its ids, how the next one is drawn, and when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.generation.bounds import check
from pion.generation.grammar import Grammar
from pion.generation.logit_changes import ById
from pion.generation.sampling import Draw, Sampling, sample_rows
from pion.model.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """How a text is continued: the keywords of `generate`, which explains them."""

    stop_ids: Iterable[int]
    max_tokens: int = 128
    vocab_size: int | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check("max_tokens", self.max_tokens)
        check("seed", self.seed or 0)
        for value in (self.logit_bias or {}).values():
            check("logit_bias", value)


class Text:
    """A text that is being continued.

    Attributes:
        ids: the ids of the prompt, and the new ids.
        given: how many of them are the prompt's.
        room: how many ids there may be in all.
        vocab_size: ids below it can be drawn.
        stop_id: the stop id that was drawn, or None.
        counts: what a part's own way to continue texts has counted of this text.

    Raises BadInput for settings that make no sense, and for a prompt that doesn't fit.
    """

    def __init__(self, model: Decoder, ids: Sequence[int], settings: Settings) -> None:
        self.ids = checked_prompt(ids, model.config)
        self.given = len(self.ids)
        rows = model.config.vocab_size
        self.vocab_size = rows if settings.vocab_size is None else settings.vocab_size
        if not 0 < self.vocab_size <= rows:
            raise BadInput(
                f"vocab_size is {self.vocab_size}; it must be from 1 to the model's {rows}"
            )
        self._sampling = settings
        self._bias = self._bias_of(settings.logit_bias)
        self._grammar = settings.grammar and settings.grammar.copy()
        self._stop_ids = frozenset(settings.stop_ids)
        self._randomness = torch.Generator()
        if settings.seed is None:
            self._randomness.seed()
        else:
            self._randomness.manual_seed(settings.seed)
        self.room = min(len(self.ids) + settings.max_tokens, model.config.seq_len)
        self.stop_id: int | None = None
        self.counts = Counter[str]()

    @property
    def stopped(self) -> bool:
        """Whether a stop id was drawn, or the grammar allows nothing more."""
        return self.stop_id is not None or (self._grammar is not None and self._grammar.complete)

    @property
    def ended(self) -> bool:
        """Whether nothing follows: a stop id was drawn, or the text has as many ids as it may."""
        return self.stopped or len(self.ids) >= self.room

    def draw(self, logits: Tensor) -> int | None:
        """Draw the next id from fp32 logits (vocab,), and add it; None: the text ends before it.

        Raises BadInput if the logits are not finite, or if the grammar allows no id.
        """
        (drawn,) = draw_together([self], logits[None])
        if isinstance(drawn, Exception):
            raise drawn
        return drawn

    def next_draw(self) -> Draw:
        """Return what decides the next id. Raises BadInput if the grammar allows none."""
        allowed = None if self._grammar is None else self._allowed(self._grammar)
        changes = self._sampling.changes(self.ids, self.given, self.vocab_size, self._bias, allowed)
        return Draw(self._sampling, changes, self._randomness)

    def take(self, token: int | None) -> int | None:
        """Add an id that was drawn, and return it; None: the text ends before it.

        Raises BadInput if none could be drawn, or if the grammar does not allow the id.
        """
        if token is None:
            raise BadInput(
                "the model predicts NaN or infinity: its weights or settings are damaged"
            )
        if token in self._stop_ids:
            self.stop_id = token
            return None
        if self._grammar is not None:
            self._grammar.take(token)
        self.ids.append(token)
        return token

    def _allowed(self, grammar: Grammar) -> Tensor:
        """Return which ids may be drawn, (vocab,) bool. Raises BadInput if there are none."""
        mask = grammar.allowed()
        if grammar.may_end:
            mask[[token for token in self._stop_ids if token < len(mask)]] = True
        if not mask.any():
            raise BadInput("the schema allows no token here")
        return mask

    def _bias_of(self, bias: Mapping[int, float] | None) -> ById | None:
        """Return the ids and what is added to their logits. Raises BadInput for other ids."""
        if not bias:
            return None
        ids, last = list(bias), self.vocab_size - 1
        if (wrong := next((token for token in ids if not 0 <= token <= last), None)) is not None:
            raise BadInput(f"logit_bias has the id {wrong}; the tokenizer's are from 0 to {last}")
        return ids, list(bias.values())


def draw_together(texts: Sequence[Text], logits: Tensor) -> list[int | Exception | None]:
    """Draw the next id of each text from its row of fp32 logits (B, vocab), and add it.

    None: the text ends before this id, or had ended. Of a text whose id can't be drawn, return why
    instead of raising it, because the other texts are sound: BadInput if the logits are not finite
    or the grammar allows no id.
    """
    outcomes: list[int | Exception | None] = [None] * len(texts)
    draws: dict[int, Draw] = {}
    for row, text in enumerate(texts):
        try:
            if not text.ended:
                draws[row] = text.next_draw()
        except Exception as error:
            outcomes[row] = error
    if not draws:
        return outcomes
    chosen = logits if len(draws) == len(texts) else torch.stack([logits[row] for row in draws])
    for row, token in zip(draws, sample_rows(chosen, list(draws.values())), strict=True):
        try:
            outcomes[row] = texts[row].take(token)
        except Exception as error:
            outcomes[row] = error
    return outcomes


def checked_prompt(ids: Sequence[int], config: ModelConfig) -> list[int]:
    """Return the prompt's ids. Raises BadInput if there are none, or if they don't fit."""
    prompt = [int(token) for token in ids]
    if not prompt:
        raise BadInput("the prompt is empty: start with `tokenizer.prompt(text)`")
    if len(prompt) > config.seq_len:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, but the model's context is "
            f"{config.seq_len} tokens. Shorten the prompt"
        )
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise BadInput(
            f"the prompt has an id outside 0 … {config.vocab_size - 1}, the model's "
            "vocabulary: was it encoded with a different tokenizer?"
        )
    return prompt
