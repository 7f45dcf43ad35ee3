"""`pion bench`: the bench, with its result where `pion plan` finds it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pion.bench.results import read_results
from pipeline.machine.folders import own_bench_files
from tests.pipeline.conftest import Pion


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pion"


def test_the_result_is_kept_for_this_user_alone(pion: Pion, cache: Path, here: Path) -> None:
    code, out, err = pion("bench", "--tiny", "--only", "losses/pion/float32")
    assert code == 0, err
    (path,) = own_bench_files()
    assert path.parent == cache / "bench"
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [row.name for row in read_results(path).rows] == ["losses/pion/float32"]
    assert str(path) in out


def test_a_file_of_ones_own_choice_leaves_that_folder_alone(
    pion: Pion, cache: Path, here: Path
) -> None:
    assert pion("bench", "--tiny", "--only", "losses/pion/float32", "--out", "mine.json")[0] == 0
    assert all(row.verdict == "right" for row in read_results(here / "mine.json").rows)
    assert not cache.exists()


def test_a_row_that_does_not_exist_is_exit_code_2(pion: Pion, cache: Path) -> None:
    code, out, err = pion("bench", "--tiny", "--only", "speed")
    assert (code, out) == (2, "")
    assert "--only speed: the bench has no such row" in err
