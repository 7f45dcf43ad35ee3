"""The published archive is read, by its sha256, and nothing else is."""

import os
import zipfile

import pytest

from pion.errors import BadInput
from pion.evaluation.core.bundle import SHA256, URL, read_bundle
from tests.support.core_bundle import TASKS, items, pinned, word_lines, write_bundle


def test_tasks_items_and_baselines_are_read(made_up):
    choice, schema, words = made_up.tasks
    assert (choice.label, choice.task_type, choice.shots) == (
        "made_up_choice",
        "multiple_choice",
        3,
    )
    assert [task.delimiter for task in made_up.tasks] == ["\nAnswer: ", " ", " "]
    assert [task.baseline for task in made_up.tasks] == [0.25, 0.5, 0.0]
    assert [len(task.items) for task in made_up.tasks] == [12, 12, 12]
    for task, options in ((choice, {2, 3, 4}), (schema, {2, 3}), (words, {1})):
        assert {len(item.options) for item in task.items} == options


def test_the_digest_is_of_the_files_that_are_asked(tmp_path, made_up, monkeypatch):
    packed = write_bundle(tmp_path / "b.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("eval_bundle/eval_data/other.jsonl", "{}")
    assert read_bundle(pinned(monkeypatch, packed)).digest == made_up.digest
    lines = items() | {TASKS[2]["dataset_uri"]: word_lines()[:-1]}
    changed = read_bundle(pinned(monkeypatch, write_bundle(packed, lines=lines)))
    assert changed.digest != made_up.digest


def test_half_a_character_of_a_broken_writer_does_not_stop_the_reader(tmp_path, monkeypatch):
    half = [{"context": "a", "continuation": '"\ud800"'}] * 5
    lines = items() | {TASKS[2]["dataset_uri"]: half}
    packed = write_bundle(tmp_path / "b.zip", lines=lines)
    task = read_bundle(pinned(monkeypatch, packed)).tasks[2]
    assert task.items[0].options == (("a", '"?"'),)


OTHER = (
    f"BUNDLE: expected the published archive of CORE's questions, with the sha256 {SHA256}, and "
)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
REFUSED = {
    "another archive": (write_bundle, f"{OTHER}found a file with the sha256 "),
    "an empty file": (lambda path: path.touch(), f"{OTHER}found a file with the sha256 {EMPTY}. "),
    "a folder": (lambda path: path.mkdir(), f"{OTHER}found a folder. "),
    "nothing": (lambda path: None, "BUNDLE: can't read this bundle of CORE (No such file or dir"),
    "a link to itself": (lambda path: path.symlink_to(path), "BUNDLE: can't read this bundle of"),
    "a pipe": (os.mkfifo, "BUNDLE is not a regular file, so it was not read"),
}


@pytest.mark.parametrize(("write", "expected"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_with_where_the_archive_is(write, expected, tmp_path):
    path = tmp_path / "b.zip"
    write(path)
    with pytest.raises(BadInput) as refused:
        read_bundle(path)
    message = str(refused.value).replace(str(path), "BUNDLE")
    assert message.startswith(expected)
    assert f"curl -fo eval_bundle.zip {URL}" in message or write is os.mkfifo
