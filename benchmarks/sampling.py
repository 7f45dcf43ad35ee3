"""Compare drawing the next tokens of all rows at once with drawing them row by row, as before.

`draws` measures 16 rows of logits whose likeliest ids are as likely as in a text: the logarithm of
a probability falls with that of the rank (Zipf's law), with noise, in random places. `serving`
measures the engine of `pion serve` with 16 slots: a model of random weights decodes 16 texts, in
the dtype that `pion serve` chooses. Only the drawing differs between the sides. The sides take
turns in one process.

    python -m benchmarks.sampling draws [--device cuda]
    python -m benchmarks.sampling serving PRESET|demo [--tokens N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.__main__ import processor
from benchmarks.interleaved import alternate, quartiles
from pion.config.model_config import ModelConfig
from pion.generation import engine as engine_module
from pion.generation.answer import Answer, Drawn, Ended
from pion.generation.engine import Engine
from pion.generation.logit_changes import Changes
from pion.generation.sampling import Draw, Sampling, sample_rows
from pion.generation.text import Settings, Text
from pion.model.decoder import Decoder
from pion.train.hardware import pick_dtype, torch_dtype
from pipeline.job.file import load_job

RESULT = Path(__file__).parent / "results" / "sampling.json"
ROWS = 16
# The ids of the larger demo, of Pion-small, and of Qwen3.
VOCABULARIES = (2048, 50_258, 151_936)
SETTINGS = {
    "default": Sampling(),
    "top_p 0.9": Sampling(temperature=0.8, top_k=0, top_p=0.9),
    "temperature 1": Sampling(temperature=1.0, top_k=0, top_p=1.0),
    "min_p 0.05": Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.05),
    "greedy": Sampling(temperature=0.0),
}
DRAW_ROUNDS, WARMUP, PROMPT_TOKENS = 15, 2, 32


# ---------------------------------------------------------------- as before


def sample_before(
    logits: Tensor,
    sampling: Sampling,
    present: Sequence[int],
    randomness: torch.Generator,
    given: int = 0,
) -> int:
    """Draw one id from fp32 logits (vocab,) as Pion 0.1 did: the baseline, and a reference for
    tests."""
    logits = penalized_before(logits, sampling, present, given)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    logits = (logits - logits.max()).double() / sampling.temperature
    count = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    least = logits.topk(count).values[-1].clamp(min=torch.finfo(logits.dtype).min)
    if sampling.min_p > 0:
        least = max(least, torch.tensor(math.log(sampling.min_p)))
    kept = (logits >= least).nonzero().squeeze(1)
    probabilities = logits[kept].softmax(dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered
        within = order[before < sampling.top_p].sort().values
        kept, probabilities = kept[within], probabilities[within]
    cumulative = probabilities.cumsum(dim=0)
    number = torch.rand((), dtype=torch.float64, generator=randomness) * cumulative[-1]
    place = torch.searchsorted(cumulative, number, right=True)
    return int(kept[place.clamp(max=len(kept) - 1)])


def penalized_before(
    logits: Tensor, sampling: Sampling, present: Sequence[int], given: int
) -> Tensor:
    """Return the logits with the penalties, as Pion 0.1 did."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0:
        drawn = Counter(present[given:])
        ids = torch.tensor(list(drawn)).long()
        times = torch.tensor(list(drawn.values()), dtype=torch.float32)
        logits = logits.clone()
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def draw_before(texts: Sequence[Text], logits: Tensor) -> list[int | Exception | None]:
    """Draw the next id of each text, row by row: in place of `draw_together`."""
    found: list[int | Exception | None] = []
    for row, text in enumerate(texts):
        low, high = logits[row].aminmax()
        assert -math.inf < low <= high < math.inf
        draw = text.next_draw()
        values = logits[row, : text.vocab_size]
        found.append(text.take(sample_before(values, draw.sampling, (), draw.randomness)))
    return found


# ---------------------------------------------------------------- draws


def likely(vocabulary: int) -> Tensor:
    """Return logits (ROWS, vocabulary)."""
    randomness = torch.Generator().manual_seed(0)
    falling = -1.3 * torch.arange(1, vocabulary + 1).log()
    noise = torch.randn(ROWS, vocabulary, generator=randomness)
    return torch.stack(
        [row[torch.randperm(vocabulary, generator=randomness)] for row in falling + 0.5 * noise]
    )


def draws(device: str) -> dict[str, Any]:
    """Return the microseconds of a row for each vocabulary and setting, and their ratios."""
    found: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        logits = likely(vocabulary).to(device)
        for name, sampling in SETTINGS.items():
            sides = {"rows": one_by_one(logits, sampling), "together": together(logits, sampling)}
            times = alternate({side: timed(work) for side, work in sides.items()}, DRAW_ROUNDS, 2)
            each = [a / b for a, b in zip(times["rows"], times["together"], strict=True)]
            row: dict[str, Any] = {
                side: round(1e6 * median(taken) / ROWS, 1) for side, taken in times.items()
            }
            row |= {"times": round(median(each), 2), "quartiles": rounded(quartiles(each))}
            found[f"{vocabulary}, {name}"] = row
            print(f"{vocabulary}, {name}: {json.dumps(row)}", flush=True)
    return found


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(ROWS)]


def one_by_one(logits: Tensor, sampling: Sampling) -> Callable[[], object]:
    """Return what draws an id of each row, row by row."""
    randomness = generators()

    def work() -> None:
        for row in range(ROWS):
            low, high = logits[row].aminmax()
            assert -math.inf < low <= high < math.inf
            sample_before(logits[row], sampling, (), randomness[row])

    return work


def together(logits: Tensor, sampling: Sampling) -> Callable[[], object]:
    """Return what draws an id of each row, all rows at once."""
    randomness, size = generators(), logits.shape[1]

    def work() -> None:
        changes = [Changes.of(sampling, (), 0, size) for _ in range(ROWS)]
        sample_rows(logits, [Draw(sampling, *each) for each in zip(changes, randomness)])

    return work


def timed(work: Callable[[], object]) -> Callable[[int], float]:
    def measure(number: int) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return measure


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


# ---------------------------------------------------------------- serving


def serving(name: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Return the tokens per second of the engine with ROWS slots, and the ratio of the sides."""
    config = shape(name)
    dtype = pick_dtype("auto", torch.device("cpu"), generating=True)
    torch.manual_seed(0)
    weights = Decoder(config).state_dict()
    model = Decoder.from_state(config, weights, torch_dtype(dtype)).eval().joined()
    before = mock.patch.object(engine_module, "draw_together", draw_before)
    sides: dict[str, Callable[[], Any]] = {"rows": lambda: before, "together": nullcontext}

    def speed(side: Callable[[], Any]) -> Callable[[int], float]:
        def measure(number: int) -> float:
            with side():
                return decoded_per_second(model, tokens)

        return measure

    speeds = alternate({name: speed(side) for name, side in sides.items()}, rounds, 1)
    each = [a / b for a, b in zip(speeds["together"], speeds["rows"], strict=True)]
    found = {
        "vocabulary": config.vocab_size,
        "layers": config.n_layers,
        "d_model": config.d_model,
        "dtype": dtype,
        "tokens": tokens,
        "tokens_per_second": {side: round(median(found), 1) for side, found in speeds.items()},
        "times": round(median(each), 3),
        "quartiles": rounded(quartiles(each)),
    }
    print(f"{name}: {json.dumps(found)}", flush=True)
    return found


def shape(name: str) -> ModelConfig:
    """Return the model of a preset, or of jobs/demo-prefer.yaml."""
    if name == "demo":
        job = Path(__file__).parent.parent / "jobs" / "demo-prefer.yaml"
        return load_job(job).model_config_resolved()
    return ModelConfig.preset(name)


def decoded_per_second(model: Decoder, tokens: int) -> float:
    """Decode ROWS texts of `tokens` new tokens; return the tokens per second after the first step.

    The settings are the defaults of `pion serve`.
    """
    events: queue.Queue[object] = queue.Queue()

    def deliver(happened: Sequence[tuple[object, object]]) -> None:
        for _, event in happened:
            events.put(event)

    engine = Engine(
        model,
        deliver,
        slots=ROWS,
        queue=0,
        seq_len=PROMPT_TOKENS + tokens,
    )
    randomness = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, model.config.vocab_size, (ROWS, PROMPT_TOKENS), generator=randomness)
    settings = [Settings(stop_ids=(), max_tokens=tokens, seed=seed) for seed in range(ROWS)]
    answers = [
        Answer(Text(model, prompt, each), None, lambda event: None)
        for prompt, each in zip(prompts.tolist(), settings)
    ]
    engine.submit(answers)
    engine.start()
    drawn = ended = 0
    begun = 0.0
    while ended < ROWS:
        event = events.get(timeout=600)
        drawn += isinstance(event, Drawn)
        ended += isinstance(event, Ended)
        if drawn == ROWS and not begun:  # all prompts have been read
            begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    engine.close()
    return (drawn - ROWS) / seconds


def main() -> None:
    """Measure one of both, and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("draws", "serving"))
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    here = {"machine": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.what == "draws" and args.device == "cuda":
        here |= {"machine": torch.cuda.get_device_name()}
        known["draws on a GPU"] = {**here, "microseconds": draws("cuda")}
    elif args.what == "draws":
        known["draws"] = {**here, "microseconds": draws("cpu")}
    else:
        found = serving(args.model, args.tokens, args.rounds)
        known.setdefault("serving", {})[args.model] = {**here, **found}
    RESULT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
