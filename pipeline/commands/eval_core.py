"""`pion eval --core`: measure the CORE benchmark, and say what its numbers mean."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluation.core.bundle import Bundle, Task, read_bundle
from pion.evaluation.core.measure import DEFAULT_ITEMS, core_result, measure_task, too_short
from pion.evaluation.core.scoring import USUAL_ROW
from pion.evaluation.held_out import Scorer
from pion.later_fields import shown
from pion.model.decoder import Decoder
from pipeline.console.formats import counted, show
from pipeline.report.benchmarks import core_in_words, task_in_words

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
    return AskedCore(limit=_limit(items), bundle=read_bundle(Path(path)), cropped=cropped)


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


def core_part(model: Decoder, tokenizer: Tokenizer, core: AskedCore, *, as_json: bool) -> Part:
    """Return what measures CORE. It prints each task's result when it is there, unless as JSON.

    Its result is without the answers to the single items. Raises BadInput for a model whose context
    is too short.
    """
    problem = too_short(model.config.seq_len)
    if problem and not core.cropped:
        raise BadInput(
            f"{problem}. Nothing was measured. Use --core-cropped to measure it all the same"
        )
    device = next(model.parameters()).device.type
    tokens = TOKENS_ON_CPU if device == "cpu" else TOKENS_ON_GPU
    rows = max(1, tokens // min(model.config.seq_len, USUAL_ROW))

    def part() -> tuple[dict[str, Any], str]:
        scorer, progress = Scorer(model, tokenizer.vocab_size, rows), _Progress()
        tasks = []
        for task in core.bundle.tasks:
            tasks.append(measure_task(scorer, tokenizer, task, core.limit, progress))
            if not as_json:
                show(task_in_words(tasks[-1].record))
        context = model.config.seq_len
        result = core_result(core.bundle, tasks, limit=core.limit, context=context)
        return result, core_in_words(result)

    return part


class _Progress:
    """Says on standard error how far a long task is, every SECONDS_BETWEEN_LINES."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def __call__(self, task: Task, done: int, count: int) -> None:
        if time.monotonic() >= self._next and done < count:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            line = f"core: {task.label}: {done:,} of {counted(count, 'item')}"
            print(line, file=sys.stderr, flush=True)
