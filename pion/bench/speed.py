"""The measurements: speed of training and generation, cost of a save, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from pion.bench.models import STEP_TOKENS, Bench, Rows, counting_trainer, row_tokens
from pion.bench.results import Measures, Outcome, TrainSpeed
from pion.config.model_config import ModelConfig
from pion.generation.generate import generate_batch
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of, flops_per_token
from pion.train.hardware import (
    cuda_capability,
    memory_in_use,
    pick_dtype,
    pick_residual,
    torch_dtype,
    total_memory,
)
from pion.train.memory import RUNTIME_BYTES, Workload, predict_memory
from pion.train.micro_batch import DoesNotFit, choose_micro_batch
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer

# The first steps allocate and compile.
WARMUP_STEPS = 2
# Steps are timed until there are so many, or until so many seconds have passed.
MOST_STEPS, TIMED_SECONDS = 10, 6.0
COPIES = 5
PROMPT_TOKENS, NEW_TOKENS = 128, 64
WARMUP_TOKENS = 4


def measure_training(bench: Bench, name: str, config: ModelConfig, compiled: bool) -> Outcome:
    """Train a few steps of random rows; return tokens per second, MFU and memory."""
    if compiled and bench.tiny:
        return Outcome("left out", "--tiny compiles nothing, because compiling takes a minute")
    seq_len = row_tokens(config)
    work = _workload(bench, config, compiled)
    rows = 4 if bench.tiny else max(1, STEP_TOKENS // seq_len)
    memory = total_memory(bench.device)
    try:
        micro_batch, recompute = choose_micro_batch(work, rows_per_rank=rows, memory_bytes=memory)
    except DoesNotFit as error:
        return Outcome("left out", error.what)
    plan = ComputePlan(
        str(bench.device),
        work.dtype,
        micro_batch,
        recompute=recompute,
        compile=compiled,
        residual=work.residual,
    )
    # RUNTIME_BYTES are outside of what torch counts.
    memory_of_step = predict_memory(work, micro_batch=micro_batch, recompute=recompute)
    predicted = memory_of_step.total - RUNTIME_BYTES
    timed = _time(bench, config, plan, rows)
    speed = TrainSpeed(
        model=name,
        params=cost_of(config).all_params,
        flops_per_token=flops_per_token(config, seq_len),
        seq_len=seq_len,
        dtype=work.dtype,
        compiled=compiled,
        recompute=recompute,
        micro_batch=micro_batch,
        tokens_per_second=timed.tokens_per_second,
        mfu=timed.mfu,
    )
    measures: Measures = dataclasses.asdict(speed) | {
        "rows_per_step": rows,
        "step_seconds": timed.step_seconds,
        "compile_seconds": timed.warmup_seconds if compiled else None,
        "predicted_bytes": predicted,
        "measured_bytes": timed.peak_bytes,
    }
    return Outcome("measured", _words(speed, timed, predicted), measures)


def _workload(bench: Bench, config: ModelConfig, compiled: bool) -> Workload:
    """Return what a run would train here, in the precisions that a run chooses."""
    dtype = pick_dtype("auto", bench.device)
    return Workload(
        config,
        row_tokens(config),
        dtype,
        "muon",
        bench.device.type,
        documents=False,
        compile=compiled,
        residual=pick_residual("auto", dtype, bench.device),
        capability=cuda_capability(bench.device),
    )


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a few steps took. `warmup_seconds` is what the first steps took longer than others."""

    tokens_per_second: float
    mfu: float
    step_seconds: float
    warmup_seconds: float
    peak_bytes: int | None


def _time(bench: Bench, config: ModelConfig, plan: ComputePlan, rows: int) -> Timed:
    """Train steps of `rows` rows, and time them."""
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    torch.manual_seed(0)
    settings = TrainSettings(steps=10**6, global_batch=rows, lr=1e-4, optimizer="muon")
    with torch.device(bench.device):  # drawing a billion weights on a CPU takes many seconds
        model = Decoder(config)
    trainer = counting_trainer(model, settings, plan)
    with contextlib.closing(trainer):
        warmup = [_step(trainer)[0] for _ in range(WARMUP_STEPS)]
        steps: list[tuple[float, dict[str, Any]]] = []
        while len(steps) < MOST_STEPS and sum(seconds for seconds, _ in steps) < TIMED_SECONDS:
            steps.append(_step(trainer))
    usual = statistics.median(seconds for seconds, _ in steps)
    return Timed(
        tokens_per_second=statistics.median(step["tokens_per_second"] for _, step in steps),
        mfu=statistics.median(step["mfu"] for _, step in steps),
        step_seconds=usual,
        warmup_seconds=max(0.0, sum(warmup) - WARMUP_STEPS * usual),
        peak_bytes=memory_in_use(bench.device) if bench.on_cuda else None,
    )


def _step(trainer: Trainer) -> tuple[float, dict[str, Any]]:
    """Return the seconds and the metrics of one step. Reading the metrics waits for the card."""
    start = time.perf_counter()
    trainer.train_step()
    metrics = trainer.drain_metrics()[-1]
    return time.perf_counter() - start, metrics


def _words(speed: TrainSpeed, timed: Timed, predicted: int) -> str:
    recomputed = "*" if speed.recompute else ""
    compiled = f", compiled in {timed.warmup_seconds:.0f} s" if speed.compiled else ""
    peak = "not" if timed.peak_bytes is None else f"{timed.peak_bytes / 2**30:.1f} GiB"
    return (
        f"{speed.tokens_per_second:,.0f} tokens/s, {100 * speed.mfu:.1f} % MFU, {speed.dtype}, "
        f"micro-batch {speed.micro_batch}{recomputed}{compiled}; memory: "
        f"{predicted / 2**30:.1f} GiB predicted, {peak} measured"
    )


def measure_saving(bench: Bench, config: ModelConfig) -> Outcome:
    """Train steps of one row, and copy weights and optimizer state: alone, and next to a step."""
    dtype = pick_dtype("auto", bench.device)
    settings = TrainSettings(steps=10**6, global_batch=1, lr=1e-4, optimizer="muon")
    with torch.device(bench.device):
        model = Decoder(config)
    stream: Any = Rows(config.vocab_size, row_tokens(config))
    trainer = Trainer(model, stream, settings, ComputePlan(str(bench.device), dtype))
    with contextlib.closing(trainer):
        trainer.train_step()
        state = trainer.state()
        tensors = [
            tensor.detach() for part in (state.model, state.optimizer) for tensor in part.values()
        ]
        room = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
        if bench.on_cuda:
            room = [tensor.pin_memory() for tensor in room]
        pairs = list(zip(room, tensors, strict=True))
        seconds = [_copy(bench, pairs) for _ in range(COPIES + 1)][1:]
        alone, next_to_a_copy = None, None
        if bench.on_cuda:
            alone = statistics.median(_step(trainer)[0] for _ in range(COPIES))
            next_to_a_copy = statistics.median(_saved_step(trainer, pairs) for _ in range(COPIES))
    stall, count = statistics.median(seconds), sum(t.nbytes for t in tensors)
    copied = f"{count / 1e9:.3g} GB, copied at {count / stall / 1e9:.3g} GB/s"
    words = f"training stops for {stall:.3f} s; {copied}"
    if alone is not None and next_to_a_copy is not None:
        words = (
            f"{copied} in {stall:.3f} s; a step of one row takes {alone:.3f} s, and next to a copy "
            f"{next_to_a_copy:.3f} s"
        )
    measures: Measures = {
        "bytes": count,
        "stall_seconds": stall,
        "bytes_per_second": count / stall,
        "step_seconds": alone,
        "step_seconds_next_to_a_copy": next_to_a_copy,
    }
    return Outcome("measured", words, measures)


def _saved_step(trainer: Trainer, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of a step next to which the state is copied."""
    start = time.perf_counter()
    trainer.side_copy.begin(pairs)
    _step(trainer)
    return time.perf_counter() - start


def _copy(bench: Bench, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of one copy, as a checkpoint makes it."""
    started = time.perf_counter()
    for place, tensor in pairs:
        place.copy_(tensor, non_blocking=True)
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)
    return time.perf_counter() - started


def measure_decoding(bench: Bench, config: ModelConfig, texts: int) -> Outcome:
    """Decode `texts` texts in step, as `pion generate` does, with the likeliest ids."""
    prompt, new = (16, 8) if bench.tiny else (PROMPT_TOKENS, NEW_TOKENS)
    model, dtype = generating_model(bench, config)
    ids = torch.randint(config.vocab_size, (texts, prompt)).to(bench.device)
    cache = KVCache(config, max_tokens=prompt + WARMUP_TOKENS + new)
    with torch.inference_mode():
        ids, first = _decoded(bench, model, ids, cache, 1)
        ids, _ = _decoded(bench, model, ids, cache, WARMUP_TOKENS)
        _, seconds = _decoded(bench, model, ids, cache, new - 1)
    speed = texts * (new - 1) / seconds
    return Outcome(
        "measured",
        f"{speed:,.0f} tokens/s, {1000 * seconds / (new - 1):.1f} ms a token, {dtype}",
        {
            "texts": texts,
            "tokens_per_second": speed,
            "first_token_seconds": first,
            "dtype": dtype,
        },
    )


def measure_padded_decoding(bench: Bench, config: ModelConfig, texts: int) -> Outcome:
    """Continue `texts` prompts of different lengths together, as `pion generate` does: each token
    is masked for its own text."""
    prompt, new = (16, 8) if bench.tiny else (PROMPT_TOKENS, NEW_TOKENS)
    model, dtype = generating_model(bench, config)
    lengths = [prompt - prompt * row // (2 * texts) for row in range(texts)]
    prompts = [torch.randint(config.vocab_size, (length,)).tolist() for length in lengths]

    def generate(tokens: int) -> float:
        started = time.perf_counter()
        settings: dict[str, Any] = {"max_tokens": tokens, "stop_ids": (), "temperature": 0}
        found = list(generate_batch(model, prompts, rows=texts, **settings))
        return sum(token is not None for _, token in found) / (time.perf_counter() - started)

    generate(WARMUP_TOKENS)
    speed = generate(new)
    return Outcome(
        "measured",
        f"{speed:,.0f} tokens/s with the prompts, {dtype}",
        {"texts": texts, "tokens_per_second": speed, "dtype": dtype},
    )


def generating_model(bench: Bench, config: ModelConfig) -> tuple[Decoder, str]:
    """Return a model to generate with, and its dtype."""
    torch.manual_seed(0)
    dtype = pick_dtype("auto", bench.device, generating=True)
    weights = Decoder(config).state_dict()
    model = Decoder.from_state(config, weights, torch_dtype(dtype)).to(bench.device).eval()
    return model.joined(), dtype


def _decoded(
    bench: Bench, model: Decoder, ids: Tensor, cache: KVCache, tokens: int
) -> tuple[Tensor, float]:
    """Read `ids` (texts, T) and draw so many tokens of each text; return the last, and seconds."""
    started = time.perf_counter()
    for _ in range(tokens):
        ids = model.logits(model.hidden(ids, cache=cache)[:, -1]).argmax(dim=-1, keepdim=True)
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)
    return ids, time.perf_counter() - started
