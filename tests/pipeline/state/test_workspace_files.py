"""Files get into another folder as links, or as copies where links are not possible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.state.workspace import files_below, link_or_copy


def refuse(*_: object) -> None:
    raise OSError("no links here")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_linked_or_copied_over_what_was_there_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    for _ in range(2):  # the second time, it is the same file already
        link_or_copy(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    assert os.path.samefile(tmp_path / "new", tmp_path / "old") == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_hidden_files_are_temporary_and_not_listed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two", "a", "b/.two.part"):
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path)] == ["a", "b/two"]
