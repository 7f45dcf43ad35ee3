"""The first usable record of a stage as the model will see it, with what is learned in ⟦ and ⟧."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.preference.rendering import Usable, marked_preference, preference_format
from pion.data.prompt.layouts import Question
from pion.data.prompt.rendering import prompt_ids
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.console.formats import beginning
from pipeline.data.conversations_to_rows import learned_from
from pipeline.data.preferences import preferences
from pipeline.data.prompts import questions
from pipeline.data.sources import Input, conversations, texts
from pipeline.job import Job

# The first usable record is looked for in so many.
LOOKED_AT = 64
# Lines, and the ids in them.
Shown = tuple[Sequence[str], Sequence[int]]


def records_of(job: Job, origin: Input) -> Iterator[object]:
    """Yield the records of a source as `prepare` reads them: documents, conversations, preferences
    or prompts. Raises BadInput for a record that can't be used."""
    readers: dict[str, Callable[[Job, Input], Iterator[object]]] = {
        "data": texts,
        "sft": partial(conversations, own=job.base is None),
        "prefer": preferences,
        "reinforce": questions,
    }
    return readers[origin.key.partition(".")[0]](job, origin)


def _conversation(job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat) -> Shown:
    _, talk = next(conversations(job, found, own=written.own))
    (examples,) = learned_from(written, [talk])
    shown = examples.tokenized[-1]  # of a split one, the example with all turns
    return [marked_text(tokenizer, shown)], shown.ids.tolist()


def _preference(job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat) -> Shown:
    how = preference_format(written, job.seq_len("prefer"), job.model_config_resolved().seq_len)
    for _, read in zip(range(LOOKED_AT), preferences(job, found)):
        if isinstance(read.preference, str):
            continue
        (outcome,) = how.outcomes([read.preference])
        if isinstance(outcome, Usable):
            ids = np.concatenate([side.sequence.ids for side in outcome.item])
            return marked_preference(tokenizer, outcome), ids.tolist()
    return [], ()


def _prompt(job: Job, found: Input, tokenizer: Tokenizer, written: ChatFormat) -> Shown:
    for one, _, _ in islice(questions(job, found), LOOKED_AT):
        if isinstance(one, Question):
            ids = prompt_ids(written, one)
            lines = [marked_text(tokenizer, Tokenized(np.array(ids), np.zeros(len(ids), bool)))]
            if one.answer is not None:
                lines.append(f"right answer: {beginning(str(one.answer), 200)}")
            return lines, ids
    return [], ()


FIRST: dict[str, Callable[[Job, Input, Tokenizer, ChatFormat], Shown]] = {
    "sft": _conversation,
    "prefer": _preference,
    "reinforce": _prompt,
}
