"""The model that lm-eval asks: transformers', with the form of the first prompt checked.

It also counts what lm-eval does not say: answers that were cut off, and prompts that were cropped.
Only the process that runs a task imports this module, because it imports lm-eval.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.template_source import ASKS_FOR_DATE, template_date
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.stages.lm_eval_results import Counts, Form

# How many ids before the first difference are shown, and how many from there on.
BEFORE, FROM = 8, 6


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
        ends = self.model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
        # transformers prefers this to the length that lm-eval asks for, so answers would not be as
        # long as the task says.
        self.model.generation_config.max_new_tokens = None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages as lm-eval does. Raises BadInput if the form of the first is wrong, and
        if the chat template refuses the messages."""
        text: str = super().apply_chat_template(chat_history, add_generation_prompt)
        if not self._checked:
            # The text of an assistant at the end is the beginning of the answer.
            begun = bool(chat_history) and chat_history[-1]["role"] == "assistant"
            learned = self._talks.prompt_ids(chat_history[:-1] if begun else chat_history)
            self._check(text, learned, "chat", whole=not begun)
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
            tokenizer = self._talks.tokenizer
            self._check(text, tokenizer.start_document(tokenizer.encode(text)), "text", whole=True)

    def _check(self, text: str, learned: list[int], form: Form, *, whole: bool) -> None:
        """Raise BadInput unless lm-eval sends the ids of a text that the model learned, in a chat
        or as plain text; if not `whole`, more may follow them."""
        # lm-eval encodes prompts for answers in batches, those for scores one by one.
        batched, _ = self.tok_batch_encode([text])
        for sent in (batched[0].tolist(), self.tok_encode(text)):
            if list(sent if whole else sent[: len(learned)]) != learned:
                raise _other_form(self._talks, sent, learned, form)
        self._checked = True

    def _count_prompts(self, cropped: list[bool]) -> None:
        self.counts.prompts += len(cropped)
        self.counts.cropped += sum(cropped)


def _other_form(talks: ChatFormat, sent: Sequence[int], ids: list[int], form: Form) -> BadInput:
    """Return the refusal of another form than the learned one, with both beginnings.

    lm-eval renders and encodes its prompts with transformers, Pion with its own code. A first token
    that is missing or there twice, or another chat template, would give scores that mislead.
    """
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(sent, ids, strict=False))))
    where = "begins" if same <= BEFORE else f"continues after {same - BEFORE} equal tokens"
    return BadInput(
        f"lm-eval would ask the model in another form than it learned. Its prompt ({form}) "
        f"{where} with {_shown(talks, sent, same)}; the model learned {_shown(talks, ids, same)}. "
        "The model is safe, and no score was computed. Look at the chat template, the first token "
        "and the tokenizer_class of the tokenizer_config.json, or set evaluate.lm_eval.chat"
    )


def _shown(talks: ChatFormat, ids: Sequence[int], same: int) -> str:
    """Return the ids around the first difference, and their text."""
    part = list(ids[max(0, same - BEFORE) : same + FROM])
    if not part:
        return "nothing"
    return f"{' '.join(map(str, part))} ({talks.tokenizer.decode(part, specials=True)!r})"
