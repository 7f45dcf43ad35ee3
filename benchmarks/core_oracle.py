"""Ask nanochat's own code for its answers on the made-up bundle, and compare Pion's with them.

    uv run python -m benchmarks.core_oracle --nanochat PATH [--write]
    uv run python -m benchmarks.core_oracle --nanochat PATH --model FOLDER

PATH is a checkout of https://github.com/karpathy/nanochat (MIT). Its `nanochat/core_eval.py` runs
unchanged, with a model whose logits depend on all tokens before (tests/support/prefix_model.py).
--write freezes its choices as the numbers that the tests compare with. With --model, nanochat's
code runs around the model and the tokenizer that transformers loads from FOLDER, and Pion around
its own, both in fp32. The bundle is made up: no question of a benchmark is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import pion
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.core.bundle import Bundle
from pion.evaluation.core.scoring import answer_task
from pion.evaluation.held_out import Scorer
from pion.model.decoder import Decoder
from tests.pion.evaluation.core.frozen import CASES, FROZEN
from tests.support.core_bundle import TASKS, Line, items, made_up_bundle
from tests.support.prefix_model import PrefixModel
from tests.support.tokenizer_kinds import tokenizer_of

Choices = dict[str, list[int | None]]


@dataclass(frozen=True)
class Agreement:
    """How many choices are equal, how many differ for a counted reason, and which others differ."""

    equal: int
    counted: int
    differing: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"{len(self.differing)} differ{': ' * bool(self.differing)}"
        return f"{self.equal} equal, {self.counted} counted as deviations, {rest}" + "; ".join(
            self.differing
        )


class _Tokens:
    """A tokenizer with the interface that nanochat's code expects."""

    def __init__(self, encode: Callable[[str], list[int]], start: int) -> None:
        self._encode, self._start = encode, start

    def get_bos_token_id(self) -> int:
        return self._start

    def __call__(self, prompts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *self._encode(prompt)] for prompt in prompts]


class _Model:
    """A model with the interface that nanochat's code expects.

    Remembers the last logits: the same rows come again for each option.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], context: int) -> None:
        self._logits = logits
        self.max_seq_len = context
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        if self._last is None or not torch.equal(self._last[0], ids):
            self._last = ids, self._logits(ids)
        return self._last[1]


def main() -> None:
    """Print how many choices agree for each case, and write nanochat's if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core_oracle")
    parser.add_argument("--nanochat", metavar="PATH", type=Path, required=True)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--write", action="store_true", help=f"write {FROZEN.name}")
    either.add_argument("--model", metavar="FOLDER", type=Path, help="a model of transformers")
    options = parser.parse_args()
    oracle = _load(options.nanochat)
    with tempfile.TemporaryDirectory() as folder:
        bundle = made_up_bundle(Path(folder))
        if options.model is not None:
            agreement = compare_real_model(options.nanochat, options.model, bundle)
            print(f"{options.model.name}: {agreement}")
            return
        found = {}
        for case in CASES:
            tokenizer = tokenizer_of(case.kind)
            model = PrefixModel.of(tokenizer, case.context, case.seed)
            tokens = _Tokens(tokenizer.encode, tokenizer.before_document)
            theirs = _choices(oracle, _Model(model.logits, case.context), tokens)
            found[case.name] = theirs
            print(f"{case.name}: {_compared(bundle, model.decoder(), tokenizer, theirs)}")
    if options.write:
        FROZEN.write_text(_compact(found), encoding="utf-8")
        print(f"wrote {FROZEN}")


def compare_real_model(nanochat: Path, folder: Path, bundle: Bundle) -> Agreement:
    """Return how nanochat's code around transformers' model agrees with Pion, in fp32."""
    import transformers

    oracle = _load(nanochat)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    decoder, tokenizer = pion.load(folder)
    assert tokenizer is not None

    def encode(text: str) -> list[int]:
        return list(their_tokenizer(text, add_special_tokens=False)["input_ids"])

    tokens = _Tokens(encode, tokenizer.before_document)
    model = _Model(lambda ids: theirs(ids).logits, decoder.config.seq_len)
    return _compared(bundle, decoder, tokenizer, _choices(oracle, model, tokens))


def _load(nanochat: Path) -> ModuleType:
    path = nanochat / "nanochat" / "core_eval.py"
    spec = importlib.util.spec_from_file_location("nanochat_core_eval", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _choices(oracle: ModuleType, model: _Model, tokens: _Tokens) -> Choices:
    return {task["label"]: list(_of_task(oracle, model, tokens, task)) for task in TASKS}


def _of_task(
    oracle: ModuleType, model: _Model, tokens: _Tokens, task: Line
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
                    number, model, tokens, asked, torch.device("cpu"), meta
                )
            except AssertionError:
                chosen = None
                break
            if right:
                chosen = option
                break
        yield chosen


def _compared(bundle: Bundle, model: Decoder, tokenizer: Tokenizer, theirs: Choices) -> Agreement:
    equal, counted, differing = 0, 0, []
    for task in bundle.tasks:
        scorer = Scorer(model, tokenizer.vocab_size, 1)
        ours = answer_task(scorer, tokenizer, task, len(task.items))
        for number, (one, their) in enumerate(zip(ours, theirs[task.label], strict=True)):
            if one.choice == their:
                equal += 1
            elif one.asked.odd or one.asked.joined or one.asked.unscored or one.tied:
                counted += 1
            else:
                differing.append(f"{task.label} {number}: {one.choice} not {their}")
    return Agreement(equal, counted, tuple(differing))


def _compact(found: dict[str, Choices]) -> str:
    """Return JSON with a line for each task."""
    cases = []
    for name, tasks in found.items():
        lines = ",\n".join(f'  "{label}": {json.dumps(own)}' for label, own in tasks.items())
        cases.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(cases) + "\n}\n"


if __name__ == "__main__":
    main()
