"""The model that prefer started from is found again, or it is said that it is gone."""

import pytest

from pion.errors import BadInput
from pipeline.run.measure_base import starts_of_stages
from pipeline.state.head import REFERENCE, Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from pipeline.state.stores.errors import StoreError
from tests.support.jobs import tiny_job


def job(**prefer):
    section = {"steps": 5, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], **prefer}
    return tiny_job(prefer=section)


def at_once(call):
    return call()


def started(found, folder, head=None):
    said = []
    run = RunState(open_store(str(folder / "runs")), "tiny")
    models = {stage: folder / stage for stage in ("pretrain", "sft", "prefer")}

    def say(note):
        said.append(note.text)

    return starts_of_stages(found, run, head or Head(), models, say, at_once)["prefer"], said


def test_it_is_the_stage_before(tmp_path):
    start, said = started(job(), tmp_path)
    assert (start.name, start.reference, said) == ("sft", None, [])


def test_numbers_that_are_missing_are_a_note_and_the_model_is_measured(tmp_path, monkeypatch):
    def missing(*_):
        raise BadInput("they are missing")

    monkeypatch.setattr("pipeline.run.measure_base.bring_data", missing)
    head = Head(data={REFERENCE: "_data/" + "a" * 64 + "/b"})
    start, said = started(job(), tmp_path, head)
    assert start.reference is None
    assert said == ["the numbers of the reference are not used: they are missing"]


def test_a_store_that_is_down_is_no_missing_file(tmp_path, monkeypatch):
    def down(*_):
        raise StoreError("Cannot read", "a folder", "the service is down")

    monkeypatch.setattr("pipeline.run.measure_base.bring_data", down)
    head = Head(data={REFERENCE: "_data/" + "a" * 64 + "/b"})
    with pytest.raises(StoreError):
        started(job(), tmp_path, head)


def test_a_loss_without_a_reference_asks_for_no_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.run.measure_base.bring_data", None)
    head = Head(data={REFERENCE: "_data/" + "a" * 64 + "/b"})  # of an earlier loss
    start, said = started(job(loss="simpo"), tmp_path, head)
    assert (start.reference, said) == (None, [])
