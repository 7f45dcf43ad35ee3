"""Compare the speed of greedy decoding with transformers' `generate`, for 1 and 16 sequences.

Both load the same exported folder, of the shape of Pion-small (103M) with random weights. Pion
decodes in the dtype that `pion generate` chooses on this machine; transformers in its default dtype
and in bf16. Prompts have one length, so transformers pads nothing, and no token ends a text. The
time includes reading the prompts. In fp32, both must give the same tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.comparison import Comparison, Work, alternate, at_least, compare, speed_of
from benchmarks.exported import export_random
from pion.formats.load import load_decoder
from pion.generation.generate import generate, generate_batch
from pion.model.decoder import Decoder
from pion.train.hardware import pick_dtype, torch_dtype

ROUNDS, WARMUP = 9, 1
SEQUENCES = (1, 16)
PROMPT_TOKENS, NEW_TOKENS, QUICK_NEW_TOKENS = 32, 64, 4
DEFAULT, BF16 = "default dtype", "bf16"
# What is loaded, and how many times as fast Pion should be.
LOADED: dict[str, dict[str, torch.dtype]] = {DEFAULT: {}, BF16: {"dtype": torch.bfloat16}}
TARGETS = {DEFAULT: 1.6, BF16: 1.05}


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison with each dtype of transformers, for each number of sequences."""
    new = QUICK_NEW_TOKENS if quick else NEW_TOKENS
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = export_random(Path(folder) / "model", quick)
        # What `--dtype auto` chooses.
        name = pick_dtype("auto", torch.device("cpu"), generating=True)
        ours = load_decoder(model, dtype=torch_dtype(name)).joined()  # as `pion generate` does
        theirs = {dtype: load_theirs(model, options) for dtype, options in LOADED.items()}
        check_tokens(load_decoder(model), theirs[DEFAULT], new)
    for count in SEQUENCES:
        prompts = random_prompts(count, ours.config.vocab_size)
        works = {"pion": our_work(ours, prompts, new)}
        works |= {dtype: their_work(peer, prompts, new) for dtype, peer in theirs.items()}
        measures = {side: speed_of(work) for side, work in works.items()}
        speeds = alternate(measures, *((2, 1) if quick else (ROUNDS, WARMUP)))
        for dtype, target in TARGETS.items():
            what = f"decoding, {count} sequence{'s' if count > 1 else ''}"
            yield compare(
                (what, f"transformers, {dtype}", "tokens/s"),
                speeds["pion"],
                speeds[dtype],
                at_least(target),
                {"our dtype": name, "prompt tokens": PROMPT_TOKENS, "new tokens": new},
            )


def load_theirs(folder: Path, options: dict[str, torch.dtype]) -> PreTrainedModel:
    """Return transformers' model of the folder."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    # The export's sampling defaults would draw at random, and stop at the end of a text.
    model.generation_config = GenerationConfig()
    return model


def random_prompts(count: int, vocab_size: int) -> list[list[int]]:
    """Return prompts of one length."""
    randomness = torch.Generator().manual_seed(count)
    shape = (count, PROMPT_TOKENS)
    prompts: list[list[int]] = torch.randint(0, vocab_size, shape, generator=randomness).tolist()
    return prompts


def our_tokens(model: Decoder, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """Return the continuations that Pion decodes."""
    settings: dict[str, Any] = {"stop_ids": (), "max_tokens": new, "temperature": 0}
    if len(prompts) == 1:
        return [list(generate(model, prompts[0], **settings))]
    found: list[list[int]] = [[] for _ in prompts]
    for number, token in generate_batch(model, prompts, rows=len(prompts), **settings):
        if token is not None:  # None: the text has ended
            found[number].append(token)
    return found


def their_tokens(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new: int
) -> list[list[int]]:
    """Return the continuations that transformers decodes."""
    ids = torch.tensor(prompts)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new
    )
    found: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return found


def our_work(model: Decoder, prompts: Sequence[Sequence[int]], new: int) -> Work:
    """Return the work of a round, counted in new tokens."""

    def work(number: int) -> float:
        return sum(len(tokens) for tokens in our_tokens(model, prompts, new))

    return work


def their_work(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new: int) -> Work:
    """Return the work of a round, counted in new tokens."""

    def work(number: int) -> float:
        return sum(len(tokens) for tokens in their_tokens(model, prompts, new))

    return work


def check_tokens(ours: Decoder, theirs: PreTrainedModel, new: int) -> None:
    """Raise SystemExit unless both decode `new` tokens, and the same tokens."""
    prompts = random_prompts(2, ours.config.vocab_size)
    found, expected = our_tokens(ours, prompts, new), their_tokens(theirs, prompts, new)
    if found != expected or any(len(tokens) != new for tokens in found):
        raise SystemExit(f"the sides decode different tokens: {found} and {expected}")
