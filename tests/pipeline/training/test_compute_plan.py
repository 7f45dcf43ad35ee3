"""How a machine computes a stage: what the job says, what fits, and what a checkpoint recorded."""

import dataclasses

import pytest
import torch

from pion.errors import BadInput
from pion.train import hardware
from pion.train.hardware import pick_compile
from pion.train.settings import AS_MANY_AS_FIT
from pion.train.smaller_plan import StepDown, step_down
from pipeline.training.compute_plan import choose_plan
from pipeline.training.train_request import Group
from tests.support.jobs import tiny_job

pytestmark = pytest.mark.usefixtures("recorded_traces")


def recorded(**changes):
    """Return the plan of the tiny job on this machine, as a checkpoint records it."""
    plan = choose_plan(tiny_job(), "pretrain", Group(), None)
    return dataclasses.replace(plan, **changes).to_dict()


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({}, (1, True, True)),
        ({"micro_batch": 2, "recompute": False, "compile": False}, (2, False, False)),
    ],
)
def test_what_the_job_leaves_open_stays_as_the_checkpoint_recorded_it(asked, used):
    job = tiny_job(**{f"hardware__{name}": value for name, value in asked.items()})
    before = recorded(micro_batch=1, recompute=True, compile=True)
    plan = choose_plan(job, "pretrain", Group(), before)
    assert (plan.micro_batch, plan.recompute, plan.compile) == used


@pytest.mark.parametrize(
    "changed", [{"device": "cuda:7"}, {"threads": 99}, {"world_size": 7}, {"colour": "blue"}]
)
def test_a_plan_of_other_hardware_or_of_a_later_version_is_not_used_again(changed):
    before = recorded(micro_batch=1, recompute=True) | changed
    fresh = choose_plan(tiny_job(), "pretrain", Group(), None)
    assert choose_plan(tiny_job(), "pretrain", Group(), before) == fresh


@pytest.mark.soak
def test_lora_is_offered_where_all_weights_do_not_fit(monkeypatch):
    monkeypatch.setattr(hardware, "total_memory", lambda device: int(1.7e9))
    changes = {"model": "pion-small", "data__seq_len": 96}
    with pytest.raises(BadInput) as refused:
        choose_plan(tiny_job(**changes), "sft", Group(), None)
    message = str(refused.value)
    assert "the model does not fit" in message
    assert "By LoRA, it fits here: write `sft: {lora: {rank: 16}}`" in message
    choose_plan(tiny_job(**changes, sft__lora={"rank": 16}), "sft", Group(), None)
    with pytest.raises(BadInput) as refused:
        choose_plan(tiny_job(**changes), "pretrain", Group(), None)
    assert "LoRA" not in str(refused.value)


@pytest.mark.parametrize("changes", [{}, {"sft__lora": {"rank": 16}}])
def test_lora_is_not_offered_where_it_does_not_fit_either(monkeypatch, changes):
    monkeypatch.setattr(hardware, "total_memory", lambda device: int(7e8))
    with pytest.raises(BadInput) as refused:
        choose_plan(tiny_job(model="pion-small", **changes), "sft", Group(), None)
    assert "does not fit" in str(refused.value)
    assert "LoRA" not in str(refused.value)


class OtherCard(Group):
    """A group whose other rank has another card: `dtype`, and a `plan` that fits it."""

    dtype, plan = "bfloat16", (1, True, "float32", False, True, True)

    sharded = False

    def of_all_ranks(self, value):
        if isinstance(value, bool):
            return [value, self.sharded]
        return [value, self.dtype if isinstance(value, str) else self.plan]


def test_ranks_of_different_cards_compute_as_the_weakest(monkeypatch):
    picked = {"auto": "bfloat16", "float32": "float32"}
    monkeypatch.setattr(hardware, "pick_dtype", lambda asked, device: picked[asked])
    group = OtherCard(0, 2)
    plan = choose_plan(tiny_job(hardware__residual="bfloat16"), "pretrain", group, None)
    assert (plan.dtype, plan.micro_batch, plan.recompute) == ("bfloat16", 1, True)
    assert plan.residual == "float32"
    monkeypatch.setattr(OtherCard, "dtype", "float32")
    monkeypatch.setattr(OtherCard, "plan", (99, False, "float32", False, True, True))
    plan = choose_plan(tiny_job(), "pretrain", group, None)
    alone = choose_plan(tiny_job(hardware__dtype="float32"), "pretrain", Group(0, 2), None)
    assert (plan.dtype, plan.micro_batch) == ("float32", alone.micro_batch)


# ---------------------------------------------------------------- a model in parts


def card_of(gib, monkeypatch):
    """Let this machine have GPUs with so much memory."""
    monkeypatch.setattr(hardware, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(hardware, "pick_dtype", lambda asked, device: "bfloat16")
    monkeypatch.setattr(hardware, "cuda_capability", lambda device: (8, 6))
    monkeypatch.setattr(hardware, "total_memory", lambda device: int(gib * 2**30))


LARGE = {"model": "pion-small", "data__seq_len": 96}
# The GiB of a card: four ranks fit there as usual; only if they divide the weights; and not at all.
WHOLE, PARTS, TOO_SMALL = 4.0, 1.9, 0.9


def test_ranks_divide_a_model_only_if_it_does_not_fit_otherwise(monkeypatch):
    job = tiny_job(**LARGE)
    card_of(WHOLE, monkeypatch)
    assert not choose_plan(job, "pretrain", Group(0, 4), None).sharded
    card_of(PARTS, monkeypatch)
    plan = choose_plan(job, "pretrain", Group(0, 4), None)
    assert plan.sharded
    assert not plan.recompute  # its activations fit, once the weights are divided
    with pytest.raises(BadInput, match="does not fit"):
        choose_plan(job, "pretrain", Group(0, 1), None)
    card_of(TOO_SMALL, monkeypatch)
    with pytest.raises(BadInput, match="on each of 4 workers that divide the weights"):
        choose_plan(job, "pretrain", Group(0, 4), None)


def test_the_job_decides_whether_ranks_divide_a_model(monkeypatch):
    card_of(WHOLE, monkeypatch)
    assert choose_plan(
        tiny_job(**LARGE, hardware__fsdp=True), "pretrain", Group(0, 4), None
    ).sharded
    card_of(PARTS, monkeypatch)
    with pytest.raises(BadInput, match="does not fit"):
        choose_plan(tiny_job(**LARGE, hardware__fsdp=False), "pretrain", Group(0, 4), None)


def test_the_workers_of_a_cpu_divide_a_model_only_if_they_are_asked_to():
    assert choose_plan(tiny_job(hardware__fsdp=True), "pretrain", Group(0, 2), None).sharded
    assert not choose_plan(tiny_job(), "pretrain", Group(0, 2), None).sharded


def test_one_worker_has_nobody_to_divide_a_model_with():
    with pytest.raises(BadInput, match=r"hardware\.fsdp: true .* workers is 1"):
        choose_plan(tiny_job(hardware__fsdp=True), "pretrain", Group(0, 1), None)


def test_a_model_stays_divided_as_the_checkpoint_recorded_it(monkeypatch):
    card_of(WHOLE, monkeypatch)
    forced = choose_plan(tiny_job(**LARGE, hardware__fsdp=True), "pretrain", Group(0, 4), None)
    again = choose_plan(tiny_job(**LARGE), "pretrain", Group(0, 4), forced.to_dict())
    assert again == forced
    refused = tiny_job(**LARGE, hardware__fsdp=False)
    assert not choose_plan(refused, "pretrain", Group(0, 4), forced.to_dict()).sharded
    for others in (1, 2, 8):  # another machine, which chooses anew
        plan = choose_plan(tiny_job(**LARGE), "pretrain", Group(0, others), forced.to_dict())
        assert not plan.sharded


def test_ranks_divide_a_model_that_ran_out_of_memory_whole(monkeypatch):
    job, ranks = tiny_job(**LARGE), Group(0, 4)
    card_of(WHOLE, monkeypatch)
    predicted = choose_plan(job, "pretrain", ranks, None)
    change = StepDown(predicted, predicted, "")
    while not change.plan.sharded:
        change = step_down(change.plan, torch.OutOfMemoryError("no room"), may_divide=True)
    at_most = change.plan.to_dict()
    before = dataclasses.replace(predicted, micro_batch=1, recompute=True).to_dict()
    divided = choose_plan(job, "pretrain", ranks, before, at_most)
    # A part of the model leaves room for the rows of before.
    assert divided == dataclasses.replace(predicted, sharded=True)
    # A start on the same machine computes by the recorded plan, although nothing has failed yet.
    assert choose_plan(job, "pretrain", ranks, divided.to_dict()) == divided
    assert choose_plan(job, "pretrain", ranks, divided.to_dict(), at_most) == divided


def test_a_divided_model_keeps_what_the_checkpoint_recorded_of_the_whole_one(monkeypatch):
    job, ranks = tiny_job(**LARGE), Group(0, 4)
    card_of(WHOLE, monkeypatch)
    predicted = choose_plan(job, "pretrain", ranks, None)
    assert (predicted.residual, predicted.combo_kernels) == ("bfloat16", True)
    before = dataclasses.replace(predicted, residual="float32", combo_kernels=False)
    at_most = dataclasses.replace(before, sharded=True, micro_batch=AS_MANY_AS_FIT).to_dict()
    plan = choose_plan(job, "pretrain", ranks, before.to_dict(), at_most)
    assert plan == dataclasses.replace(before, sharded=True)


def test_all_ranks_divide_a_model_that_does_not_fit_on_one_of_their_cards(monkeypatch):
    card_of(WHOLE, monkeypatch)
    monkeypatch.setattr(OtherCard, "sharded", True)
    assert choose_plan(tiny_job(**LARGE), "pretrain", OtherCard(0, 2), None).sharded


# ---------------------------------------------------------------- the residual stream


@pytest.mark.parametrize(
    ("setting", "dtype", "residual"),
    [
        ("auto", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_the_residual_stream_is_in_bfloat16_where_job_and_computation_are(setting, dtype, residual):
    job = tiny_job(hardware__residual=setting, hardware__dtype=dtype)
    assert choose_plan(job, "pretrain", Group(), None).residual == residual


@pytest.mark.parametrize(
    ("device", "dtype", "residual"),
    [
        ("cuda", "bfloat16", "bfloat16"),
        ("cuda", "float32", "float32"),
        ("cpu", "bfloat16", "float32"),
    ],
)
def test_a_residual_stream_that_the_job_leaves_open_is_in_bfloat16_on_a_gpu(
    device, dtype, residual
):
    assert hardware.pick_residual("auto", dtype, torch.device(device)) == residual


def test_a_residual_stream_that_the_job_leaves_open_stays_as_recorded():
    job = tiny_job(hardware__dtype="bfloat16")
    before = recorded(dtype="bfloat16", residual="bfloat16", micro_batch=1)
    plan = choose_plan(job, "pretrain", Group(), before)
    assert (plan.residual, plan.micro_batch) == ("bfloat16", 1)
    asked = tiny_job(hardware__dtype="bfloat16", hardware__residual="float32")
    assert choose_plan(asked, "pretrain", Group(), before).residual == "float32"


def test_on_hardware_without_bfloat16_a_recorded_residual_stream_is_float32_again():
    before = recorded(dtype="bfloat16", residual="bfloat16")
    plan = choose_plan(tiny_job(hardware__dtype="float32"), "pretrain", Group(), before)
    assert (plan.dtype, plan.residual) == ("float32", "float32")


# ---------------------------------------------------------------- torch.compile


@pytest.mark.parametrize(
    ("setting", "device", "deterministic", "compiled"),
    [
        ("auto", "cuda", False, True),
        ("auto", "cpu", False, False),
        (True, "cpu", False, True),
        (True, "cpu", True, True),
        (False, "cuda", False, False),
    ],
)
def test_the_step_is_compiled_on_a_gpu_and_where_the_job_says_so(
    setting, device, deterministic, compiled, monkeypatch
):
    monkeypatch.setattr(hardware, "compiles_deterministically", lambda: True)
    picked = pick_compile(setting, torch.device(device), deterministic=deterministic)
    assert picked == compiled


def test_without_a_deterministic_compiler_deterministic_results_are_not_compiled(monkeypatch):
    monkeypatch.setattr(hardware, "compiles_deterministically", lambda: False)
    assert pick_compile("auto", torch.device("cuda"), deterministic=False)
    assert not pick_compile("auto", torch.device("cuda"), deterministic=True)


@pytest.mark.parametrize("compiled", [True, False])
def test_auto_stays_as_the_checkpoint_recorded_it(compiled):
    plan = choose_plan(tiny_job(), "pretrain", Group(), recorded(compile=compiled))
    assert plan.compile == compiled


LEVELS = [{"combo_kernels": False}, {"flex_attention": False}, {"compile": False}]


@pytest.mark.parametrize("level", LEVELS)
def test_what_the_compiler_gave_up_stays_given_up_in_a_resumed_run(level):
    before = recorded(**{"compile": True, "micro_batch": 1} | level)
    assert choose_plan(tiny_job(), "pretrain", Group(), before).to_dict() == before
    again = choose_plan(tiny_job(hardware__compile=True), "pretrain", Group(), before)
    assert again.compile
    assert again.combo_kernels
    assert again.flex_attention


@pytest.mark.parametrize("level", LEVELS)
def test_what_the_compiler_gave_up_here_is_not_tried_again(level):
    job = tiny_job(hardware__compile=True)
    failed = recorded(**{"compile": True} | level)
    plan = choose_plan(job, "pretrain", Group(), None, at_most=failed)
    names = ("compile", "combo_kernels", "flex_attention")
    assert {name: getattr(plan, name) for name in names} == dict.fromkeys(names, True) | level


def test_after_a_plan_has_failed_here_nothing_larger_is_chosen():
    job = tiny_job(hardware__micro_batch=4, hardware__compile=True)
    failed = recorded(micro_batch=2, recompute=True, compile=False)
    plan = choose_plan(job, "pretrain", Group(), None, at_most=failed)
    assert (plan.micro_batch, plan.recompute, plan.compile) == (2, True, False)
