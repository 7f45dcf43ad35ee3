"""`prefer` in the job file: its defaults, and what is refused before anything is spent."""

import pytest

from pion.errors import BadInput
from pion.train.preference import BETA, WITHOUT_REFERENCE, Preference
from pipeline.job.digest import digest_job
from pipeline.job.train_sections import settings_of
from pipeline.training.train_request import TrainRequest
from tests.support.jobs import refusal, tiny_job

SOURCES = [{"kind": "jsonl", "path": "pairs.jsonl"}]


def prefer_job(**fields):
    return tiny_job(prefer={"sources": SOURCES, **fields})


def prefer(**fields):
    return prefer_job(**fields).prefer


def refused(folder, **fields):
    return refusal(folder, prefer={"sources": SOURCES, **fields})


# ---------------------------------------------------------------- defaults


def test_the_defaults_are_those_of_the_recipes_that_worked():
    section = prefer()
    assert (section.loss, section.beta, section.reference) == ("dpo-norm", 5.0, "start")
    assert (section.lr, section.min_lr, section.weight_decay) == (2e-6, 2e-7, 0.0)
    assert (section.epochs, section.global_batch, section.clip) == (1.0, 32, 1.0)
    assert (prefer(lora={}).lr, prefer(lora={}).min_lr) == (2e-5, 2e-6)


@pytest.mark.parametrize("loss", BETA)
def test_what_a_loss_needs_is_filled_in(loss):
    section = prefer(loss=loss)
    assert section.learning.strength == section.beta == BETA[loss]
    assert section.margin == (1.25 if loss == "simpo" else None)
    assert section.needs_reference == (loss not in WITHOUT_REFERENCE)


def test_the_warm_up_is_a_tenth_of_the_steps_however_these_are_given():
    assert settings_of(prefer(steps=2000)).warmup_steps == 200
    section = prefer(epochs=2)
    section.know_rows(16_000)
    assert (section.total_steps, section.total_warmup_steps) == (1000, 100)
    assert settings_of(prefer(steps=2000, warmup_steps=7)).warmup_steps == 7


def test_rows_take_both_answers():
    assert prefer_job().seq_len("prefer") == 2 * 96
    assert tiny_job(prefer={"sources": SOURCES}, sft=None).seq_len("prefer") == 2 * 32
    assert prefer_job(seq_len=100).seq_len("prefer") == 100


def test_the_memory_of_a_step_depends_on_the_answers_in_a_row():
    job = prefer_job(seq_len=640)
    assert (job.prefer.most_sequences(640), job.sft.most_sequences(640)) == (10, 0)
    job.prefer.know_data("pairs", lambda: 4, "prefer")
    assert job.prefer.most_sequences(640) == 4


def test_the_trainer_gets_the_loss():
    job = prefer_job(loss="dpo", beta=0.3, label_smoothing=0.1, sft_weight=0.2, steps=10)
    expected = Preference("dpo", 0.3, label_smoothing=0.1, sft_weight=0.2)
    assert settings_of(job.section("prefer")).learning == expected
    assert settings_of(job.section("sft")).learning is None


def test_workers_read_the_job_as_it_was_checked():
    for fields in ({}, {"loss": "simpo"}, {"loss": "apo-zero", "undesirable_weight": 2.0}):
        job = prefer_job(**fields)
        sent = job.model_dump(mode="json", exclude_unset=True)
        again = TrainRequest(sent, ".", "runs", {}, [], {}).load_job()
        assert digest_job(again) == digest_job(job)


# ---------------------------------------------------------------- refusals


def test_the_additions_of_sft_are_trained_further_by_the_same_settings():
    lora = {"rank": 4, "targets": ["q_proj"]}
    made = tiny_job(prefer={"sources": SOURCES, "lora": lora}, sft__lora=lora)
    assert made.lora_before("prefer") == "sft"
    assert made.lora_before("sft") is None
    for changes in ({"sft__lora": None}, {"prefer": {"sources": SOURCES}}):
        other = {"prefer": {"sources": SOURCES, "lora": lora}, "sft__lora": lora} | changes
        assert tiny_job(**other).lora_before("prefer") is None


def test_the_data_decides_between_pairs_and_single_answers():
    section = prefer(loss="apo-zero")
    section.know_kind("labels", "here")
    assert not section.learning.paired
    section.know_kind("pairs", "here")
    assert section.learning.paired
    with pytest.raises(BadInput, match=r"here: these are single answers .* prefer.loss=apo-zero"):
        prefer(loss="dpo").know_kind("labels", "here")
    weighted = prefer(loss="apo-zero", desirable_weight=2)
    with pytest.raises(BadInput, match=r"here: these are pairs .* compares pairs"):
        weighted.know_kind("pairs", "here")
    weighted.know_kind("labels", "here")


# ---------------------------------------------------------------- digests


def test_every_field_of_the_loss_moves_the_digest_of_the_stage_and_not_of_its_data():
    jobs = [
        prefer_job(**fields)
        for fields in (
            {},
            {"beta": 2.0},
            {"loss": "dpo"},
            {"sft_weight": 0.1},
            {"reference": "none"},
            {"lora": {}},
            {"epochs": 2},
        )
    ]
    digests = [digest_job(job) for job in jobs]
    assert len({found.stages["prefer"] for found in digests}) == len(jobs)
    assert len({found.data["prefer"] for found in digests}) == 1
    assert len({found.stages["sft"] for found in digests}) == 1


def test_what_decides_the_rows_moves_the_digest_of_the_data():
    plain = digest_job(prefer_job())
    for fields in ({"held_out": 0.3}, {"seq_len": 64}):
        assert digest_job(prefer_job(**fields)).data["prefer"] != plain.data["prefer"]
    longer = tiny_job(prefer={"sources": SOURCES}, model__seq_len=128)
    assert digest_job(longer).data["prefer"] != plain.data["prefer"]
    assert digest_job(prefer_job(loss="dpo")).data == plain.data


def test_a_stage_of_preferences_follows_from_the_stage_before_it():
    digests = digest_job(prefer_job())
    assert digests.inputs["prefer"]["input.sft"] == digests.stages["sft"]
    other = digest_job(tiny_job(prefer={"sources": SOURCES}, sft__steps=11))
    assert other.stages["prefer"] != digests.stages["prefer"]


def test_a_job_without_preferences_keeps_its_digests():
    without, there = digest_job(tiny_job()), digest_job(prefer_job())
    for stage in ("pretrain", "sft"):
        assert there.stages[stage] == without.stages[stage]
        assert there.data[stage] == without.data[stage]
