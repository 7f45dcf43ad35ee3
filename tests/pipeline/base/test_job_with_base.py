"""What a run has recorded of the model that it starts from holds for all later commands."""

import dataclasses

import pytest
import yaml

from pion.errors import BadInput
from pipeline.base import find
from pipeline.base.job_with_base import read_job
from pipeline.base.keep import say_if_moved
from pipeline.job.digest import digest_job
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import write_pin
from pipeline.state.stores import StoreError, open_store
from tests.pipeline.base.conftest import export_base
from tests.support.chat_templates import CHATML, LLAMA3
from tests.support.hub_server import hub_server
from tests.support.instruct_model import write_instruct_model

LONG_AGO = "2020-01-02"


def job_in(folder, model="base", **sft):
    job = {
        "name": "tiny",
        "model": {"from": model},
        "sft": {"sources": [{"kind": "jsonl", "path": "talks.jsonl"}], **sft},
        "store": str(folder / "runs"),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def sft_data(job):
    return digest_job(job).data["sft"]


def test_the_day_of_a_template_stays_that_of_the_first_start(tmp_path):
    write_instruct_model(tmp_path / "base", "llama3", LLAMA3)
    path = job_in(tmp_path)
    today = read_job(path)
    assert today.base.date is not None
    run = RunState(open_store(today.store), today.name)
    write_pin(run, dataclasses.replace(today.base, date=LONG_AGO))
    for redo in (None, "prepare", "sft"):
        later = read_job(path, redo=redo)
        assert later.base.date == LONG_AGO
        assert sft_data(later) != sft_data(today)


def test_a_branch_that_moves_alters_nothing_until_the_stage_is_redone(tmp_path, monkeypatch):
    path, said = job_in(tmp_path, "someone/tiny"), []
    with hub_server() as hub:

        def push(seed):
            files = export_base(tmp_path / str(seed), seed).iterdir()
            hub.add_repo("someone/tiny", "model", {file.name: file.read_bytes() for file in files})

        hub.use(monkeypatch, tmp_path / "hf")
        push(0)
        began = read_job(path).base
        run = RunState(open_store(str(tmp_path / "runs")), "tiny")
        write_pin(run, began)
        push(1)
        assert read_job(path).base == began
        say_if_moved(run, began, tmp_path, said.append)
        assert read_job(path, redo="sft").base.hash != began.hash
    (note,) = said
    assert "someone/tiny has changed since this run began" in note.text


def test_a_store_without_keys_is_not_called_a_mistake_in_the_job(tmp_path, monkeypatch):
    def refuse(*_):
        raise StoreError("read", "s3://bucket/x/HEAD.json", "no credentials were found")

    monkeypatch.setattr(find, "find_base", refuse)
    with pytest.raises(BadInput, match="no credentials were found") as caught:
        read_job(job_in(tmp_path))
    assert "mistake" not in str(caught.value)


def test_the_data_depends_on_the_template_and_its_settings_and_on_no_day_that_it_ignores(tmp_path):
    write_instruct_model(tmp_path / "base", "smollm2", CHATML)
    changed = [{}, {"template": "pion"}, {"system": "Hi"}, {"template_options": {"a": 1}}]
    digests = {sft_data(read_job(job_in(tmp_path, **sft))) for sft in changed}
    assert read_job(job_in(tmp_path)).base.date is None
    (tmp_path / "base/chat_template.jinja").write_text(CHATML + " ")
    digests.add(sft_data(read_job(job_in(tmp_path))))
    assert len(digests) == 5


@pytest.mark.parametrize("model", ["./nowhere", "user/of-a-hub-that-is-away"])
def test_mistakes_are_said_although_the_model_was_not_looked_up(tmp_path, monkeypatch, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"this key is `sft.lr`"):
        read_job(job_in(tmp_path, model, learning_rate=1))
