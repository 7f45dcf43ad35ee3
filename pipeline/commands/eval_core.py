"""`pion eval --core`: measure the CORE benchmark, and say what its numbers mean."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluation.core.bundle import Bundle, Task, read_bundle
from pion.evaluation.core.measure import DEFAULT_ITEMS, Watcher, measure_core
from pion.evaluation.core.measure import check_context as check_length
from pion.evaluation.core.result import CoreResult, TaskResult
from pion.evaluation.core.scoring import USUAL_ROW
from pion.evaluation.held_out import Scorer
from pion.later_fields import shown
from pion.model.decoder import Decoder
from pipeline.console.formats import counted, measured, printable, show

if TYPE_CHECKING:
    from pipeline.commands.eval import Part

# Tokens computed at once; after running out of memory on a GPU, fewer are.
TOKENS_ON_CPU, TOKENS_ON_GPU = 8192, 65_536
MOST_ITEMS = 10_000_000
SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class AskedCore:
    """What `--core` asks for. `limit` is the number of items of each task, None: all."""

    bundle: Bundle
    limit: int | None
    cropped: bool


def asked_core(path: str | None, items: str | None, *, cropped: bool) -> AskedCore | None:
    """Return what the options ask for, with the bundle read; None without a bundle.

    Raises BadInput for options that do not fit, and as `read_bundle` does.
    """
    if path is None:
        if items is not None or cropped:
            raise BadInput("--core-items and --core-cropped go with --core PATH")
        return None
    limit = _limit(items)
    return AskedCore(read_bundle(Path(path)), limit, cropped)


def _limit(items: str | None) -> int | None:
    if items is None:
        return DEFAULT_ITEMS
    if items == "all":
        return None
    limit = int(items) if re.fullmatch("[0-9]{1,9}", items) else 0
    if not 1 <= limit <= MOST_ITEMS:
        raise BadInput(
            f"--core-items is {shown(items)}; expected a whole number from 1 to {MOST_ITEMS:,}, "
            "or all"
        )
    return limit


def check_context(context: int, *, cropped: bool) -> None:
    """Raise BadInput for a model whose context is too short for CORE."""
    try:
        check_length(context, cropped=cropped)
    except BadInput as error:
        raise BadInput(
            f"{error}. Nothing was measured. Use --core-cropped to measure it all the same"
        ) from None


def core_part(model: Decoder, tokenizer: Tokenizer, core: AskedCore, *, as_json: bool) -> Part:
    """Return what measures CORE. It prints each task's result when it is there, unless as JSON.

    Its result is without the answers to the single items. Raises BadInput for a model whose context
    is too short.
    """
    check_context(model.config.seq_len, cropped=core.cropped)
    device = next(model.parameters()).device.type
    tokens = TOKENS_ON_CPU if device == "cpu" else TOKENS_ON_GPU
    rows = max(1, tokens // min(model.config.seq_len, USUAL_ROW))

    def part() -> tuple[dict[str, Any], str]:
        scorer = Scorer(model, tokenizer.vocab_size, rows)
        watcher = Watcher(_Progress(), (lambda _: None) if as_json else _show_task)
        result = measure_core(scorer, tokenizer, core.bundle, core.limit, watcher)
        return _without_items(result), core_in_words(result)

    return part


class _Progress:
    """Says on standard error how far a long task is, every SECONDS_BETWEEN_LINES."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def __call__(self, task: Task, done: int, count: int) -> None:
        if time.monotonic() >= self._next and done < count:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            line = printable(f"core: {task.label}: {done:,} of {counted(count, 'item')}")
            print(line, file=sys.stderr, flush=True)


def _show_task(task: TaskResult) -> None:
    show(task_in_words(task))


def task_in_words(task: TaskResult) -> str:
    """Return a line about a task: how many answers are right, and what to know about them."""
    asked = f"{task.items:,} of {counted(task.of_items, 'item')}"
    if task.not_finite:
        odd = counted(task.not_finite, "item")
        return f"{task.label}: not finite: the model's logits of {odd} are not numbers ({asked})"
    guessing = f"guessing {task.baseline:.1%}, "
    if abs(task.accuracy - task.baseline) <= 2 * task.sem:
        guessing = f"at chance, {task.baseline:.1%}; "
    words = [
        f"{task.label}: {task.accuracy:.1%} ± {task.sem:.1%} right ({guessing}{asked}), "
        f"centred {measured(task.centred, task.centred_sem)}"
    ]
    if task.cropped:
        words.append(f"{task.cropped:.0%} of rows cropped")
    if task.commonest is not None and task.commonest_place is not None:
        words.append(f"choice {task.commonest_place + 1} in {task.commonest:.0%}")
    counts = {
        "did not fit": task.unscored,
        "odd": task.odd_items,
        "with a joined token": task.joined_tokens,
        "tied": task.ties,
    }
    words += [f"{count:,} {what}" for what, count in counts.items() if count]
    return "; ".join(words)


def core_in_words(result: CoreResult) -> str:
    """Return the result in one or two sentences, with its rule, baselines and bundle."""
    each = "all items" if result.limit is None else f"{counted(result.limit, 'item')} per task"
    cropped = len(result.cropped_tasks)
    details = [f"rule {result.rule}, baselines v1", each, f"bundle {result.bundle_digest[:12]}"]
    if result.dtype != "float32":
        details.append(result.dtype)
    if cropped:
        details.append(f"context {result.context:,}: {counted(cropped, 'task')} cropped")
    if math.isnan(result.value):
        return f"{result.name}: not finite ({'; '.join(details)})"
    text = (
        f"{result.name} {measured(result.value, result.sem, 4)} ({'; '.join(details)}). With "
        f"baselines v2: {measured(result.value_v2, result.sem_v2, 4)}. 0 is guessing, 1 is every "
        "answer right"
    )
    return f"{text}. Not CORE: {'; '.join(result.not_core)}" if result.not_core else text


def _without_items(result: CoreResult) -> dict[str, Any]:
    found = dataclasses.asdict(result)
    for task in found["tasks"]:
        del task["credits"], task["choices"]
    return found
