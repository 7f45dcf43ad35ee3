"""Read the bundle of CORE: the published archive of its tasks and their items, and no other."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pion.data.documents.file_to_documents import whole_characters
from pion.errors import BadInput
from pion.untrusted import open_file

TaskType = Literal["multiple_choice", "schema", "language_modeling"]
# The archive that nanochat downloads, and its content. Its questions are read as they are: nothing
# in another archive is read.
URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"

# nanochat's. It decides which items a smaller measurement asks, and the number of each item.
ORDER_SEED = 1337
# Tasks that ask several questions about one passage.
WITH_PASSAGES = ("squad", "coqa")
# The keys of an item's contexts and of its continuations. One of them has a single text.
ITEM_KEYS: dict[TaskType, tuple[str, str]] = {
    "multiple_choice": ("query", "choices"),
    "schema": ("context_options", "continuation"),
    "language_modeling": ("context", "continuation"),
}


@dataclass(frozen=True)
class Item:
    """A question: its `options`, of which number `gold` is right.

    An option is a context and its continuation. In multiple_choice, all have the same context, and
    in schema, the same continuation. language_modeling has one option.
    """

    options: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A task with all its items, in the order in which they are numbered.

    Attributes:
        shots: how many answered items come before each question.
        delimiter: what is between a context and its continuation.
        baseline: the share of right answers by guessing, from the bundle; 0 to 1.
        data_digest: sha256 of the file of its items.
    """

    label: str
    task_type: TaskType
    shots: int
    delimiter: str
    baseline: float
    items: tuple[Item, ...]
    data_digest: str


@dataclass(frozen=True)
class Bundle:
    """The tasks of a bundle, in the order of core.yaml.

    `digest` is the sha256 of the names and contents of the files that were read.
    """

    path: Path
    tasks: tuple[Task, ...]
    digest: str


def read_bundle(path: Path) -> Bundle:
    """Return the bundle in an archive. Raises BadInput for anything but the published archive."""
    try:
        if path.is_dir():
            raise _other(path, "a folder")
        with open_file(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != SHA256:
                raise _other(path, f"a file with the sha256 {sha256}")
            with zipfile.ZipFile(file) as archive:
                return Bundle(path, *_contents(archive))
    except OSError as error:
        raise BadInput(
            f"{path}: can't read this bundle of CORE ({error.strerror}). Download it: "
            f"curl -fo eval_bundle.zip {URL}"
        ) from None


def _other(path: Path, what: str) -> BadInput:
    return BadInput(
        f"{path}: expected the published archive of CORE's questions, with the sha256 {SHA256}, "
        f"and found {what}. Other questions give another number than CORE. Download the archive, "
        f"and do not unpack it: curl -fo eval_bundle.zip {URL}. If this gives another sha256 "
        "again, the archive has changed, and this Pion can't use the new one. To ask your "
        "own questions, use a pack (evaluate.packs)"
    )


def _contents(archive: zipfile.ZipFile) -> tuple[tuple[Task, ...], str]:
    """Return the tasks in an archive, and the digest of the files that have them."""
    digests: dict[str, str] = {}

    def read(name: str) -> bytes:
        content = archive.read(f"eval_bundle/{name}")
        digests[name] = hashlib.sha256(content).hexdigest()
        return content

    rows = csv.DictReader(io.StringIO(read("eval_meta_data.csv").decode()))
    baselines = {row["Eval Task"]: 0.01 * float(row["Random baseline"]) for row in rows}
    tasks = []
    for task in yaml.safe_load(read("core.yaml"))["icl_tasks"]:
        name = f"eval_data/{task['dataset_uri']}"
        items = _items(read(name), task["icl_task_type"])
        tasks.append(
            Task(
                label=task["label"],
                task_type=task["icl_task_type"],
                shots=task["num_fewshot"][0],
                delimiter=task.get("continuation_delimiter", " "),
                baseline=baselines[task["label"]],
                items=items,
                data_digest=digests[name],
            )
        )
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return tuple(tasks), hashlib.sha256("".join(lines).encode()).hexdigest()


def _items(content: bytes, task_type: TaskType) -> tuple[Item, ...]:
    """Return the items of a JSON Lines file in the order in which they are numbered."""
    items = []
    for line in content.splitlines():
        raw = json.loads(line)
        contexts, continuations = (_texts(raw[key]) for key in ITEM_KEYS[task_type])
        options = tuple(itertools.product(contexts, continuations))
        items.append(Item(options, raw.get("gold", 0)))
    random.Random(ORDER_SEED).shuffle(items)
    return tuple(items)


def _texts(value: Any) -> tuple[str, ...]:
    texts: Sequence[str] = [value] if isinstance(value, str) else value
    return tuple(map(whole_characters, texts))
