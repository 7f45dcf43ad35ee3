"""The text that tells what a model has forgotten: the job's, or a sample that never changes."""

import hashlib
import json

import pytest

from pion.errors import BadInput
from pipeline.data.compared_text import SAMPLE, check_text, find_text
from tests.support.jobs import tiny_job

# Cards and reports say this hash, so models can be compared. Never change the sample.
SAMPLE_SHA256 = "f366fb31407d30a3b334f1e7a04c6a45fdacf1b5ca4eb0f8d4ba2bede282cbb0"


def job_with(folder, text):
    job = tiny_job()
    job.evaluate = job.evaluate.model_copy(update={"text": text})
    job._folder = folder
    return job


def test_the_sample_is_the_one_that_other_models_were_measured_on(tmp_path):
    text = check_text(job_with(tmp_path, None))
    assert text.sha256 == hashlib.sha256(SAMPLE.read_bytes()).hexdigest() == SAMPLE_SHA256
    assert len(list(text.texts())) == 14  # paragraphs: enough for a standard error


def test_a_text_file_is_read_by_paragraphs(tmp_path):
    (tmp_path / "notes.txt").write_text("one\ntwo\n\n\nthree\n")
    text = find_text(job_with(tmp_path, "notes.txt"))
    assert [found.strip() for found in text.texts()] == ["one\ntwo", "three"]
    assert text.sha256 == hashlib.sha256(b"one\ntwo\n\n\nthree\n").hexdigest()


def test_each_line_of_json_lines_is_a_text(tmp_path):
    lines = [{"text": "one\n\ntwo"}, {"text": "  "}, {"text": "three", "id": 7}]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for named in ("notes.jsonl", "."):
        text = check_text(job_with(tmp_path, named))
        assert list(text.texts()) == ["one\n\ntwo", "three"]


def test_a_folder_counts_with_all_its_text_files_in_order(tmp_path):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.jsonl").write_text("not read")
    text = check_text(job_with(tmp_path, str(tmp_path)))
    assert list(text.texts()) == ["first", "second"]
    assert text.sha256 == hashlib.sha256(b"firstsecond").hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.txt", None, "evaluate.text: no such file or folder: .*gone.txt"),
        (".", None, r"evaluate.text: no \*\.jsonl or .* file in the folder"),
        ("a.txt", b" \n\n", "evaluate.text: the corpus is empty: no text in .*a.txt"),
        ("a.txt", b"\xff\xfe", "a.txt is text in UTF-16, not UTF-8 text"),
        ("a.jsonl", b'{"text": ""}\n', "evaluate.text: there is no text in .*a.jsonl"),
        ("a.jsonl", b'{"body": "x"}\n', r'a.jsonl:1: evaluate.text needs lines such as \{"text"'),
        ("a.jsonl", b'{"text": 3}\n', 'a.jsonl:1: .* this line has no text under "text"'),
        ("a.jsonl", b"[1]\n", "a.jsonl is one JSON document .a list., not JSON Lines"),
        ("a.jsonl", b"", "evaluate.text: the corpus is empty"),
    ],
)
def test_what_is_no_text_is_refused_with_file_and_line(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=expected):
        check_text(job_with(tmp_path, name))
