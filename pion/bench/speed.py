"""The measurements: speed of training and generation, cost of a save, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import Any, Literal

import torch
from torch import Tensor

from pion.bench.models import (
    DOCUMENTS,
    STEP_TOKENS,
    Bench,
    Rows,
    counting_trainer,
    row_tokens,
    train,
)
from pion.bench.results import Measures, Outcome, TrainSpeed
from pion.config.model_config import ModelConfig
from pion.generation.generate import generate_batch
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
from pion.train.memory import RUNTIME_BYTES, predict_memory
from pion.train.micro_batch import DoesNotFit, choose_micro_batch
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from pion.train.workload import Workload

# The first steps allocate and compile.
WARMUP_STEPS = 2
# Steps are timed until there are so many, or until so many seconds have passed.
MOST_STEPS, TIMED_SECONDS = 10, 6.0
COPIES = 5
PROMPT_TOKENS, NEW_TOKENS = 128, 64
WARMUP_TOKENS = 4


# How steps are trained: one micro-batch in each, waiting for each, and eager or compiled; or
# compiled as in a job, with its batch, documents in its rows, and steps in a row.
How = Literal["eager", "compiled", "job"]


def measure_training(bench: Bench, name: str, config: ModelConfig, how: How) -> Outcome:
    """Train a few steps of random rows; return tokens per second, MFU and memory."""
    if how == "compiled" and bench.tiny:
        return Outcome("left out", "--tiny compiles nothing, because compiling takes a minute")
    seq_len, params = row_tokens(config), cost_of(config).all_params
    work = _workload(bench, config, how)
    # As in Pion's own jobs: 64 rows of 2,048, and 128 or 256 for large models.
    of_a_job = 131_072 * (1 + (params >= 400_000_000) + 2 * (params >= 1_000_000_000))
    tokens = of_a_job if how == "job" else STEP_TOKENS
    rows = 4 if bench.tiny else max(1, tokens // seq_len)
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
        compile=work.compile,
        residual=work.residual,
    )
    # RUNTIME_BYTES are outside of what torch counts.
    memory_of_step = predict_memory(work, micro_batch=micro_batch, recompute=recompute)
    predicted = memory_of_step.total - RUNTIME_BYTES[bench.device.type]
    timed = _time(bench, config, plan, rows, in_a_job=how == "job")
    speed = TrainSpeed(
        model=name,
        params=params,
        flops_per_token=flops_per_token(config, seq_len),
        seq_len=seq_len,
        dtype=work.dtype,
        compiled=work.compile,
        documents=work.documents,
        recompute=recompute,
        micro_batch=micro_batch,
        tokens_per_second=timed.tokens_per_second,
        mfu=timed.mfu,
    )
    measures: Measures = dataclasses.asdict(speed) | {
        "rows_per_step": rows,
        "step_seconds": timed.step_seconds,
        "compile_seconds": timed.warmup_seconds if work.compile else None,
        "predicted_bytes": predicted,
        "measured_bytes": timed.peak_bytes,
    }
    return Outcome("measured", _words(speed, timed, predicted), measures)


def _workload(bench: Bench, config: ModelConfig, how: How) -> Workload:
    """Return what a run would train here, in the precisions that a run chooses."""
    dtype = pick_dtype("auto", bench.device)
    return Workload(
        config,
        row_tokens(config),
        dtype,
        "muon",
        bench.device.type,
        documents=how == "job",
        compile=how != "eager" and not bench.tiny,
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


def _time(
    bench: Bench, config: ModelConfig, plan: ComputePlan, rows: int, *, in_a_job: bool
) -> Timed:
    """Train steps of `rows` rows, and time them: each for itself, or in a row as `in_a_job`."""
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    torch.manual_seed(0)
    settings = TrainSettings(steps=10**6, global_batch=rows, lr=1e-4, optimizer="muon")
    with torch.device(bench.device):  # drawing a billion weights on a CPU takes many seconds
        model = Decoder(config)
    trainer = counting_trainer(model, settings, plan, DOCUMENTS if in_a_job else None)
    with contextlib.closing(trainer):
        warmup = [_step(trainer)[0] for _ in range(WARMUP_STEPS)]
        steps: list[tuple[float, dict[str, Any]]] = []
        count = max(2, min(MOST_STEPS, int(TIMED_SECONDS / warmup[-1]))) if in_a_job else 1
        while (
            len(steps) * count < MOST_STEPS
            and count * sum(seconds for seconds, _ in steps) < TIMED_SECONDS
        ):
            steps.append(_step(trainer, count))
    usual = statistics.median(seconds for seconds, _ in steps)
    tokens_per_second, last = rows * row_tokens(config) / usual, steps[-1][1]
    return Timed(
        tokens_per_second=tokens_per_second,
        mfu=last["mfu"] * tokens_per_second / last["tokens_per_second"],
        step_seconds=usual,
        warmup_seconds=max(0.0, sum(warmup) - WARMUP_STEPS * usual),
        peak_bytes=memory_in_use(bench.device) if bench.on_cuda else None,
    )


def _step(trainer: Trainer, count: int = 1) -> tuple[float, dict[str, Any]]:
    """Train `count` steps in a row; return the seconds of one, and the last one's metrics. Reading
    the metrics waits for the card."""
    start = time.perf_counter()
    train(trainer, count)
    metrics = trainer.drain_metrics()[-1]
    return (time.perf_counter() - start) / count, metrics


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
    sentence = f"training stops for {stall:.3f} s; {copied}"
    if alone is not None and next_to_a_copy is not None:
        sentence = (
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
    return Outcome("measured", sentence, measures)


def _saved_step(trainer: Trainer, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of a step next to which the state is copied."""
    start = time.perf_counter()
    trainer.side_copy.begin(pairs)
    _step(trainer)
    return time.perf_counter() - start


def _copy(bench: Bench, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the seconds of one copy, as a checkpoint makes it."""
    started = time.perf_counter()
    for target, tensor in pairs:
        target.copy_(tensor, non_blocking=True)
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)
    return time.perf_counter() - started


def measure_generating(bench: Bench, config: ModelConfig, texts: int) -> Outcome:
    """Continue `texts` prompts of different lengths together, as `pion generate` does: with its
    usual draws, and with the likeliest ids. The difference is the time of the draws."""
    prompt, new = (16, 8) if bench.tiny else (PROMPT_TOKENS, NEW_TOKENS)
    model, dtype = generating_model(bench, config)
    lengths = [prompt - prompt * row // (2 * texts) for row in range(texts)]
    prompts = [torch.randint(config.vocab_size, (length,)).tolist() for length in lengths]

    def generate(tokens: int, **settings: Any) -> float:
        started = time.perf_counter()
        settings |= {"max_tokens": tokens, "stop_ids": (), "seed": 0}
        found = list(generate_batch(model, prompts, rows=texts, **settings))
        return sum(token is not None for _, token in found) / (time.perf_counter() - started)

    generate(WARMUP_TOKENS)
    drawn, likeliest = generate(new), generate(new, temperature=0)
    return Outcome(
        "measured",
        f"{drawn:,.0f} tokens/s with the prompts, {likeliest:,.0f} of the likeliest ids, {dtype}",
        {
            "texts": texts,
            "tokens_per_second": drawn,
            "tokens_per_second_likeliest": likeliest,
            "dtype": dtype,
        },
    )


def generating_model(bench: Bench, config: ModelConfig) -> tuple[Decoder, str]:
    """Return a model to generate with, and its dtype."""
    torch.manual_seed(0)
    dtype = pick_dtype("auto", bench.device, generating=True)
    model = Decoder.from_state(config, Decoder(config).state_dict(), torch_dtype(dtype))
    return model.to(bench.device).eval().joined(), dtype
