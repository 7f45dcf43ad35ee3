"""Read a bundle of CORE: which tasks it has, how they are asked, and their items."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from pion.bounded_yaml import BoundedLoader, unreadable
from pion.data.documents.file_to_documents import (
    decoded,
    json_of_line,
    numbered_lines,
    whole_characters,
)
from pion.errors import BadInput
from pion.evaluation.core.bundle_files import CONFIG, BundleFiles, open_bundle
from pion.evaluation.results import TaskType
from pion.later_fields import closest, shown
from pion.untrusted import LARGEST_JOB, LARGEST_RECORD

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)


@dataclass(frozen=True)
class PublishedTask:
    """A task of CORE. Baselines are shares of right answers by guessing, in percent.

    DCLM corrected three baselines on 5 September 2025 (v2). nanochat and the published numbers use
    the baselines of before (v1).
    """

    task_type: TaskType
    shots: int
    v1: float
    v2: float


CORE_TASKS: dict[str, PublishedTask] = {
    "hellaswag_zeroshot": PublishedTask("multiple_choice", 0, 25, 25),
    "jeopardy": PublishedTask("language_modeling", 10, 0, 0),
    "bigbench_qa_wikidata": PublishedTask("language_modeling", 10, 0, 0),
    "arc_easy": PublishedTask("multiple_choice", 10, 25, 25),
    "arc_challenge": PublishedTask("multiple_choice", 10, 25, 25),
    "copa": PublishedTask("multiple_choice", 0, 50, 50),
    "commonsense_qa": PublishedTask("multiple_choice", 10, 20, 40.3),
    "piqa": PublishedTask("multiple_choice", 10, 50, 50),
    "openbook_qa": PublishedTask("multiple_choice", 0, 25, 25),
    "lambada_openai": PublishedTask("language_modeling", 0, 0, 0),
    "hellaswag": PublishedTask("multiple_choice", 10, 25, 25),
    "winograd": PublishedTask("schema", 0, 50, 50),
    "winogrande": PublishedTask("schema", 0, 50, 50),
    "bigbench_dyck_languages": PublishedTask("language_modeling", 10, 0, 0),
    "agi_eval_lsat_ar": PublishedTask("multiple_choice", 3, 20, 25),
    "bigbench_cs_algorithms": PublishedTask("language_modeling", 10, 0, 0),
    "bigbench_operators": PublishedTask("language_modeling", 10, 0, 0),
    "bigbench_repeat_copy_logic": PublishedTask("language_modeling", 10, 0, 0),
    "squad": PublishedTask("language_modeling", 10, 0, 0),
    "coqa": PublishedTask("language_modeling", 0, 0, 0),
    "boolq": PublishedTask("multiple_choice", 10, 62, 62),
    "bigbench_language_identification": PublishedTask("multiple_choice", 10, 9.1, 25),
}

# Tasks that ask several questions about one passage.
WITH_PASSAGES = ("squad", "coqa")


MOST_OPTIONS = 100


@dataclass(frozen=True)
class Item:
    """A question: some `contexts` and `continuations`, of which the pair `gold` is right.

    multiple_choice has one context, and a continuation for each choice. schema has several
    contexts, and one continuation. language_modeling has one of each.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int

    @property
    def options(self) -> int:
        """The number of answers to choose from; 1 in language_modeling."""
        return max(len(self.contexts), len(self.continuations))

    def pair(self, option: int) -> tuple[str, str]:
        """Return the context and the continuation of an option."""
        return (
            self.contexts[option if len(self.contexts) > 1 else 0],
            self.continuations[option if len(self.continuations) > 1 else 0],
        )


def item_of(raw: Any, task_type: TaskType) -> Item:
    """Return the item of a line of JSON. Raises ValueError that says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"found a {type(raw).__name__} instead of a JSON object")
    if task_type == "multiple_choice":
        choices = _texts(raw, "choices")
        return Item((_text(raw, "query"),), choices, _gold(raw, len(choices)))
    continuation = _text(raw, "continuation")
    if not continuation.strip():
        raise ValueError("continuation is empty")
    if task_type == "schema":
        contexts = _texts(raw, "context_options")
        return Item(contexts, (continuation,), _gold(raw, len(contexts)))
    return Item((_text(raw, "context"),), (continuation,), 0)


def _value(raw: dict[str, Any], key: str) -> Any:
    if key not in raw:
        raise ValueError(f"no {key!r}; its keys: {shown(', '.join(raw)) if raw else 'none'}")
    return raw[key]


def _text(raw: dict[str, Any], key: str) -> str:
    value = _value(raw, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {shown(value)}; expected text")
    return whole_characters(value)


def _texts(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _value(raw, key)
    if not isinstance(values, list) or not 2 <= len(values) <= MOST_OPTIONS:
        raise ValueError(f"{key} is {shown(values)}; expected 2 to {MOST_OPTIONS} texts in a list")
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None or None in values:
        raise ValueError(f"{key} has {shown(wrong)} in it; expected texts")
    return tuple(map(whole_characters, values))


def _gold(raw: dict[str, Any], options: int) -> int:
    gold = _value(raw, "gold")
    if type(gold) is not int or not 0 <= gold < options:
        raise ValueError(f"gold is {shown(gold)}; expected a whole number from 0 to {options - 1}")
    return gold


BASELINES = "eval_meta_data.csv"
LABEL, BASELINE = "Eval Task", "Random baseline"
DATA = "eval_data"
MOST_SHOTS, MOST_TASKS = 64, 200
LONGEST_NAME = 200
# nanochat's. It decides which items a smaller measurement asks, and the number of each item.
ORDER_SEED = 1337


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
    """Return the bundle in a folder or zip archive.

    Raises BadInput that names the file and line of whatever is wrong, and OSError never.
    """
    with open_bundle(path) as files:
        config = files.where(CONFIG)
        listed = _listed(decoded(files.read(CONFIG, LARGEST_JOB), str(config)), config)
        baselines = _baselines(files)
        tasks: list[Task] = []
        places: dict[str, str] = {}
        for line, raw in listed:
            where = f"{config}:{line}"
            try:
                task = _task(files, baselines, raw)
            except ValueError as error:
                raise BadInput(f"{where}: {error}") from None
            if task.label in places:
                raise BadInput(f"{where}: the label {task.label} is also at {places[task.label]}")
            places[task.label] = where
            tasks.append(task)
        return Bundle(path, tuple(tasks), files.digest())


def _items(content: bytes, file: Path, task_type: TaskType) -> list[Item]:
    items = []
    for where, line in numbered_lines(io.BytesIO(content), file):
        raw = json_of_line(line, where)
        try:
            items.append(item_of(raw, task_type))
        except ValueError as error:
            raise BadInput(f"{where}: not an item of {task_type}: {error}") from None
    return items


# ---------------------------------------------------------------- core.yaml


def _listed(text: str, where: Path) -> list[tuple[int, Any]]:
    """Return each entry of `icl_tasks`, and its line."""
    try:
        loader = BoundedLoader(text)
        root = loader.get_single_node()
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        listed = next((value for key, value in pairs if key.value == "icl_tasks"), None)
        if not isinstance(listed, yaml.SequenceNode) or not listed.value:
            raise BadInput(f"{where}: no tasks: expected a list under the key icl_tasks")
        if len(listed.value) > MOST_TASKS:
            raise BadInput(f"{where}: {len(listed.value)} tasks; at most {MOST_TASKS} are read")
        return [
            (node.start_mark.line + 1, loader.construct_object(node, deep=True))
            for node in listed.value
        ]
    except yaml.MarkedYAMLError as error:
        raise unreadable(error, str(where)) from None


def _task(files: BundleFiles, baselines: Baselines, raw: Any) -> Task:
    """Return the task of an entry. Raises ValueError that says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected a task with label and icl_task_type, found {shown(raw)}")
    label = _name(raw, "label")
    kind = raw.get("icl_task_type")
    if kind not in TASK_TYPES:
        raise ValueError(
            f"{label}: icl_task_type is {shown(kind)}; expected one of {', '.join(TASK_TYPES)}"
            f"{closest(kind, TASK_TYPES)}"
        )
    shots = _shots(raw, label)
    delimiter = raw.get("continuation_delimiter", " ")
    if not isinstance(delimiter, str) or len(delimiter) > LONGEST_NAME:
        raise ValueError(f"{label}: continuation_delimiter is {shown(delimiter)}; expected text")
    name = f"{DATA}/{_name(raw, 'dataset_uri')}"
    baseline = _baseline(files, baselines, label)
    content = files.read(name)
    items = _items(content, files.where(name), kind)
    if len(items) <= shots:
        raise ValueError(
            f"{label} asks with {shots} examples, so it needs {shots + 1} items or more. "
            f"{files.where(name)} has {len(items)}"
        )
    random.Random(ORDER_SEED).shuffle(items)
    digest = hashlib.sha256(content).hexdigest()
    return Task(label, kind, shots, delimiter, baseline, tuple(items), digest)


def _shots(raw: dict[Any, Any], label: str) -> int:
    shots = raw.get("num_fewshot")
    first = shots[0] if isinstance(shots, list) and shots else None
    if type(first) is not int or not 0 <= first <= MOST_SHOTS:
        raise ValueError(
            f"{label}: num_fewshot is {shown(shots)}; expected a list with a whole number from 0 "
            f"to {MOST_SHOTS}"
        )
    return first


def _name(raw: dict[Any, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME:
        raise ValueError(f"{key} is {shown(value)}; expected a name")
    if not value.isprintable():
        raise ValueError(f"{key} is {shown(value)}; it has characters that can't be shown")
    return value


# ---------------------------------------------------------------- baselines


# The texts of a label's baselines in percent, each with its file and line.
Baselines = Mapping[str, Sequence[tuple[str | None, str]]]


def _baselines(files: BundleFiles) -> Baselines:
    """Return what the file says of each label; a bundle need not have all these tasks."""
    file = files.where(BASELINES)
    reader = csv.DictReader(io.StringIO(decoded(files.read(BASELINES, LARGEST_RECORD), str(file))))
    found: dict[str, list[tuple[str | None, str]]] = {}
    try:
        if not {LABEL, BASELINE} <= set(reader.fieldnames or ()):
            raise BadInput(f"{file}:1: no column {LABEL!r} or no column {BASELINE!r}")
        for row in reader:
            place = f"{file}:{reader.line_num}"
            found.setdefault(row[LABEL], []).append((row[BASELINE], place))
    except csv.Error as error:
        raise BadInput(f"{file}:{reader.line_num + 1}: not CSV: {error}") from None
    return found


def _baseline(files: BundleFiles, baselines: Baselines, label: str) -> float:
    """Return the baseline of a task, as a share. Raises ValueError if it has none."""
    shares: list[float] = []
    for text, where in baselines.get(label, ()):
        try:
            percent = float(text or "")
        except ValueError:
            percent = math.nan
        if not 0 <= percent < 100:
            raise BadInput(
                f"{where}: the baseline of {label} is {shown(text)}; expected a number of percent "
                "from 0 to below 100"
            )
        shares.append(0.01 * percent)
        if shares[-1] != shares[0]:
            raise BadInput(f"{where}: {label} has another baseline in an earlier line")
    if not shares:
        raise ValueError(f"the label {label} has no baseline in {files.where(BASELINES)}")
    return shares[0]
