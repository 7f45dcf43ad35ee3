"""The evaluation sets that data.clean.decontaminate means, and the control of the search."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pion.data.overlap.items import LEAST_WORDS, Item, ItemSet, counted_words
from pion.data.overlap.words import split_words
from pion.errors import told
from pion.evaluation.core.bundle import Task, read_bundle
from pion.evaluation.core.rows import passages_of
from pion.evaluation.questions import read_questions
from pipeline.data.sources import Input, documents, is_held_out
from pipeline.job import Job

# The control is cut from the first held-out documents of each source: at most so many, and from the
# first so many characters.
CONTROL_DOCUMENTS = 200
CONTROL_CHARS = 64 << 20
# The control has so many excerpts.
EXCERPTS = 1000


def read_sets(job: Job) -> list[ItemSet]:
    """Return the evaluation sets that the job's text is cleaned of: one for each pack, and one for
    each task of a CORE bundle.

    Raises BadInput for a set that can't be read, with the job's key, and the file and line.
    """
    sets: list[ItemSet] = []
    for key, name in job.removed_sets:
        with told(f"{key}: "):
            sets += _of_file(job.kept_path(name))
    return sets


def with_control(job: Job, sets: Sequence[ItemSet], inputs: Sequence[Input]) -> list[ItemSet]:
    """Return the sets, each with excerpts of held-out documents of its items' lengths.

    No model trains on held-out documents, so these excerpts are in the other documents only as
    often as the text repeats itself. Raises BadInput as reading the inputs does.
    """
    if not sets:
        return []
    held_out = [text for source_input in inputs for text in _held_out_texts(job, source_input)]
    return [
        dataclasses.replace(
            evaluation_set, control=draw_control(evaluation_set.items, held_out, seed=job.seed)
        )
        for evaluation_set in sets
    ]


def draw_control(
    items: Sequence[Item], held_out: Sequence[bytes], count: int = EXCERPTS, seed: int = 0
) -> list[Item]:
    """Return `count` excerpts of held-out rows, as long as randomly drawn items.

    `held_out` has the text of each row in UTF-8. The same arguments give the same excerpts. Without
    items of enough words, or if no row is as long as a drawn item, there are fewer, down to none.
    """
    lengths = [len(counted_words(item)[0]) for item in items]
    lengths = [length for length in lengths if length >= LEAST_WORDS]
    if not lengths:
        return []
    sizes = np.array([len(split_words(text)) for text in held_out])
    chance = np.random.default_rng(seed)
    excerpts = []
    for _ in range(count):
        length = lengths[chance.integers(len(lengths))]
        rows = np.flatnonzero(sizes >= length)
        if not len(rows):
            continue
        row = int(rows[chance.integers(len(rows))])
        first = int(chance.integers(sizes[row] - length + 1))
        chosen = split_words(held_out[row])[first : first + length]
        text = b" ".join(chosen).decode(errors="replace")
        excerpts.append(Item(question=text, answer="", passage=f"row {row}"))
    return excerpts


def _held_out_texts(job: Job, found: Input) -> Iterator[bytes]:
    """Yield the first held-out documents of a source."""
    read = count = 0
    for document in documents(job, found):
        read += len(document.text)
        if is_held_out(job, document):
            count += 1
            yield document.text.encode()
        if read >= CONTROL_CHARS or count >= CONTROL_DOCUMENTS:
            return


def _of_file(path: Path) -> list[ItemSet]:
    if path.is_dir() or path.suffix == ".zip":
        return [ItemSet(task.label, _items_of_task(task)) for task in read_bundle(path).tasks]
    items = [
        Item(question.context, question.choices[question.answer])
        for question in read_questions(path)
    ]
    return [ItemSet(path.stem, items)]


def _items_of_task(task: Task) -> list[Item]:
    """Return the items of a task of CORE, each with its right answer."""
    passages = passages_of(task, len(task.items)) or [""] * len(task.items)
    return [
        Item(*item.options[item.gold], passage)
        for item, passage in zip(task.items, passages, strict=True)
    ]
