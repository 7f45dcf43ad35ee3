"""data.clean: its mistakes, each in a line with its key, and what its digest covers."""

import json

import pytest
import yaml

from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.job.job import without_questions
from tests.support.jobs import tiny_job

AFTER_PREPARE = {"prepare", "pretrain", "sft", "evaluate"}


def changed(before, after, **others):
    """Return the stages whose digest differs between two values of data.clean."""
    one, two = (digest_job(tiny_job(data__clean=c, **others)).stages for c in (before, after))
    return {stage for stage in one if one[stage] != two[stage]}


def test_without_the_section_every_digest_is_as_before_the_section_existed():
    assert digest_job(tiny_job(data__clean=None)) == digest_job(tiny_job())
    assert not any("clean" in path for path in digest_job(tiny_job()).inputs["data.pretrain"])


@pytest.mark.parametrize(
    "clean",
    [{}, {"near": 0.7}, {"near": None}, {"min_words": 3}, {"decontaminate": ["a.jsonl"]}],
    ids=str,
)
def test_each_rule_is_part_of_the_digest_of_prepare(clean):
    assert changed(None, clean) == AFTER_PREPARE
    other = {"max_words": 10**6}
    assert changed(other, clean | other) == (AFTER_PREPARE if clean else set())


def test_evaluate_means_the_packs_so_another_pack_is_another_text():
    sections = {"evaluate__packs": ["a.jsonl"]}
    by_name, by_path = {"decontaminate": ["evaluate"]}, {"decontaminate": ["a.jsonl"]}
    assert changed(by_name, by_path, **sections) == set()
    one, two = (
        digest_job(tiny_job(data__clean=by_name, evaluate__packs=packs)).data["pretrain"]
        for packs in (["a.jsonl"], ["a.jsonl", "b.jsonl"])
    )
    assert one != two


def test_conversations_alone_do_not_depend_on_it():
    tokenizer = {"tokenizer": {"file": "tokenizer.json"}, "model__vocab_size": 320}
    one, two = (digest_job(tiny_job(data__clean=c, **tokenizer)).data for c in (None, {}))
    assert one["sft"] == two["sft"]
    assert one["pretrain"] != two["pretrain"]


def test_evaluate_means_a_bundle_of_core_alone_too():
    job = tiny_job(data__clean={"decontaminate": ["evaluate"]}, evaluate__core={"path": "b.zip"})
    assert job.removed_sets == [("evaluate.core.path", "b.zip")]
    with pytest.raises(ValueError, match="which has neither packs nor core"):
        tiny_job(data__clean={"decontaminate": ["evaluate"]})


def test_a_job_that_only_trains_has_the_same_text(tmp_path):
    questions = {"packs": ["a.jsonl"], "core": {"path": "b.zip"}}
    given = {f"evaluate__{name}": value for name, value in questions.items()}
    job = tiny_job(data__clean={"decontaminate": ["evaluate"]}, **given)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True)))
    changes = [f"{key}={json.dumps(value)}" for key, value in without_questions(job).items()]
    alone = load_job(path, changes)
    assert not alone.evaluate.sets
    assert digest_job(alone).data == digest_job(job).data
