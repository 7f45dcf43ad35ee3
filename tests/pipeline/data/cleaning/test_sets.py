"""The evaluation sets of data.clean.decontaminate, and the held-out text next to them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from pion.data.documents.file_to_documents import Document
from pipeline.data.cleaning import sets
from pipeline.data.sources import find_input
from pipeline.job import Job
from tests.support.core_bundle import write_bundle, zip_bundle
from tests.support.corpora import make_job, sentences


@pytest.fixture
def job(tmp_path: Path) -> Job:
    lines = (json.dumps({"text": sentences(n, 6)}) + "\n" for n in range(2000))
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    question = {"context": f"{sentences(1, 3)} ", "choices": ["no", "that ship sings"], "answer": 1}
    (tmp_path / "pack.jsonl").write_text(json.dumps(question) + "\n")
    zip_bundle(write_bundle(tmp_path / "bundle"), tmp_path / "core.zip")
    source = {"kind": "jsonl", "path": "corpus.jsonl"}
    clean = {"decontaminate": ["core.zip", "pack.jsonl"]}
    return make_job(tmp_path, data={"sources": [source], "clean": clean})


def test_a_question_is_asked_with_its_right_answer(job: Job) -> None:
    *tasks, pack = sets.read_sets(job)
    (item,) = pack.items
    assert (pack.name, item.answer) == ("pack", "that ship sings")
    assert item.question == f"{sentences(1, 3)} "
    words = next(task for task in tasks if task.name == "made_up_words")
    assert all(item.answer in ("list", "key", "tool", "in the") for item in words.items)


def test_the_control_comes_from_held_out_documents_and_only_from_the_first(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = sets.documents

    def documents(*arguments: object) -> object:
        for document in whole(*arguments):  # type: ignore[arg-type]
            assert isinstance(document, Document)
            read.append(document.text)
            yield document

    monkeypatch.setattr(sets, "documents", documents)
    monkeypatch.setattr(sets, "CONTROL_CHARS", 20_000)
    inputs = [find_input(job, source, key) for key, source in job.sources()]
    pack = sets.with_control(job, sets.read_sets(job), inputs)[-1]
    assert len("".join(read[:-1])) < 20_000 <= len("".join(read))
    held_out = " ".join(
        document.text
        for document in islice(whole(job, inputs[0]), len(read))
        if sets.is_held_out(job, inputs[0], document)
    ).lower()
    assert pack.control
    for excerpt in pack.control[:50]:
        assert excerpt.question in held_out.replace(".", "")


def test_without_sets_nothing_is_read(job: Job) -> None:
    assert sets.with_control(job, [], []) == []
