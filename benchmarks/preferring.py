"""Compare learning from pairs with TRL's DPOTrainer: target tokens per second, on the same pairs.

    uv run --group trl python -m benchmarks.preferring [--quick]

Pion-nano (28.7M parameters) learns with dpo, in fp32 on one thread, from pairs about Python's
standard library. A round is one optimizer step of each side, on the same pairs: those of a packed
row of 1,024 tokens. TRL's own loop runs, with the defaults of its users: an online reference, and
sequences that are padded to the longest of the step. After each of its steps, Pion takes the same
step. The time between TRL's steps, for its loader and its log, does not count. The losses of both
sides are compared, so both do the same work.

Pion computes its reference once, before the first step. "with the reference" adds this pass to
every step, as for a stage of one pass over the pairs. The result has how much each side pads. TRL
also measures the entropy and the mean logits of each target for its log, which is its default. What
each of these costs was not measured. Writes benchmarks/results/preferring.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.__main__ import circumstances
from benchmarks.comparison import Comparison, at_least, compare, heading
from benchmarks.exported import TOKENIZER
from benchmarks.trainees import NANO, TINY, Shape, decoder_of, qwen3
from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.packing import pack_items
from pion.data.documents.python_preferences import Better, docs_pairs
from pion.data.order import RowOrder
from pion.data.preference.rendering import Usable, preference_format
from pion.data.shards import IGNORED, Manifest, Rows, describe, flags_path
from pion.data.stream import Batch, RowStream
from pion.data.tokens.tokenizer import Tokenizer
from pion.train.preference import Preference
from pion.train.reference import sums_of
from pion.train.trainer import ComputePlan, Trainer, TrainSettings

RESULTS = Path(__file__).parent / "results" / "preferring.json"
ROUNDS, WARMUP = 12, 2
PAIRS = 2000
ROW, BETA, LR = 1024, 0.1, 1e-5
# Losses of the two sides may differ by rounding, which grows with the steps.
APART = 1e-3
PLAN = ComputePlan(micro_batch=1, threads=1)
KINDS: tuple[Better, ...] = get_args(Better)


@dataclass
class Turns:
    """What was measured, one number for each round."""

    ours: list[float] = field(default_factory=list)  # seconds of a step
    theirs: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)  # seconds of our reference pass
    losses: list[tuple[float, float]] = field(default_factory=list)  # ours, TRL's


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparisons on each kind of pairs."""
    shape, rounds = (TINY, 2) if quick else (NANO, ROUNDS)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            stream = stream_of(kind, Path(folder), shape, rounds + WARMUP)
            steps = [stream.batch([number]) for number in range(stream.total_rows)]
            turns = by_turns(shape, stream, steps, Path(folder))
        worst = max(abs(ours - theirs) for ours, theirs in turns.losses)
        if worst > APART:
            raise SystemExit(f"the losses are {worst:.1e} apart: the sides don't do the same")
        targets = np.array([int((step.targets != IGNORED).sum()) for step in steps])
        details = {"largest_difference_of_losses": float(f"{worst:.1e}"), **padding(steps)}
        alone, theirs, passes = map(np.array, (turns.ours, turns.theirs, turns.reference))
        for what, ours in (("a step", alone), ("with the reference", alone + passes)):
            yield compare(
                (f"dpo on `{kind}`, {what}", "TRL", "targets/s"),
                (targets / ours)[WARMUP:].tolist(),
                (targets / theirs)[WARMUP:].tolist(),
                at_least(2.0),
                details,
            )


def stream_of(kind: Better, folder: Path, shape: Shape, rows: int) -> RowStream:
    """Return so many packed rows of pairs, as training reads them."""
    tokenizer = Tokenizer.from_file(TOKENIZER)
    written = preference_format(ChatFormat(TOKENIZER, tokenizer), ROW, shape.config.seq_len)
    pairs = list(islice(docs_pairs(kind), PAIRS))
    items = [one.item for one in written.outcomes(pairs) if isinstance(one, Usable)]
    ids, flags = pack_items(items, ROW, tokenizer.pad)
    some = np.linspace(0, len(ids) - 1, rows).astype(int)  # the first rows have the longest pairs
    ids, flags = ids[some], flags[some]
    path = folder / "pairs.npy"
    np.save(path, ids % shape.config.vocab_size)  # of the tiny model, other tokens
    np.save(flags_path(path), flags)
    manifest = Manifest("pairs", ROW, shape.config.vocab_size, (describe(path, ROW),))
    order = RowOrder(manifest.shard_rows, manifest.fingerprint, seed=0, window=1)
    return RowStream([(Rows(manifest, lambda shard: path), order)])


def padding(steps: list[Batch]) -> dict[str, float]:
    """Return how many tokens each side computes for a token of a sequence."""
    lengths = [[len(p) + len(c) for p, c in sequences_in(step)] for step in steps]
    used = sum(map(sum, lengths))
    padded = sum(len(own) * max(own) for own in lengths)
    packed = sum(step.tokens.numel() for step in steps)
    pairs = sum(map(len, lengths)) / 2 / len(steps)
    return {
        "pairs_in_a_step": round(pairs, 1),
        "tokens_of_a_sequence": round(used / sum(map(len, lengths)), 1),
        "padded_by_pion": round(packed / used, 3),
        "padded_by_trl": round(padded / used, 3),
    }


def sequences_in(step: Batch) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the ids of the prompt and of the answer of each sequence of a batch of one row."""
    assert step.documents is not None
    for document in range(int(step.documents.max()) + 1):
        here = step.documents[0] == document
        ids, learned = step.tokens[0][here], step.targets[0][here] != IGNORED
        start = int(learned.int().argmax()) + 1
        yield ids[:start].tolist(), ids[start:].tolist()


def examples_of(step: Batch) -> list[dict[str, list[int]]]:
    """Return the pairs of a batch, as TRL reads them."""
    sequences = list(sequences_in(step))
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(sequences[::2], sequences[1::2], strict=True)
    ]


def by_turns(shape: Shape, stream: RowStream, steps: list[Batch], folder: Path) -> Turns:
    """Train both sides on the steps, a step of TRL and then a step of Pion."""
    from transformers import TrainerCallback

    turns, begun = Turns(), [0.0]
    decoder = decoder_of(shape.config)
    reference = {}
    # A stage computes them all before its first step.
    shards = stream.shards()
    places = [(source, n, row) for source, n, shard in shards for row in range(shard.rows)]
    for place in places:
        with torch.no_grad():
            (reference[place],) = sums_of(decoder, stream.batch_at([place]), PLAN)
    settings = TrainSettings(
        steps=len(steps),
        global_batch=1,
        lr=LR,
        schedule="constant",
        weight_decay=0.0,
        learning=Preference("dpo", BETA),
    )
    trainer = Trainer(decoder, stream.with_references(reference.__getitem__), settings, PLAN)

    class ByTurns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            begun[0] = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended = time.perf_counter()
            trainer.train_step()
            trained = time.perf_counter()
            with torch.no_grad():  # the pass as it was before the first step, measured again
                sums_of(decoder, steps[len(turns.ours)], PLAN)
            turns.reference.append(time.perf_counter() - trained)
            turns.theirs.append(ended - begun[0])
            turns.ours.append(trained - ended)

    their_losses = trained_by_trl(shape, steps, folder, ByTurns())
    our_losses = [step["loss"] for step in trainer.drain_metrics()]
    trainer.close()
    turns.losses = list(zip(our_losses, their_losses, strict=True))
    return turns


def trained_by_trl(shape: Shape, steps: list[Batch], folder: Path, turns: Any) -> list[float]:
    """Train with TRL's own loop, and return the loss of each step."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class OfSteps(DPOTrainer):
        """Takes ids instead of texts, and the pairs of a row in each step."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            return DataLoader(
                self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
            )

    made = [examples_of(step) for step in steps]
    ends = np.cumsum([len(own) for own in made])
    batches = [list(range(end - len(own), end)) for own, end in zip(made, ends, strict=True)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    args = DPOConfig(
        output_dir=str(folder),
        max_steps=len(steps),
        beta=BETA,
        learning_rate=LR,
        **{"lr_scheduler_type": "constant", "weight_decay": 0.0, "adam_beta2": 0.95},
        **{"max_length": None, "gradient_checkpointing": False, "bf16": False, "use_cpu": True},
        **{"logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
    )
    model, reference = (qwen3(shape.config).model for _ in range(2))
    trainer = OfSteps(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list([example for own in made for example in own]),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    torch.set_num_threads(1)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    from importlib.metadata import version

    conditions, start = circumstances() | {"trl": version("trl")}, time.perf_counter()
    say = partial(print, flush=True)
    say(heading())
    found = []
    for comparison in run(quick):
        say(comparison.line())
        found.append(comparison.to_dict())
    if not quick:
        conditions["seconds"] = round(time.perf_counter() - start)
        written = json.dumps({**conditions, "comparisons": found}, indent=1, ensure_ascii=False)
        RESULTS.write_text(written + "\n")


if __name__ == "__main__":
    main()
