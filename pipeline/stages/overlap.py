"""Whether evaluation sets are in the training rows: a search over the rows that the run has read.

A part is so many rows, so a search that is killed repeats a minute at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.job.digest import digest_of
from pipeline.job.stages import CONVERSING, TRAINING
from pipeline.stages.measures import Measures, Part, Result

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pion.evaluation.overlap.found import Found
    from pion.evaluation.overlap.index import Index
    from pion.evaluation.overlap.items import ItemSet
    from pion.evaluation.overlap.verdict import Overlap
    from pipeline.stages.questions import Questions

# `auto` searches the rows that were read first, up to so many tokens: some minutes.
AUTO_TOKENS = 2_000_000_000
# Of a part: about ten seconds.
TOKENS_OF_A_PART = 64_000_000
HELD_OUT_ROWS = 1000
# Rows of conversations are numbered from here, so that a number says which row it is.
CONVERSATIONS_FROM = 1 << 40
MOST_SHOWN = 300
# A mean over tasks of which so much is left says something of the clean items.
LEAST_CLEAN, LEAST_SHARE = 100, 0.5


@dataclass(frozen=True)
class _Read:
    """The rows of one kind that the run has read, in the order of reading."""

    part: str
    stream: RowStream
    rows: int
    seq_len: int
    first: int  # the number of its first row


def overlap_of(measures: Measures, questions: Questions, items: Result, part: Part) -> Result:
    """Return the overlap of the job's evaluation sets with the rows that the run has read.

    `items` has the scores of single questions by model and task; where they are known, accuracies
    of all, clean and overlapped items follow.
    """
    from pion.evaluation.overlap.index import build_index
    from pion.evaluation.overlap.verdict import judge

    index = build_index(_sets(measures, questions))
    read = _rows_read(measures)
    found, searched = _search(measures, index, read, part)
    total = sum(one.rows * one.seq_len for one in read)
    verdicts = judge(index, found, searched / total if total else 0.0)
    sets = [
        {
            **verdict.to_dict(),
            "examples": _examples(measures, index, number, verdict, read),
            "accuracy": _accuracies(index, found, number, items),
        }
        for number, verdict in enumerate(verdicts)
    ]
    return {
        "rule": "overlap-1",
        "tokens": searched,
        "of_tokens": total,
        "rows": found.rows,
        "start_unknown": measures.job.base is not None,
        "sets": sets,
        "clean_core": _clean_core(index, found, items),
    }


# ---------------------------------------------------------------- what is looked for


def _sets(measures: Measures, questions: Questions) -> list[ItemSet]:
    """Return every set that the job evaluates on, with excerpts of held-out rows."""
    from pion.evaluation.overlap.control import draw_control
    from pion.evaluation.overlap.items import ItemSet
    from pion.evaluation.overlap.sets import items_of_questions, items_of_task

    named = {f"packs.{name}": items_of_questions(pack) for name, pack in questions.packs.items()}
    if questions.core is not None:
        named |= {f"core.{task.label}": items_of_task(task) for task in questions.core.tasks}
    held_out = _held_out(measures)
    return [ItemSet(name, own, draw_control(own, held_out)) for name, own in named.items()]


def _held_out(measures: Measures) -> list[bytes]:
    from pion.evaluation.overlap.token_text import row_texts, token_texts

    stream = measures.rows_of("held_out")
    rows = [stream.row(i).tokens for i in range(min(HELD_OUT_ROWS, stream.total_rows))]
    return list(row_texts(np.stack(rows), token_texts(measures.tokenizer), "held-out rows"))


# ---------------------------------------------------------------- the search


def _rows_read(measures: Measures) -> list[_Read]:
    job, read = measures.job, []
    for part in TRAINING:
        first = CONVERSATIONS_FROM if part in CONVERSING else 0
        if part not in job.train_stages or part not in measures.trained.models:
            continue
        stream = measures.rows_of("train", part)
        section = job.section(part)
        rows = min(section.total_steps * section.global_batch, stream.total_rows)
        read.append(_Read(part, stream, rows, job.seq_len(part), first))
    return read


def _search(measures: Measures, index: Index, read: list[_Read], part: Part) -> tuple[Found, int]:
    """Return what the rows hold, and how many tokens were searched."""
    from pion.evaluation.overlap.found import THRESHOLD, nothing_found, read_found

    left = AUTO_TOKENS if measures.job.evaluate.overlap == "auto" else math.inf
    found, searched = nothing_found(index, THRESHOLD), 0
    for of in read:
        rows = int(min(of.rows, left // of.seq_len))
        at_once = max(1, TOKENS_OF_A_PART // of.seq_len)
        for begin in range(0, rows, at_once):
            end = min(rows, begin + at_once)
            name = _part_name(index, of, end, measures)
            label = f"{of.part} rows {begin:,} to {end:,} of {rows:,}: overlap with evaluation sets"
            compute = partial(_search_rows, measures, index, found, of, range(begin, end))
            kept = part(name, label, compute)["found"]
            found = read_found(kept.encode(), index, THRESHOLD, name)
        left -= rows * of.seq_len
        searched += rows * of.seq_len
    return found, searched


def _part_name(index: Index, of: _Read, end: int, measures: Measures) -> str:
    decides = {"sets": index.digest, "rows": of.stream.fingerprint, "kind": of.part}
    return f"overlap.{digest_of(decides)}.{of.part}-{end}"


def _search_rows(measures: Measures, index: Index, before: Found, of: _Read, rows: range) -> Result:
    """Search some rows, and return what these and all rows before them hold."""
    from pion.evaluation.overlap.search import search

    found = dataclasses.replace(
        before,
        held=before.held.copy(),
        row=before.row.copy(),
        with_answer=before.with_answer.copy(),
    )
    search(index, _texts(measures, of, rows), found, measures.on_batch)
    return {"found": found.to_bytes().decode()}


def _texts(measures: Measures, of: _Read, rows: range) -> Iterator[tuple[int, bytes]]:
    from pion.evaluation.overlap.token_text import row_texts, token_texts

    texts = token_texts(measures.tokenizer)
    for begin in range(rows.start, rows.stop, 256):
        some = range(begin, min(rows.stop, begin + 256))
        ids = np.stack([of.stream.row(i).tokens for i in some])
        found = row_texts(ids, texts, f"{of.part} rows")
        yield from zip((of.first + i for i in some), found)


# ---------------------------------------------------------------- what it means


def _examples(
    measures: Measures, index: Index, number: int, verdict: Overlap, read: list[_Read]
) -> list[Result]:
    """Return the most overlapped items, each with its text and that of the row, for a reader."""
    from pion.evaluation.overlap.shared_text import shared_text
    from pion.evaluation.overlap.token_text import row_texts, token_texts

    texts, shown = token_texts(measures.tokenizer), []
    for example in verdict.examples:
        item = index.sets[number].items[example.item]
        of = next(one for one in reversed(read) if example.row >= one.first)
        place = example.row - of.first
        (text,) = row_texts(of.stream.row(place).tokens[None], texts)
        shown.append(
            {
                "item": f"{item.question} {item.answer}"[-MOST_SHOWN:],
                "row_has": shared_text(item, text)[:MOST_SHOWN],
                "source": _source(measures, of, place),
                "row": place,
                "held": example.held,
                "ngrams": example.ngrams,
                "with_answer": example.with_answer,
            }
        )
    return shown


def _source(measures: Measures, of: _Read, place: int) -> str:
    job = measures.job
    text = of.part not in CONVERSING
    sources: list[Any] = job.data.sources if text else job.conversations(of.part).sources
    source: Any = sources[of.stream.source_of(place)]
    named = getattr(source, "repo", None) or PurePath(getattr(source, "path", "")).name
    return f"{of.part}, {source.kind} {named}".strip()


def _accuracies(index: Index, found: Found, number: int, items: Result) -> Result:
    """Return, by model, the accuracy of all, of clean and of overlapped items of a set, and the
    error of clean less all. {} where single answers are not known."""
    from pion.evaluation.item_scores import unpack
    from pion.evaluation.overlap.verdict import overlapped_items

    name = index.sets[number].name
    results = {}
    for key, packed in items.items():
        model, _, of = key.partition(".")
        if of == name:
            scores = unpack(packed).scores
            overlapped = overlapped_items(index, found, number)[: len(scores)]
            results[model] = _accuracy(scores, overlapped)
    return results


def _accuracy(scores: np.ndarray, overlapped: np.ndarray) -> Result:
    clean = ~overlapped
    share = float(scores.mean()), _mean(scores[clean]), _mean(scores[overlapped])
    found: Result = {"all": share[0], "clean": share[1], "overlapped": share[2]}
    if share[1] is not None and overlapped.any():
        # The clean items are some of all, so their weights in the two means partly cancel.
        residuals = clean * (scores - share[1]) / clean.sum() - (scores - share[0]) / len(scores)
        found["clean_less_all"] = share[1] - share[0]
        found["clean_less_all_sem"] = math.sqrt(float((residuals**2).sum()))
    return {**found, "items": len(scores), "clean_items": int(clean.sum())}


def _mean(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if len(scores) else None


def _clean_core(index: Index, found: Found, items: Result) -> Result:
    """Return, by model, CORE over the clean items, if enough of each task's are left."""
    from pion.evaluation.item_scores import unpack
    from pion.evaluation.overlap.verdict import overlapped_items

    tasks: dict[str, list[float]] = {}
    too_few = set()
    for number, own in enumerate(index.sets):
        for key, packed in items.items():
            model, _, of = key.partition(".")
            if of != own.name or not of.startswith("core."):
                continue
            scores, baseline = unpack(packed).scores, packed["key"]["baseline"]
            clean = scores[~overlapped_items(index, found, number)[: len(scores)]]
            if len(clean) < max(LEAST_CLEAN, LEAST_SHARE * len(scores)):
                too_few.add(model)
            elif len(clean):
                tasks.setdefault(model, []).append((clean.mean() - baseline) / (1 - baseline))
    return {
        model: math.fsum(centred) / len(centred)
        for model, centred in tasks.items()
        if model not in too_few
    }
