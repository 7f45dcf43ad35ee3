"""The model that prefer started from is found again, or it is said that it is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pion.errors import BadInput, PionError
from pion.model.decoder import Decoder
from pion.model.parameters import tensors_sha256
from pipeline.console.messages import Note
from pipeline.job import Job
from pipeline.run.measure_base import model_before_prefer
from pipeline.state.head import REFERENCE, Head
from pipeline.state.run_state import RunState
from pipeline.state.shared.folder import REFERENCE_FILE
from pipeline.state.stores import open_store
from pipeline.state.stores.errors import StoreError
from tests.support.jobs import tiny_job
from tests.support.tiny_config import tiny_config


def job(**prefer: Any) -> Job:
    section = {"steps": 5, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], **prefer}
    return tiny_job(prefer=section)


def at_once(call: Callable[[], Any]) -> Any:
    return call()


def started(found, folder, head=None):
    said: list[str] = []
    run = RunState(open_store(str(folder / "runs")), "tiny")
    models = {stage: folder / stage for stage in ("pretrain", "sft", "prefer")}

    def say(note: Any) -> None:
        assert isinstance(note, Note)
        said.append(note.text)

    return model_before_prefer(found, run, head or Head(), models, say, at_once), said


def test_it_is_the_stage_before(tmp_path: Path) -> None:
    start, said = started(job(), tmp_path)
    assert (start.name, start.reference, said) == ("sft", None, [])
    assert start.load is not None


def test_a_model_that_is_gone_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    start, said = started(job(init_from=str(tmp_path / "gone")), tmp_path)
    assert (start.name, start.load) == ("start", None)
    (note,) = said
    assert note.startswith("prefer.init_from: ")
    assert "What this model was like before is not measured" in note


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """The model that `prefer.init_from` names, and a reference of it in `tmp_path / "numbers"`."""
    torch.manual_seed(0)
    model = Decoder(tiny_config())
    monkeypatch.setattr("pipeline.models.find.find_model", lambda name: name)
    monkeypatch.setattr("pipeline.models.load.load_model", lambda found: model)
    monkeypatch.setattr("pipeline.models.load.fitted", lambda config, model, *_: model)
    folder = tmp_path / "numbers"
    folder.mkdir()
    written = json.dumps({"weights": tensors_sha256(model.state_dict())})
    (folder / REFERENCE_FILE).write_text(written)
    monkeypatch.setattr("pipeline.run.measure_base.bring_data", lambda *_: folder)
    return model


BOUND = Head(data={REFERENCE: "_data/" + "a" * 64 + "/b"})


def test_a_named_model_is_loaded_again(tmp_path: Path, named: Decoder) -> None:
    start, said = started(job(init_from="a model"), tmp_path, BOUND)
    assert (start.load(), said) == (named, [])


def test_a_name_of_another_model_since_is_a_note(tmp_path: Path, named: Decoder) -> None:
    with torch.no_grad():
        named.embed.weight[0, 0] += 1
    start, said = started(job(init_from="a model"), tmp_path, BOUND)
    assert start.load is None
    (note,) = said
    assert "a model is not the model that prefer has started from" in note


def test_a_named_model_that_can_not_be_loaded_is_a_note(tmp_path, named, monkeypatch):
    def damaged(found: Any) -> Decoder:
        raise PionError("model.safetensors is damaged")

    monkeypatch.setattr("pipeline.models.load.load_model", damaged)
    start, said = started(job(init_from="a model"), tmp_path, BOUND)
    assert start.load is None
    assert "model.safetensors is damaged" in said[0]


def test_numbers_that_are_missing_are_a_note_and_the_model_is_measured(tmp_path, monkeypatch):
    def missing(*_: Any) -> Path:
        raise BadInput("they are missing")

    monkeypatch.setattr("pipeline.run.measure_base.bring_data", missing)
    head = Head(data={REFERENCE: "_data/" + "a" * 64 + "/b"})
    start, said = started(job(), tmp_path, head)
    assert start.reference is None
    assert start.load is not None
    assert said == ["the numbers of the reference are not used: they are missing"]


def test_a_store_that_is_down_is_no_missing_file(tmp_path, monkeypatch):
    def down(*_: Any) -> Path:
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
