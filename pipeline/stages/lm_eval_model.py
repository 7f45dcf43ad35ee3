"""The model that lm-eval asks: transformers', with the form of the first prompt checked.

It also counts what lm-eval does not say: answers that were cut off, and prompts that were cropped.
Only the process that runs a task imports this module, because it imports lm-eval.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.template_source import ASKS_FOR_DATE, template_date
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.stages.lm_eval_form import Form, chat_form, require_form, text_form


@dataclass
class Counts:
    """What happened to prompts and answers.

    Attributes:
        prompts: all prompts, one for each choice of a multiple-choice question.
        cropped: prompts whose beginning was cut off, because the model's context is too short.
        answers: all answers that the model wrote.
        cut_off: answers that reached the largest length without an end.
        longest: this length, in tokens; 0 if the model wrote no answer.
    """

    prompts: int = 0
    cropped: int = 0
    answers: int = 0
    cut_off: int = 0
    longest: int = 0


class CheckedModel(HFLM):  # type: ignore[misc, unused-ignore]
    """lm-eval's model of an exported folder, whose first prompt must be in the learned form.

    `tokenizer` is the tokenizer.json next to the chat format that the model learned, and `about`
    has more arguments of lm-eval's model.

    Attributes:
        counts: what happened to prompts and answers so far.
    """

    def __init__(self, pretrained: str, tokenizer: Path, about: dict[str, Any]) -> None:
        # A template that writes today's date must write the one with which the model was trained.
        day = datetime.datetime.combine(template_date(tokenizer.parent), datetime.time())
        today = {ASKS_FOR_DATE: day.strftime}
        super().__init__(pretrained=pretrained, chat_template_args=today, **about)
        self.counts = Counts()
        self._talks = ChatFormat(tokenizer, Tokenizer.from_file(tokenizer))
        self._checked = False
        self._ends = _end_ids(self.model.generation_config.eos_token_id)
        # transformers prefers this to the length that lm-eval asks for, so answers would not be as
        # long as the task says.
        self.model.generation_config.max_new_tokens = None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages as lm-eval does. Raises BadInput if the form of the first is wrong."""
        text: str = super().apply_chat_template(chat_history, add_generation_prompt)
        if not self._checked:
            self._check(text, chat_form(self._talks, chat_history))
        return text

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Write an answer to each prompt. Raises BadInput if the form of the first is wrong."""
        self._check_text(requests)
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        self._count_prompts([self._is_cropped(*request.args) for request in requests])
        return answers

    def close(self) -> None:
        """End the process that renders the chat template."""
        self._talks.close()

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score each continuation. Raises BadInput if the form of the first prompt is wrong."""
        self._check_text(requests)
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return scores

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> Any:
        most = self.max_length + 1
        self._count_prompts([len(before) + len(after) > most for _, before, after in requests])
        return super()._loglikelihood_tokens(requests, **options)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        rows: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        longest = max_length - context.shape[1]
        self.counts.longest = max(self.counts.longest, longest)
        for ids in rows[:, context.shape[1] :].tolist():
            self.counts.answers += 1
            self.counts.cut_off += len(ids) == longest and not self._has_ended(ids, stop)
        return rows

    def _is_cropped(self, text: str, settings: dict[str, Any]) -> bool:
        longest: int = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        return len(self.tok_encode(text)) > self.max_length - longest

    def _has_ended(self, ids: list[int], stop: Sequence[str]) -> bool:
        if self._ends.intersection(ids):
            return True
        text = self.tok_decode(ids, skip_special_tokens=False)
        return any(end in text for end in stop if end)

    def _check_text(self, requests: list[Any]) -> None:
        """Check the first prompt that is a plain text; the empty one has no form."""
        text = requests[0].args[0]
        if not self._checked and text:
            self._check(text, text_form(self._talks, text))

    def _check(self, text: str, learned: Form) -> None:
        # lm-eval encodes prompts for answers in batches, those for scores one by one.
        batched, _ = self.tok_batch_encode([text])
        for sent in (batched[0].tolist(), self.tok_encode(text)):
            require_form(self._talks, sent, learned)
        self._checked = True

    def _count_prompts(self, cropped: list[bool]) -> None:
        self.counts.prompts += len(cropped)
        self.counts.cropped += sum(cropped)


def _end_ids(named: int | list[int] | None) -> frozenset[int]:
    ids = named if isinstance(named, list) else [named]
    return frozenset(number for number in ids if number is not None)
