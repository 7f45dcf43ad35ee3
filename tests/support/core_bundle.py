"""A made-up bundle in the layout of CORE's: three tasks, one of each type, with 12 items each."""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pion.evaluation.core.bundle import Bundle, Item, read_bundle

Line = dict[str, Any]

ANIMALS = ["cat", "dog", "horse", "cow", "sheep", "goat", "duck", "owl"]
# One letter decomposed: NFC makes another text of it.
SOUNDS = ["purrs softly", "barks at night", "neighs", "moos in a cafe\u0301"]
COFFEE = " caf\u00e9"
# With the tokenizers of tests/support/tokenizer_kinds.py, one token each after a space, or two.
WORDS = ["list", "key", "tool", "in the"]
TASKS: list[Line] = [
    {
        "label": "made_up_choice",
        "dataset_uri": "choices/animals.jsonl",
        "num_fewshot": [3],
        "icl_task_type": "multiple_choice",
        "continuation_delimiter": "\nAnswer: ",
    },
    {
        "label": "made_up_schema",
        "dataset_uri": "schema/pronouns.jsonl",
        "num_fewshot": [0],
        "icl_task_type": "schema",
    },
    {
        "label": "made_up_words",
        "dataset_uri": "words/words.jsonl",
        "num_fewshot": [4],
        "icl_task_type": "language_modeling",
        "has_categories": False,
    },
]
BASELINES = {"made_up_choice": "25", "made_up_schema": "50.0", "made_up_words": "0"}


def item_of(contexts: Sequence[str], continuations: Sequence[str], gold: int) -> Item:
    """Return an item of several contexts, or of several continuations."""
    return Item(tuple(itertools.product(contexts, continuations)), gold)


def choice_lines() -> list[Line]:
    """Return questions with phrases, with letters, with two equal choices, and one odd question:
    a choice begins with the whole of another."""
    lines: list[Line] = [
        {"query": f"Question {n}: what does a {animal} do?\n", "choices": SOUNDS, "gold": n % 4}
        for n, animal in enumerate(ANIMALS[:6])
    ]
    lines += [
        {
            "query": f"Which is a {animal}? A. {ANIMALS[n]} B. stone C. cloud D. sea",
            "choices": ["A", "B", "C", "D"],
            "gold": n % 4,
        }
        for n, animal in enumerate(ANIMALS[:4])
    ]
    lines.append({"query": "Name a bird. ", "choices": ["owl", "owl", "duck"], "gold": 1})
    lines.append({"query": "Where is it?", "choices": ["here", "here it is"], "gold": 1})
    return lines


def schema_lines() -> list[Line]:
    """Return questions of which two have equal contexts."""
    lines = [
        {
            "context_options": [f"The {a} saw the {b} because the {one}" for one in (a, b)],
            "continuation": f"was {word}.",
            "gold": n % 2,
        }
        for n, (a, b, word) in enumerate(zip(ANIMALS, ANIMALS[::-1], WORDS * 2, strict=True))
    ]
    lines += [
        {
            "context_options": [f"{a.title()}: I like my", f"{a}: I like my", f"{a} I like my"],
            "continuation": "caf\u00e9 au lait.",
            "gold": n,
        }
        for n, a in enumerate(ANIMALS[:3])
    ]
    same = ["The owl sleeps, so it", "The owl sleeps, so it"]
    return [*lines, {"context_options": same, "continuation": "is quiet.", "gold": 0}]


def word_lines() -> list[Line]:
    """Return texts to continue with one word, with white space around some of them."""
    return [
        {
            "context": f"{' ' * (n % 2)}A {animal} that is a {word}{COFFEE * (n % 3)} is\n",
            "continuation": word,
        }
        for n, (animal, word) in enumerate(zip([*ANIMALS, *ANIMALS[:4]], WORDS * 3, strict=True))
    ]


def items() -> dict[str, list[Line]]:
    """Return the lines of each file of items, by its name below eval_data."""
    every = (choice_lines(), schema_lines(), word_lines())
    return {task["dataset_uri"]: lines for task, lines in zip(TASKS, every, strict=True)}


def write_bundle(
    archive: Path,
    tasks: Sequence[Line] = TASKS,
    baselines: dict[str, str] = BASELINES,
    lines: dict[str, list[Line]] | None = None,
) -> Path:
    """Write the bundle as an archive, and return the archive. Pion reads it once it is `pinned`."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:

        def write(name: str, lines: Iterable[str]) -> None:
            text = "".join(f"{line}\n" for line in lines)
            packed.writestr(f"eval_bundle/{name}", text.encode(errors="surrogatepass"))

        for name, own in (items() if lines is None else lines).items():
            write(f"eval_data/{name}", (json.dumps(line, ensure_ascii=False) for line in own))
        write("core.yaml", ["icl_tasks:", *(f"- {json.dumps(task)}" for task in tasks)])
        rows = (f"{label},made up,{value}" for label, value in baselines.items())
        write("eval_meta_data.csv", ["Eval Task,Task Category,Random baseline", *rows])
    return archive


def pinned(patch: pytest.MonkeyPatch, archive: Path) -> Path:
    """Let Pion take an archive for the published one, and return the archive."""
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    patch.setattr("pion.evaluation.core.bundle.SHA256", sha256)
    return archive


def made_up_bundle(folder: Path) -> Bundle:
    """Write the bundle into a folder, and read it."""
    with pytest.MonkeyPatch.context() as patch:
        return read_bundle(pinned(patch, write_bundle(folder / "b.zip")))
