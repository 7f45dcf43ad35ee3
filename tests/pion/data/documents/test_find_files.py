"""Which files of a folder are read: none that is hidden, and each for what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pion.data.documents.find_files import JSONL_SUFFIXES, TEXT_SUFFIXES, by_splits, find_files
from pion.errors import BadInput


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def split(folder: Path, *, records: bool = True) -> tuple[list[str], list[str], str]:
    """Return the files that are read, those of them that are held out, and the words."""
    found = by_splits(folder, find_files(folder, JSONL_SUFFIXES, "data")[0], records=records)
    used = [path.relative_to(folder).as_posix() for path in found.files]
    held_out = sorted(path.relative_to(folder).as_posix() for path in found.held_out or ())
    return used, held_out, found.words


def test_hidden_files_and_copies_of_editors_are_left_out_and_said(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "._a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/a.txt")
    files, (words,) = find_files(tmp_path, TEXT_SUFFIXES, "data")
    assert [file.name for file in files] == ["a.txt"]
    assert words.startswith("left out, hidden: 3, such as")


def test_a_folder_in_which_all_files_are_hidden_says_so(tmp_path: Path) -> None:
    make(tmp_path, ".a.txt")
    with pytest.raises(BadInput, match=r"no .* file in the folder .*; left out, hidden: 1"):
        find_files(tmp_path, TEXT_SUFFIXES, "data")


@pytest.mark.parametrize(
    ("names", "used", "held_out"),
    [
        (("train.jsonl", "valid.jsonl", "test.jsonl"), {0, 1}, {1}),
        (("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dev.jsonl"), {0, 1, 2}, {2}),
        (("train/0.jsonl", "validation/0.jsonl", "test/0.jsonl.gz"), {0, 1}, {1}),
        (("chat_train.jsonl", "chat_eval.jsonl"), {0, 1}, {1}),
        (("train.jsonl", "test.jsonl"), {0}, set()),
        (("a.jsonl", "test.jsonl"), {0}, set()),
        (("a.jsonl", "the-test-of-time.jsonl"), {0, 1}, set()),
        (("test.jsonl",), {0}, set()),
        (("a.jsonl", "b.jsonl"), {0, 1}, set()),
    ],
)
def test_names_say_what_is_trained_on_and_what_is_held_out(
    tmp_path: Path, names: tuple[str, ...], used: set[int], held_out: set[int]
) -> None:
    got = split(make(tmp_path, *names))
    assert set(got[0]) == {names[n] for n in used}
    assert set(got[1]) == {names[n] for n in held_out}
    decided = bool(held_out) or len(used) < len(names)
    assert ("by their names" in got[2]) == decided


def test_a_file_that_is_named_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    file = make(tmp_path, "test.jsonl") / "test.jsonl"
    found = by_splits(file, find_files(file, JSONL_SUFFIXES, "data")[0], records=True)
    assert (found.files, found.held_out, found.words) == ((file,), None, "")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://bucket/x.txt", "is not on this machine.*aws s3 cp s3://bucket/x.txt data/"),
        ("hf://user/data", "kind: hub"),
        ("https://example.org/x.jsonl", "curl -LO https://example.org/x.jsonl"),
        ("/proc/self/mem", "shows the state of this machine"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_what_is_no_file_of_this_machine_is_refused_by_what_it_is(path: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        find_files(Path(path), TEXT_SUFFIXES, "data.sources.0.path")
