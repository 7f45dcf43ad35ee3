"""A stage's digest covers what changes its result, and nothing else."""

import pytest

from pipeline.job import Job
from pipeline.job.digest import differences, digest_job
from pipeline.job.model_section import Base
from pipeline.run.done_and_changed_stages import stage_inputs
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.tiny_config import tiny_config

STAGES = ("prepare", "pretrain", "sft", "evaluate", "publish")


def changed(**changes):
    """Return the stages whose digest differs from the tiny job's after `changes`."""
    base = digest_job(tiny_job(publish={"to": "out"})).stages
    other = digest_job(tiny_job(**{"publish": {"to": "out"}, **changes})).stages
    return {stage for stage in STAGES if base[stage] != other[stage]}


@pytest.mark.parametrize(
    "change",
    [
        {"hardware__workers": [2, 16]},
        {"hardware__micro_batch": 1},
        {"hardware__dtype": "float32"},
        {"checkpoint__every_steps": 3},
        {"evaluate__every": 5},
        {"evaluate__prompts": ["b"]},
        {"log__every": 1},
        {"deadline": {"hours": 42}},
        {"deadline": {"at": "2026-12-01T18:00Z", "margin": 60}},
        {"name": "other"},
        {"store": "elsewhere"},
    ],
)
def test_runtime_fields_invalidate_nothing(change):
    assert changed(**change) == set()


AFTER = {stage: set(STAGES[number:]) for number, stage in enumerate(STAGES)}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"data__seq_len": 16}, AFTER["prepare"]),
        ({"data__documents": True}, AFTER["prepare"]),
        ({"data__documents": False}, set()),  # it may be stated
        ({"seed": 7}, AFTER["pretrain"]),
        ({"model__d_ff": 64}, AFTER["pretrain"]),
        ({"pretrain__lr": 2e-2}, AFTER["pretrain"]),
        ({"pretrain__global_batch": 8}, AFTER["pretrain"]),
        ({"sft__held_out": 0.1}, {"prepare"} | AFTER["sft"]),
        ({"sft__lr": 2e-3}, AFTER["sft"]),
        ({"evaluate__checkpoint": "best"}, AFTER["evaluate"]),
        ({"evaluate__checkpoint": "last"}, set()),
        ({"evaluate__lm_eval": {"chat": False}}, AFTER["evaluate"]),
        ({"evaluate__lm_eval": {"chat": "auto"}}, set()),
        ({"publish": {"to": "out", "license": "mit"}}, {"publish"}),
        ({"publish": {"to": "out", "gguf": True}}, {"publish"}),
        ({"publish": {"to": "out", "gguf": False}}, set()),
    ],
)
def test_a_field_invalidates_its_stage_and_what_follows_unless_it_states_the_default(
    change, stages
):
    assert changed(**change) == stages


def test_a_model_with_windows_has_documents_unless_the_job_says_no():
    left_open, stated, off = (
        digest_job(tiny_job(model={"preset": "daisy-pico"}, **given))
        for given in ({}, {"data__documents": True}, {"data__documents": False})
    )
    assert left_open.stages == stated.stages
    inputs = (stage_inputs("pretrain", off), stage_inputs("pretrain", left_open))
    found = differences(*inputs, left_open.before)
    assert [str(d) for d in found] == ["data.documents: false → true"]


def test_another_text_to_compare_on_is_measured_again_and_changes_no_training():
    def digests(**evaluate):
        base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96).to_dict())
        job = tiny_dict(model={"from": "base"}, evaluate=evaluate)
        del job["tokenizer"]
        return digest_job(Job.model_validate(job, context={"base": base})).stages

    plain, own = digests(), digests(text="notes.txt")
    assert [stage for stage in plain if plain[stage] != own[stage]] == ["evaluate"]
