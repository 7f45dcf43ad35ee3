"""What drafts save: tokens per second with and without them, by turns, and that no text changes.

    python -m benchmarks.drafts MODEL [MODEL …]      # folders, such as models/demo-draft
    python -m benchmarks.drafts --given              # Pion-small's shape, shares that are given

Each model continues prompts of prose and of code from Python's standard library, 1, 4 and 16 texts
at once, greedy and at a temperature of 0.8. `right` is the share of drafted tokens that were right,
and `saved` the tokens that needed no pass of their own, as a share of all. A model without a draft
block is drafted by what its texts repeat. With --given, weights are random and each draft is right
with the given probability: so the times are real, and the share is assumed. Prompts have different
lengths, as those of users do: texts of one length have a faster mask, until drafts move them apart.

The results are in benchmarks/results/drafts.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

import pion
from pion.config.model_config import ModelConfig
from pion.data.documents.python_docs import documents, source_files
from pion.data.tokens.tokenizer import Tokenizer
from pion.formats.draft_folder import with_draft
from pion.generation import decoding
from pion.generation.decoding import Decoding
from pion.generation.drafts import Drafting, LookUp, Record
from pion.model.decoder import Decoder

RESULTS = Path(__file__).parent / "results" / "drafts.json"
TEXTS, NEW, TURNS = 32, 96, 5
# The lengths of the prompts, by turns.
PROMPTS = (40, 43, 46, 49, 52)
ROWS = (1, 4, 16)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "0.8": {"temperature": 0.8, "seed": 1},
}
GIVEN = (0.0, 0.5, 0.7)


def prompts_of(kind: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the beginnings of texts that are long enough."""
    texts = (
        (document.text for document in documents())
        if kind == "prose"
        else (source.text for source in source_files())
    )
    long = (ids for text in texts if len(ids := tokenizer.prompt(text[:4000])) > 200)
    chosen = itertools.islice(long, 0, 4 * TEXTS, 4)
    return [ids[:length] for ids, length in zip(chosen, itertools.cycle(PROMPTS))]


def continued(
    model: Decoder, prompts: Sequence[list[int]], rows: int, drafts: int, **sampling: Any
) -> tuple[float, list[list[int]], tuple[int, int]]:
    """Return the tokens per second, the new ids of each text, and the tokens drafted and right."""
    counted = [0, 0]
    leave = Decoding.leave

    def count(self: Decoding, row: int, *, damaged: bool = False) -> None:
        for place, number in enumerate(self.drafts.counts(self.texts[row])):
            counted[place] += number
        leave(self, row, damaged=damaged)

    found: list[list[int]] = [[] for _ in prompts]
    with mock.patch.object(Decoding, "leave", count):
        begun = time.perf_counter()
        for number, token in pion.generate_batch(
            model, prompts, rows=rows, drafts=drafts, stop_ids=(), max_tokens=NEW, **sampling
        ):
            if token is not None:
                found[number].append(token)
        seconds = time.perf_counter() - begun
    return sum(map(len, found)) / seconds, found, (counted[0], counted[1])


def compared(
    model: Decoder, prompts: Sequence[list[int]], rows: int, drafts: int, **sampling: Any
) -> dict[str, Any]:
    """Return both speeds, by turns, and how many texts are equal."""
    speeds: list[tuple[float, float]] = []
    for _ in range(TURNS):
        plain, texts, _ = continued(model, prompts, rows, 0, **sampling)
        drafted, same, (tried, right) = continued(model, prompts, rows, drafts, **sampling)
        speeds.append((plain, drafted))
    new = sum(map(len, same))
    return {
        "rows": rows,
        "plain": round(median(plain for plain, _ in speeds), 1),
        "drafted": round(median(drafted for _, drafted in speeds), 1),
        "ratio": round(median(drafted / plain for plain, drafted in speeds), 3),
        "right": round(right / tried, 3) if tried else None,
        "saved": round(right / new, 3),
        "texts": len(texts),
        "equal": sum(one == other for one, other in zip(texts, same)),
    }


def of_model(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what drafts save a model, for each kind of text, of sampling, and number of texts."""
    model, tokenizer = pion.load(folder)
    assert tokenizer is not None
    model = with_draft(model, folder).eval().joined()
    drafts = 4 if model.config.draft is None else model.config.draft.steps
    for kind in ("prose", "code"):
        prompts = prompts_of(kind, tokenizer)
        for (name, sampling), rows in itertools.product(SAMPLINGS.items(), ROWS):
            found = compared(model, prompts, rows, drafts, **sampling)
            row = {"model": folder.name, "drafts": drafts, "text": kind, "sampling": name} | found
            yield row


# ---------------------------------------------------------------- shares that are given


class Knowing(LookUp):
    """Drafts a text that is known in advance, each token right with a given probability."""

    known: dict[tuple[int, ...], list[int]]  # whole texts, by their first ids
    share = 0.0
    begins: list[tuple[int, ...]]
    draw = random.Random(0)

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Return the next tokens of the known text, some of them wrong."""
        after = self.known[tuple(ids[: PROMPTS[0]])][len(ids) :][:most]
        return [token if self.draw.random() < self.share else token ^ 1 for token in after]


def given() -> Iterator[dict[str, Any]]:
    """Yield the speed of Pion-small's shape where a given share of drafts is right."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig.preset("pion-small")).eval().joined()
    draw = random.Random(1)
    lengths = itertools.islice(itertools.cycle(PROMPTS), 16)
    prompts = [[draw.randrange(2, 50_000) for _ in range(length)] for length in lengths]
    for rows in ROWS:
        some = prompts[: max(rows, 2)]
        _, texts, _ = continued(model, some, rows, 0, temperature=0.0)
        known = {tuple(ids[: PROMPTS[0]]): ids + text for ids, text in zip(some, texts)}
        for share, drafts in itertools.product(GIVEN, (1, 3)):
            Knowing.known, Knowing.share = known, share
            with (
                mock.patch.object(Drafting, "__init__", _knowing),
                mock.patch.object(decoding, "best_number", return_value=drafts),
            ):
                found = compared(model, some, rows, drafts, temperature=0.0)
            yield {"model": "pion-small's shape", "given": share, "drafts": drafts} | found


def _knowing(drafting: Drafting, looked_up: Record, of_block: Record) -> None:
    _INIT(drafting, looked_up, of_block)
    drafting._look_up = Knowing()


_INIT = Drafting.__init__


def main() -> None:
    """Measure, and keep the results of other models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--given", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    parts = [of_model(folder) for folder in args.models] + ([given()] if args.given else [])
    for part in parts:
        rows = []
        for row in part:
            print(json.dumps(row), flush=True)
            rows.append(row)
        known = [row for row in known if row["model"] != rows[0]["model"]] + rows
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
