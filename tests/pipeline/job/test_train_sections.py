"""The steps of a stage, the recipe of Pion 2, and the rates of `lora`."""

import pytest

from pion.config.lora import Lora
from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.job.train_sections import Pretrain, settings_of
from pipeline.training.train_request import TrainRequest
from tests.paths import JOBS
from tests.support.jobs import tiny_dict, tiny_job


def without_warmup(**changes):
    fields = tiny_dict(**changes)
    for stage in ("pretrain", "sft"):
        del fields[stage]["warmup_steps"]
    return Job.model_validate(fields)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(60, 6), (1000, 100), (1001, 1000), (5000, 1000), (1, 0)]
)
def test_a_short_run_warms_up_for_a_tenth_of_its_steps(steps, warmup):
    job = without_warmup(pretrain__steps=steps)
    assert job.section("pretrain").warmup_steps == warmup
    assert settings_of(job.section("pretrain")).warmup_steps == warmup
    # A job that could run before has the digest that it had.
    given = tiny_job(pretrain__steps=steps, pretrain__warmup_steps=warmup)
    assert digest_job(job).stages["pretrain"] == digest_job(given).stages["pretrain"]


def epochs(passes, **changes):
    return tiny_job(sft__steps=None, sft__epochs=passes, **changes)


@pytest.mark.parametrize(
    ("passes", "rows", "steps"), [(3, 100, 75), (3, 101, 76), (0.5, 100, 13), (1, 1, 1)]
)
def test_passes_over_the_rows_give_the_steps(passes, rows, steps):
    job = epochs(passes, sft__warmup_steps=0)
    section = job.section("sft")
    assert not section.steps_are_known
    digest = digest_job(job).stages["sft"]
    section.know_rows(rows)
    assert section.total_steps == settings_of(section).steps == steps
    assert steps * section.global_batch >= passes * rows
    # The rows follow from the data, which the digest covers.
    assert digest_job(job).stages["sft"] == digest
    assert digest != digest_job(epochs(passes + 1, sft__warmup_steps=0)).stages["sft"]


def test_a_warm_up_must_fit_into_the_steps_that_follow_from_the_rows():
    section = epochs(1, sft__warmup_steps=10).section("sft")
    with pytest.raises(
        BadInput, match=r"must be below the 3 steps that the data gives \(12 rows\)"
    ):
        section.know_rows(12)


# Numbers that finished runs have recorded: they never change.
OF_768 = {
    "optimizer": "muon",
    "muon_lr": 0.02,
    "lr": 0.003,
    "embedding_lr": 0.1,
    "vector_lr": 0.01,
    "min_lr": 0.00015,
    "warmup_steps": 40,
    "decay_shape": "linear",
    "decay_fraction": 0.65,
    "weight_decay": 0.0,
    "beta1": 0.8,
    "eps": 1e-10,
}


def job(*overrides):
    given = "pretrain={recipe: pion2, steps: 4000}"
    return load_job(JOBS / "demo.yaml", ["model={preset: pion2-base}", given, *overrides])


def pretrain(*overrides):
    return job(*overrides).pretrain


def test_its_numbers_never_change():
    found = pretrain()
    assert {name: getattr(found, name) for name in OF_768} == OF_768
    others = Pretrain(steps=4000).model_dump(exclude={"recipe", *OF_768})
    assert found.model_dump(exclude={"recipe", *OF_768}) == others


def test_rates_of_adamw_follow_the_width_and_the_warm_up_the_steps():
    small = pretrain("model={preset: pion2-base, d_model: 192}", "pretrain.steps=240")
    assert (small.lr, small.embedding_lr, small.vector_lr) == (0.006, 0.2, 0.02)
    assert (small.min_lr, small.muon_lr, small.warmup_steps) == (0.0003, 0.02, 20)


def test_what_a_job_gives_comes_first():
    found = pretrain("pretrain.lr=1e-3", "pretrain.optimizer=adamw", "pretrain.warmup_steps=0")
    assert (found.lr, found.optimizer, found.warmup_steps) == (1e-3, "adamw", 0)
    assert found.min_lr == 5e-5  # a twentieth of the rate that the job gives


def test_it_is_the_same_as_its_settings_written_out():
    written = [f"pretrain.{name}={value}" for name, value in OF_768.items()]
    spelled_out = job("pretrain={steps: 4000}", *written)
    assert digest_job(spelled_out) == digest_job(job())


NO_RATES = {
    "steps": 10,
    "global_batch": 4,
    "warmup_steps": 1,
    "sources": [{"kind": "jsonl", "path": "talks.jsonl"}],
}


def lora_job(lora, **rates):
    return tiny_job(sft=NO_RATES | rates | ({} if lora is None else {"lora": lora}))


def test_lora_has_its_own_rates_unless_they_are_given():
    sft = lora_job({}).sft
    assert (sft.lr, sft.min_lr, sft.weight_decay) == (2e-4, 2e-5, 0)
    assert lora_job({}).lora("sft") == Lora(16, 32.0, "all-linear")
    given = lora_job({}, lr=1e-3, weight_decay=0.1).sft
    assert (given.lr, given.min_lr, given.weight_decay) == (1e-3, 2e-5, 0.1)
    without = lora_job(None).sft
    assert (without.lr, without.min_lr, without.weight_decay) == (2e-5, 2e-6, 0.01)


def test_the_rates_are_resolved_before_digesting():
    implied, stated = lora_job({}), lora_job({}, lr=2e-4, min_lr=2e-5, weight_decay=0.0)
    assert digest_job(implied).stages == digest_job(stated).stages
    assert digest_job(implied).inputs["sft"]["sft.lr"] == 2e-4


def test_each_setting_of_lora_moves_the_digest_of_sft_and_none_before_it():
    jobs = [
        lora_job(lora)
        for lora in (
            None,
            {},
            {"rank": 8},
            {"alpha": 16},
            {"targets": ["q_proj"]},
            {"base_dtype": "bfloat16"},
        )
    ]
    digests = [digest_job(job).stages for job in jobs]
    assert len({found["sft"] for found in digests}) == len(jobs)
    assert len({found["pretrain"] for found in digests}) == 1


def test_a_job_that_says_no_lora_has_the_digest_of_one_that_says_nothing():
    assert (
        digest_job(tiny_job(sft=NO_RATES | {"lora": None})).stages
        == digest_job(lora_job(None)).stages
    )


def test_the_workers_get_the_resolved_rates():
    job = lora_job({"rank": 8})
    dumped = job.model_dump(mode="json", exclude_unset=True)
    request = TrainRequest(dumped, ".", "file:///x", {}, [], {})
    again = request.load_job()
    assert digest_job(again).stages == digest_job(job).stages
    assert again.lora("sft") == Lora(8)
