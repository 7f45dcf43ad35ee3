"""A stage's digest covers what changes its result, and nothing else."""

import pytest

from pipeline.job import Job
from pipeline.job.digest import differences, digest_job
from pipeline.job.model_section import Base
from pipeline.run.stage_plan import stage_inputs
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
        {"hardware__workers": 2},
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


def test_the_form_in_which_lm_eval_asks_counts_unless_it_is_the_default():
    assert changed(evaluate__lm_eval={"chat": False}) == {"evaluate", "publish"}
    assert changed(evaluate__lm_eval={"chat": "auto"}) == set()


def test_an_sft_field_invalidates_sft_and_what_follows_but_keeps_pretraining():
    assert changed(sft__lr=2e-3) == {"sft", "evaluate", "publish"}


def test_sft_conversations_are_prepared_again_without_touching_pretraining():
    assert changed(sft__held_out=0.1) == {"prepare", "sft", "evaluate", "publish"}


@pytest.mark.parametrize(
    "change",
    [{"pretrain__lr": 2e-2}, {"pretrain__global_batch": 8}, {"seed": 7}, {"model__d_ff": 64}],
)
def test_a_training_field_invalidates_its_stage_and_what_follows(change):
    assert changed(**change) == {"pretrain", "sft", "evaluate", "publish"}


def test_pretraining_text_invalidates_everything():
    assert changed(data__seq_len=16) == set(STAGES)


def test_documents_invalidate_everything_and_their_absence_may_be_stated():
    assert changed(data__documents=True) == set(STAGES)
    assert changed(data__documents=False) == set()


def test_a_model_with_windows_has_documents_unless_the_job_says_no():
    left_open, stated, off = (
        digest_job(tiny_job(model={"preset": "daisy-pico"}, **given))
        for given in ({}, {"data__documents": True}, {"data__documents": False})
    )
    assert left_open.stages == stated.stages
    inputs = (stage_inputs("pretrain", off), stage_inputs("pretrain", left_open))
    found = differences(*inputs, left_open.before)
    assert [str(d) for d in found] == ["data.documents: false → true"]


def test_a_publish_field_invalidates_publishing_alone():
    assert changed(publish={"to": "out", "license": "mit"}) == {"publish"}


def test_another_checkpoint_to_publish_is_evaluated_again():
    assert changed(evaluate__checkpoint="best") == {"evaluate", "publish"}
    assert changed(evaluate__checkpoint="last") == set()


def test_another_text_to_compare_on_is_measured_again_and_changes_no_training():
    def digests(**evaluate):
        base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96).to_dict())
        job = tiny_dict(model={"from": "base"}, evaluate=evaluate)
        del job["tokenizer"]
        return digest_job(Job.model_validate(job, context={"base": base})).stages

    plain, own = digests(), digests(text="notes.txt")
    assert [stage for stage in plain if plain[stage] != own[stage]] == ["evaluate"]


def test_a_difference_names_the_path_and_both_values():
    old, new = digest_job(tiny_job()), digest_job(tiny_job(sft__lr=2e-3))
    found = differences(old.inputs["sft"], new.inputs["sft"], new.before)
    assert [str(d) for d in found] == ["sft.lr: 0.001 → 0.002"]


def test_a_finished_run_is_not_stale_because_it_has_no_gguf_file():
    """The frozen digests show that records without the field stay; so does one that says no."""
    published = {"to": "out"}
    without = digest_job(tiny_job(publish=published))
    assert digest_job(tiny_job(publish={**published, "gguf": False})).stages == without.stages
    asked = digest_job(tiny_job(publish={**published, "gguf": True})).stages
    assert {stage for stage in asked if asked[stage] != without.stages[stage]} == {"publish"}
