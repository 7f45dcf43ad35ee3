"""Ask nanochat's own code for its answers on the made-up bundle, and compare Pion's with them.

    uv run --with jinja2 python -m benchmarks.core_oracle --nanochat PATH [--write]

PATH is a checkout of https://github.com/karpathy/nanochat (MIT). Its `nanochat/core_eval.py` runs
unchanged, with a model whose logits depend on all tokens before (tests/support/prefix_model.py).
--write freezes its choices as the numbers that the tests compare with. The bundle is made up: no
question of a benchmark is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.core.bundle import Bundle, read_bundle
from pion.evaluation.core.scoring import answer_task
from pion.evaluation.held_out import Scorer
from tests.pion.evaluation.core.frozen import CASES, FROZEN, Case
from tests.support.core_bundle import TASKS, Line, items, write_bundle
from tests.support.prefix_model import PrefixModel
from tests.support.tokenizer_kinds import tokenizer_of

Choices = dict[str, list[int | None]]


class _Tokens:
    """A tokenizer with the interface that nanochat's code expects."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def get_bos_token_id(self) -> int:
        return self._tokenizer.before_document

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *self._tokenizer.encode(prompt)] for prompt in prompts]


class _Model:
    """A model with the interface that nanochat's code expects."""

    def __init__(self, model: PrefixModel) -> None:
        self._model = model
        self.max_seq_len = model.config.seq_len

    def __call__(self, ids: Tensor) -> Tensor:
        return self._model.logits(ids)


def main() -> None:
    """Print how many choices agree for each case, and write nanochat's if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core_oracle")
    parser.add_argument("--nanochat", metavar="PATH", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help=f"write {FROZEN.name}")
    options = parser.parse_args()
    oracle = _load(options.nanochat / "nanochat" / "core_eval.py")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(write_bundle(Path(folder)))
        for case in CASES:
            tokenizer = tokenizer_of(case.kind)
            model = PrefixModel.of(tokenizer, case.context, case.seed)
            theirs = {
                task["label"]: list(_choices(oracle, model, tokenizer, task)) for task in TASKS
            }
            found[case.name] = theirs
            print(f"{case.name}: {_compared(bundle, case, theirs)}")
    if options.write:
        FROZEN.write_text(_compact(found), encoding="utf-8")
        print(f"wrote {FROZEN}")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanochat_core_eval", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _choices(
    oracle: ModuleType, model: PrefixModel, tokenizer: Tokenizer, task: Line
) -> Iterator[int | None]:
    """Yield nanochat's choice for each item; None where its code refuses the item.

    Its code says only whether an answer is right, so each option is called the right one in turn.
    The item itself is never among its examples.
    """
    meta = {
        "task_type": task["icl_task_type"],
        "num_fewshot": task["num_fewshot"][0],
        "continuation_delimiter": task.get("continuation_delimiter", " "),
    }
    data: list[dict[str, Any]] = items()[task["dataset_uri"]]
    random.Random(1337).shuffle(data)
    for number, item in enumerate(data):
        options = item.get("choices") or item.get("context_options") or [None]
        chosen: int | None = -1
        for option in range(len(options)):
            asked = [*data[:number], {**item, "gold": option}, *data[number + 1 :]]
            try:
                right = oracle.evaluate_example(
                    number, _Model(model), _Tokens(tokenizer), asked, torch.device("cpu"), meta
                )
            except AssertionError:
                chosen = None
                break
            if right:
                chosen = option
                break
        yield chosen


def _compared(bundle: Bundle, case: Case, theirs: Choices) -> str:
    tokenizer = tokenizer_of(case.kind)
    model = PrefixModel.of(tokenizer, case.context, case.seed)
    equal, differing, counted = 0, [], 0
    for task in bundle.tasks:
        scorer = Scorer(model.decoder(), tokenizer.vocab_size, 4)
        ours = answer_task(scorer, tokenizer, task, len(task.items))
        for number, (one, their) in enumerate(zip(ours, theirs[task.label], strict=True)):
            if one.answer.choice == their:
                equal += 1
            elif one.asked.odd or one.asked.joined or one.asked.unscored or one.answer.tied:
                counted += 1
            else:
                differing.append(f"{task.label} {number}: {one.answer.choice} not {their}")
    return f"{equal} equal, {counted} counted as deviations, {len(differing)} differ {differing}"


def _compact(found: dict[str, Choices]) -> str:
    """Return JSON with a line for each task."""
    cases = []
    for name, tasks in found.items():
        lines = ",\n".join(f'  "{label}": {json.dumps(own)}' for label, own in tasks.items())
        cases.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(cases) + "\n}\n"


if __name__ == "__main__":
    main()
