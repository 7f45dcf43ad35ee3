"""Each input that a job names by a path keeps its first content, until its stage is redone."""

import shutil
from pathlib import Path

import pytest

from pion.errors import PionError
from pipeline.job.digest import digest_job
from pipeline.machine.folders import cache_folder
from pipeline.run.inputs import changed_inputs
from pipeline.state.kept_inputs import keep_inputs, use_kept_inputs
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store
from tests.runs.test_reinforce import OWN, REINFORCE
from tests.support.jobs import job_from, tiny_job
from tests.support.tiny_config import tiny_config

# By the key of an input: what its job has, its file, and the stage that reads it first.
KINDS = {
    "reinforce.rewards.0.path": (
        {"reinforce": REINFORCE | {"rewards": [OWN]}},
        "rewards.py",
        "reinforce",
    ),
    "evaluate.packs.0": ({"evaluate__packs": ["a pack (1).jsonl"]}, "a pack (1).jsonl", "evaluate"),
    "evaluate.core.path": ({"evaluate__core": {"path": "core.zip"}}, "core.zip", "evaluate"),
    "evaluate.text": ({"evaluate__text": "texts"}, "texts/a.txt", "evaluate"),
    "evaluate.lm_eval.include_path": (
        {"evaluate__lm_eval": {"include_path": "tasks"}},
        "tasks/own/utils.py",
        "evaluate",
    ),
    "tokenizer.file": (
        {"tokenizer": {"file": "t.json"}, "model__vocab_size": 320},
        "t.json",
        "prepare",
    ),
    "data.clean.decontaminate.0": (
        {"data__clean": {"decontaminate": ["set.jsonl"]}},
        "set.jsonl",
        "prepare",
    ),
}


class Start:
    """The job of a run, read again by each start."""

    def __init__(self, folder, key):
        self.folder, self.key = folder, key
        self.changes, name, self.stage = KINDS[key]
        self.file = folder / name
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("first")
        self.run = RunState(open_store(str(folder / "runs")), "tiny")

    def job(self, redo=None, *, begun=False):
        made = {"store": "runs", **self.changes}
        job = (
            job_from(tiny_config(seq_len=96), **made)
            if self.key == "evaluate.text"
            else tiny_job(**made)
        )
        job._folder = self.folder
        use_kept_inputs(job, redo, self.run if begun else None)
        return job

    def read(self, job):
        """Return what the file has where the job reads it."""
        stage, named = job.kept_inputs[self.key]
        assert stage == self.stage
        place = str(job.kept_path(named)).removesuffix(named)
        return (Path(place) / self.file.relative_to(self.folder)).read_text()

    def said(self, redo=None):
        return changed_inputs(self.job(redo), self.run, None, redo)


@pytest.fixture(params=KINDS)
def start(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = Start(tmp_path, request.param)
    keep_inputs(start.job(), start.run)
    return start


def test_a_file_that_is_replaced_counts_only_when_its_stage_is_redone(start):
    assert start.said() == []
    start.file.write_text("other")
    (words,) = start.said()
    assert words.startswith(
        f"{start.key}: {start.job().kept_inputs[start.key][1]} has changed since"
    )
    assert start.read(start.job(begun=True)) == "first"
    if start.stage != "reinforce":  # the digest of the stage says so
        assert f"--redo {start.stage}" in words
        assert start.said(start.stage) == []
        keep_inputs(start.job(), start.run)
        assert start.read(start.job()) == "first"
    keep_inputs(redone := start.job(start.stage), start.run)
    assert start.read(redone) == start.read(start.job(begun=True)) == "other"
    assert start.said() == []


def test_a_worker_in_another_folder_reads_what_the_run_has_kept(start, tmp_path, monkeypatch):
    start.file.write_text("other")
    shutil.rmtree(cache_folder() / "inputs", ignore_errors=True)
    monkeypatch.chdir(tmp_path.parent)  # the job calls its store `runs`
    assert start.read(start.job(begun=True)) == "first"


def test_a_file_that_is_gone_is_read_from_the_store(start):
    digests = digest_job(start.job()).stages
    start.file.unlink()
    shutil.rmtree(cache_folder() / "inputs")
    assert start.said() == []
    keep_inputs(job := start.job(), start.run)
    assert digest_job(job).stages == digests
    for redo in (None, start.stage):
        assert start.read(start.job(redo)) == "first"


def test_a_kept_file_that_is_damaged_is_named(start):
    (kept,) = (start.folder / "runs/tiny/inputs").glob("?" * 64)
    kept.write_text("bytes")
    shutil.rmtree(cache_folder() / "inputs")
    with pytest.raises(PionError, match=f"{kept.name} is missing or damaged.*--redo"):
        start.read(start.job(begun=True))


def test_what_is_kept_is_what_was_hashed_although_the_file_changes_meanwhile(start, monkeypatch):
    job, write = start.job("prepare"), FileStore.write
    start.file.write_text("later")

    def changing(store, key, data):
        start.file.write_text("latest")
        write(store, key, data)

    monkeypatch.setattr(FileStore, "write", changing)
    keep_inputs(job, start.run)
    assert start.read(start.job(begun=True)) == "later"
