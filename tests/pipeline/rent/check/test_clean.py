"""`pion check` says what data.clean would leave out, and finds sets that can't be read."""

import json

import pytest

from pion.errors import BadInput
from pipeline.rent.check.clean import check_clean
from pipeline.rent.check.inputs import local_inputs
from tests.pipeline.rent.check.checked_job import Case
from tests.support.core_bundle import pinned, write_bundle

CLEAN = {
    "near": 0.7,
    "min_words": 3,
    "max_words": 1000,
    "max_repetition": 0.25,
    "languages": ["English", "German"],
    "decontaminate": ["pack.jsonl", "b.zip"],
}


@pytest.fixture
def case(tmp_path, monkeypatch):
    question = {"context": "Which? ", "choices": ["this", "that"], "answer": 1}
    (tmp_path / "pack.jsonl").write_text(json.dumps(question) + "\n")
    pinned(monkeypatch, write_bundle(tmp_path / "b.zip"))
    return Case(tmp_path)


def test_nothing_is_said_of_a_job_that_does_not_clean(case):
    assert not list(check_clean(case.job()))


def test_each_rule_is_named_with_its_bound(case):
    (row,) = check_clean(case.job(data__clean=CLEAN))
    assert row.ok is True
    assert row.words == (
        "leaves out exact copies, near-copies (similarity 0.7), documents of fewer than 3 words, "
        "documents of more than 1,000 words, documents of which more than 25 % is repeated, "
        "documents that are not in English or German, "
        "text with any of 37 items of 4 evaluation sets"
    )


def test_a_pack_that_the_text_is_not_cleaned_of_is_a_warning(case):
    job = case.job(data__clean={}, evaluate__packs=["pack.jsonl"])
    _, row = check_clean(job)
    assert row.ok is None
    assert row.words.startswith("evaluate.packs.0: not in data.clean.decontaminate")
    clean = {"decontaminate": ["pack.jsonl"]}
    assert (
        len(list(check_clean(case.job(data__clean=clean, evaluate__packs=["./pack.jsonl"])))) == 1
    )


def test_a_set_that_cannot_be_read_is_refused_with_its_key(case):
    (case.folder / "b.zip").write_text("other")
    with pytest.raises(BadInput, match=r"^data\.clean\.decontaminate\.1: .*b\.zip: expected the"):
        list(check_clean(case.job(data__clean=CLEAN)))


def test_the_sets_travel_to_a_rented_machine_unless_the_data_is_prepared(case):
    job = case.job(data__clean=CLEAN)
    keys = {each.key: each.file for each in local_inputs(job, prepared=False)}
    assert keys["data.clean.decontaminate.1"] == (case.folder / "b.zip").resolve()
    assert not any("clean" in each.key for each in local_inputs(job, prepared=True))
