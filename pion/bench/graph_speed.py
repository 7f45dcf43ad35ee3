"""The measurement of CUDA graphs: the same steps of generation with and without them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pion.bench.models import Bench, temporarily
from pion.bench.results import Measures, Outcome
from pion.bench.speed import NEW_TOKENS, PROMPT_TOKENS, generating_model
from pion.config.model_config import ModelConfig
from pion.generation.decoding import Decoding
from pion.generation.step_graphs import CAPTURED_STEP, use_step_graphs
from pion.generation.text import Settings, Text, draw_together
from pion.model.decoder import Decoder

# A graph is captured, and its first replay is compared.
FIRST_STEPS = CAPTURED_STEP + 1


def measure_graphs(bench: Bench, config: ModelConfig, counts: Sequence[int]) -> Outcome:
    """Continue texts with the likeliest ids, as `pion generate` does, without CUDA graphs and with
    them: as many texts together as each of `counts` says."""
    if not bench.on_cuda:
        return Outcome("left out", "only a GPU has CUDA graphs")
    prompt, new = (16, 8) if bench.tiny else (PROMPT_TOKENS, NEW_TOKENS)
    model, dtype = generating_model(bench, config)
    words, measures, refused = [], Measures(), None
    for texts in counts:
        prompts = torch.randint(config.vocab_size, (texts, prompt)).tolist()
        with temporarily(use_step_graphs, False, True):
            without, _ = _step_seconds(model, prompts, new)
        seconds, refused = _step_seconds(model, prompts, new)
        words.append(
            f"{texts}: {1000 * seconds:.1f} ms a token with graphs, {1000 * without:.1f} without"
        )
        measures |= {
            f"tokens_per_second_{texts}": texts / seconds,
            f"tokens_per_second_{texts}_without": texts / without,
        }
    told = "" if refused is None else f"; no graph was used: {refused}"
    measures |= {"refused": refused, "dtype": dtype}
    return Outcome("measured", f"{', '.join(words)}, {dtype}{told}", measures)


def _step_seconds(
    model: Decoder, prompts: Sequence[Sequence[int]], steps: int
) -> tuple[float, str | None]:
    """Return the seconds of a step, and why no graph was used."""
    settings = Settings(stop_ids=(), max_tokens=FIRST_STEPS + steps + 1, temperature=0)
    texts = [Text(model, prompt, settings) for prompt in prompts]
    decoding = Decoding(model, len(texts), texts[0].room)

    def draw(rows: Sequence[int], logits: Tensor) -> list[int | None]:
        drawn = draw_together([texts[row] for row in rows], logits)
        return [token if isinstance(token, int) else None for token in drawn]

    draw(range(len(texts)), decoding.read_together(texts))
    for _ in range(FIRST_STEPS):
        decoding.step(draw)
    started = time.perf_counter()
    for _ in range(steps):  # each waits for its tokens
        decoding.step(draw)
    return (time.perf_counter() - started) / steps, decoding.graphs.refused
