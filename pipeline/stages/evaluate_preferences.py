"""What learning from preferences has done: to agreement with held-out labels, answers and text.

The model that the stage starts from is measured, too. Where the stage has a reference, its stored
numbers say what that model gives for the answers, so no model computes them again.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pion.errors import BadInput, PionError
from pion.evaluation.agreement import LabelledAnswers, agreement, changed, moved
from pion.evaluation.item_scores import ItemScores, before_and_after, mean, pack, with_errors
from pipeline.console.messages import Note, Say
from pipeline.data.prepared import SPLITS
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pion.train.held_out_answers import HeldOutAnswers
    from pipeline.stages.measures import Measures, Part, Result, StageStart

STAGE = "prefer"
# Prompts whose answers are kept as texts.
SHOWN = 4


def preferences_of(measures: Measures, part: Part, say: Say) -> Result:
    """Return what is measured of the model after `prefer`, and of the one that it started from.

    Under BY_ITEM are the scores of single pairs and prompts, by which runs are compared. Raises
    BadInput if there are no held-out preferences, and what an evaluation raises.
    """
    from pion.train.preference import OF_MEANS

    section, start = measures.job.prefer, measures.trained.starts[STAGE]
    assert section is not None
    read, before, after, about = _Answers(measures, start, part, say).read()
    result, items = agreement_results(
        *(read.labels, before, after),
        of_means=section.loss in OF_MEANS,
        with_reference=section.needs_reference,
    )
    written, more = _written(measures, start, read.prompts, part)
    detail = {"start": start.name, **about, **result, **written}
    key = measures.same_rows(STAGE)
    by_item = {name: {"key": key, **pack(scores)} for name, scores in (items | more).items()}
    accuracy = result["after"]["margin"]
    flat = {name: accuracy[name] for name in ("accuracy", "accuracy_sem")}
    return {**flat, "preferences": detail, BY_ITEM: by_item}


# ---------------------------------------------------------------- the given answers


@dataclass(frozen=True)
class _Answers:
    """Reads the held-out answers, and what the two models give for them."""

    measures: Measures
    start: StageStart
    part: Part
    say: Say

    def read(self) -> tuple[HeldOutAnswers, np.ndarray, np.ndarray, Result]:
        """Return the answers, the sums before and after, and what is known of the reference."""
        from pion.train.held_out_answers import read_answers

        stream, about = self._with_reference(self.measures.rows_of("held_out", STAGE))
        rows = range(min(self.measures.job.evaluate.final_rows, stream.total_rows))
        read = read_answers(stream, rows, paired=self.measures.data[STAGE].kind == "pairs")
        after = self._sums(STAGE, stream, rows)
        before = read.reference if about else self._sums(self.start.name, stream, rows)
        return read, before, after, about

    def _sums(self, model: str, stream: RowStream, rows: range) -> np.ndarray:
        """Return what a model gives for the answers, fp64 (n,), kept as a part."""

        def compute() -> Result:
            from pion.train.held_out_answers import sums_of_answers

            scorer = self.measures.row_scorer(model, self.measures.job.seq_len(STAGE))
            sums = sums_of_answers(
                *(scorer.model, stream, rows, scorer.micro_batch, scorer.dtype),
                on_batch=scorer.on_batch,
            )
            return {"sums": sums.tolist()}

        record = self.part(
            f"{model}.preferences", f"{model} model on held-out preferences", compute
        )
        # A sum that is not finite is kept as null.
        return np.array(record["sums"], dtype=np.float64)

    def _with_reference(self, stream: RowStream) -> tuple[RowStream, Result]:
        """Return the rows with the stored numbers, and the sha256 of the model that they are of.

        Damaged numbers are not used, nor those of another precision than the evaluation's: the
        model is measured instead.
        """
        from pipeline.training.reference.columns import read_reference

        folder = self.start.reference
        if folder is None:
            return stream, {}
        try:
            streams = {split: self.measures.rows_of(split, STAGE) for split in SPLITS}
            reference = read_reference(folder, streams)
        except PionError as error:
            self.say(Note(f"the numbers of the reference are not used: {error}"))
            return stream, {}
        # An evaluation keeps hidden states in fp32 between blocks.
        ours = str(self.measures.dtype).removeprefix("torch."), "float32"
        if (reference.dtype, reference.residual) != ours:
            return stream, {}
        return reference.streams["held_out"], {"reference": reference.weights}


# ---------------------------------------------------------------- written answers

# What is measured of written answers: its name among the results, and among the items.
_OF_ANSWERS = {"tokens": "answer_tokens", "stopped": "answers_stopped", "distinct": "distinct_4"}


def _written(
    measures: Measures, start: StageStart, prompts: list[list[int]], part: Part
) -> tuple[Result, dict[str, ItemScores]]:
    """Return what the answers of both models are like, and the scores of the trained one's."""
    from pion.evaluation.greedy_answers import askable

    askable_prompts, most = askable(prompts, measures.job.model_config_resolved().seq_len)
    if not askable_prompts:
        return {}, {}
    sides = [
        part(
            f"{model}.answers",
            f"answers of the {model} model to {len(askable_prompts)} held-out prompts",
            partial(_answer, measures, model, askable_prompts, most),
        )
        for model in (STAGE, start.name)
    ]
    sides.reverse()
    scores = [{name: _scores(side[name], name) for name in _OF_ANSWERS} for side in sides]
    answers = {
        "prompts": len(askable_prompts),
        "most_tokens": most,
        **before_and_after(*scores),
        "shown": [
            {"prompt": prompt, "before": old, "after": new}
            for (prompt, old), (_, new) in zip(*(side["texts"] for side in sides), strict=True)
        ],
    }
    return {"answers": answers}, {new: scores[1][name] for name, new in _OF_ANSWERS.items()}


def _answer(measures: Measures, model: str, prompts: list[list[int]], most: int) -> Result:
    from pion.data.chat.chat_format import ChatFormat
    from pion.evaluation.greedy_answers import greedy_answers

    decoder = measures.row_scorer(model, measures.job.seq_len(STAGE)).model.joined()
    with closing(ChatFormat(measures.chat_path, measures.tokenizer)) as chat_format:
        try:
            answers = greedy_answers(decoder, chat_format, prompts, most, measures.on_batch)
        except BadInput:  # it predicts NaN or infinity, and its other results say so
            unknown = {name: [None] * len(prompts) for name in _OF_ANSWERS}
            texts = [(chat_format.tokenizer.decode(ids), "–") for ids in prompts[:SHOWN]]
            return {**unknown, "texts": texts}
    return answers | {"texts": answers["texts"][:SHOWN]}


def _scores(values: list[float | None], name: str) -> ItemScores:
    """Return the numbers of answers as scores. Whether they stop is a share; others are means."""
    scores = np.array(values, dtype=np.float64)
    return ItemScores(scores, sizes=None if name == "stopped" else np.ones(len(scores), np.int64))


# ---------------------------------------------------------------- agreement


def agreement_results(
    labels: LabelledAnswers,
    before: np.ndarray,
    after: np.ndarray,
    *,
    of_means: bool,
    with_reference: bool,
) -> tuple[Result, dict[str, ItemScores]]:
    """Return how often the models agree with the labels, and the scores of single pairs or answers,
    by name. `before` and `after` training are what the models give for each answer, in nats, fp64
    (n,).

    Of pairs: by the sums (`raw`), by the means over tokens (`normalized`), and after training also
    by what the loss compares (`margin`): how far the answers are from the reference, if there is
    one, as means or as sums. Of single answers, only the last one has a meaning.
    """
    apart = after - before
    margins = apart if with_reference else after
    margin = labels.scored(margins / labels.tokens if of_means else margins)
    result: Result = {
        "kind": "pairs" if labels.paired else "labels",
        "items": labels.items,
        "prompts": len(np.unique(labels.prompts)),
        "of_means": of_means,
        "with_reference": with_reference,
        "before": {},
        "after": {"margin": agreement(labels, margin)},
        "change": {},
        "moved": moved(labels, apart),
    }
    if not labels.paired:
        return result | {"desired": float(labels.preferred.mean())}, {"accuracy": margin}
    items = {"accuracy": margin}
    for name, by in (("raw", np.ones(len(labels.tokens))), ("normalized", labels.tokens)):
        first, last = labels.scored(before / by), labels.scored(after / by)
        result["before"][name] = agreement(labels, first)
        result["after"][name] = agreement(labels, last)
        result["change"][name] = changed(labels, first, last)
        items[f"{name}_accuracy"] = last
    return result | {"rules": _rules(labels)}, items


def _rules(labels: LabelledAnswers) -> Result:
    """Return how right it is to take the longer answer, and to take the shorter one."""
    longer, error = mean(labels.longer_wins())
    return {
        **with_errors({"longer_wins": (longer, error), "shorter_wins": (1 - longer, error)}),
        "longer": int((labels.tokens[0::2] > labels.tokens[1::2]).sum()),
        "shorter": int((labels.tokens[0::2] < labels.tokens[1::2]).sum()),
    }
