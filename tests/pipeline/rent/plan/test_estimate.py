"""What a job takes on a GPU: memory, micro-batch, speed, hours, dollars, preemptions."""

import dataclasses
import math

import pytest
import torch

from pion.model.params_and_flops import cost_of
from pion.train.memory import predict_memory
from pion.train.memory_trace import remembered
from pion.train.micro_batch import HEADROOM
from pion.train.rewards import cache_bytes
from pipeline.job.file import load_job
from pipeline.machine.gpus import GPU_TYPES
from pipeline.rent.plan.estimate import estimate, workload_on
from pipeline.rent.plan.prices import RESTART_SECONDS, Offer
from pipeline.rent.plan.speeds import (
    LAUNCH_SECONDS,
    LAUNCHES,
    LAUNCHES_OF_UPDATE,
    SHARE_OF_SEVERAL,
    Known,
    bench_results,
)
from tests.paths import JOBS
from tests.pipeline.rent.plan.rows import rows_of
from tests.support import recorded_traces as traces
from tests.support.jobs import tiny_job

HOUR = 3600.0


def offer(gpu, *, spot=False, price=0.4, count=1):
    memory = GPU_TYPES[gpu].memory
    return Offer(gpu, count, "RunPod", "CA", spot, price, price, memory, 60)


def small(*overrides):
    return load_job(JOBS / "pion-small.yaml", overrides)


def on(gpu, /, *overrides, **changes):
    return estimate(small(*overrides), dataclasses.replace(offer(gpu), **changes))


@pytest.mark.parametrize("gpu", GPU_TYPES)
def test_what_fits_stays_below_the_memory_and_makes_whole_steps(gpu):
    found = on(gpu)
    assert found.fits
    for stage in found.stages:
        batch = small().section(stage.stage).global_batch
        assert stage.peak_bytes <= GPU_TYPES[gpu].memory * (1 - HEADROOM)
        assert stage.micro_batch * (stage.grad_accum - 1) < batch
        assert stage.micro_batch * stage.grad_accum >= batch


def test_what_samples_answers_needs_memory_next_to_training():
    sources = [{"kind": "jsonl", "path": "questions.jsonl"}]
    fields = {"sources": sources, "rewards": ["number"], "max_tokens": 32, "steps": 9}
    job = tiny_job(reinforce=fields)
    work = workload_on("A40", job, "reinforce")
    works = (work, dataclasses.replace(work, sampling=0))
    more, less = (predict_memory(one, micro_batch=1, recompute=False).total for one in works)
    cache = 16 * 8 * work.seq_len * cache_bytes(work.config, "bfloat16")
    assert more - less == cache + 2 * cost_of(work.config).all_params
    assert workload_on("A40", job, "pretrain").sampling == 0
    stage = estimate(job, offer("A40")).stages[-1]
    assert stage.reference_seconds == pytest.approx(2 / 3 * stage.seconds), "twice as long"


def test_a_reference_takes_a_forward_pass():
    """A forward pass takes a third of the time of training on its rows."""
    source, sizes = '{"kind": "jsonl", "path": "/p.jsonl"}', '"seq_len": 2048, "global_batch": 10'
    stages = []
    for loss in ("simpo", "dpo"):
        job = small(f'prefer={{"loss": "{loss}", {sizes}, "sources": [{source}]}}')
        job.section("prefer").know_rows(1000)
        stages.append(estimate(job, offer("A40")).stages[-1])
    alone, compared = stages
    assert alone.tokens == compared.tokens == 1000 * 2048
    assert compared.seconds == pytest.approx(alone.seconds * (1 + 1 / 3), rel=1e-3)


@rows_of("refused")
def test_what_a_job_can_not_train_on_is_refused_with_the_reason(row):
    guess = on("A40", *row.get("job", ()), **row["offer"])
    assert guess.fits == (row["says"] is None)
    assert (row["says"] or "None") in str(guess.problem)
    assert guess.hours is None or guess.fits


@pytest.mark.skipif(not torch.cuda.get_arch_list(), reason="torch is built without CUDA here")
def test_torch_has_kernels_for_compute_capability_7_5_and_none_older():
    assert min(int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list()) == 75


@pytest.mark.parametrize("gpu", ["A40", "H100", "B200"])
@pytest.mark.parametrize("count", [1, 2])
def test_nobody_is_told_a_speed_that_no_host_can_reach(gpu, count):
    """A tiny model on such a card would make tens of millions of tokens a second by its FLOPs."""
    tiny = tiny_job()
    stage = estimate(tiny, offer(gpu, count=count), Known(bench=bench_results([]))).stages[0]
    step = tiny.section("pretrain").global_batch * tiny.data.seq_len
    kernels = 3 * LAUNCHES + LAUNCHES_OF_UPDATE
    assert step / stage.tokens_per_second == pytest.approx(kernels * LAUNCH_SECONDS)
    assert "waits for its host" in stage.speed_from
    assert not stage.measured


@pytest.mark.parametrize(
    ("rows", "overrides", "changes", "times"),
    [
        ((), ("hardware.recompute=true",), {}, 0.75),
        # Each of several GPUs reaches a share of its speed, and the one with the most rows decides.
        ((), (), {"count": 2}, 2 * SHARE_OF_SEVERAL),
        (("pretrain.global_batch=9", "sft=null"), (), {"count": 4}, 9 / 3 * SHARE_OF_SEVERAL),
    ],
)
def test_recomputing_and_several_gpus_change_the_speed(rows, overrides, changes, times):
    before, after = on("A40", *rows), on("A40", *rows, *overrides, **changes)
    assert after.tokens_per_second == pytest.approx(times * before.tokens_per_second)
    words = "estimated: 15% MFU assumed"
    if changes:
        words += ", and each of several GPUs at 90% of that: not measured"
    assert after.stages[0].speed_from == words


def test_the_time_of_a_job_with_longer_rows_is_the_sum_over_its_phases():
    phases = {"phases": [{"until": 0.5}, {"seq_len": 2048}], "global_batch": 1024}
    pretrain = {f"pretrain__{name}": value for name, value in phases.items()}
    job = tiny_job(model__d_model=512, data__documents=True, sft=None, **pretrain)
    stage = estimate(job, offer("A40")).stages[0]
    short, long = stage.by_phase
    assert long < short, "attention looks farther"
    half = stage.tokens / 2
    assert stage.seconds == pytest.approx(half / short + half / long)
    assert on("A40").stages[0].by_phase == ()


def test_both_stages_and_one_start_are_paid_for_and_on_demand_loses_nothing():
    row = on("A40")
    assert [stage.stage for stage in row.stages] == ["pretrain", "sft"]
    assert row.tokens == 22_500 * 64 * 2048 + 3000 * 16 * 2048
    # As fast as the published recipe was.
    assert row.stages[0].tokens_per_second == pytest.approx(64 * 2048 / 4.3, rel=0.02)
    assert row.stages[0].speed_from == "estimated: 15% MFU assumed"
    hours = (RESTART_SECONDS + row.tokens / row.tokens_per_second) / HOUR
    assert row.hours == pytest.approx(hours)
    assert row.hours > (on("A40", "sft=null").hours or math.inf)
    assert row.lost_hours == 0
    assert row.dollars == pytest.approx(hours * 0.4)
    assert row.dollars_per_billion_tokens == pytest.approx(hours * 0.4 / row.tokens * 1e9)


@pytest.mark.parametrize(
    ("steps", "seconds", "between"),
    [
        (None, 600, lambda step: 600),
        # So many steps, or seconds if these are shorter.
        (100, None, lambda step: 100 * step),
        (100, 10_000, lambda step: 100 * step),
        (100, 60, lambda step: 60),
    ],
)
def test_a_preemption_costs_a_restart_and_half_the_time_between_saves(steps, seconds, between):
    saves = {"every_steps": steps, "every_seconds": seconds, "preemption_hours": 1}
    settings = (*(f"checkpoint.{n}={v}" for n, v in saves.items() if v), "sft=null")
    found, kept = on("A40", *settings, use_spot=True), on("A40", *settings)
    share = (RESTART_SECONDS + between(kept.stages[0].seconds / 22_500) / 2) / HOUR
    assert found.hours == pytest.approx(kept.hours / (1 - share))
    assert found.lost_hours == pytest.approx(found.hours * share)


def test_several_machines_take_as_long_as_one_with_as_many_gpus_and_each_is_paid_for():
    two, nodes = on("A40", count=2), estimate(small(), offer("A40"), num_nodes=2)
    assert two.stages[0].micro_batch * two.stages[0].grad_accum == 32
    assert nodes.hours == two.hours
    assert nodes.dollars == pytest.approx(2 * 0.4 * nodes.hours)


def test_what_a_gpu_needs_depends_on_its_precision():
    same = ("hardware.micro_batch=2",)
    float32, bfloat16 = (on(gpu, *same).stages[0].peak_bytes for gpu in ("T4", "RTXA4000"))
    assert float32 > bfloat16, "a T4 has no bf16"


def test_what_cannot_be_told_is_not_made_up():
    found = on("A40", gpu="MI300X")
    assert found.fits
    assert found.hours is None
    assert found.stages[0].speed_from == "the speed of a MI300X is unknown"


def test_slots_take_memory_like_tokens():
    """Lepton-small has 128 slots in a row of 2,048 tokens, and they predict nothing."""
    settings = ["hardware.micro_batch=8", "data.documents=true"]
    without = [*settings, "model={preset: lepton-small, slots: null}"]
    jobs = (load_job(JOBS / "lepton-small.yaml", one) for one in (settings, without))
    slotted, plain = (estimate(job, offer("A40")).stages[0] for job in jobs)
    assert slotted.micro_batch == plain.micro_batch == 8
    assert 1 < slotted.peak_bytes / plain.peak_bytes < 1 + 128 / 2048


# ---------------------------------------------------------------- the traces that are recorded


def smallest():
    """Return the key of the smallest compiled model."""
    assert traces.recorded(), "record them with this torch (tests/support/recorded_traces.py)"
    of = traces.traced_of
    keys = (key for key in traces.recorded() if of(key).compile and of(key).dtype == "bfloat16")
    return min(keys, key=lambda key: (of(key).config.d_model, key))


def test_the_smallest_model_needs_what_is_recorded():
    assert traces.traced_again(smallest()) == traces.recorded()[smallest()]


@pytest.mark.soak
def test_all_models_need_what_is_recorded():
    every = traces.recorded().items()
    outdated = [key for key, found in every if traces.traced_again(key) != found]
    assert outdated == [], "record them again (tests/support/recorded_traces.py)"


def test_the_tests_of_this_folder_read_the_record():
    assert remembered._trace is traces.recorded_trace
    assert traces.key_of(traces.traced_of(smallest())) == smallest()
