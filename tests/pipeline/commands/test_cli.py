"""`pion try` and `pion bench` from the command line."""

import stat

import pytest

from pion.bench.results import read_results
from pipeline.machine.folders import own_bench_files
from tests.pipeline.search.fake_runs import write_job


def test_the_values_to_vary_are_no_override(here, pion):
    job = write_job(here)
    code, _, err = pion("try", job, "--vary", "pretrain.lr=1e-3", "pretrain.steps=30")
    assert code == 2
    assert "--vary pretrain.lr=1e-3: one value leaves nothing to compare" in err


def test_overrides_hold_for_all_runs_before_and_after_options(here, pion):
    job = write_job(here)
    code, _, err = pion(
        "try", job, "pretrain.steps=1", "--vary", "pretrain.lr=1e-3,2e-3", "pretrain.warmup_steps=0"
    )
    assert code == 2
    assert "pretrain.steps 1: too few to compare 2 settings" in err


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pion"


def test_the_result_is_kept_for_this_user_alone(pion, cache, here):
    code, out, err = pion("bench", "--tiny", "--only", "losses/pion/float32")
    assert code == 0, err
    (path,) = own_bench_files()
    assert path.parent == cache / "bench"
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [row.name for row in read_results(path).rows] == ["losses/pion/float32"]
    assert str(path) in out


def test_a_file_of_ones_own_choice_leaves_that_folder_alone(pion, cache, here):
    assert pion("bench", "--tiny", "--only", "losses/pion/float32", "--out", "mine.json")[0] == 0
    assert all(row.verdict == "right" for row in read_results(here / "mine.json").rows)
    assert not cache.exists()


def test_a_row_that_does_not_exist_is_exit_code_2(pion, cache):
    code, out, err = pion("bench", "--tiny", "--only", "speed")
    assert (code, out) == (2, "")
    assert "--only speed: the bench has no such row" in err
